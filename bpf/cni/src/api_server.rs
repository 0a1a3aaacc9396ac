//! The question to the API server whether a pod is opted in. It is asked only while the agent is away, and only of a
//! namespace that the agent never saw.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::Client;
use seine_objects::Enrolment;
use seine_objects::EnrolmentSettings;
use seine_objects::ObjectKey;
use seine_objects::ObjectSet;
use seine_objects::enrolment;
use seine_objects::pods;

/// A pod, as the runtime names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PodName<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) uid: Option<&'a str>,
}

/// Why it is not known. In each case the next try may bring an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("start a runtime: {0}")]
    Runtime(#[from] std::io::Error),
    #[error(transparent)]
    Connect(#[from] seine_kubernetes::ConnectError),
    #[error("{what}: {source}")]
    Request { what: String, source: kube::Error },
    #[error("it did not answer within {0:?}")]
    Timeout(Duration),
    #[error("its pod {name} has UID {found:?}, the runtime starts {wanted:?}")]
    OtherPod {
        name: String,
        found: String,
        wanted: String,
    },
}

/// Decides by what the API server says, as the agent would. Takes no longer than `limit`.
///
/// # Errors
///
/// See [`AskError`].
pub(crate) fn ask(
    kubeconfig: &Path,
    limit: Duration,
    pod: PodName<'_>,
    settings: &EnrolmentSettings,
) -> Result<Enrolment, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = async {
        let client = seine_kubernetes::client(Some(kubeconfig)).await?;
        decide(client, pod, settings).await
    };
    runtime
        .block_on(async { tokio::time::timeout(limit, answer).await })
        .map_err(|_| AskError::Timeout(limit))?
}

/// One request for the namespace; where it is opted in, one for the pod, which may have opted out.
async fn decide(
    client: Client,
    pod: PodName<'_>,
    settings: &EnrolmentSettings,
) -> Result<Enrolment, AskError> {
    let failed = |what: String| move |source| AskError::Request { what, source };
    let namespace = Api::<Namespace>::all(client.clone())
        .get(pod.namespace)
        .await
        .map_err(failed(format!("get namespace {}", pod.namespace)))?;
    if !enrolment::namespace_opted_in(&namespace, settings) {
        return Ok(Enrolment::NotOptedIn);
    }
    let name = format!("{}/{}", pod.namespace, pod.name);
    let found = Api::<Pod>::namespaced(client, pod.namespace)
        .get(pod.name)
        .await
        .map_err(failed(format!("get pod {name}")))?;
    if let (Some(wanted), Some(found)) = (pod.uid, pods::node_uid(&found))
        && wanted != found
    {
        return Err(AskError::OtherPod {
            name,
            found: found.to_owned(),
            wanted: wanted.to_owned(),
        });
    }
    // Without the runtime classes a sandboxed pod may wait for the agent's word; none starts by mistake.
    let mut objects = ObjectSet::default();
    let key = ObjectKey::cluster(pod.namespace);
    objects.namespaces.insert(key, namespace.into());
    Ok(enrolment(&objects, pod.namespace, &found, settings))
}
