//! Alert rules and dashboards against a real Prometheus that scrapes a running mesh: no query asks for
//! a metric, a label or a label's value that isn't there.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use seine_e2e::bed::peer_program;
use seine_e2e::manifests::{Pod, authorization, meshed_namespace, plain_namespace};
use seine_e2e::{Bed, trials, until};
use seine_lab::protocol::Component;
use serde_json::{Value, json};

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![every_query_finds_what_it_asks_for_and_denials_raise_an_alert],
    )
}

fn up() -> Result<Bed> {
    let servers = ["echo:8080", "greet:8081"];
    let audit = authorization(
        "mesh",
        "tried",
        "far",
        "Audit",
        json!([{"to": [{"ports": [8080]}]}]),
    );
    Bed::up(
        "e2e-monitoring",
        &[
            meshed_namespace("mesh"),
            plain_namespace("plain"),
            Pod::new("mesh", "client", 1).object(),
            Pod::new("mesh", "far", 2).serves(&servers).object(),
            Pod::new("plain", "client", 1).object(),
            authorization(
                "mesh",
                "not-8081",
                "far",
                "Deny",
                json!([{"to": [{"ports": [8081]}]}]),
            ),
            audit,
        ],
    )
}

fn every_query_finds_what_it_asks_for_and_denials_raise_an_alert(bed: &Bed) -> Result<()> {
    let address = bed.pod_ips("mesh/far")?.0.to_string();
    let traffic = || -> Result<()> {
        bed.echoes("mesh/client", &address, 8080)?;
        bed.echoes("plain/client", &address, 8080)?;
        // Nothing listens there.
        bed.ask("mesh/client", &address, 9, "")?;
        let denied = bed.ask("mesh/client", &address, 8081, "")?;
        ensure!(denied.was_refused(), "{denied:?}");
        Ok(())
    };
    traffic()?;
    let prometheus = Prometheus::start(bed)?;
    let mut wrong = Vec::new();
    for (place, query) in queries()? {
        if let Err(error) = until(&place, || prometheus.answers(&query)) {
            wrong.push(format!("{place}: {query}\n    {error:#}"));
        }
    }
    ensure!(
        wrong.is_empty(),
        "queries that find nothing:\n{}",
        wrong.join("\n")
    );

    // Before the first scrape of a program, its metrics are absent.
    until("no critical alert is raised in a mesh that works", || {
        let critical = [
            "SeineCertificateMissing",
            "SeineControlPlaneGone",
            "SeinePodNotEnrolled",
            "SeineNodeWithoutZtunnel",
        ];
        let alerts = prometheus.alerts()?;
        let raised = critical.iter().any(|name| alerts.contains(*name));
        Ok((!raised).then_some(()))
    })?;
    // Its bound is one in ten seconds, for five minutes.
    until("denials raise an alert", || {
        for _ in 0..10 {
            bed.ask("mesh/client", &address, 8081, "")?;
        }
        Ok(prometheus.alerts()?.contains("SeineDenials").then_some(()))
    })
}

fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/monitoring")
}

/// Every query of the dashboards, with the place where it stands.
fn queries() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(monitoring().join("dashboards"))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let dashboard: Value = serde_json::from_slice(&fs::read(&path)?).context(name.clone())?;
        for panel in dashboard["panels"].as_array().context("no panels")? {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let query = target["expr"].as_str().context("a target without expr")?;
                found.push((format!("{name}, {}", panel["title"]), query.to_owned()));
            }
        }
        for variable in dashboard["templating"]["list"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let Some(query) = variable["query"]
                .as_str()
                .filter(|_| variable["type"] == "query")
            else {
                continue;
            };
            let parts = query
                .strip_prefix("label_values(")
                .and_then(|rest| rest.strip_suffix(')'));
            let (metric, label) = parts
                .and_then(|parts| parts.split_once(", "))
                .context("want label_values(METRIC, LABEL)")?;
            found.push((
                format!("{name}, variable"),
                format!("count by ({label}) ({metric})"),
            ));
        }
    }
    ensure!(found.len() > 20, "only {} queries", found.len());
    Ok(found)
}

