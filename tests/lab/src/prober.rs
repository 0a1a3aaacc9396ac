//! The process that asks a node's pods how they are.
//!
//! A mesh tells the kubelet's probes from other connections by the kubelet's cgroup, so they
//! come from a process in one, in the node's network namespace: `seine-lab internal-probe`,
//! one for each node. It reads a check from each line of its standard input and writes the
//! answer as a line, in any order.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};

use crate::enter::Enter;
use crate::pod::PodView;
use crate::services::named_port;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Whom to ask.
    pub address: SocketAddr,
    /// For `httpGet`: path and header lines; without it, a TCP connection is enough.
    pub http: Option<(String, Vec<String>)>,
}

impl Check {
    /// The check that a probe of a pod's container describes.
    pub fn from_probe(probe: &Probe, pod: &PodView, container: &Container) -> Result<Self, String> {
        let own = if pod.host_network() {
            pod.node_v4
        } else {
            pod.v4
        };
        let address = |host: &Option<String>, port: &IntOrString| {
            let port = match port {
                IntOrString::Int(number) => u16::try_from(*number).ok(),
                IntOrString::String(name) => named_port(name, std::slice::from_ref(container)),
            };
            let host: Option<IpAddr> = match host {
                Some(host) => host.parse().ok(),
                None => Some(own.into()),
            };
            match (host, port) {
                (Some(host), Some(port)) => Ok(SocketAddr::new(host, port)),
                _ => Err("its host is no address or its port has no number".to_owned()),
            }
        };
        if let Some(http) = &probe.http_get {
            if http.scheme.as_deref() == Some("HTTPS") {
                return Err("the lab has no HTTPS probes".to_owned());
            }
            let headers = http
                .http_headers
                .iter()
                .flatten()
                .map(|header| format!("{}: {}", header.name, header.value))
                .collect();
            let path = http.path.clone().unwrap_or_else(|| "/".to_owned());
            Ok(Self {
                address: address(&http.host, &http.port)?,
                http: Some((path, headers)),
            })
        } else if let Some(tcp) = &probe.tcp_socket {
            Ok(Self {
                address: address(&tcp.host, &tcp.port)?,
                http: None,
            })
        } else {
            Err("the lab has httpGet, tcpSocket and exec probes only".to_owned())
        }
    }

