//! `IstioCertificateService`: authenticates the caller, checks the request, asks whether the node
//! may have this identity, signs, and logs the outcome. Runs on tonic's tasks; holds no state.

use std::sync::Arc;
use std::time::Duration;

use seine_identity::Identity;
use seine_proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use seine_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use seine_telemetry::{Lines, limited};
use tonic::{Request, Response, Status};
use tracing::info;

use super::authority::{Authority, Issued};
use super::csr::CsrFacts;
use crate::authn::{self, Authenticator, Caller};

/// The key in a request's metadata under which a node proxy names the identity that it asks for.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Any pod can ask, with a token or without.
static LINES: Lines = Lines::new();

/// Which identities a node may have certificates for.
pub trait NodeAuthorizer: Send + Sync + 'static {
    /// Whether an unfinished, opted-in pod with this identity's namespace and service account runs
    /// on this node.
    ///
    /// # Errors
    ///
    /// The reason why not, for the log and the caller.
    fn may_issue(&self, node: &str, identity: &Identity) -> Result<(), String>;
}

/// The gRPC service.
pub struct CertificateService {
    authority: Arc<Authority>,
    authenticator: Arc<dyn Authenticator>,
    nodes: Arc<dyn NodeAuthorizer>,
    trusted_accounts: Vec<String>,
}

impl CertificateService {
    /// `trusted_accounts` are the service accounts (`namespace/name`) of node proxies: they alone
    /// may ask for other identities than their own, and for those of their node only.
    pub fn new(
        authority: Arc<Authority>,
        authenticator: Arc<dyn Authenticator>,
        nodes: Arc<dyn NodeAuthorizer>,
        trusted_accounts: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            authority,
            authenticator,
            nodes,
            trusted_accounts: trusted_accounts.into_iter().collect(),
        }
    }

    /// For a tonic router.
    pub fn into_server(self) -> IstioCertificateServiceServer<Self> {
        // A request has a CSR of some hundred bytes.
        IstioCertificateServiceServer::new(self).max_decoding_message_size(64 * 1024)
    }

    /// The certificate, or what the caller is told.
    async fn judge(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
    ) -> Result<(Identity, Issued), Status> {
        let csr = CsrFacts::from_pem(&request.csr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let domain = &self.authority.options().trust_domain;
        if csr.identity.trust_domain() != domain {
            return Err(Status::permission_denied(format!(
                "{} is not of trust domain {domain}",
                csr.identity
            )));
        }
        match impersonated(request)? {
            Some(identity) if identity != csr.identity => {
                return Err(Status::invalid_argument(format!(
                    "the CSR is for {}, {IMPERSONATED} is {identity}",
                    csr.identity
                )));
            }
            Some(identity) => self.node_may(caller, &identity)?,
            None => self.own(caller, &csr.identity)?,
        }
        let asked = u64::try_from(request.validity_duration).unwrap_or_default();
        let issued = self
            .authority
            .issue(&csr.identity, &csr.public_key, Duration::from_secs(asked))
            .map_err(|error| {
                tracing::error!(identity = %csr.identity, %error, "signing failed");
                Status::internal("the certificate authority can't sign now; its log says why")
            })?;
        Ok((csr.identity, issued))
    }

    fn node_may(&self, caller: &Caller, identity: &Identity) -> Result<(), Status> {
        if !self.trusted_accounts.contains(&caller.account()) {
            return Err(Status::permission_denied(format!(
                "{} is not a node proxy's account and may not ask for {identity}",
                caller.account()
            )));
        }
        let node = caller.node.as_deref().ok_or_else(|| {
            Status::permission_denied("the token names no node; a node proxy's must")
        })?;
        self.nodes.may_issue(node, identity).map_err(|reason| {
            Status::permission_denied(format!("node {node} may not have {identity}: {reason}"))
        })
    }

    /// Without impersonation a caller gets its own identity and no other.
    fn own(&self, caller: &Caller, identity: &Identity) -> Result<(), Status> {
        if identity.namespace() == caller.namespace
            && identity.service_account() == caller.service_account
        {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "{} may not ask for {identity} without {IMPERSONATED}",
            caller.account()
        )))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let from = request.remote_addr();
        let from = from.as_ref().map(tracing::field::display);
        let caller = authn::caller(&*self.authenticator, request.metadata())
            .await
            .map_err(|error| {
                limited!(LINES, "caller", warn: from, reason = %error, "certificate refused: unknown caller");
                error.status()
            })?;
        match self.judge(&caller, request.get_ref()).await {
            Ok((identity, issued)) => {
                let serial = issued.serial;
                if self.trusted_accounts.contains(&caller.account()) {
                    info!(%identity, serial, %caller, from, "certificate issued");
                } else {
                    limited!(LINES, "issued", info: %identity, serial, %caller, from, "certificate issued");
                }
                Ok(Response::new(IstioCertificateResponse {
                    cert_chain: issued.chain,
                }))
            }
            Err(status) => {
                limited!(
                    LINES, "request",
                    warn: %caller, from, code = ?status.code(), reason = status.message(), "certificate refused"
                );
                Err(status)
            }
        }
    }
}

/// The identity that a node proxy asks for, if it names one.
fn impersonated(request: &IstioCertificateRequest) -> Result<Option<Identity>, Status> {
    use prost_types::value::Kind;
    let Some(metadata) = &request.metadata else {
        return Ok(None);
    };
    let Some(value) = metadata.fields.get(IMPERSONATED) else {
        return Ok(None);
    };
    let Some(Kind::StringValue(text)) = &value.kind else {
        return Err(Status::invalid_argument(format!(
            "{IMPERSONATED} is no string"
        )));
    };
    text.parse()
        .map(Some)
        .map_err(|error| Status::invalid_argument(format!("{IMPERSONATED}: {error}")))
}
