//! The CA in a Secret that every replica reads and the leader writes.
//!
//! A write names the resourceVersion that was read, so the API server lets only one of two through.
//! The request for a new root is the annotation `seine.dev/rotate-root`, whatever its value.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use super::{Loaded, Revision, Store};
use crate::ca::CaError;
use crate::ca::material::{Material, STATE, is_key_file};

/// The Secret's name.
const NAME: &str = "seine-ca";
const TRIGGER: &str = "seine.dev/rotate-root";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// A replica that could not read the Secret for so long signs no more; so long a rotation waits for
/// it.
const LAG: Duration = Duration::from_secs(600);

/// Secret `seine-ca` of a namespace.
pub struct SecretStore {
    secrets: Api<Secret>,
    namespace: String,
    changed: std::sync::Arc<Notify>,
    _watch: AbortOnDropHandle<()>,
}

impl SecretStore {
    /// Of this namespace. Must be called within a tokio runtime.
    pub fn new(client: Client, namespace: &str) -> Self {
        let secrets = Api::<Secret>::namespaced(client, namespace);
        let changed = std::sync::Arc::new(Notify::new());
        let (notify, watched) = (changed.clone(), secrets.clone());
        let watch = tokio::spawn(async move {
            let events = watcher::watch_object(watched, NAME).default_backoff();
            let mut events = pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(_) => notify.notify_one(),
                    Err(error) => {
                        tracing::warn!(secret = NAME, %error, "watching the CA's Secret failed; tried again");
                    }
                }
            }
        });
        Self {
            secrets,
            namespace: namespace.into(),
            changed,
            _watch: AbortOnDropHandle::new(watch),
        }
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(kube::Error) -> CaError + use<> {
        let object = self.place();
        move |source| match &source {
            kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() => {
                CaError::Conflict(object)
            }
            _ => CaError::Api {
                action,
                object,
                source: Box::new(source),
            },
        }
    }

    async fn read(&self) -> Result<Option<Secret>, CaError> {
        self.secrets
            .get_opt(NAME)
            .await
            .map_err(self.failed("reading"))
    }

    fn loaded(&self, secret: Option<Secret>) -> Result<Loaded, CaError> {
        let Some(secret) = secret else {
            return Ok(Loaded::default());
        };
        let revision = secret.resource_version().map(Revision);
        let rotation_asked = secret.annotations().contains_key(TRIGGER);
        Ok(Loaded {
            material: self.material(secret.data.unwrap_or_default())?,
            revision,
            rotation_asked,
        })
    }

    fn material(&self, data: BTreeMap<String, ByteString>) -> Result<Option<Material>, CaError> {
        let wrong = |reason| CaError::Material {
            place: self.place(),
            reason,
        };
        let mut files = BTreeMap::new();
        let mut state = None;
        for (name, ByteString(value)) in data {
            let text = String::from_utf8(value)
                .map(Zeroizing::new)
                .map_err(|error| wrong(format!("{name}: {}", error.utf8_error())))?;
            if name == STATE {
                state = Some(text);
            } else if is_key_file(&name) {
                files.insert(name, text);
            }
        }
        match state {
            Some(state) => Material::from_files(&self.place(), &state, files).map(Some),
            None if files.is_empty() => Ok(None),
            // A new root here would cut off everybody who trusts the old one.
            None => Err(wrong(format!(
                "has keys but no {STATE}: restore it, or for a new CA delete the Secret while no replica runs"
            ))),
        }
    }
}

#[tonic::async_trait]
impl Store for SecretStore {
    fn place(&self) -> String {
        format!("Secret {}/{NAME}", self.namespace)
    }

    fn lag(&self) -> Duration {
        LAG
    }

    async fn load(&self) -> Result<Loaded, CaError> {
        let secret = self.read().await?;
        self.loaded(secret)
    }

    async fn poll(&self, seen: Option<&Revision>) -> Result<Loaded, CaError> {
        let mut loaded = self.load().await?;
        if loaded.revision.as_ref() == seen {
            loaded.material = None;
        }
        Ok(loaded)
    }

    async fn replace(
        &self,
        material: &Material,
        over: Option<&Revision>,
    ) -> Result<Revision, CaError> {
        let mut data: BTreeMap<String, ByteString> = material
            .files()
            .iter()
            .map(|(name, pem)| (name.clone(), ByteString(pem.as_bytes().to_vec())))
            .collect();
        data.insert(STATE.into(), ByteString(material.state_json().into_bytes()));
        let parameters = PostParams::default();
        let written = match over {
            None => {
                let labels = [(MANAGED_BY.to_owned(), "seine-control".to_owned())];
                let secret = Secret {
                    metadata: ObjectMeta {
                        name: Some(NAME.into()),
                        labels: Some(labels.into()),
                        ..ObjectMeta::default()
                    },
                    data: Some(data),
                    ..Secret::default()
                };
                self.secrets.create(&parameters, &secret).await
            }
            Some(Revision(version)) => {
                // What others wrote beside the data stays.
                let Some(mut secret) = self.read().await? else {
                    return Err(CaError::Conflict(self.place()));
                };
                secret.metadata.resource_version = Some(version.clone());
                secret.metadata.managed_fields = None;
                secret.data = Some(data);
                self.secrets.replace(NAME, &parameters, &secret).await
            }
        };
        let written = written.map_err(self.failed("writing"))?;
        Ok(Revision(written.resource_version().unwrap_or_default()))
    }

    async fn rotation_answered(&self) -> Result<(), CaError> {
        let patch = serde_json::json!({"metadata": {"annotations": {TRIGGER: null}}});
        self.secrets
            .patch_metadata(NAME, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map(drop)
            .map_err(self.failed("annotating"))
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl std::fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.place())
    }
}
