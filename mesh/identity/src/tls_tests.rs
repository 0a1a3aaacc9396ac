//! Handshakes in memory: every attack certificate beside a twin that differs only in what is
//! attacked, and is accepted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::{TrustDomain, X509Bundle};
use zeroize::Zeroizing;

use crate::bundle::{SharedBundles, TrustBundles};
use crate::identity::Identity;
use crate::peer::{AcceptedIdentities, PeerError, peer_identity};
use crate::testing::{TestCa, TestLeaf, self_signed};
use crate::tls::{
    Credentials, PeerChain, TlsOptions, client_config, crypto_provider, server_config, server_name,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Runs a handshake to its end; each side's verdict.
fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> (
    ClientConnection,
    ServerConnection,
    Result<(), rustls::Error>,
    Result<(), rustls::Error>,
) {
    let name = server_name("10.0.0.1".parse().unwrap());
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let (mut of_client, mut of_server) = (Ok(()), Ok(()));
    for _ in 0..8 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() && of_server.is_ok() {
            server.read_tls(&mut rest).unwrap();
            of_server = server.process_new_packets().map(drop);
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() && of_client.is_ok() {
            client.read_tls(&mut rest).unwrap();
            of_client = client.process_new_packets().map(drop);
        }
    }
    (client, server, of_client, of_server)
}

/// A client that presents any certificate at all, and accepts any server of its CA.
fn raw_client(
    ca: &TestCa,
    server: &Identity,
    identity: Option<(CertificateDer<'static>, Zeroizing<Vec<u8>>)>,
) -> Arc<ClientConfig> {
    let svid = ca.svid("any", "any");
    let good = client_config(
        &svid,
        &ca.bundles(),
        server.clone().into(),
        &TlsOptions::default(),
    );
    let mut config = ClientConfig::clone(&good.unwrap());
    config.client_auth_cert_resolver = match identity {
        None => Arc::new(SingleCertAndKey::from(CertifiedKey::new(
            Vec::new(),
            Arc::clone(&svid.certified_key().key),
        ))),
        Some((certificate, key)) => Arc::new(SingleCertAndKey::from(certified(certificate, key))),
    };
    Arc::new(config)
}

fn certified(certificate: CertificateDer<'static>, key: Zeroizing<Vec<u8>>) -> CertifiedKey {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
    let key = crypto_provider()
        .key_provider
        .load_private_key(key)
        .unwrap();
    CertifiedKey::new(vec![certificate], key)
}

/// What the server says of a client with this certificate, and whom it takes it for.
fn judged_by_server(
    bundles: &Arc<SharedBundles>,
    ca: &TestCa,
    identity: Option<(CertificateDer<'static>, Zeroizing<Vec<u8>>)>,
) -> Result<Identity, PeerError> {
    let svid = ca.svid("shop", "server");
    let config = server_config(&svid, bundles, &TlsOptions::default()).unwrap();
    let client = raw_client(ca, svid.identity(), identity);
    let (_, server, _, verdict) = handshake(&client, &config);
    match verdict {
        Ok(()) => Ok(peer_identity(&server).expect("the handshake is over")),
        Err(error) => Err(PeerError::from_rustls(&error).unwrap_or_else(|| panic!("{error}"))),
    }
}

#[test]
fn each_attack_certificate_is_refused_for_its_reason_and_its_twin_is_accepted() {
    let ca = TestCa::new("cluster.local");
    let federated = TestCa::new("partner.example");
    let stranger = TestCa::new("cluster.local");
    let trusted = ca.bundles();
    assert!(trusted.replace(federated.bundle()).unwrap());
    let api = ca.identity("shop", "api");
    let good = TestLeaf::new(&api);
    let now = SystemTime::now();
    let with = |change: &dyn Fn(&mut TestLeaf)| {
        let mut leaf = good.clone();
        change(&mut leaf);
        leaf
    };
    let uris = |uris: &[&str]| {
        let uris: Vec<_> = uris.iter().map(ToString::to_string).collect();
        with(&move |leaf| leaf.uris.clone_from(&uris))
    };
    let mine = api.as_str();

    let attacks = [
        ("no-certificate", None, ca.sign(&good)),
        (
            "expired",
            Some(ca.sign(&with(&|leaf| {
                leaf.not_before = now - 2 * HOUR;
                leaf.not_after = now - Duration::from_secs(5);
            }))),
            ca.sign(&with(&|leaf| leaf.not_before = now - 2 * HOUR)),
        ),
        (
            "not-yet-valid",
            Some(ca.sign(&with(&|leaf| leaf.not_before = now + HOUR / 2))),
            ca.sign(&with(&|leaf| leaf.not_before = now - HOUR / 2)),
        ),
        ("unknown-issuer", Some(self_signed(&good)), ca.sign(&good)),
        // The same names in the CA's certificate, another key.
        ("unknown-issuer", Some(stranger.sign(&good)), ca.sign(&good)),
        (
            "wrong-trust-domain",
            Some(ca.sign(&uris(&["spiffe://other.example/ns/shop/sa/api"]))),
            ca.sign(&uris(&["spiffe://cluster.local/ns/shop/sa/api"])),
        ),
        // Federation: its root signs for its own domain, never for ours.
        (
            "unknown-issuer",
            Some(federated.sign(&good)),
            federated.sign(&uris(&["spiffe://partner.example/ns/shop/sa/api"])),
        ),
        (
            "unknown-issuer",
            Some(ca.sign(&uris(&["spiffe://partner.example/ns/shop/sa/api"]))),
            federated.sign(&uris(&["spiffe://partner.example/ns/shop/sa/api"])),
        ),
        (
            "several-sans",
            Some(ca.sign(&uris(&[mine, "spiffe://cluster.local/ns/shop/sa/db"]))),
            ca.sign(&uris(&[mine])),
        ),
        (
            "several-sans",
            Some(ca.sign(&uris(&[mine, mine]))),
            ca.sign(&uris(&[mine])),
        ),
        ("no-san", Some(ca.sign(&uris(&[]))), ca.sign(&uris(&[mine]))),
        (
            "no-san",
            Some(ca.sign(&with(&|leaf| {
                leaf.uris.clear();
                leaf.dns = vec!["api.shop.svc".into()];
            }))),
            ca.sign(&with(&|leaf| leaf.dns = vec!["api.shop.svc".into()])),
        ),
        (
            "not-spiffe",
            Some(ca.sign(&uris(&["https://cluster.local/ns/shop/sa/api"]))),
            ca.sign(&uris(&["spiffe://cluster.local/ns/shop/sa/api"])),
        ),
        (
            "not-spiffe",
            Some(ca.sign(&uris(&["spiffe://cluster.local/workload"]))),
            ca.sign(&uris(&[mine])),
        ),
        (
            "unsuitable",
            Some(ca.sign(&with(&|leaf| leaf.is_ca = true))),
            ca.sign(&good),
        ),
    ];
    for (index, (reason, attack, twin)) in attacks.into_iter().enumerate() {
        let refused = judged_by_server(&trusted, &ca, attack).expect_err(reason);
        assert_eq!(refused.reason(), reason, "attack {index}: {refused}");
        let accepted = judged_by_server(&trusted, &ca, Some(twin));
        assert!(
            accepted.is_ok(),
            "twin of attack {index} ({reason}): {accepted:?}"
        );
    }
}

#[test]
fn a_client_accepts_only_the_identities_that_it_expects() {
    let ca = TestCa::new("cluster.local");
    let server = ca.credentials("shop", "db");
    let client = ca.credentials("shop", "api");
    let expect = |names: &[&str]| -> AcceptedIdentities {
        names.iter().map(|name| ca.identity("shop", name)).collect()
    };
    let run = |accepted| {
        let config = client.client_config(&accepted).unwrap();
        let (_, server, verdict, _) = handshake(&config, &server.server_config());
        (verdict, peer_identity(&server))
    };
    let (verdict, peer) = run(expect(&["cache", "db"]));
    assert_eq!(verdict, Ok(()));
    assert_eq!(peer.unwrap(), ca.identity("shop", "api"));

    let (verdict, _) = run(expect(&["cache", "web"]));
    let refused = PeerError::from_rustls(&verdict.unwrap_err()).unwrap();
    assert_eq!(refused.reason(), "unexpected-identity");
    assert!(
        refused
            .to_string()
            .contains("is spiffe://cluster.local/ns/shop/sa/db, expected")
    );
    assert!(run(expect(&[])).0.is_err());
}

#[test]
fn connections_speak_tls13_with_the_post_quantum_group_and_without_sni() {
    let ca = TestCa::new("cluster.local");
    let (server, client) = (ca.credentials("a", "b"), ca.credentials("c", "d"));
    let config = client
        .client_config(&server.identity().clone().into())
        .unwrap();
    let (client, server, verdict, _) = handshake(&config, &server.server_config());
    assert_eq!(verdict, Ok(()));
    assert_eq!(
        client.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(server.server_name(), None);
    assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
}

#[test]
fn a_peer_with_no_common_protocol_is_refused() {
    let ca = TestCa::new("cluster.local");
    let (server, client) = (ca.svid("a", "b"), ca.svid("c", "d"));
    let config = server_config(&server, &ca.bundles(), &TlsOptions::default()).unwrap();
    let other = TlsOptions {
        alpn: vec![b"http/1.1".to_vec()],
        ..TlsOptions::default()
    };
    let accepted: AcceptedIdentities = server.identity().clone().into();
    let client = client_config(&client, &ca.bundles(), accepted, &other).unwrap();
    let (_, _, of_client, of_server) = handshake(&client, &config);
    assert!(of_client.is_err() && of_server.is_err());
}

#[test]
fn tls12_is_refused() {
    let ca = TestCa::new("cluster.local");
    let server = ca.credentials("a", "b");
    assert_eq!(
        crypto_provider()
            .cipher_suites
            .iter()
            .filter(|s| s.tls13().is_none())
            .count(),
        0
    );
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.root().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let old = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (_, _, _, verdict) = handshake(&Arc::new(old), &server.server_config());
    assert!(verdict.is_err());
}

#[test]
fn a_resumed_session_keeps_the_identity_and_is_judged_by_the_bundles_of_today() {
    let ca = TestCa::new("cluster.local");
    let bundles = ca.bundles();
    let make = |svid| Credentials::new(Arc::new(svid), Arc::clone(&bundles), TlsOptions::default());
    let server = make(ca.svid("shop", "db")).unwrap();
    let client = make(ca.svid("shop", "api")).unwrap();
    let config = client
        .client_config(&server.identity().clone().into())
        .unwrap();

    let (_, first, ..) = handshake(&config, &server.server_config());
    assert_ne!(first.handshake_kind(), Some(HandshakeKind::Resumed));
    let (_, second, ..) = handshake(&config, &server.server_config());
    assert_eq!(second.handshake_kind(), Some(HandshakeKind::Resumed));
    assert_eq!(
        server.peer(&second).unwrap().identity,
        ca.identity("shop", "api")
    );

    // The root is dropped (end of a rotation): the same ticket is worth nothing now.
    bundles
        .replace(TestCa::new("cluster.local").bundle())
        .unwrap();
    let (_, third, ..) = handshake(&config, &server.server_config());
    assert_eq!(third.handshake_kind(), Some(HandshakeKind::Resumed));
    assert_eq!(server.peer(&third).unwrap_err().reason(), "unknown-issuer");
}

#[test]
fn a_live_peer_is_refused_when_its_root_goes_before_its_certificate_has_ended_and_not_after() {
    let ca = TestCa::new("cluster.local");
    let bundles = ca.bundles();
    let (server, client) = (ca.credentials("shop", "db"), ca.credentials("shop", "api"));
    let config = client
        .client_config(&server.identity().clone().into())
        .unwrap();
    let (client_side, server_side, ..) = handshake(&config, &server.server_config());
    let chains = [
        PeerChain::of_client(&server_side).unwrap(),
        PeerChain::of_server(&client_side).unwrap(),
    ];
    assert_eq!(chains[0].identity(), client.identity());
    assert_eq!(chains[0].not_after(), client.svid().not_after());
    let (before, after) = (SystemTime::now(), SystemTime::now() + 2 * HOUR);
    let verdicts = |now| chains.each_ref().map(|chain| chain.verify(&bundles, now));
    for now in [before, after] {
        assert_eq!(verdicts(now), [Ok(()), Ok(())]);
    }
    bundles
        .replace(TestCa::new("cluster.local").bundle())
        .unwrap();
    for verdict in verdicts(before) {
        assert_eq!(verdict.unwrap_err().reason(), "unknown-issuer");
    }
    assert_eq!(verdicts(after), [Ok(()), Ok(())]);
    // A domain that is not trusted at all is no rotation.
    assert!(bundles.withdraw(client.identity().trust_domain()));
    for verdict in verdicts(after) {
        assert_eq!(verdict.unwrap_err().reason(), "wrong-trust-domain");
    }
}

#[test]
fn a_ticket_of_one_local_identity_is_worthless_at_another() {
    let ca = TestCa::new("cluster.local");
    let (a, b) = (ca.credentials("shop", "a"), ca.credentials("shop", "b"));
    let client = ca.credentials("shop", "client");
    let accepted: AcceptedIdentities = [a.identity().clone(), b.identity().clone()]
        .into_iter()
        .collect();
    let config = client.client_config(&accepted).unwrap();
    let _ = handshake(&config, &a.server_config());
    let (_, server, ..) = handshake(&config, &b.server_config());
    assert_ne!(server.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[test]
fn both_roots_are_trusted_while_they_overlap() {
    let (old, new) = (TestCa::new("cluster.local"), TestCa::new("cluster.local"));
    let roots: [&[u8]; 2] = [old.root(), new.root()];
    let domain = TrustDomain::new("cluster.local").unwrap();
    let both = X509Bundle::from_x509_authorities(domain, &roots).unwrap();
    let bundles = Arc::new(SharedBundles::new(TrustBundles::new().with(both).unwrap()));
    for ca in [&old, &new] {
        let leaf = ca.sign(&TestLeaf::new(&ca.identity("shop", "api")));
        assert!(judged_by_server(&bundles, &old, Some(leaf)).is_ok());
    }
}

#[test]
fn accepted_identities_are_a_set_that_can_key_a_pool() {
    let ca = TestCa::new("cluster.local");
    let (a, b) = (ca.identity("x", "a"), ca.identity("x", "b"));
    let one: AcceptedIdentities = [a.clone(), b.clone(), a.clone()].into_iter().collect();
    let two: AcceptedIdentities = [b, a].into_iter().collect();
    assert_eq!(one, two);
    let client = ca.credentials("x", "c");
    let (first, again) = (
        client.client_config(&one).unwrap(),
        client.client_config(&two).unwrap(),
    );
    assert!(Arc::ptr_eq(&first, &again));
}

#[tokio::test]
async fn the_reason_of_a_refusal_is_found_in_what_tokio_rustls_returns() {
    let ca = TestCa::new("cluster.local");
    let server = ca.credentials("shop", "db");
    let client = raw_client(&ca, server.identity(), None);
    let (near, far) = tokio::io::duplex(16 * 1024);
    let connect = tokio_rustls::TlsConnector::from(client);
    let name = server_name("10.0.0.1".parse().unwrap());
    let connect = tokio::spawn(async move { connect.connect(name, near).await.map(drop) });
    let accept = tokio_rustls::TlsAcceptor::from(server.server_config());
    let error = accept.accept(far).await.map(drop).unwrap_err();
    assert_eq!(PeerError::from_io(&error), Some(PeerError::NoCertificate));
    // The client's handshake is over before the server judges it (TLS 1.3).
    let _ = connect.await.unwrap();
    assert_eq!(PeerError::from_io(&std::io::Error::other("reset")), None);
}
