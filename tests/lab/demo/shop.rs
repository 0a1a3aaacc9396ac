//! The shop: how it is asked, watched and overheard.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
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
/// Who speaks to whom.
pub(crate) const EDGES: [(&str, &str); 4] = [
    ("customer", "web"),
    ("web", "api"),
    ("api", "postgres"),
    ("api", "redis"),
];

const NAMESPACE: &str = "shop";
const PASSWORD: &[u8] = b"correct-horse-battery-staple";
/// The longest that a change of configuration may take to be seen.
const PATIENCE: Duration = Duration::from_secs(20);

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
            for (from, to) in EDGES {
                if self.find_edge(from, to)?.is_none() {
                    missing.push(format!("{from} -> {to}"));
                }
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

    fn access_log(&self) -> Result<String> {
        Ok(self.lab.logs(Component::Ztunnel, 1)? + &self.lab.logs(Component::Ztunnel, 2)?)
    }

    /// A line of an access log about a connection between two identities in mutual TLS.
    pub(crate) fn find_edge(&self, from: &str, to: &str) -> Result<Option<String>> {
        let source = format!("src.identity={} ", identity(from));
        let destination = format!("dst.identity={} ", identity(to));
        Ok(self
            .access_log()?
            .lines()
            .find(|line| {
                let line = format!("{line} ");
                line.contains(&source)
                    && line.contains(&destination)
                    && line.contains("security=mutual_tls")
            })
            .map(str::to_owned))
    }

    /// The line about a denied connection from an identity to PostgreSQL.
    pub(crate) fn find_denial(&self, from: &str) -> Result<Option<String>> {
        let source = format!("src.identity={}", identity(from));
        let log = self.lab.logs(Component::Ztunnel, 2)?;
        Ok(log
            .lines()
            .find(|line| line.contains("denied") && line.contains(&source))
            .map(str::to_owned))
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

    /// Starts the customer's load on the web.
    pub(crate) fn start_load(&self, seconds: f64, workers: u32) -> Result<Load> {
        let (seconds, workers) = (seconds.to_string(), workers.to_string());
        let command = [
            "/usr/bin/python3",
            "-u",
            "/config/load.py",
            "web",
            &seconds,
            &workers,
        ];
        let mut child = self
            .lab
            .exec_command(NAMESPACE, "customer", &command)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the load")?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout was piped")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        if line != "started\n" {
            bail!("the load did not start: {line}");
        }
        std::thread::sleep(Duration::from_millis(500));
        Ok(Load { child, lines })
    }
}

/// A load that goes on.
pub(crate) struct Load {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
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
    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Result<LoadResult> {
        let mut result = LoadResult::default();
        for line in self.lines.lines() {
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

    /// Whether what was ordered stands there.
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
