//! Latency and throughput between the nodes, by redis-benchmark and iperf3.
//!
//! Rough figures for a transcript; `make bench` measures with care.

use anyhow::{Context, Result, bail};
use seine_lab::Lab;
use serde_json::Value;

/// What was measured once.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// A request and its answer on one connection, milliseconds.
    p50: f64,
    p99: f64,
    /// Connections a second, each for one request.
    connections: f64,
    /// One stream, Gbit/s.
    throughput: f64,
}

impl Figures {
    /// Measures from the customer on node2 to the pod `speed` on node1.
    pub(crate) fn measure(lab: &Lab) -> Result<Self> {
        let requests = benchmark(lab, &["-c", "1", "-n", "5000"])?;
        let connections = benchmark(lab, &["-c", "4", "-n", "1500", "-k", "0"])?;
        let iperf = ["iperf3", "-c", "speed", "-t", "3", "-J"];
        let output = lab.exec("shop", "customer", &iperf)?;
        let answer: Value = serde_json::from_str(&output.stdout).context("iperf3's answer")?;
        let bits = answer
            .pointer("/end/sum_received/bits_per_second")
            .and_then(Value::as_f64)
            .with_context(|| format!("iperf3: {} {}", answer["error"], output.stderr))?;
        Ok(Self {
            p50: requests.p50,
            p99: requests.p99,
            connections: connections.rate,
            throughput: bits / 1e9,
        })
    }

    /// Whether the figures are of a network that works.
    pub(crate) fn plausible(&self) -> bool {
        self.p50 > 0.0 && self.p99 >= self.p50 && self.connections > 10.0 && self.throughput > 0.05
    }

    /// A table of both.
    pub(crate) fn beside(&self, meshed: &Self) -> String {
        let row = |name: &str, a: f64, b: f64, digits: usize, unit: &str| {
            format!(
                "{name:<34}{a:>10.digits$}{b:>10.digits$}  {unit:<7}{:>6.2} x\n",
                b / a
            )
        };
        format!("{:<34}{:>10}{:>10}\n", "", "direct", "mesh")
            + &row("request and answer, p50", self.p50, meshed.p50, 3, "ms")
            + &row("request and answer, p99", self.p99, meshed.p99, 3, "ms")
            + &row(
                "new connections",
                self.connections,
                meshed.connections,
                0,
                "/s",
            )
            + &row(
                "one stream",
                self.throughput,
                meshed.throughput,
                2,
                "Gbit/s",
            )
    }
}

struct Benchmark {
    rate: f64,
    p50: f64,
    p99: f64,
}

fn benchmark(lab: &Lab, arguments: &[&str]) -> Result<Benchmark> {
    let mut command = vec![
        "redis-benchmark",
        "-h",
        "speed",
        "-p",
        "6380",
        "-t",
        "ping_mbulk",
        "--csv",
    ];
    command.extend(arguments);
    let output = lab.exec("shop", "customer", &command)?;
    // "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_…","p99_…","max_…"
    let Some(line) = output
        .stdout
        .lines()
        .find(|line| line.starts_with("\"PING"))
    else {
        bail!(
            "redis-benchmark: {} {}",
            output.stdout.trim(),
            output.stderr.trim()
        );
    };
    let fields: Vec<f64> = line
        .split(',')
        .skip(1)
        .filter_map(|field| field.trim_matches('"').parse().ok())
        .collect();
    match fields[..] {
        [rate, _, _, p50, _, p99, ..] => Ok(Benchmark { rate, p50, p99 }),
        _ => bail!("redis-benchmark: {line}"),
    }
}
