//! The authority, its rotation, and the gRPC service against the real client on loopback.

mod external;
mod secret;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use seine_identity::{
    CertificateManager, CertificateSource, Identity, ManagerOptions, MeshCa, MeshCaOptions,
    RenewalRules, SharedBundles, SourceError, TrustDomain,
};
use seine_proto::ca::IstioCertificateRequest;
use seine_proto::ca::istio_certificate_service_server::IstioCertificateService;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::{Code, Request, Status};

use super::{
    Authority, CaError, CaOptions, CertificateService, DirectoryStore, External, NodeAuthorizer,
    Phase, server_tls,
};
use crate::authn::tests::TestIssuer;

const DAY: Duration = Duration::from_secs(24 * 3600);
const ZTUNNEL: &str = "seine-system/seine-ztunnel";
const SERVER: &str = "seine-control.seine-system.svc";

fn options() -> CaOptions {
    CaOptions::new(TrustDomain::new("cluster.local").unwrap())
}

async fn open_with(options: CaOptions, directory: &Path) -> Result<Arc<Authority>, CaError> {
    open_at(options, directory, SystemTime::now()).await
}

async fn open(directory: &Path) -> Result<Arc<Authority>, CaError> {
    open_with(options(), directory).await
}

async fn open_at(
    options: CaOptions,
    directory: &Path,
    now: SystemTime,
) -> Result<Arc<Authority>, CaError> {
    let store = Box::new(DirectoryStore::open(directory)?);
    let (_, external) = watch::channel(External::Absent);
    Authority::open_at(options, store, external, now).await
}

fn id(text: &str) -> Identity {
    format!("spiffe://cluster.local/ns/{text}").parse().unwrap()
}

fn leaf(authority: &Authority) -> Vec<CertificateDer<'static>> {
    leaf_at(authority, SystemTime::now())
}

fn leaf_at(authority: &Authority, now: SystemTime) -> Vec<CertificateDer<'static>> {
    let key = KeyPair::generate().unwrap();
    let name = SanType::URI(id("shop/sa/api").as_str().try_into().unwrap());
    authority
        .sign(vec![name], &key, Duration::ZERO, now)
        .unwrap()
        .der
}

/// Whether a chain ends in one of these roots at this time.
fn trusted(chain: &[CertificateDer<'_>], roots: &str, now: SystemTime) -> bool {
    let mut store = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let parsed = rustls::server::ParsedCertificate::try_from(&chain[0]).unwrap();
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &store,
        &chain[1..],
        UnixTime::since_unix_epoch(now),
        seine_identity::crypto_provider()
            .signature_verification_algorithms
            .all,
    )
    .is_ok()
}

