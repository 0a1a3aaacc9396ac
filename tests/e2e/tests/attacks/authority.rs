//! Requests that the certificate authority must refuse.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use seine_e2e::attack::report::Certified;
use seine_lab::protocol::Component;
use seine_lab::token::{AUDIENCE, ISSUER};
use serde_json::{Value, json};

use super::stage::{ATTACKER, Stage};

/// Runs on node 1.
const CLIENT: &str = "spiffe://cluster.local/ns/mesh/sa/client";
/// Runs on node 2.
const SERVER: &str = "spiffe://cluster.local/ns/mesh/sa/server";

/// The claims of the node proxy's token on node 1.
fn claims() -> Result<Value> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(json!({
        "iss": ISSUER,
        "aud": [AUDIENCE],
        "sub": "system:serviceaccount:seine-system:seine-ztunnel",
        "iat": now - 3600,
        "nbf": now - 3600,
        "exp": now + 3600,
        "kubernetes.io": {
            "namespace": "seine-system",
            "serviceaccount": {"name": "seine-ztunnel", "uid": "1"},
            "pod": {"name": "seine-ztunnel-node1-1", "uid": "seine-ztunnel-node1-1-uid"},
            "node": {"name": "node1", "uid": "node1"},
        },
    }))
}

fn ask(stage: &Stage, key: &KeyPair, claims: &Value, identity: &str) -> Result<Certified> {
    let key = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes())?;
    let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &key)?;
    let folder = tempfile::tempdir_in(stage.files.path())?;
    let (token_file, roots) = (folder.path().join("token"), folder.path().join("roots.pem"));
    fs::write(&token_file, token)?;
    fs::copy(stage.state()?.join("ca/root-cert.pem"), &roots)?;
    let text = |path: &Path| path.display().to_string();
    stage.attack(
        ATTACKER,
        &[
            "certificate",
            "--address",
            &format!("https://{}:15012", stage.control()?),
            "--roots",
            &text(&roots),
            "--server-name",
            "seine-control.seine-system.svc",
            "--token",
            &text(&token_file),
            "--identity",
            identity,
        ],
    )
}

/// The attack is refused for its reason, which the control plane logs; the twin is admitted.
fn refused(
    stage: &Stage,
    attack: impl FnOnce() -> Result<Certified>,
    reason: &str,
    twin: impl FnOnce() -> Result<Certified>,
) -> Result<()> {
    let needles = ["certificate refused", reason];
    let before = stage.log_lines(Component::Control, 1, &needles)?.len();
    let attack = attack()?;
    ensure!(
        attack.serial.is_none() && attack.failure.as_ref().is_some_and(|f| f.contains(reason)),
        "{attack:?}"
    );
    let after = stage.log_lines(Component::Control, 1, &needles)?.len();
    ensure!(after == before + 1, "logged {after} times, before {before}");
    let twin = twin()?;
    ensure!(twin.serial.is_some(), "the twin failed: {twin:?}");
    Ok(())
}

/// Who has the token of a node gets a certificate for what runs there.
pub(crate) fn gets_a_certificate(stage: &Stage) -> Result<()> {
    let certified = ask(stage, &stage.token_key, &claims()?, CLIENT)?;
    ensure!(certified.serial.is_some(), "the twin failed: {certified:?}");
    Ok(())
}

pub(crate) fn a_node_gets_no_certificate_for_an_identity_of_another_node(
    stage: &Stage,
) -> Result<()> {
    let claims = claims()?;
    refused(
        stage,
        || ask(stage, &stage.token_key, &claims, SERVER),
        "node node1 may not have spiffe://cluster.local/ns/mesh/sa/server",
        || ask(stage, &stage.token_key, &claims, CLIENT),
    )
}

pub(crate) fn a_forged_token_gets_no_certificate(stage: &Stage) -> Result<()> {
    let claims = claims()?;
    let forger = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    refused(
        stage,
        || ask(stage, &forger, &claims, CLIENT),
        "signature",
        || ask(stage, &stage.token_key, &claims, CLIENT),
    )
}

pub(crate) fn an_expired_token_gets_no_certificate(stage: &Stage) -> Result<()> {
    let claims = claims()?;
    let mut expired = claims.clone();
    let iat = claims["iat"].as_u64().unwrap_or_default();
    expired["exp"] = json!(iat + 1800);
    refused(
        stage,
        || ask(stage, &stage.token_key, &expired, CLIENT),
        "expired",
        || ask(stage, &stage.token_key, &claims, CLIENT),
    )
}
