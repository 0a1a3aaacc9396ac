//! Watches the Secret of an intermediate from outside and says what of it can be used.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use seine_identity::TrustDomain;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::CaError;
use super::external::{External, Intermediate, SECRET};

/// One that begins later, or ends, is found at the latest then.
const AGAIN: Duration = Duration::from_secs(60);

/// What Secret `seine-intermediate` of the namespace has, now and from now on while the handle
/// lives.
///
/// # Errors
///
/// When the API server can't be asked.
pub async fn follow_external(
    client: Client,
    namespace: &str,
    trust_domain: TrustDomain,
) -> Result<(watch::Receiver<External>, AbortOnDropHandle<()>), CaError> {
    let secrets = Api::<Secret>::namespaced(client, namespace);
    let place = format!("Secret {namespace}/{SECRET}");
    let first = secrets
        .get_opt(SECRET)
        .await
        .map_err(|source| CaError::Api {
            action: "reading",
            object: place.clone(),
            source: Box::new(source),
        })?;
    let (sender, receiver) = watch::channel(judge(first.as_ref(), &trust_domain));
    if let External::Invalid(reason) = &*receiver.borrow() {
        warn!(place, reason, "the intermediate can't be used");
    }
    let task = tokio::spawn(async move {
        let mut last = first;
        let events = watcher::watch_object(secrets, SECRET).default_backoff();
        let mut events = pin!(events);
        loop {
            let event = tokio::time::timeout(AGAIN, events.next()).await;
            match event {
                Ok(Some(Ok(secret))) => last = secret,
                Ok(Some(Err(error))) => {
                    warn!(place, %error, "watching failed; tried again");
                    continue;
                }
                Ok(None) => return,
                Err(_) => {}
            }
            let found = judge(last.as_ref(), &trust_domain);
            sender.send_if_modified(|known| {
                let changed = !known.is_same(&found);
                if changed {
                    match &found {
                        External::Absent => info!(place, "there is no intermediate from outside"),
                        External::Valid(given) => info!(place, ?given, "a good intermediate"),
                        External::Invalid(reason) => {
                            warn!(
                                place,
                                reason, "can't be used; the last good intermediate stays"
                            );
                        }
                    }
                }
                *known = found;
                changed
            });
        }
    });
    Ok((receiver, AbortOnDropHandle::new(task)))
}

fn judge(secret: Option<&Secret>, trust_domain: &TrustDomain) -> External {
    let Some(secret) = secret.filter(|secret| secret.metadata.deletion_timestamp.is_none()) else {
        return External::Absent;
    };
    let name = secret.name_any();
    if secret.type_.as_deref() != Some("kubernetes.io/tls") {
        let found = secret.type_.as_deref().unwrap_or("none");
        return External::Invalid(format!("{name} is of type {found}, not kubernetes.io/tls"));
    }
    let empty = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let field = |name: &str| -> Result<&[u8], String> {
        match data.get(name) {
            Some(ByteString(value)) if !value.is_empty() => Ok(value),
            _ => Err(format!("{name} is missing or empty")),
        }
    };
    let check = || {
        Intermediate::check(
            field("tls.crt")?,
            field("tls.key")?,
            field("ca.crt")?,
            trust_domain,
            SystemTime::now(),
        )
    };
    match check() {
        Ok(given) => External::Valid(given),
        Err(reason) => External::Invalid(reason),
    }
}