    /// Asks; what a kubelet takes for a yes is `Ok`.
    pub async fn run(&self) -> Result<(), String> {
        let mut stream = TcpStream::connect(self.address)
            .await
            .map_err(|e| format!("{}: {e}", self.address))?;
        let Some((path, headers)) = &self.http else {
            return Ok(());
        };
        let mut request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: kube-probe/1.36\r\n\
             Accept: */*\r\nConnection: close\r\n",
            self.address
        );
        for header in headers {
            request += header;
            request += "\r\n";
        }
        request += "\r\n";
        let mut answer = Vec::new();
        let talk = async {
            stream.write_all(request.as_bytes()).await?;
            // The status line is enough; the rest of a large page is not of interest.
            (&mut stream).take(4096).read_to_end(&mut answer).await
        };
        let result = talk.await;
        let status = std::str::from_utf8(answer.get(9..12).unwrap_or_default())
            .ok()
            .and_then(|text| text.parse::<u16>().ok());
        match (status, result) {
            (Some(200..400), _) => Ok(()),
            (Some(status), _) => {
                let text = String::from_utf8_lossy(&answer);
                let body = text
                    .split_once("\r\n\r\n")
                    .map_or("", |(_, body)| body.trim());
                Err(format!(
                    "{}{path}: HTTP status {status}: {body}",
                    self.address
                ))
            }
            (None, Err(error)) => Err(format!("{}{path}: {error}", self.address)),
            (None, Ok(_)) => Err(format!("{}{path}: no HTTP answer", self.address)),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Question {
    id: u64,
    timeout_ms: u64,
    check: Check,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    id: u64,
    /// Why not, or nothing.
    why: Option<String>,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Option<String>>>>>;

/// A node's prober, as the supervisor sees it.
#[derive(Clone)]
pub struct Prober {
    questions: mpsc::UnboundedSender<String>,
    waiting: Waiting,
    next: Arc<AtomicU64>,
    _process: Arc<Child>,
}

impl Prober {
    /// Starts the process.
    pub fn start(program: &Path, enter: &Enter) -> Result<Self> {
        let command = [program.display().to_string(), "internal-probe".to_owned()];
        let mut child = Command::new(program)
            .args(enter.arguments(&command)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting a node's prober")?;
        let mut stdin = child.stdin.take().context("stdin was piped")?;
        let stdout = child.stdout.take().context("stdout was piped")?;
        let (questions, mut lines) = mpsc::unbounded_channel::<String>();
        tokio::spawn(async move {
            while let Some(line) = lines.recv().await {
                if stdin.write_all(line.as_bytes()).await.is_err() {
                    break;
                }
            }
        });
        let waiting = Waiting::default();
        let answers = waiting.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(answer) = serde_json::from_str::<Answer>(&line) else {
                    continue;
                };
                let asker = answers.lock().expect("no holder panics").remove(&answer.id);
                if let Some(asker) = asker {
                    let _ = asker.send(answer.why);
                }
            }
            // Whoever still waits gets an error.
            answers.lock().expect("no holder panics").clear();
        });
        let next = Arc::new(AtomicU64::new(0));
        Ok(Self {
            questions,
            waiting,
            next,
            _process: Arc::new(child),
        })
    }

    /// Asks from the node.
    pub async fn ask(&self, check: Check, timeout: Duration) -> Result<(), String> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let mut line = serde_json::to_string(&Question {
            id,
            timeout_ms,
            check,
        })
        .map_err(|error| error.to_string())?;
        line.push('\n');
        let (asker, answer) = oneshot::channel();
        self.waiting
            .lock()
            .expect("no holder panics")
            .insert(id, asker);
        let gone = || "the node's prober is gone".to_owned();
        self.questions.send(line).map_err(|_| gone())?;
        match answer.await {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(why),
            Err(_) => Err(gone()),
        }
    }
}

/// Runs as the process.
pub async fn run() -> Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let (answers, mut out) = mpsc::unbounded_channel::<Answer>();
    tokio::spawn(async move {
        let mut stdout = tokio::io::stdout();
        while let Some(answer) = out.recv().await {
            let Ok(mut line) = serde_json::to_string(&answer) else {
                continue;
            };
            line.push('\n');
            if stdout.write_all(line.as_bytes()).await.is_err() || stdout.flush().await.is_err() {
                std::process::exit(0);
            }
        }
    });
    while let Some(line) = lines.next_line().await? {
        let question: Question = serde_json::from_str(&line).context("a question")?;
        let answers = answers.clone();
        tokio::spawn(async move {
            let limit = Duration::from_millis(question.timeout_ms);
            let why = match tokio::time::timeout(limit, question.check.run()).await {
                Ok(result) => result.err(),
                Err(_) => Some(format!(
                    "{}: no answer in {limit:?}",
                    question.check.address
                )),
            };
            let _ = answers.send(Answer {
                id: question.id,
                why,
            });
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn answer_with(text: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 512];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(text.as_bytes()).await;
        });
        Check {
            address,
            http: Some(("/".to_owned(), vec![])),
        }
        .run()
        .await
    }

    #[tokio::test]
    async fn an_http_status_decides() {
        assert!(answer_with("HTTP/1.1 204 No Content\r\n\r\n").await.is_ok());
        let why = answer_with("HTTP/1.1 503 Busy\r\n\r\nwait")
            .await
            .unwrap_err();
        assert!(why.contains("503") && why.contains("wait"), "{why}");
        assert!(answer_with("what?").await.is_err());
    }
}
