//! [`Spire`]: certificates and trust bundles from the SPIRE agent of this node.
//!
//! A node proxy is a delegate of the agent: it asks at the agent's admin socket, by the Delegated Identity API, for the
//! SVID of a pod's namespace and service account. A proxy of one pod asks for its own by the SPIFFE Workload API. SPIRE
//! makes the keys, and new ones at half of a certificate's life; we ask again when half of what is left is over.
//!
//! Whom to trust, the agent says at any time: [`Spire::follow_bundles`] hands it to the certificate manager.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use rustls_pki_types::CertificateDer;
use spiffe::transport::{Endpoint, TransportError, connect};
use spiffe::{TrustDomain, WorkloadApiClient, WorkloadApiError, X509BundleSet, X509Svid};
use spire_api::pb::spire::api::agent::delegatedidentity::v1 as delegated;
use spire_api::selectors::{K8s, Selector};
use spire_api::{DelegatedIdentityClient, DelegatedIdentityError};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use crate::identity::{Identity, shorten};
use crate::manager::CertificateManager;
use crate::source::{CertificateSource, SourceError, chain_of};
use crate::svid::Svid;

/// How long the agent may take to say whom its own domain trusts.
const BUNDLE_WAIT: Duration = Duration::from_secs(5);
/// Between attempts to follow the bundles: doubled from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// By which of the agent's APIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpireApi {
    /// Delegated Identity: certificates of all pods of the node, at the agent's admin socket.
    Delegated,
    /// SPIFFE Workload API: those of this process.
    Workload,
}

/// How to reach the agent.
#[derive(Debug, Clone)]
pub struct SpireOptions {
    /// Its Unix socket.
    pub socket: PathBuf,
    /// What it speaks there.
    pub api: SpireApi,
    /// The trust domain of this mesh.
    pub trust_domain: TrustDomain,
}

/// A client of the agent. It connects for each request: an agent that was restarted is met by the next one.
#[derive(Debug)]
pub struct Spire {
    options: SpireOptions,
    bundles: watch::Sender<Arc<X509BundleSet>>,
}

impl Spire {
    /// Does no I/O.
    pub fn new(options: SpireOptions) -> Self {
        Self {
            options,
            bundles: watch::Sender::default(),
        }
    }

    /// Trusts whom the agent says, from now on: the roots of this mesh's domain, and those of the domains that it
    /// federates with. A domain that the agent doesn't name any more is not trusted any more. While the agent is away
    /// what it said last holds. Never ends.
    pub async fn follow_bundles(self: Arc<Self>, certificates: CertificateManager) {
        let mut trusted = BTreeSet::new();
        let mut wait = BACKOFF.0;
        loop {
            let ended = match self.bundle_stream().await {
                Ok(stream) => {
                    let followed = self.follow(stream, &certificates, &mut trusted).await;
                    if followed.taken {
                        wait = BACKOFF.0;
                    }
                    followed.ended
                }
                Err(error) => error,
            };
            warn!(spire = %self.name(), error = ended, "its trust bundles are not followed; what was trusted stays");
            sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    async fn follow(
        &self,
        mut stream: BoxStream<'static, Result<X509BundleSet, String>>,
        certificates: &CertificateManager,
        trusted: &mut BTreeSet<TrustDomain>,
    ) -> Followed {
        let mut changes = certificates.changes();
        let mut taken = false;
        loop {
            tokio::select! {
                next = stream.next() => match next {
                    Some(Ok(set)) if set.get_ref(&self.options.trust_domain).is_none() => error!(
                        spire = %self.name(), trust_domain = %self.options.trust_domain,
                        "it has no roots of this mesh's trust domain: is it SPIRE's? What was trusted stays"
                    ),
                    Some(Ok(set)) => {
                        self.bundles.send_replace(Arc::new(set));
                        taken = true;
                    }
                    Some(Err(ended)) => return Followed { taken, ended },
                    None => return Followed { taken, ended: "the agent ended the stream".into() },
                },
                // A certificate that was asked for before brings the roots of that time.
                changed = changes.changed() => if changed.is_err() {
                    return Followed { taken, ended: "nobody needs them any more".into() };
                },
            }
            self.trust(certificates, trusted);
        }
    }

    fn trust(&self, certificates: &CertificateManager, trusted: &mut BTreeSet<TrustDomain>) {
        let set = Arc::clone(&self.bundles.borrow());
        for (trust_domain, bundle) in set.iter() {
            if let Err(error) = certificates.set_bundle((**bundle).clone()) {
                error!(spire = %self.name(), %trust_domain, %error, "its roots can't be used; those before stay");
            } else if trusted.insert(trust_domain.clone()) {
                info!(spire = %self.name(), %trust_domain, "trusted");
            }
        }
        trusted.retain(|trust_domain| {
            let named = set.get_ref(trust_domain).is_some();
            if !named {
                certificates.withdraw_bundle(trust_domain);
                warn!(spire = %self.name(), %trust_domain, "not trusted any more");
            }
            named
        });
    }

    async fn bundle_stream(
        &self,
    ) -> Result<BoxStream<'static, Result<X509BundleSet, String>>, String> {
        let words = |error: DelegatedIdentityError| error.to_string();
        let workload = |error: WorkloadApiError| error.to_string();
        Ok(match self.options.api {
            SpireApi::Delegated => {
                let client =
                    DelegatedIdentityClient::new(self.connect().await.map_err(|e| chain_of(&e))?);
                let stream = client.stream_x509_bundles().await.map_err(words)?;
                stream.map_err(words).boxed()
            }
            SpireApi::Workload => {
                let client = self.workload_api().await.map_err(workload)?;
                let stream = client.stream_x509_bundles().await.map_err(workload)?;
                stream.map_err(workload).boxed()
            }
        })
    }

    async fn request(&self, identity: &Identity) -> Result<Svid, SourceError> {
        let svids = match self.options.api {
            SpireApi::Delegated => self.delegated(identity).await?,
            SpireApi::Workload => self.own().await?,
        };
        let others = svids.len();
        let found = svids
            .into_iter()
            .find(|svid| svid.spiffe_id().to_string() == identity.as_str());
        let svid = found.ok_or_else(|| self.unregistered(identity, others))?;
        let chain = svid.cert_chain().iter();
        let chain = chain.map(|certificate| CertificateDer::from(certificate.as_bytes().to_vec()));
        let key = Zeroizing::new(svid.private_key().as_bytes().to_vec());
        let domain = identity.trust_domain();
        let mut bundles = self.bundles.subscribe();
        let known = bundles.wait_for(|set| set.get_ref(domain).is_some());
        let set = timeout(BUNDLE_WAIT, known).await;
        let set =
            set.map_err(|_| self.unavailable(format!("it has not said whom {domain} trusts")));
        let set = set?.map_err(|_| self.unavailable("nobody follows its bundles".into()))?;
        let bundle = set.get_ref(domain).map(|bundle| (**bundle).clone());
        drop(set);
        let bundle = bundle.ok_or_else(|| self.unavailable("its bundle went".into()))?;
        Svid::new(chain.collect(), key, bundle)
            .and_then(|svid| svid.expect(identity))
            .map_err(|error| SourceError::bad_answer(&self.name(), &error))
    }

    /// All SVIDs that the agent gives to a pod of this namespace and service account.
    async fn delegated(&self, identity: &Identity) -> Result<Vec<X509Svid>, SourceError> {
        let channel = self.connect().await;
        let channel = channel.map_err(|error| self.unavailable(chain_of(&error)))?;
        let mut client =
            delegated::delegated_identity_client::DelegatedIdentityClient::new(channel);
        let request = delegated::SubscribeToX509sviDsRequest {
            selectors: selectors(identity).map(Into::into).into(),
            pid: 0,
        };
        let answer = client.subscribe_to_x509svi_ds(request).await;
        let mut answers = answer.map_err(|status| self.failure(&status))?.into_inner();
        let first = answers.message().await;
        let first = first.map_err(|status| self.failure(&status))?;
        let svids = first.map(|answer| answer.x509_svids).unwrap_or_default();
        svids
            .iter()
            .map(|svid| {
                let chain = svid.x509_svid.as_ref().map(|svid| svid.cert_chain.concat());
                X509Svid::parse_from_der(&chain.unwrap_or_default(), &svid.x509_svid_key)
                    .map_err(|error| self.bad(error.to_string()))
            })
            .collect()
    }

    /// All SVIDs of this process.
    async fn own(&self) -> Result<Vec<X509Svid>, SourceError> {
        let failure = |error: WorkloadApiError| match error {
            WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_) => self
                .refused(format!(
                    "{error}: no registration entry matches this process"
                )),
            WorkloadApiError::Transport(_) | WorkloadApiError::EmptyResponse => {
                self.unavailable(error.to_string())
            }
            _ => self.bad(error.to_string()),
        };
        let client = self.workload_api().await.map_err(failure)?;
        client.fetch_all_x509_svids().await.map_err(failure)
    }

