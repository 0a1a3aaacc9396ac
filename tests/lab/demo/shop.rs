//! The shop: how it is asked, watched and overheard.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use seine_lab::pcap;
use seine_lab::protocol::{Component, Status};
use seine_lab::{Lab, Output};

/// The manifests that the shop begins with.
pub(crate) const MANIFESTS: &str = concat!(
    include_str!("00-namespace.yaml"),
    "\n---\n",
    include_str!("10-postgres.yaml"),
    "\n---\n",
    include_str!("20-redis.yaml"),
    "\n---\n",
    include_str!("30-api.yaml"),
    "\n---\n",
    include_str!("40-web.yaml"),
    "\n---\n",
    include_str!("50-customer.yaml"),
);
/// Opting in.
pub(crate) const OPT_IN: &str = include_str!("steps/opt-in.yaml");
/// The policy.
pub(crate) const ONLY_API: &str = include_str!("steps/only-api.yaml");
/// Who speaks to whom, and on which nodes they are.
pub(crate) const EDGES: [Edge; 4] = [
    Edge::new(("customer", 2), ("web", 1)),
    Edge::new(("web", 1), ("api", 1)),
    Edge::new(("api", 1), ("postgres", 2)),
    Edge::new(("api", 1), ("redis", 2)),
];

const NAMESPACE: &str = "shop";
const PASSWORD: &[u8] = b"correct-horse-battery-staple";
/// The longest that a change of configuration may take to be seen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pair of service accounts of which one connects to the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edge {
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    nodes: [u8; 2],
}

impl Edge {
    const fn new(from: (&'static str, u8), to: (&'static str, u8)) -> Self {
        Self {
            from: from.0,
            to: to.0,
            nodes: [from.1, to.1],
        }
    }
}

/// The SPIFFE ID of one of the shop's service accounts.
pub(crate) fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{account}")
}

/// The shop in its lab.
pub(crate) struct Shop<'a> {
    lab: &'a Lab,
    directory: tempfile::TempDir,
}

impl<'a> Shop<'a> {
    /// The shop that runs in `lab`.
    pub(crate) fn new(lab: &'a Lab) -> Result<Self> {
        Ok(Self {
            lab,
            directory: tempfile::tempdir()?,
        })
    }

    /// The customer orders; what the web answered.
    pub(crate) fn order(&self, item: &str) -> Result<String> {
        let url = format!("http://web/order?item={item}");
        let curl = [
            "curl",
            "-sS",
            "--max-time",
            "15",
            "-w",
            "\n%{http_code}",
            &url,
        ];
        let output = self.lab.exec(NAMESPACE, "customer", &curl)?;
        match output.stdout.rsplit_once('\n') {
            Some((body, "200")) if output.code == 0 && body.contains(item) => Ok(body.to_owned()),
            _ => bail!("{} {}", output.stdout.trim(), output.stderr.trim()),
        }
    }

    /// Orders while node1's wire is captured.
    pub(crate) fn capture_order(&self, item: &str) -> Result<Overheard> {
        let file = self.directory.path().join(format!("{item}.pcap"));
        let capture = self.lab.capture(1, &file, &["tcp"])?;
        let order = self.order(item);
        capture.stop()?;
        Ok(Overheard {
            order,
            item: item.to_owned(),
            capture: pcap::Capture::read(&file)?,
        })
    }

