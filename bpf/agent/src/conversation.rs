//! The agent's side of what node proxies say, without a listener and a door; for tests of that alone.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;

use crate::handover;
use crate::listeners_server;
use crate::seqpacket::Connection;
use crate::served::Served;
use crate::served::ServedPod;
use crate::zds;

/// Which socket the proxy came to.
#[derive(Clone, Copy, Debug)]
pub enum Socket {
    /// `ztunnel.sock`.
    Ztunnel,
    /// `listeners.sock`.
    Listeners,
    /// `handover.sock`.
    Handover,
}

/// Hears a proxy to the end of what it says, as an agent with one pod.
///
/// # Errors
///
/// What the agent would log.
pub async fn hear(socket: Socket, proxy: OwnedFd) -> Result<(), Box<dyn Error>> {
    let connection = Connection::new(proxy)?;
    let (_keeper, served) = served()?;
    match socket {
        Socket::Ztunnel => zds::hear(connection, served).await?,
        Socket::Listeners => listeners_server::converse(&connection, &served).await?,
        Socket::Handover => handover::hear(connection).await?,
    }
    Ok(())
}

type Pods = Option<Arc<Served>>;

fn served() -> io::Result<(watch::Sender<Pods>, watch::Receiver<Pods>)> {
    let pod = ServedPod {
        uid: "1".into(),
        name: "web-0".into(),
        namespace: "shop".into(),
        service_account: "web".into(),
        cookie: 1,
        netns: Arc::new(File::open("/proc/self/ns/net")?.into()),
        listeners: Some(Arc::default()),
    };
    let pods = BTreeMap::from([(pod.uid.clone(), Arc::new(pod))]);
    Ok(watch::channel(Some(Arc::new(pods))))
}
