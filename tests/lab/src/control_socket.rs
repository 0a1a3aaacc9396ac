//! The socket on which the supervisor answers the command line.
//!
//! For root alone: whoever can connect can run programs in every pod.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};

use crate::enter::Enter;
use crate::mesh::Mesh;
use crate::names::Layout;
use crate::network::FABRIC_INTERFACE;
use crate::protocol::{Reply, Request};
use crate::supervisor::Call;

/// How the start of the mesh went; `None` while it goes on.
pub type Started = Arc<watch::Sender<Option<Result<(), String>>>>;

/// What connections need.
#[derive(Clone)]
struct Server {
    layout: Layout,
    calls: UnboundedSender<Call>,
    mesh: Option<Arc<Mesh>>,
    started: Started,
}

/// Listens; connections are served by tasks of their own.
pub fn serve(
    layout: &Layout,
    calls: UnboundedSender<Call>,
    mesh: Option<Arc<Mesh>>,
    started: Started,
) -> Result<()> {
    let path = layout.control_socket();
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let server = Server {
        layout: layout.clone(),
        calls,
        mesh,
        started,
    };
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            if stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
                let server = server.clone();
                tokio::spawn(async move {
                    if let Err(error) = server.connection(stream).await {
                        tracing::debug!("a connection of the command line: {error:#}");
                    }
                });
            }
        }
    });
    Ok(())
}

impl Server {
    async fn connection(&self, stream: UnixStream) -> Result<()> {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        while let Some(line) = lines.next_line().await? {
            let answer = match serde_json::from_str(&line) {
                Ok(Request::Down) => {
                    send(&mut write, &Reply::Done(Value::Null)).await?;
                    // Everything else of the lab ends with this process.
                    std::process::exit(0);
                }
                Ok(request) => self.answer(request, &mut write).await,
                Err(error) => Err(error.into()),
            };
            let reply = match answer {
                Ok(value) => Reply::Done(value),
                Err(error) => Reply::Failed(format!("{error:#}")),
            };
            send(&mut write, &reply).await?;
        }
        Ok(())
    }

    async fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T> {
        let (back, answer) = oneshot::channel();
        self.calls
            .send(call(back))
            .ok()
            .context("the supervisor is ending")?;
        answer.await.context("the supervisor is ending")
    }

    async fn answer(&self, request: Request, write: &mut OwnedWriteHalf) -> Result<Value> {
        let mesh = || {
            self.mesh
                .as_ref()
                .context("this lab has no mesh (up --no-mesh)")
        };
        Ok(match request {
            Request::Wait { seconds } => self.wait(Duration::from_secs(seconds), write).await?,
            Request::Apply(objects) => {
                json!(self.ask(|back| Call::Apply(objects, back)).await??)
            }
            Request::Delete {
                kind,
                name,
                namespace,
            } => {
                let uids = self
                    .ask(|back| Call::Delete(kind, name, namespace, back))
                    .await??;
                self.await_end(&uids).await?;
                Value::Null
            }
            Request::Pod {
                namespace,
                pod,
                container,
            } => {
                let place = self
                    .ask(|back| Call::Pod(namespace, pod, container, back))
                    .await??;
                serde_json::to_value(place)?
            }
            Request::Wire { node } => {
                let netns = self.layout.netns(&format!("node{node}"));
                anyhow::ensure!(netns.exists(), "there is no node{node}");
                let cgroup = self.layout.cgroup.join("lab");
                let enter = Enter {
                    cgroup,
                    netns: Some(netns),
                    ..Enter::default()
                };
                json!({"enter": enter, "interface": FABRIC_INTERFACE})
            }
            Request::Restart { component, node } => {
                mesh()?.restart(component, node).await?;
                Value::Null
            }
            Request::Kill {
                component,
                node,
                signal,
            } => {
                mesh()?.kill(component, node, signal).await?;
                Value::Null
            }
            Request::Status => serde_json::to_value(self.ask(Call::Status).await?)?,
            Request::Down => Value::Null,
        })
    }

    /// Waits until mesh and pods are ready, telling what is missing when that changes.
    async fn wait(&self, limit: Duration, write: &mut OwnedWriteHalf) -> Result<Value> {
        let deadline = tokio::time::Instant::now() + limit;
        if self.mesh.is_some() {
            send(
                write,
                &Reply::Progress("starting control plane, agents, ztunnels".into()),
            )
            .await?;
            let mut started = self.started.subscribe();
            let result = tokio::time::timeout_at(deadline, started.wait_for(Option::is_some)).await;
            match result {
                Ok(Ok(outcome)) => {
                    if let Some(Err(why)) = outcome.as_ref() {
                        anyhow::bail!("{why}");
                    }
                }
                _ => anyhow::bail!("the mesh's programs did not get ready in {limit:?}"),
            }
        }
        let mut told = String::new();
        loop {
            let waiting = self.ask(Call::Unready).await?;
            if waiting.is_empty() {
                return Ok(Value::Null);
            }
            if tokio::time::Instant::now() >= deadline {
                anyhow::bail!("not ready after {limit:?}:\n  {}", waiting.join("\n  "));
            }
            let line = format!("waiting for {} pods", waiting.len());
            if line != told {
                send(write, &Reply::Progress(line.clone())).await?;
                told = line;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns when the pods are off the machine.
    async fn await_end(&self, uids: &[String]) -> Result<()> {
        loop {
            let status = self.ask(Call::Status).await?;
            if !status.pods.iter().any(|pod| uids.contains(&pod.uid)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn send(write: &mut OwnedWriteHalf, reply: &Reply) -> Result<()> {
    let mut line = serde_json::to_string(reply)?;
    line.push('\n');
    write.write_all(line.as_bytes()).await?;
    Ok(())
}
