//! Who gets certificates: tokens as the API server makes and judges them.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use seine_e2e::attack::certificate::ask;
use seine_identity::Identity;
use seine_kubernetes_tests::{step, within};
use serde_json::json;

use crate::bed::{Bed, PATIENCE, Replica, SYSTEM, namespace, pod};

const ZTUNNEL: &str = "seine-ztunnel";

fn node(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

/// A token of ztunnel's account, bound to this pod.
fn bound(bed: &Bed, pod: &str, audience: &str) -> Result<String> {
    let object = bed.cluster.get(&["-n", SYSTEM, "pod", pod])?;
    let uid = object["metadata"]["uid"].as_str().context("no UID")?;
    let more = [
        "--bound-object-kind=Pod".to_owned(),
        format!("--bound-object-name={pod}"),
        format!("--bound-object-uid={uid}"),
        format!("--audience={audience}"),
    ];
    let more: Vec<_> = more.iter().map(String::as_str).collect();
    bed.token(SYSTEM, ZTUNNEL, &more)
}

/// What the CA says: a serial, or the reason why not.
fn certificate(
    bed: &Bed,
    replica: &Replica,
    roots: &Path,
    token: &str,
) -> Result<Result<String, String>> {
    let identity: Identity = "spiffe://cluster.local/ns/meshed/sa/web".parse()?;
    let asked = ask(
        format!("https://{}", replica.listen),
        roots.to_owned(),
        "seine-control.seine-system.svc".to_owned(),
        bed.file("token", token)?,
        &identity,
    );
    let answer = bed.runtime.block_on(asked);
    Ok(answer.serial.ok_or(answer.failure.unwrap_or_default()))
}

pub(crate) fn a_nodes_own_proxy_gets_certificates_and_every_other_token_is_refused_with_its_reason(
    bed: &Bed,
) -> Result<()> {
    let replica = bed.ready_replica("tokens-0")?;
    bed.cluster.apply(&[
        namespace("meshed", json!({"seine.dev/mesh": "enabled"})),
        node("node-a"),
        node("node-b"),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": "meshed"}}),
        pod("meshed", "web", "web", Some("node-a"), json!({})),
        pod(SYSTEM, "ztunnel-a", ZTUNNEL, Some("node-a"), json!({})),
        pod(SYSTEM, "ztunnel-b", ZTUNNEL, Some("node-b"), json!({})),
        pod(SYSTEM, "ztunnel-gone", ZTUNNEL, Some("node-a"), json!({})),
    ])?;
    let roots = bed.roots()?;

    let good = bound(bed, "ztunnel-a", "seine-control")?;
    within(PATIENCE, "the node's own proxy gets a certificate", || {
        let answer = certificate(bed, &replica, &roots, &good)?;
        answer.map(Some).map_err(anyhow::Error::msg)
    })?;

    let gone = bound(bed, "ztunnel-gone", "seine-control")?;
    bed.cluster.kubectl(&[
        "-n",
        SYSTEM,
        "delete",
        "pod",
        "ztunnel-gone",
        "--grace-period=0",
        "--force",
    ])?;
    let words = ["--audience=seine-control"];
    let cases = [
        (
            "another node's proxy",
            bound(bed, "ztunnel-b", "seine-control")?,
            "node-b may not have",
        ),
        (
            "another audience",
            bound(bed, "ztunnel-a", "somebody-else")?,
            "audience",
        ),
        (
            "an unbound token of the right account",
            bed.token(SYSTEM, ZTUNNEL, &words)?,
            "names no node",
        ),
        (
            "another account",
            bed.token("meshed", "web", &words)?,
            "not a node proxy's account",
        ),
        ("a pod that is gone", gone, "does not know it"),
        ("garbage", "no.token.atall".to_owned(), "does not know it"),
        ("a forged signature", forged(&good), "does not know it"),
    ];
    for (what, token, reason) in cases {
        match certificate(bed, &replica, &roots, &token)? {
            Ok(serial) => anyhow::bail!("{what} got a certificate: {serial}"),
            Err(refusal) => {
                step(format!("{what}: {refusal}"));
                ensure!(refusal.contains(reason), "{what}: want {reason:?}");
            }
        }
        ensure!(
            !replica.log()?.contains(&token),
            "{what}: the token is in the log"
        );
    }
    // The twin of them all, once more.
    ensure!(
        certificate(bed, &replica, &roots, &good)?.is_ok(),
        "the good one still is"
    );
    let pods = ["ztunnel-a", "ztunnel-b"];
    for name in pods {
        bed.cluster.kubectl(&[
            "-n",
            SYSTEM,
            "delete",
            "pod",
            name,
            "--grace-period=0",
            "--force",
        ])?;
    }
    Ok(())
}

/// The token with another signature.
fn forged(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap_or((token, ""));
    let other: String = signature.chars().rev().collect();
    format!("{signed}.{other}")
}