#[tokio::test]
async fn a_ca_is_made_once_and_loaded_after() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("ca");
    let first = open(&path).await.unwrap();
    let (chain, roots) = (leaf(&first), first.roots_pem());
    assert!(trusted(&chain, &roots, SystemTime::now()));
    assert_eq!(
        fs::read_to_string(path.join("root-cert.pem")).unwrap(),
        roots
    );
    drop(first);
    let second = open(&path).await.unwrap();
    assert_eq!(second.roots_pem(), roots);
    assert!(trusted(&leaf(&second), &roots, SystemTime::now()));

    for entry in fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        let expected = if entry.file_name() == "root-cert.pem" {
            0o644
        } else {
            0o600
        };
        assert_eq!(mode, expected, "{:?}", entry.file_name());
        let text = fs::read_to_string(entry.path()).unwrap();
        assert!(expected == 0o600 || !text.contains("PRIVATE"));
    }
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[tokio::test]
async fn a_directory_that_can_not_be_right_is_refused() {
    let directory = TempDir::new().unwrap();
    open(directory.path()).await.unwrap();
    let mut other = options();
    other.trust_domain = TrustDomain::new("other.example").unwrap();
    assert!(matches!(
        open_with(other, directory.path()).await,
        Err(CaError::TrustDomain { .. })
    ));

    let key = directory.path().join("intermediate-1.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = open(directory.path()).await.unwrap_err();
    assert!(error.to_string().contains("mode 640"), "{error}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    open(directory.path()).await.unwrap();

    fs::remove_file(directory.path().join("state.json")).unwrap();
    let error = open(directory.path()).await.unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
}

#[tokio::test]
async fn a_first_start_that_was_cut_off_is_begun_again() {
    let directory = TempDir::new().unwrap();
    open(directory.path()).await.unwrap();
    for name in ["state.json", "root-cert.pem"] {
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    let again = open(directory.path()).await.unwrap();
    assert!(trusted(
        &leaf(&again),
        &again.roots_pem(),
        SystemTime::now()
    ));
}

#[tokio::test]
async fn lifetimes_are_kept_within_bounds() {
    let directory = TempDir::new().unwrap();
    let mut options = options();
    options.min_lifetime = Duration::from_secs(30);
    options.default_lifetime = DAY / 2;
    let authority = open_with(options, directory.path()).await.unwrap();
    let key = KeyPair::generate().unwrap();
    let life = |asked: u64| {
        let issued = authority
            .issue(&id("shop/sa/api"), &key, Duration::from_secs(asked))
            .unwrap();
        let life = issued.not_after.duration_since(SystemTime::now()).unwrap();
        life.as_secs_f64().round() as u64
    };
    assert_eq!(life(0), 12 * 3600);
    assert_eq!(life(1), 30);
    assert_eq!(life(3600), 3600);
    assert_eq!(life(u32::MAX.into()), 24 * 3600);
}

#[tokio::test]
async fn no_certificate_outlives_the_intermediate() {
    let directory = TempDir::new().unwrap();
    let mut options = options();
    options.intermediate_lifetime = DAY;
    let start = SystemTime::now();
    let authority = open_at(options, directory.path(), start).await.unwrap();
    let key = KeyPair::generate().unwrap();
    let name = || vec![SanType::DnsName("x".try_into().unwrap())];
    let late = start + DAY.mul_f64(0.9);
    let issued = authority.sign(name(), &key, Duration::ZERO, late).unwrap();
    assert!(issued.not_after <= start + DAY);
    let ended = authority.sign(name(), &key, Duration::ZERO, start + DAY * 2);
    assert!(matches!(ended, Err(CaError::IntermediateEnded)));
}

#[tokio::test]
async fn a_new_intermediate_signs_at_half_life_and_the_old_certificates_stay_good() {
    let directory = TempDir::new().unwrap();
    let start = SystemTime::now();
    let authority = open_at(options(), directory.path(), start).await.unwrap();
    let roots = authority.roots_pem();
    let later = start + 31 * DAY;
    let before = leaf_at(&authority, later);
    authority.tick(later).await.unwrap();
    let after = leaf_at(&authority, later);
    assert_ne!(before[1], after[1]);
    assert_eq!(authority.roots_pem(), roots);
    assert!(trusted(&before, &roots, later) && trusted(&after, &roots, later));
    assert!(!directory.path().join("intermediate-1.pem").exists());
    assert_eq!(authority.status().intermediate, 2);
}

#[tokio::test]
async fn a_root_rotates_in_three_phases_and_every_peer_trusts_every_certificate_in_use() {
    let directory = TempDir::new().unwrap();
    let start = SystemTime::now();
    let mut authority = open_at(options(), directory.path(), start).await.unwrap();
    let first_root = authority.roots_pem();
    fs::write(directory.path().join("rotate-root"), "").unwrap();

    // Every two hours a workload gets a certificate and the roots of that moment; it uses both for
    // a day. At each moment everybody trusts everybody.
    let mut in_use: Vec<(SystemTime, Vec<CertificateDer<'static>>, String)> = Vec::new();
    let mut phases = BTreeSet::new();
    for step in 0..(5 * 12_u32) {
        let now = start + Duration::from_secs(7200) * step;
        if step == 15 {
            // A restart in the middle of it.
            authority = open_at(options(), directory.path(), now).await.unwrap();
        }
        authority.tick(now).await.unwrap();
        phases.insert(authority.status().phase.to_string());
        in_use.retain(|(since, ..)| *since + DAY > now);
        in_use.push((now, leaf_at(&authority, now), authority.roots_pem()));
        for (_, _, roots) in &in_use {
            for (_, chain, _) in &in_use {
                assert!(trusted(chain, roots, now), "step {step}");
            }
        }
    }
    assert_eq!(phases.len(), 3, "{phases:?}");
    assert_eq!(authority.status().phase, Phase::Steady);
    assert!(!authority.roots_pem().contains(first_root.trim()));
    assert!(!directory.path().join("root-1.pem").exists());
    assert!(!directory.path().join("rotate-root").exists());
    let published = fs::read_to_string(directory.path().join("root-cert.pem")).unwrap();
    assert_eq!(published, authority.roots_pem());
}

#[tokio::test]
async fn a_second_root_rotation_waits_for_the_first() {
    let directory = TempDir::new().unwrap();
    let authority = open(directory.path()).await.unwrap();
    authority.start_root_rotation().await.unwrap();
    let error = authority.start_root_rotation().await.unwrap_err();
    assert!(matches!(error, CaError::RotationUnderWay(Phase::TrustBoth)));
    assert_eq!(authority.bundle().authorities().len(), 2);
}

#[tokio::test]
async fn a_root_near_its_end_rotates_by_itself() {
    let directory = TempDir::new().unwrap();
    let start = SystemTime::now();
    let authority = open_at(options(), directory.path(), start).await.unwrap();
    authority.tick(start + 2900 * DAY).await.unwrap();
    assert_eq!(authority.status().phase, Phase::Steady);
    authority.tick(start + 2930 * DAY).await.unwrap();
    assert_eq!(authority.status().phase, Phase::TrustBoth);
}

/// Node `node1` runs pods of `shop/api`, and nothing else does.
struct OneNode;

impl NodeAuthorizer for OneNode {
    fn may_issue(&self, node: &str, identity: &Identity) -> Result<(), String> {
        match (node, identity.namespace(), identity.service_account()) {
            ("node1", "shop", "api") => Ok(()),
            _ => Err("no opted-in pod with this account runs there".into()),
        }
    }
}

/// A server; ends when dropped.
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        drop(self.stop);
        self.task.await.unwrap();
    }
}

struct World {
    directory: TempDir,
    issuer: TestIssuer,
    authority: Arc<Authority>,
}

impl World {
    async fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let mut options = options();
        options.min_lifetime = Duration::from_secs(1);
        Self {
            authority: open_with(options, directory.path()).await.unwrap(),
            issuer: TestIssuer::new(),
            directory,
        }
    }

    fn service(&self) -> CertificateService {
        CertificateService::new(
            Arc::clone(&self.authority),
            Arc::new(self.issuer.authenticator()),
            Arc::new(OneNode),
            [ZTUNNEL.to_owned()],
        )
    }

    async fn serve(&self, address: &str) -> (SocketAddr, Running) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = server_tls(&self.authority, vec![SERVER.into()], vec![address.ip()])
            .unwrap()
            .incoming(listener);
        let service = self.service().into_server();
        let server = tonic::transport::Server::builder().add_service(service);
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            server
                .serve_with_incoming_shutdown(incoming, stopped)
                .await
                .unwrap();
        });
        (address, Running { stop, task })
    }

    fn client(&self, address: SocketAddr, token: &str) -> MeshCa {
        let token_file = self.directory.path().join("token");
        fs::write(&token_file, token).unwrap();
        MeshCa::new(MeshCaOptions {
            address: format!("https://{address}"),
            roots_file: self.directory.path().join("root-cert.pem"),
            server_name: SERVER.into(),
            token_file,
            cluster_id: "Kubernetes".into(),
            lifetime: DAY,
            impersonate: true,
        })
    }

    fn node_token(&self) -> String {
        self.issuer.token(ZTUNNEL, Some("node1"))
    }
}

