//! Certificates that open no tunnel. All are signed here with the lab CA's own key, but for those
//! whose signature is what is attacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use rcgen::KeyPair;
use seine_e2e::attack::report::Tunneled;
use seine_e2e::attack::tunnel::{CHAIN, KEY, ROOTS};
use seine_identity::Identity;
use seine_identity::testing::TestLeaf;
use seine_lab::ca::LabCa;

use super::stage::{ATTACKER, PARTNER, Stage, new_ca};

const HOUR: Duration = Duration::from_secs(3600);
const CLIENT: &str = "spiffe://cluster.local/ns/mesh/sa/client";
const SERVER_ID: &str = "spiffe://cluster.local/ns/mesh/sa/server";
const TEXT: &str = "through the tunnel";

fn good() -> TestLeaf {
    let identity: Identity = CLIENT.parse().expect("it is one");
    TestLeaf::new(&identity)
}

/// The lab's certificate authority in an attacker's hands.
fn stolen_ca(stage: &Stage) -> Result<LabCa> {
    LabCa::read(&stage.state()?)
}

/// Signs a leaf and writes it as the attacker's program reads it.
fn write_signed(ca: &LabCa, folder: &Path, leaf: &TestLeaf) -> Result<()> {
    let (chain, key) = ca.sign(leaf.params())?;
    write(ca, folder, &chain, &key)
}

fn write(ca: &LabCa, folder: &Path, chain: &str, key: &str) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join(CHAIN), chain)?;
    fs::write(folder.join(KEY), key)?;
    fs::write(folder.join(ROOTS), &ca.roots)?;
    Ok(())
}

/// Opens a tunnel to the server's echo; with `present` instead of the client's own certificate.
pub(crate) fn tunnel(stage: &Stage, present: &[&str], authority: &str) -> Result<Tunneled> {
    let svid = svid(stage)?;
    let peer = stage.server(15008)?.to_string();
    let svid = svid.display().to_string();
    let mut arguments = vec![
        "tunnel",
        "--svid",
        &svid,
        "--peer",
        &peer,
        "--expect",
        SERVER_ID,
        "--authority",
        authority,
        "--send",
        TEXT,
    ];
    arguments.extend(present);
    stage.attack(ATTACKER, &arguments)
}

/// Whether a tunnel carried the text there and back.
pub(crate) fn carried(tunneled: &Tunneled) -> bool {
    tunneled.status == Some(200) && tunneled.received == TEXT && tunneled.failure.is_none()
}

/// The folder of the client's good certificate.
fn svid(stage: &Stage) -> Result<PathBuf> {
    let folder = stage.files.path().join("svid");
    if !folder.join(ROOTS).exists() {
        write_signed(&stolen_ca(stage)?, &folder, &good())?;
    }
    Ok(folder)
}

/// The attack is refused for its reason, the twin is admitted.
fn refused(stage: &Stage, attack: &[&str], reason: &str, twin: &Path) -> Result<()> {
    let authority = stage.server(8080)?.to_string();
    let attempt = tunnel(stage, attack, &authority)?;
    ensure!(
        attempt.status.is_none() && attempt.failure.is_some(),
        "the attack got an answer: {attempt:?}"
    );
    let local = attempt.local.context("there was no TCP connection")?;
    stage.bed.await_ztunnel(
        2,
        &[
            "a tunnel is refused",
            &format!("peer={local}"),
            "TLS_FAILURE",
            reason,
        ],
    )?;
    let twin = twin.display().to_string();
    let twin = tunnel(stage, &["--present", &twin], &authority)?;
    ensure!(carried(&twin), "the twin failed: {twin:?}");
    Ok(())
}

/// As [`refused`], with two leaves that the lab's CA signs.
fn refused_leaf(stage: &Stage, attack: &TestLeaf, reason: &str, twin: &TestLeaf) -> Result<()> {
    let ca = stolen_ca(stage)?;
    let folders = tempfile::tempdir_in(stage.files.path())?;
    let (bad, good) = (folders.path().join("attack"), folders.path().join("twin"));
    write_signed(&ca, &bad, attack)?;
    write_signed(&ca, &good, twin)?;
    let bad = bad.display().to_string();
    refused(stage, &["--present", &bad], reason, &good)
}

