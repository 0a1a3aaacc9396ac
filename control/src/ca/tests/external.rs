//! Intermediates from outside: what is taken, what is refused for which reason, and the rotation
//! to and from them.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose,
};
use seine_identity::TrustDomain;
use tempfile::TempDir;
use tokio::sync::watch;

use super::{DAY, leaf_at, open_at, options, trusted};
use crate::ca::external::Intermediate;
use crate::ca::{Authority, CaError, DirectoryStore, External, Phase};

/// A CA that somebody else runs.
pub(crate) struct Elsewhere {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// `tls.crt`, `tls.key` and `ca.crt`.
pub(crate) struct Files(pub(crate) String, pub(crate) String, pub(crate) String);

fn params(name: &str, ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = ca;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + 400 * DAY).into();
    params
}

impl Elsewhere {
    pub(crate) fn new(name: &str) -> Self {
        let ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params(name, ca), key).unwrap(),
        }
    }

    pub(crate) fn intermediate(&self) -> Files {
        self.with(|_| {})
    }

    fn with(&self, change: impl FnOnce(&mut CertificateParams)) -> Files {
        let mut params = params("below", IsCa::Ca(BasicConstraints::Constrained(0)));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Files(certificate.pem(), key.serialize_pem(), self.issuer.pem())
    }
}

impl Files {
    fn check(&self) -> Result<Intermediate, String> {
        self.check_at(SystemTime::now())
    }

    fn check_at(&self, now: SystemTime) -> Result<Intermediate, String> {
        let domain = TrustDomain::new("cluster.local").unwrap();
        let Self(certificate, key, root) = self;
        Intermediate::check(
            certificate.as_bytes(),
            key.as_bytes(),
            root.as_bytes(),
            &domain,
            now,
        )
    }
}

fn valid(files: &Files) -> External {
    External::Valid(files.check().unwrap())
}