/// A Prometheus that scrapes every program of a lab, with our rules.
struct Prometheus {
    process: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    fn start(bed: &Bed) -> Result<Self> {
        let pages = serve_pages(bed)?;
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("prometheus.yml");
        let scrapes = [
            ("control", vec!["control"]),
            ("agent", vec!["agent1", "agent2"]),
            ("ztunnel", vec!["ztunnel1", "ztunnel2"]),
        ];
        let mut jobs = Vec::new();
        for (job, names) in scrapes {
            let targets = names.iter().map(|name| json!({"targets": [pages.to_string()], "labels": {"__metrics_path__": format!("/{name}"), "instance": name}}));
            jobs.push(json!({"job_name": job, "static_configs": targets.collect::<Vec<_>>()}));
        }
        let rules = monitoring().join("rules/seine.yaml").canonicalize()?;
        // JSON is YAML.
        let settings = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": jobs,
        });
        fs::write(&file, settings.to_string())?;
        // Free now; nobody else of this machine takes it in the next moment, or the start below fails.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = directory.path().join("log");
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("starting prometheus (scripts/packages.sh test installs it)")?;
        let mut prometheus = Self {
            process,
            address,
            _directory: directory,
        };
        until("Prometheus has scraped every program", || {
            if let Some(status) = prometheus.process.try_wait()? {
                bail!("prometheus ended: {status}\n{}", fs::read_to_string(&log)?);
            }
            let Ok(answer) = prometheus.get("/api/v1/query?query=sum(up)") else {
                return Ok(None);
            };
            Ok((answer["result"][0]["value"][1] == "5").then_some(()))
        })?;
        Ok(prometheus)
    }

    /// The `data` of an answer.
    fn get(&self, path: &str) -> Result<Value> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
        let answer = std::io::read_to_string(stream)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let mut answer: Value = serde_json::from_str(body).context(answer.clone())?;
        ensure!(answer["status"] == "success", "{}", answer["error"]);
        Ok(answer["data"].take())
    }

    fn query(&self, query: &str) -> Result<Vec<Value>> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let data = self.get(&format!("/api/v1/query?query={encoded}"))?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// `None` while something that the query asks for isn't there.
    fn answers(&self, query: &str) -> Result<Option<()>> {
        // What Grafana puts in.
        let query = query
            .replace("$__rate_interval", "1m")
            .replace("$namespace", ".*");
        let mut labels = BTreeSet::new();
        for selector in selectors(&query) {
            let series = self.query(selector)?;
            if series.is_empty() {
                return Ok(None);
            }
            for one in &series {
                labels.extend(
                    one["metric"]
                        .as_object()
                        .into_iter()
                        .flat_map(|labels| labels.keys().cloned()),
                );
            }
        }
        for list in query
            .split("by (")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            for label in list.split(',').map(str::trim) {
                if !labels.contains(label) {
                    return Ok(None);
                }
            }
        }
        self.query(&query)?;
        Ok(Some(()))
    }

    /// The names of the alerts that are pending or firing; also whether each rule can be judged, and finds
    /// what it asks for.
    fn alerts(&self) -> Result<BTreeSet<String>> {
        let mut raised = BTreeSet::new();
        let mut rules = 0;
        let data = self.get("/api/v1/rules")?;
        for group in data["groups"].as_array().context("no groups")? {
            for rule in group["rules"].as_array().context("no rules")? {
                rules += 1;
                let (name, query) = (
                    rule["name"].as_str().unwrap_or_default(),
                    rule["query"].as_str().unwrap_or_default(),
                );
                ensure!(
                    rule["health"] != "err",
                    "rule {name}: {}",
                    rule["lastError"]
                );
                until(
                    &format!("rule {name} finds what it asks for: {query}"),
                    || self.answers(query),
                )?;
                if rule["state"] != "inactive" {
                    raised.insert(name.to_owned());
                }
            }
        }
        ensure!(rules > 10, "only {rules} rules");
        Ok(raised)
    }
}

/// The parts of a query that select series: `seine_name{label="value"}`.
fn selectors(query: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = query[at..].find("seine_").map(|start| at + start) {
        let rest = &query[start..];
        let name = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let end = match rest[name..].starts_with('{') {
            true => rest.find('}').map_or(rest.len(), |end| end + 1),
            false => name,
        };
        found.push(&rest[..end]);
        at = start + end;
    }
    found
}

/// Serves the metrics of every program under its name: they are in networks of their own.
fn serve_pages(bed: &Bed) -> Result<SocketAddr> {
    let mut programs = vec![(
        "/control".to_owned(),
        bed.process(Component::Control, None)?,
        15014,
    )];
    for node in [1, 2] {
        programs.push((
            format!("/agent{node}"),
            bed.process(Component::Agent, Some(node))?,
            15010,
        ));
        programs.push((
            format!("/ztunnel{node}"),
            bed.process(Component::Ztunnel, Some(node))?,
            15020,
        ));
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let programs = programs.clone();
            std::thread::spawn(move || {
                // A scrape that fails is tried again, and noticed where it never succeeds.
                let _ = answer(stream, &programs);
            });
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream, programs: &[(String, i32, u16)]) -> Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().context("no request")??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let asked = first.split(' ').nth(1).unwrap_or_default();
    let program = programs.iter().find(|(name, ..)| name == asked);
    let (_, pid, port) = program.with_context(|| format!("no such page: {asked}"))?;
    let page = Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .arg(peer_program())
        .args(["get", &format!("127.0.0.1:{port}"), "/metrics"])
        .output()?;
    ensure!(
        page.status.success(),
        "{}",
        String::from_utf8_lossy(&page.stderr)
    );
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        page.stdout.len()
    )?;
    stream.write_all(&page.stdout)?;
    Ok(())
}
