//! Opting in, and what becomes of connections.

use anyhow::{Result, ensure};
use seine_e2e::manifests::{Pod, plain_namespace, service};
use seine_kubernetes_tests::{step, within};

use crate::bed::{Bed, PATIENCE};

/// What a capture is searched for.
const SECRET: &str = "the-word-that-nobody-else-may-read";
const HBONE: u16 = 15008;

/// Namespace `shop` with a client on node1 and a server on node2, without a label.
pub(crate) fn shop(bed: &Bed) -> Result<()> {
    bed.apply(&[
        plain_namespace("shop"),
        Pod::new("shop", "client", 1).object(),
        Pod::new("shop", "server", 2)
            .serves(&["echo:8080", "echo:8081"])
            .object(),
        service(
            "shop",
            "server",
            "server",
            &[("echo", 80, 8080), ("other", 81, 8081)],
        ),
        plain_namespace("outside"),
        Pod::new("outside", "client", 1).object(),
    ])?;
    bed.ready("shop")?;
    bed.ready("outside")
}

/// As [`shop`], in the mesh.
pub(crate) fn meshed_shop(bed: &Bed) -> Result<()> {
    shop(bed)?;
    let words = [
        "label",
        "namespace",
        "shop",
        "seine.dev/mesh=enabled",
        "--overwrite",
    ];
    bed.cluster.kubectl(&words)?;
    bed.await_enrolled(&["shop/client", "shop/server"], true)?;
    bed.await_echo("shop/client", "server.shop", 80)
}

pub(crate) fn a_labelled_namespaces_running_pods_talk_in_mutual_tls_between_nodes(
    bed: &Bed,
) -> Result<()> {
    step("pods before the label");
    shop(bed)?;
    bed.await_echo("shop/client", "server.shop", 80)?;
    let wire = bed.capture("node2")?;
    bed.echoes("shop/client", "server.shop", 80, SECRET)?;
    let before = wire.end()?;
    ensure!(
        before.count(SECRET.as_bytes()) > 0,
        "the control: without the mesh a capture shows the word"
    );

    step("docs/OPT-IN.md: the label");
    bed.follow_one("OPT-IN.md", 0)?;
    bed.await_enrolled(&["shop/client", "shop/server"], true)?;
    let table = bed.follow_one("OPT-IN.md", 1)?;
    ensure!(table.contains("20"), "{table}");
    // That both ends know of each other takes a moment more.
    within(PATIENCE, "what goes to the server is TLS", || {
        let wire = bed.capture("node2")?;
        bed.echoes("shop/client", "server.shop", 80, SECRET)?;
        let after = wire.end()?;
        let tunnel = after
            .segments
            .iter()
            .filter(|segment| segment.touches(HBONE));
        let tls = tunnel.filter(|segment| segment.is_tls()).count();
        let clear = after.count(SECRET.as_bytes());
        Ok((tls > 0 && clear == 0).then_some(()))
    })?;

    step("the access log");
    within(PATIENCE, "both identities are in the access log", || {
        let lines = bed.ztunnel_lines(&[
            "inbound",
            "mutual_tls",
            "spiffe://cluster.local/ns/shop/sa/client",
            "spiffe://cluster.local/ns/shop/sa/server",
        ])?;
        Ok(lines.first().map(drop))
    })?;
    // The others are reached as before, in plaintext.
    bed.echoes("outside/client", "server.shop", 80, "hello")
}