fn changed(change: impl FnOnce(&mut TestLeaf)) -> TestLeaf {
    let mut leaf = good();
    change(&mut leaf);
    leaf
}

pub(crate) fn a_client_without_a_certificate_opens_no_tunnel(stage: &Stage) -> Result<()> {
    let twin = svid(stage)?;
    refused(stage, &["--anonymous"], "presented no certificate", &twin)
}

pub(crate) fn an_expired_certificate_opens_no_tunnel(stage: &Stage) -> Result<()> {
    let now = SystemTime::now();
    let from_long_ago = |end| {
        changed(|leaf| {
            leaf.not_before = now - 2 * HOUR;
            leaf.not_after = end;
        })
    };
    refused_leaf(
        stage,
        &from_long_ago(now - Duration::from_secs(60)),
        "expired",
        &from_long_ago(now + HOUR),
    )
}

pub(crate) fn a_certificate_that_is_not_yet_valid_opens_no_tunnel(stage: &Stage) -> Result<()> {
    let now = SystemTime::now();
    refused_leaf(
        stage,
        &changed(|leaf| leaf.not_before = now + HOUR / 2),
        "is not valid before",
        &changed(|leaf| leaf.not_before = now - HOUR / 2),
    )
}

pub(crate) fn a_self_signed_certificate_opens_no_tunnel(stage: &Stage) -> Result<()> {
    let key = KeyPair::generate()?;
    let certificate = good().params().self_signed(&key)?;
    signed_elsewhere(stage, &certificate.pem(), &key)
}

pub(crate) fn another_ca_that_signs_our_domain_opens_no_tunnel(stage: &Stage) -> Result<()> {
    let key = KeyPair::generate()?;
    let other = new_ca()?;
    let certificate = good().params().signed_by(&key, &other)?;
    signed_elsewhere(stage, &certificate.pem(), &key)
}

/// The twin is the federated CA's signature of the same name in its own domain.
pub(crate) fn a_federated_ca_that_signs_our_domain_opens_no_tunnel(stage: &Stage) -> Result<()> {
    stage
        .bed
        .await_ztunnel(2, &["trust domain's roots were read", PARTNER])?;
    let folders = tempfile::tempdir_in(stage.files.path())?;
    let signed = |name: &str, leaf: TestLeaf| -> Result<PathBuf> {
        let folder = folders.path().join(name);
        let key = KeyPair::generate()?;
        let chain = leaf.params().signed_by(&key, &stage.partner)?.pem();
        write(&stolen_ca(stage)?, &folder, &chain, &key.serialize_pem())?;
        Ok(folder)
    };
    let attack = signed("attack", good())?;
    let twin = changed(|leaf| leaf.uris = vec![CLIENT.replace("cluster.local", PARTNER)]);
    refused(
        stage,
        &["--present", &attack.display().to_string()],
        "is not signed by a CA of trust domain cluster.local",
        &signed("twin", twin)?,
    )
}

fn signed_elsewhere(stage: &Stage, chain: &str, key: &KeyPair) -> Result<()> {
    let folder = tempfile::tempdir_in(stage.files.path())?;
    write(
        &stolen_ca(stage)?,
        folder.path(),
        chain,
        &key.serialize_pem(),
    )?;
    let attack = folder.path().display().to_string();
    refused(
        stage,
        &["--present", &attack],
        "is not signed by a CA of trust domain cluster.local",
        &svid(stage)?,
    )
}

pub(crate) fn a_certificate_of_another_trust_domain_opens_no_tunnel(stage: &Stage) -> Result<()> {
    refused_leaf(
        stage,
        &changed(|leaf| leaf.uris = vec![CLIENT.replace("cluster.local", "other.example")]),
        "is of a trust domain that is not trusted here",
        &good(),
    )
}

pub(crate) fn a_certificate_with_two_sans_opens_no_tunnel(stage: &Stage) -> Result<()> {
    refused_leaf(
        stage,
        &changed(|leaf| leaf.uris.push(SERVER_ID.to_owned())),
        "has 2 URI SANs",
        &good(),
    )
}

pub(crate) fn a_certificate_without_a_san_opens_no_tunnel(stage: &Stage) -> Result<()> {
    refused_leaf(
        stage,
        &changed(|leaf| leaf.uris.clear()),
        "has no URI SAN",
        &good(),
    )
}
