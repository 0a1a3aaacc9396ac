//! A control plane of the test's own: xDS with one pod, and a certificate authority. It has a runtime of its own, so that
//! it can go away as a process does, with all its connections.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use seine_identity::{Credentials, SharedBundles, Svid, TlsOptions, TrustBundles, X509Bundle};
use seine_proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use seine_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use seine_proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use seine_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use seine_ztunnel::netns::Netns;
use seine_ztunnel::sockets::listen;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::support::unused_port;

pub(crate) const SERVER_NAME: &str = "seine-control.seine-system.svc";

/// What the control plane knows, also while it does not run.
pub(crate) struct Control {
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
    resources: Vec<Resource>,
    pub(crate) port: u16,
}

/// The control plane as long as it runs.
pub(crate) struct Running(Option<tokio::runtime::Runtime>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Its port is free when this is over. A thread, since a runtime must not block.
            let end = move || runtime.shutdown_timeout(Duration::from_secs(10));
            std::thread::spawn(end).join().unwrap();
        }
    }
}

impl Control {
    /// Writes what its clients need into `folder`.
    pub(crate) fn new(resources: Vec<Resource>, folder: &Path) -> Self {
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.join("roots.pem"), issuer.pem()).unwrap();
        std::fs::write(folder.join("token"), "secret").unwrap();
        Self {
            issuer: Arc::new(issuer),
            resources,
            port: unused_port(),
        }
    }

    pub(crate) fn start(&self) -> Running {
        self.start_with(true, true, &Netns::home())
    }

    /// On the loopback of a pod.
    pub(crate) fn start_in(&self, netns: &Netns) -> Running {
        self.start_with(true, true, netns)
    }

    /// Certificates alone: every configuration stream ends at once.
    pub(crate) fn start_without_xds(&self) -> Running {
        self.start_with(false, true, &Netns::home())
    }

    /// Configuration alone: every request for a certificate fails.
    pub(crate) fn start_without_ca(&self) -> Running {
        self.start_with(true, false, &Netns::home())
    }

    fn start_with(&self, xds: bool, ca: bool, netns: &Netns) -> Running {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &*self.issuer).unwrap();
        let identity = Identity::from_pem(leaf.pem(), key.serialize_pem());
        let service = Service {
            issuer: self.issuer.clone(),
            resources: self.resources.clone(),
            xds,
            ca,
        };
        let address = ([127, 0, 0, 1], self.port).into();
        let netns = netns.clone();
        runtime.spawn(async move {
            let listener = listen(&netns, address, false).unwrap();
            Server::builder()
                .tls_config(ServerTlsConfig::new().identity(identity))
                .unwrap()
                .add_service(AggregatedDiscoveryServiceServer::new(service.clone()))
                .add_service(IstioCertificateServiceServer::new(service))
                .serve_with_incoming(TcpIncoming::from(listener))
                .await
                .unwrap();
        });
        Running(Some(runtime))
    }

    /// Credentials of a client, without asking the service.
    pub(crate) fn credentials(&self, service_account: &str) -> Arc<Credentials> {
        let uri = format!("spiffe://cluster.local/ns/shop/sa/{service_account}");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        as_leaf(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &*self.issuer).unwrap();
        let domain = seine_identity::TrustDomain::new("cluster.local").unwrap();
        let bundle = X509Bundle::from_x509_authorities(domain, &[self.issuer.der()]).unwrap();
        let bundles = SharedBundles::new(TrustBundles::new().with(bundle.clone()).unwrap());
        let chain = vec![certificate.der().clone()];
        let svid = Svid::new(chain, key.serialize_der().into(), bundle).unwrap();
        Arc::new(
            Credentials::new(Arc::new(svid), Arc::new(bundles), TlsOptions::default()).unwrap(),
        )
    }
}

fn as_leaf(params: &mut CertificateParams) {
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let now = std::time::SystemTime::now();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + Duration::from_secs(3600)).into();
}

#[derive(Clone)]
struct Service {
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
    resources: Vec<Resource>,
    xds: bool,
    ca: bool,
}

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        if !self.xds {
            return Err(Status::unavailable("no configuration here"));
        }
        let all = self.resources.clone();
        let answers = request.into_inner().filter_map(move |request| {
            let Ok(request) = request else {
                return futures::future::ready(None);
            };
            let of_type = |resource: &Resource| {
                let content = resource.resource.as_ref();
                content.is_some_and(|content| content.type_url == request.type_url)
            };
            let push = DeltaDiscoveryResponse {
                resources: all.iter().filter(|one| of_type(one)).cloned().collect(),
                type_url: request.type_url.clone(),
                nonce: format!("nonce of {}", request.type_url),
                ..Default::default()
            };
            let opening = request.response_nonce.is_empty();
            futures::future::ready(opening.then_some(Ok(push)))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        if !self.ca {
            return Err(Status::unavailable("no certificates here"));
        }
        let mut csr = CertificateSigningRequestParams::from_pem(&request.get_ref().csr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        as_leaf(&mut csr.params);
        let leaf = csr.signed_by(&self.issuer).unwrap();
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![leaf.pem(), self.issuer.pem()],
        }))
    }
}
