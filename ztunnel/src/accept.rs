//! Accepting connections of a pod until it stops.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use seine_telemetry::limited;
use tokio::net::{TcpListener, TcpStream};

use crate::pod::Pod;
use crate::shared::Shared;
use crate::sockets::{prepare, unmapped};

/// Waits until connections may be accepted: before, they wait in the backlog. False: the pod ended first.
pub(crate) async fn may_accept(shared: &Shared, pod: &Pod) -> bool {
    tokio::select! {
        biased;
        () = pod.life.stop().cancelled() => false,
        () = shared.configured() => true,
    }
}

/// The next connection; none when the pod stops accepting. The listener itself stays the agent's.
pub(crate) async fn next(listener: &TcpListener, pod: &Pod) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = pod.life.stop().cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // A connection that can't be prepared is gone already.
            Ok((tcp, peer)) => match prepare(&tcp, &pod.dialer.keepalive) {
                Ok(()) => return Some((tcp, unmapped(peer))),
                Err(_) => continue,
            },
            Err(error) if gone(&error) => {}
            Err(error) => {
                // Out of descriptors or memory: the connection waits in the backlog meanwhile.
                limited!(pod.limits.tunnel_lines, "accept", warn: ?pod, %error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The client went away before it was accepted.
fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}