#[test]
fn each_intermediate_that_peers_would_refuse_is_refused_for_its_reason() {
    let (ca, other) = (Elsewhere::new("one"), Elsewhere::new("other"));
    let good = ca.intermediate();
    good.check().unwrap();
    // As cert-manager does it when the issuer has no root: the root itself is in tls.crt too.
    Files(
        format!("{}{}", good.0, good.2),
        good.1.clone(),
        good.2.clone(),
    )
    .check()
    .unwrap();

    let stranger = other.intermediate();
    let year = 365 * DAY;
    let table = [
        (
            Files(good.0.clone(), stranger.1.clone(), good.2.clone()),
            "is not that of tls.key",
        ),
        (
            Files(good.0.clone(), good.1.clone(), stranger.2.clone()),
            "doesn't lead to a root",
        ),
        (
            Files(good.0.clone(), good.1.clone(), String::new()),
            "ca.crt has no certificate",
        ),
        (
            Files(String::new(), good.1.clone(), good.2.clone()),
            "tls.crt has no intermediate",
        ),
        (
            Files(good.2.clone(), good.1.clone(), good.2.clone()),
            "tls.crt has no intermediate",
        ),
        (
            Files(good.0.clone(), "no key".into(), good.2.clone()),
            "tls.key: ",
        ),
        (
            ca.with(|params| params.is_ca = IsCa::ExplicitNoCa),
            "it is no CA",
        ),
        (
            ca.with(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
            "cert sign",
        ),
        (
            ca.with(|params| params.not_after = (SystemTime::now() - DAY / 2).into()),
            "it ended at",
        ),
        (
            ca.with(|params| params.not_before = (SystemTime::now() + DAY).into()),
            "it begins at",
        ),
        (
            ca.with(|params| {
                params.name_constraints = Some(rcgen::NameConstraints {
                    permitted_subtrees: vec![],
                    excluded_subtrees: vec![rcgen::GeneralSubtree::DirectoryName(
                        DistinguishedName::new(),
                    )],
                });
            }),
            "peers would refuse",
        ),
    ];
    for (row, (files, reason)) in table.iter().enumerate() {
        let error = files.check().unwrap_err();
        assert!(error.contains(reason), "row {row}: {error}");
    }
    let error = good.check_at(SystemTime::now() + 2 * year).unwrap_err();
    assert!(error.contains("it ended at"), "{error}");
}

/// The authority of a directory, and the hand that gives it intermediates.
async fn start(
    directory: &TempDir,
    external: External,
    now: SystemTime,
) -> (std::sync::Arc<Authority>, watch::Sender<External>) {
    let store = Box::new(DirectoryStore::open(directory.path()).unwrap());
    let (sender, external) = watch::channel(external);
    let authority = Authority::open_at(options(), store, external, now)
        .await
        .unwrap();
    (authority, sender)
}

#[tokio::test]
async fn a_renewed_intermediate_signs_at_once_and_an_invalid_one_changes_nothing() {
    let (directory, ca, now) = (
        TempDir::new().unwrap(),
        Elsewhere::new("one"),
        SystemTime::now(),
    );
    let (authority, given) = start(&directory, valid(&ca.intermediate()), now).await;
    let roots = authority.roots_pem();
    assert!(authority.status().external);
    let first = leaf_at(&authority, now);
    assert!(trusted(&first, &roots, now));

    given.send_replace(valid(&ca.intermediate()));
    authority.tick(now).await.unwrap();
    let second = leaf_at(&authority, now);
    assert!(trusted(&second, &roots, now) && first[1] != second[1]);
    assert_eq!(
        (authority.roots_pem(), authority.status().phase),
        (roots, Phase::Steady)
    );

    for bad in [External::Invalid("it is bad".into()), External::Absent] {
        given.send_replace(bad);
        authority.tick(now + 30 * DAY).await.unwrap();
        assert_eq!(leaf_at(&authority, now)[1], second[1]);
    }
    assert!(matches!(
        authority.start_root_rotation().await,
        Err(CaError::RootIsExternal)
    ));

    // After a restart too, and though the Secret is still bad.
    drop(authority);
    let (authority, _given) = start(&directory, External::Invalid("bad".into()), now).await;
    assert_eq!(leaf_at(&authority, now)[1], second[1]);
    assert_eq!(authority.status().external_problem.as_deref(), Some("bad"));
}

#[tokio::test]
async fn without_anything_good_there_is_no_start() {
    let directory = TempDir::new().unwrap();
    let store = Box::new(DirectoryStore::open(directory.path()).unwrap());
    let (_, external) = watch::channel(External::Invalid("it is no CA".into()));
    let error = Authority::open(options(), store, external)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("it is no CA"), "{error}");
    // Nothing was made that would be in the way of the right one.
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// From our own root to one CA, then to another; every peer trusts every certificate in use.
#[tokio::test]
async fn other_roots_come_in_phases_and_no_peer_is_cut_off() {
    let (one, two) = (Elsewhere::new("one"), Elsewhere::new("two"));
    let (directory, begin) = (TempDir::new().unwrap(), SystemTime::now());
    let own = open_at(options(), directory.path(), begin).await.unwrap();
    let own_roots = own.roots_pem();
    drop(own);
    let (mut authority, mut given) = start(&directory, External::Absent, begin).await;
    let second = valid(&two.intermediate());
    let mut in_use: Vec<(SystemTime, Vec<_>, String)> = Vec::new();
    for step in 0..(8 * 12_u32) {
        let now = begin + Duration::from_secs(7200) * step;
        match step {
            1 => drop(given.send_replace(valid(&one.intermediate()))),
            // Renewed while its roots are not yet in force.
            5 => drop(given.send_replace(valid(&one.intermediate()))),
            // Changed again while the first change is under way.
            20 => drop(given.send_replace(second.clone())),
            30 => {
                drop(authority);
                (authority, given) = start(&directory, second.clone(), now).await;
            }
            _ => {}
        }
        authority.tick(now).await.unwrap();
        in_use.retain(|(since, ..)| *since + DAY > now);
        in_use.push((now, leaf_at(&authority, now), authority.roots_pem()));
        for (_, _, roots) in &in_use {
            for (_, chain, _) in &in_use {
                assert!(trusted(chain, roots, now), "step {step}");
            }
        }
    }
    let status = authority.status();
    assert!(
        status.external && status.phase == Phase::Steady,
        "{status:?}"
    );
    assert_eq!((status.trusted_roots, status.root), (1, 3));
    assert_ne!(authority.roots_pem(), own_roots);
    let keys = std::fs::read_to_string(directory.path().join("root-3.pem")).unwrap();
    assert!(!keys.contains("PRIVATE"));
}