#[tokio::test]
async fn a_node_gets_a_certificate_over_the_wire_that_peers_accept() {
    let world = World::new().await;
    let (address, _server) = world.serve("127.0.0.1:0").await;
    let client = world.client(address, &world.node_token());
    let identity = id("shop/sa/api");
    let svid = client.fetch(&identity).await.unwrap();
    assert_eq!(svid.identity(), &identity);
    assert!(trusted(
        svid.chain(),
        &world.authority.roots_pem(),
        SystemTime::now()
    ));
    assert_eq!(svid.bundle(), &world.authority.bundle());
    let left = svid.not_after().duration_since(SystemTime::now()).unwrap();
    assert!(left > DAY - Duration::from_secs(60) && left <= DAY);
}

#[tokio::test]
async fn the_client_tells_refusals_from_failures() {
    let world = World::new().await;
    let (address, server) = world.serve("127.0.0.1:0").await;
    let identity = id("shop/sa/api");

    let other = world
        .client(address, &world.node_token())
        .fetch(&id("shop/sa/db"))
        .await;
    let error = other.unwrap_err();
    assert!(
        error.is_refusal() && error.to_string().contains("no opted-in pod"),
        "{error}"
    );

    let forged = TestIssuer::new().token(ZTUNNEL, Some("node1"));
    let error = world
        .client(address, &forged)
        .fetch(&identity)
        .await
        .unwrap_err();
    assert!(
        error.is_refusal() && error.to_string().contains("signature"),
        "{error}"
    );

    let error = world
        .client(address, " ")
        .fetch(&identity)
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::Local { .. }), "{error}");

    // A server with the right name of another CA: never sent the token.
    let stranger = World::new().await;
    let (strange, _stranger) = stranger.serve("127.0.0.1:0").await;
    let client = world.client(strange, &world.node_token());
    let error = client.fetch(&identity).await.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");

    // The same client serves again when a restarted server listens, with its token read anew.
    let client = world.client(address, &world.node_token());
    client.fetch(&identity).await.unwrap();
    server.stop().await;
    let error = client.fetch(&identity).await.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
    fs::write(world.directory.path().join("token"), world.node_token()).unwrap();
    let (_, _server) = world.serve(&address.to_string()).await;
    client.fetch(&identity).await.unwrap();
}

