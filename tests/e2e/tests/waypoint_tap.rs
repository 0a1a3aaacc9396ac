//! Live requests of a waypoint, as `seine tap` shows them.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use seine_e2e::bed::peer_program;
use seine_e2e::manifests::{Pod, meshed_namespace, service};
use seine_e2e::{Bed, Running, trials};
use serde_json::{Value, json};

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            who_watches_sees_the_requests_that_the_filter_is_about_and_no_secret_of_them,
            a_filter_that_is_not_understood_is_refused,
        ],
    )
}

fn up() -> Result<Bed> {
    let mut web = service("mesh", "web", "web", &[("http", 80, 8080)]);
    web["metadata"]["labels"] = json!({"seine.dev/use-waypoint": "wp"});
    Bed::up(
        "e2e-tap",
        &[
            meshed_namespace("mesh"),
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {"name": "wp", "namespace": "mesh"},
                "spec": {"gatewayClassName": "seine-waypoint", "listeners": [
                    {"name": "mesh", "port": 15008, "protocol": "HBONE"},
                ]},
            }),
            Pod::new("mesh", "client", 1).object(),
            Pod::new("mesh", "other", 1).object(),
            Pod::new("mesh", "web", 2).serves(&["mirror:8080"]).object(),
            web,
            json!({
                "apiVersion": "policy.seine.dev/v1alpha1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "no-admin", "namespace": "mesh"},
                "spec": {
                    "action": "Deny",
                    "targetRefs": [{"kind": "Service", "name": "web"}],
                    "rules": [{"to": [{"paths": ["/shown/admin*"]}]}],
                },
            }),
        ],
    )
}

fn get(bed: &Bed, from: &str, path: &str) -> Result<()> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\nauthorization: Bearer secret-a\r\ncookie: secret-b\r\n\r\n"
    );
    let asked = bed.ask(from, "web", 80, &request)?;
    ensure!(asked.received.starts_with("HTTP/1.1 "), "{asked:?}");
    Ok(())
}

/// The command line in the waypoint's pod, as a port-forward reaches it.
fn tap(bed: &Bed, more: &[&str]) -> Result<Running> {
    let pods = bed.lab().status()?.pods;
    let pod = pods.into_iter().find(|pod| pod.name.starts_with("wp-"));
    let pod = pod.context("there is no waypoint")?;
    let program = peer_program().with_file_name("seine");
    let program = program.display().to_string();
    let mut words = vec![
        &*program,
        "tap",
        "--address",
        "127.0.0.1:15000",
        "-o",
        "json",
    ];
    words.extend(more);
    let mut command = bed.lab().exec_command("mesh", &pod.name, &words);
    Running::start(&mut command, format!("tap {more:?}"))
}

fn who_watches_sees_the_requests_that_the_filter_is_about_and_no_secret_of_them(
    bed: &Bed,
) -> Result<()> {
    let mut watching = tap(bed, &["--path", "/shown*", "--caller", "sa/client"])?;
    let done = AtomicBool::new(false);
    // When it begins to watch nobody knows, so that it is asked until enough was seen.
    let (first, denied) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                get(bed, "mesh/client", "/hidden")?;
                get(bed, "mesh/other", "/shown/other")?;
                get(bed, "mesh/client", "/shown?token=secret-c")?;
                get(bed, "mesh/client", "/shown/admin")?;
            }
            Ok::<_, anyhow::Error>(())
        });
        let (mut first, mut denied) = (None, None);
        let watched = (|| {
            while first.is_none() || denied.is_none() {
                let shown: Value = watching.report()?;
                ensure!(!shown.to_string().contains("secret"), "{shown}");
                ensure!(
                    shown["caller"] == "spiffe://cluster.local/ns/mesh/sa/client",
                    "{shown}"
                );
                match shown["path"].as_str() {
                    Some("/shown") => first = Some(shown),
                    Some("/shown/admin") => denied = Some(shown),
                    _ => anyhow::bail!("it is not what the filter is about: {shown}"),
                }
            }
            Ok(())
        })();
        done.store(true, Ordering::Relaxed);
        let asked = asking.join().expect("it does not panic");
        watched.and(asked)?;
        first.zip(denied).context("both were seen")
    })?;
    ensure!(
        (&first["status"], &first["method"], &first["host"])
            == (&json!(200), &json!("GET"), &json!("web")),
        "{first}"
    );
    ensure!(
        first["endpoint"].is_string() && first["waypoint"].is_string(),
        "{first}"
    );
    ensure!(
        (&denied["status"], &denied["flags"], &denied["policy"])
            == (&json!(403), &json!("DENY"), &json!("mesh/no-admin_at_web")),
        "{denied}"
    );
    Ok(())
}

fn a_filter_that_is_not_understood_is_refused(bed: &Bed) -> Result<()> {
    let mut refused = tap(bed, &["--status", "600"])?;
    let error = refused.report::<Value>();
    ensure!(error.is_err(), "{error:?}");
    Ok(())
}
