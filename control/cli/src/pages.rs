//! The programs' own pages on loopback, reached directly or by a port-forward through the API
//! server.

use std::{ops::ControlFlow, time::Duration};

use anyhow::{Context as _, bail};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::Portforwarder};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};

use crate::cluster::Cluster;

/// A page of more is none of ours: that of 100,000 workloads is about 60 MB.
const LARGEST: usize = 256 << 20;
/// A line of a page that goes on.
const LONGEST_LINE: usize = 1 << 20;
/// A program that doesn't answer for so long will not.
const PATIENCE: Duration = Duration::from_secs(20);

/// Port of the control plane's pages.
pub const CONTROL: u16 = 15014;
/// Port of ztunnel's pages.
pub const ZTUNNEL: u16 = 15000;
/// Port of a waypoint's pages.
pub const WAYPOINT: u16 = 15000;
/// Port of the agent's pages.
pub const AGENT: u16 = 15010;

/// A program whose pages can be read.
#[derive(Clone)]
pub struct Program {
    /// The pod's name, or the address.
    pub name: String,
    /// Its node, where that is known.
    pub node: String,
    reach: Reach,
}

#[derive(Clone)]
enum Reach {
    Address(String),
    Pod {
        cluster: Cluster,
        namespace: String,
        port: u16,
    },
}

impl Program {
    /// One that listens where this program can connect to.
    pub fn at(address: &str) -> Self {
        Self {
            name: address.to_owned(),
            node: String::new(),
            reach: Reach::Address(address.to_owned()),
        }
    }

    /// One in a pod.
    pub fn in_pod(cluster: &Cluster, pod: &Pod, port: u16) -> Self {
        Self {
            name: pod.name_any(),
            node: seine_objects::pods::node(pod)
                .unwrap_or_default()
                .to_owned(),
            reach: Reach::Pod {
                cluster: cluster.clone(),
                namespace: pod.namespace().unwrap_or_else(|| cluster.system.clone()),
                port,
            },
        }
    }

    /// A page as JSON.
    pub async fn json(&self, path: &str) -> anyhow::Result<Value> {
        let text = self.get(path).await?;
        serde_json::from_str(&text).with_context(|| format!("{}{path} is no JSON", self.name))
    }

    /// A page as text.
    pub async fn get(&self, path: &str) -> anyhow::Result<String> {
        let (status, text) = self.request(path).await?;
        if status != StatusCode::OK {
            bail!("{}{path}: {status}: {}", self.name, text.trim_end());
        }
        Ok(text)
    }

    /// A page whatever its status is.
    pub async fn request(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let asked = timeout(PATIENCE, self.ask(path)).await;
        let asked = asked.unwrap_or_else(|_| bail!("no answer in {} s", PATIENCE.as_secs()));
        asked.with_context(|| format!("{}{path}", self.name))
    }

    async fn ask(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let (answer, connection) = self.open(path).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        drop(connection);
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Has each line of a page that goes on told, as it comes, until it ends or is not wanted any more.
    pub async fn lines(
        &self,
        path: &str,
        mut tell: impl FnMut(&str) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        let opened = timeout(PATIENCE, self.open(path)).await;
        let opened = opened.unwrap_or_else(|_| bail!("no answer in {} s", PATIENCE.as_secs()));
        let (answer, _connection) = opened.with_context(|| format!("{}{path}", self.name))?;
        let status = answer.status();
        let mut body = answer.into_body();
        let mut held = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.with_context(|| self.name.clone())?;
            held.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = held.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                if status != StatusCode::OK {
                    bail!("{}{path}: {status}: {}", self.name, line.trim_end());
                }
                if tell(line.trim_end())?.is_break() {
                    return Ok(());
                }
            }
            if held.len() > LONGEST_LINE {
                bail!("{}{path}: a line of it has no end", self.name);
            }
        }
        Ok(())
    }

    async fn open(&self, path: &str) -> anyhow::Result<(Response<Incoming>, Connection)> {
        match &self.reach {
            Reach::Address(address) => {
                exchange(TcpStream::connect(address.as_str()).await?, path).await
            }
            Reach::Pod {
                cluster,
                namespace,
                port,
            } => {
                let pods = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
                let mut forward = pods
                    .portforward(&self.name, &[*port])
                    .await
                    .context("port-forward (it needs the permission to create pods/portforward)")?;
                let stream = forward
                    .take_stream(*port)
                    .context("no stream for the port")?;
                let (answer, mut connection) = exchange(stream, path).await?;
                connection.forward = Some(forward);
                Ok((answer, connection))
            }
        }
    }
}

/// What carries an answer; it ends when this is dropped.
struct Connection {
    task: JoinHandle<hyper::Result<()>>,
    forward: Option<Portforwarder>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(forward) = &self.forward {
            forward.abort();
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    path: &str,
) -> anyhow::Result<(Response<Incoming>, Connection)> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = Connection {
        task: tokio::spawn(connection),
        forward: None,
    };
    let request = http::Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(http::header::HOST, "localhost")
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    Ok((sender.send_request(request).await?, connection))
}