    /// Orders until all of an order's connections go through the mesh.
    pub(crate) fn await_mesh(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // One may be cut while its pods are enrolled.
            let order = self.order("probe");
            let mut missing = Vec::new();
            for edge in EDGES {
                missing.extend(self.missing_ends(edge)?);
            }
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not in the mesh after {PATIENCE:?}: {missing:?}; order: {order:?}");
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// The ends of a pair, outbound and inbound, of which the ztunnel of their node has logged no
    /// connection in mutual TLS between the two identities.
    pub(crate) fn missing_ends(&self, edge: Edge) -> Result<Vec<String>> {
        let source = format!(" src.identity={} ", identity(edge.from));
        let destination = format!(" dst.identity={} ", identity(edge.to));
        let mut missing = Vec::new();
        for (direction, node) in ["outbound", "inbound"].into_iter().zip(edge.nodes) {
            let direction = format!(" direction={direction} ");
            let needles = [&direction, &source, &destination, " security=mutual_tls "];
            let log = self.lab.logs(Component::Ztunnel, node)?;
            if !log
                .lines()
                .any(|line| needles.iter().all(|n| line.contains(*n)))
            {
                let (from, to) = (edge.from, edge.to);
                missing.push(format!("{from} -> {to}{direction}on node{node}"));
            }
        }
        Ok(missing)
    }

    /// The line about a denied connection from an identity to PostgreSQL. It may come a moment after the client was told.
    pub(crate) fn find_denial(&self, from: &str) -> Result<Option<String>> {
        let source = format!("src.identity={}", identity(from));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.lab.logs(Component::Ztunnel, 2)?;
            let mut lines = log.lines();
            let found = lines.find(|line| line.contains("denied") && line.contains(&source));
            if found.is_some() || Instant::now() > deadline {
                return Ok(found.map(str::to_owned));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Tries to log in to PostgreSQL from the front end's pod, with the right password.
    pub(crate) fn psql_from_web(&self) -> Result<Output> {
        let uri = "host=postgres user=shop dbname=postgres connect_timeout=5 sslmode=disable";
        self.lab.exec(
            NAMESPACE,
            "deployment/web",
            &["psql", "-At", uri, "-c", "SELECT 1"],
        )
    }

    /// Tries until it is refused, or long enough.
    pub(crate) fn await_refusal(&self) -> Result<Output> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.psql_from_web()?;
            if output.code != 0 || Instant::now() > deadline {
                return Ok(output);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// How often containers were started again, and which pods there are.
    pub(crate) fn restarts(&self) -> Result<Vec<(String, u32)>> {
        let status: Status = self.lab.status()?;
        Ok(status
            .pods
            .into_iter()
            .map(|pod| (pod.uid, pod.restarts))
            .collect())
    }

    /// How often each node's ztunnel was started.
    pub(crate) fn ztunnel_generations(&self) -> Result<Vec<u32>> {
        let status = self.lab.status()?;
        let ztunnels = status
            .mesh
            .into_iter()
            .filter(|m| m.component == Component::Ztunnel);
        Ok(ztunnels.map(|ztunnel| ztunnel.generation).collect())
    }

    /// Starts the customer's load on the web; it goes on until it is told to end.
    pub(crate) fn start_load(&self, workers: u32) -> Result<Load> {
        let workers = workers.to_string();
        let command = ["/usr/bin/python3", "-u", "/config/load.py", "web", &workers];
        let mut child = self
            .lab
            .exec_command(NAMESPACE, "customer", &command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the load")?;
        let mut load = Load {
            commands: child.stdin.take().context("stdin was piped")?,
            lines: BufReader::new(child.stdout.take().context("stdout was piped")?),
            child,
        };
        // It runs when answers have come.
        let deadline = Instant::now() + PATIENCE;
        while load.answers()? == 0 {
            if Instant::now() > deadline {
                bail!("the load had no answer in {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(load)
    }
}

/// A load that goes on until it is told to end, or dropped.
pub(crate) struct Load {
    child: Child,
    commands: ChildStdin,
    lines: BufReader<ChildStdout>,
}

/// What became of a load.
#[derive(Debug, Default)]
pub(crate) struct LoadResult {
    /// Right answers.
    pub(crate) ok: usize,
    /// What else, and how often.
    pub(crate) failed: Vec<String>,
}

impl Load {
    /// How many right answers there were until now.
    pub(crate) fn answers(&mut self) -> Result<usize> {
        writeln!(self.commands, "count").context("asking the load")?;
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        let count = line.trim().parse();
        count.with_context(|| format!("the load says {line:?}"))
    }

    /// Ends it: every connection that was begun is brought to its end.
    pub(crate) fn finish(mut self) -> Result<LoadResult> {
        writeln!(self.commands, "end").context("ending the load")?;
        let mut result = LoadResult::default();
        for line in (&mut self.lines).lines() {
            let line = line?;
            match line.split_once('\t') {
                Some((count, "ok")) => result.ok = count.parse()?,
                _ => result.failed.push(line),
            }
        }
        let status = self.child.wait()?;
        if !status.success() {
            result.failed.push(format!("the load: {status}"));
        }
        Ok(result)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An order, and what was on the wire meanwhile.
pub(crate) struct Overheard {
    /// The answer.
    pub(crate) order: Result<String>,
    item: String,
    capture: pcap::Capture,
}

impl Overheard {
    /// Whether PostgreSQL's password stands there.
    pub(crate) fn shows_password(&self) -> bool {
        self.capture.count(PASSWORD) > 0
    }

    /// Whether what was ordered stands in what was sent to PostgreSQL.
    pub(crate) fn shows_item_to_postgres(&self) -> bool {
        let item = self.item.as_bytes();
        self.capture.segments.iter().any(|segment| {
            segment.destination.1 == 5432 && segment.payload.windows(item.len()).any(|w| w == item)
        })
    }

    /// Whether what was ordered stands there, to whomever.
    pub(crate) fn shows_item(&self) -> bool {
        self.capture.count(self.item.as_bytes()) > 0
    }

    /// Whether nothing was captured.
    pub(crate) fn is_empty(&self) -> bool {
        self.capture.segments.is_empty()
    }

    /// Whether all that applications sent is in TLS on port 15008. The control plane's port,
    /// which nodes use, is TLS as well.
    pub(crate) fn is_mesh_only(&self) -> bool {
        let own = |segment: &&pcap::Segment| segment.touches(15008);
        let mesh: Vec<_> = self.capture.segments.iter().filter(own).collect();
        let first_is_tls = mesh
            .iter()
            .filter(|s| !s.payload.is_empty())
            .any(|s| s.is_tls());
        let others = self.capture.segments.iter().any(|segment| {
            !segment.touches(15008) && !segment.touches(15012) && !segment.touches(53)
        });
        first_is_tls && !others
    }

    /// What was there, in a line.
    pub(crate) fn summary(&self) -> String {
        let ports: Vec<String> = self
            .capture
            .by_port()
            .into_iter()
            .map(|(port, count)| format!("{count} to port {port}"))
            .collect();
        format!(
            "captured on node1's wire: {} TCP segments ({}); the password {} times, the order {} \
             times",
            self.capture.segments.len(),
            ports.join(", "),
            self.capture.count(PASSWORD),
            self.capture.count(self.item.as_bytes())
        )
    }

    /// What the web said.
    pub(crate) fn said(&self) -> String {
        match &self.order {
            Ok(body) => body.clone(),
            Err(error) => format!("{error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_would_take_the_manifests_and_each_pod_has_its_own_service_account() {
        let objects = seine_lab::manifest::parse(MANIFESTS).unwrap();
        let mut accounts = Vec::new();
        for object in &objects {
            let spec = match object["kind"].as_str().unwrap() {
                "Pod" => &object["spec"],
                "Deployment" | "StatefulSet" => &object["spec"]["template"]["spec"],
                _ => continue,
            };
            for container in spec["containers"].as_array().unwrap() {
                assert!(container["image"].is_string(), "no image: {container}");
            }
            let account = spec["serviceAccountName"].as_str().unwrap();
            assert!(!accounts.contains(&account), "{account} has two pods");
            assert!(objects.iter().any(|object| {
                object["kind"] == "ServiceAccount" && object["metadata"]["name"] == account
            }));
            accounts.push(account);
        }
        assert_eq!(accounts.len(), 6, "{accounts:?}");
    }
}