#[tokio::test]
async fn the_manager_renews_from_the_real_ca_while_the_root_rotates() {
    let world = World::new().await;
    let (address, _server) = world.serve("127.0.0.1:0").await;
    let mut client = world.client(address, &world.node_token());
    // Certificates of two seconds.
    client = MeshCa::new(MeshCaOptions {
        lifetime: Duration::from_secs(2),
        ..client.options().clone()
    });
    let options = ManagerOptions {
        rules: RenewalRules::default(),
        ..ManagerOptions::default()
    };
    let bundles = Arc::new(SharedBundles::default());
    let manager = CertificateManager::new(Arc::new(client), Arc::clone(&bundles), options);
    let identity = id("shop/sa/api");
    manager.prefetch(&identity);
    let first = manager.get(&identity).await.unwrap();
    assert_eq!(
        bundles
            .load()
            .bundle(identity.trust_domain())
            .unwrap()
            .authorities()
            .len(),
        1
    );
    world.authority.start_root_rotation().await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), async {
        while bundles
            .load()
            .bundle(identity.trust_domain())
            .unwrap()
            .authorities()
            .len()
            < 2
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the renewed certificate brings both roots");
    let second = manager.get(&identity).await.unwrap();
    assert_ne!(first.svid().serial(), second.svid().serial());
}

/// Calls the service without a network.
async fn ask(
    world: &World,
    token: Option<&str>,
    csr: &str,
    impersonate: Option<&str>,
) -> Result<(), Status> {
    let metadata = impersonate.map(|identity| {
        let kind = prost_types::value::Kind::StringValue(identity.into());
        let value = prost_types::Value { kind: Some(kind) };
        let fields = [("ImpersonatedIdentity".to_owned(), value)]
            .into_iter()
            .collect();
        prost_types::Struct { fields }
    });
    let mut request = Request::new(IstioCertificateRequest {
        csr: csr.into(),
        validity_duration: 3600,
        metadata,
    });
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    world.service().create_certificate(request).await.map(drop)
}

