//! A collector of traces in the lab, which is this program, too, and what it was told.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use seine_lab::Lab;

/// The word by which this program is the collector.
pub(crate) const COLLECT: &str = "collect";
/// Outside the mesh.
const NAMESPACE: &str = "traces";
const POD: &str = "collector";
const PORT: u16 = 4317;
/// The longest that spans may be on their way: proxies send them in batches.
const PATIENCE: Duration = Duration::from_secs(20);

/// Is the collector, until killed.
pub(crate) fn collect() -> ExitCode {
    let collected = || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await?;
            Ok(seine_lab::collect::collect(listener).await?)
        })
    };
    match collected() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the collector: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waypoints send there what they have, and of requests without a trace none.
pub(crate) fn environment() -> [(String, String); 2] {
    let endpoint = format!("http://{POD}.{NAMESPACE}.svc.cluster.local:{PORT}");
    [
        ("SEINE_OTLP_ENDPOINT".to_owned(), endpoint),
        ("SEINE_TRACE_SAMPLING".to_owned(), "0".to_owned()),
    ]
}

/// The collector's pod and service.
pub(crate) fn manifests() -> Result<String> {
    let program = std::env::current_exe().context("the path of this program")?;
    Ok(format!(
        "
---
apiVersion: v1
kind: Namespace
metadata: {{name: {NAMESPACE}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {POD}, namespace: {NAMESPACE}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {POD}, namespace: {NAMESPACE}, labels: {{app: {POD}}}}}
spec:
  nodeName: node2
  serviceAccountName: {POD}
  containers:
  - name: {POD}
    command: [{:?}, {COLLECT}]
---
apiVersion: v1
kind: Service
metadata: {{name: {POD}, namespace: {NAMESPACE}}}
spec:
  selector: {{app: {POD}}}
  ports: [{{name: grpc, port: {PORT}, targetPort: {PORT}}}]
",
        program.display().to_string()
    ))
}

/// A span, as the collector has printed it.
#[derive(Debug)]
pub(crate) struct Span(HashMap<String, String>);

impl Span {
    pub(crate) fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    fn parse(line: &str) -> Self {
        let pairs = line.split(' ').filter_map(|pair| pair.split_once('='));
        let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Self(pairs.collect())
    }
}

/// The spans of a trace, once there are as many as `enough` says.
pub(crate) fn of_trace(
    lab: &Lab,
    trace: &str,
    enough: impl Fn(&[Span]) -> bool,
) -> Result<Vec<Span>> {
    let deadline = Instant::now() + PATIENCE;
    let of_trace = format!(" trace={trace} ");
    loop {
        let log = lab.pod_logs(NAMESPACE, POD)?;
        let lines = log.lines().filter(|line| line.contains(&of_trace));
        let spans: Vec<_> = lines.map(Span::parse).collect();
        if enough(&spans) || Instant::now() > deadline {
            return Ok(spans);
        }
        if spans.len() > 100 {
            bail!("a trace of {} spans", spans.len());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