    async fn workload_api(&self) -> Result<WorkloadApiClient, WorkloadApiError> {
        WorkloadApiClient::connect(self.endpoint()).await
    }

    async fn connect(&self) -> Result<Channel, TransportError> {
        connect(&self.endpoint()).await
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.options.socket.clone())
    }

    fn unregistered(&self, identity: &Identity, others: usize) -> SourceError {
        let whom = match self.options.api {
            SpireApi::Workload => "this process".to_owned(),
            SpireApi::Delegated => selectors(identity).map(text).join(" and "),
        };
        let but = match others {
            0 => String::new(),
            others => format!(" (but {others} with another SPIFFE ID)"),
        };
        self.refused(format!(
            "no registration entry gives {identity} to {whom}{but}"
        ))
    }

    fn failure(&self, status: &Status) -> SourceError {
        let words = format!("{:?}: {}", status.code(), shorten(status.message()));
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => self.refused(format!(
                "{words}; is this proxy's SPIFFE ID in the agent's authorized_delegates?"
            )),
            Code::InvalidArgument | Code::Unimplemented => self.refused(words),
            _ => self.unavailable(words),
        }
    }

    fn refused(&self, reason: String) -> SourceError {
        SourceError::Refused {
            source_name: self.name(),
            reason,
        }
    }

    fn unavailable(&self, reason: String) -> SourceError {
        SourceError::Unavailable {
            source_name: self.name(),
            reason,
        }
    }

    fn bad(&self, reason: String) -> SourceError {
        SourceError::BadAnswer {
            source_name: self.name(),
            reason,
        }
    }

    fn name(&self) -> String {
        format!("SPIRE agent {}", self.options.socket.display())
    }
}

impl CertificateSource for Spire {
    fn fetch<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Svid, SourceError>> {
        Box::pin(self.request(identity))
    }
}

/// How a stream of bundles went.
struct Followed {
    /// Whether any came.
    taken: bool,
    /// Why it ended.
    ended: String,
}

/// What SPIRE's attestor of Kubernetes pods would find.
fn selectors(identity: &Identity) -> [Selector; 2] {
    [
        Selector::K8s(K8s::Namespace(identity.namespace().to_owned())),
        Selector::K8s(K8s::ServiceAccount(identity.service_account().to_owned())),
    ]
}

fn text(selector: Selector) -> String {
    let selector = spire_api::pb::spire::api::types::Selector::from(selector);
    format!("{}:{}", selector.r#type, selector.value)
}