fn csr(identity: &str) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    params
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap()
}

#[tokio::test]
async fn each_request_that_must_fail_is_refused_for_its_reason_and_its_twin_is_answered() {
    let world = World::new().await;
    let api = "spiffe://cluster.local/ns/shop/sa/api";
    let db = "spiffe://cluster.local/ns/shop/sa/db";
    let foreign = "spiffe://other.example/ns/shop/sa/api";
    let node1 = world.node_token();
    let node2 = world.issuer.token(ZTUNNEL, Some("node2"));
    let no_node = world.issuer.token(ZTUNNEL, None);
    let workload = world.issuer.token("shop/api", Some("node1"));
    let forged = TestIssuer::new().token(ZTUNNEL, Some("node1"));

    // The twin: the same request in all but the attacked property.
    assert!(
        ask(&world, Some(&node1), &csr(api), Some(api))
            .await
            .is_ok()
    );
    // A workload asks for itself, without impersonation.
    assert!(ask(&world, Some(&workload), &csr(api), None).await.is_ok());

    let table = [
        (
            None,
            csr(api),
            Some(api),
            Code::Unauthenticated,
            "no bearer token",
        ),
        (
            Some(&forged),
            csr(api),
            Some(api),
            Code::Unauthenticated,
            "signature",
        ),
        (
            Some(&node2),
            csr(api),
            Some(api),
            Code::PermissionDenied,
            "node node2 may not have",
        ),
        (
            Some(&node1),
            csr(db),
            Some(db),
            Code::PermissionDenied,
            "no opted-in pod",
        ),
        (
            Some(&no_node),
            csr(api),
            Some(api),
            Code::PermissionDenied,
            "names no node",
        ),
        (
            Some(&workload),
            csr(api),
            Some(api),
            Code::PermissionDenied,
            "not a node proxy's",
        ),
        (
            Some(&node1),
            csr(db),
            Some(api),
            Code::InvalidArgument,
            "the CSR is for",
        ),
        (
            Some(&node1),
            csr(api),
            Some("api"),
            Code::InvalidArgument,
            "not a SPIFFE ID",
        ),
        (
            Some(&node1),
            csr(api),
            None,
            Code::PermissionDenied,
            "without ImpersonatedIdentity",
        ),
        (
            Some(&workload),
            csr(db),
            None,
            Code::PermissionDenied,
            "without ImpersonatedIdentity",
        ),
        (
            Some(&node1),
            csr(foreign),
            Some(foreign),
            Code::PermissionDenied,
            "trust domain",
        ),
        (
            Some(&node1),
            "garbage".into(),
            Some(api),
            Code::InvalidArgument,
            "can't be parsed",
        ),
    ];
    for (index, (token, csr, impersonate, code, reason)) in table.into_iter().enumerate() {
        let status = ask(&world, token.map(String::as_str), &csr, impersonate)
            .await
            .unwrap_err();
        assert_eq!(status.code(), code, "row {index}: {status}");
        assert!(status.message().contains(reason), "row {index}: {status}");
    }
}

#[tokio::test]
async fn a_certificate_has_nothing_but_what_was_checked() {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let world = World::new().await;
    let chain = leaf(&world.authority);
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert!(leaf.subject().iter().next().is_none());
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical && san.value.general_names.len() == 1);
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any && !usage.code_signing);
}

#[tokio::test]
async fn the_server_certificate_is_renewed_by_itself() {
    let directory = TempDir::new().unwrap();
    let mut options = options();
    options.min_lifetime = Duration::from_secs(1);
    options.default_lifetime = Duration::from_secs(2);
    let authority = open_with(options, directory.path()).await.unwrap();
    let tls = server_tls(&authority, vec![SERVER.into()], vec![]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _incoming = tls.incoming(listener);
    tokio::time::sleep(Duration::from_secs(3)).await;

    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(authority.roots_pem().as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::clone(seine_identity::crypto_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    connector
        .connect(SERVER.try_into().unwrap(), stream)
        .await
        .unwrap();
}
