//! The interfaces of a pod: where its guard belongs, and word of changes.
//!
//! A pod may get interfaces after its start, from a plugin that adds secondary networks behind the
//! chain that enrolled it. The guard stands at the host's end of a veth; an interface that has none
//! here (macvlan, a device of its own) can't be guarded, and that is told.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;
use std::time::Duration;

use futures::TryStreamExt;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::NetlinkAddr;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::bind;
use nix::sys::socket::recv;
use nix::sys::socket::socket;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::InfoKind;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::link::LinkInfo;
use rtnetlink::packet_route::link::LinkMessage;
use tokio::task::AbortHandle;

use crate::keeper::Command;
use crate::netns::Netns;
use crate::routing::RoutingError;
use crate::routing::in_pod;
use crate::routing::in_runtime;
use crate::seqpacket;

/// A pod that makes and removes interfaces all the time costs one look in this time.
const PAUSE: Duration = Duration::from_millis(200);

/// A pod's ways out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interfaces {
    /// The other ends of its veth pairs, where they are in the agent's own network namespace: by
    /// index there.
    pub(crate) host_ends: BTreeSet<u32>,
    /// Names of the interfaces that lead out and have no such end.
    pub(crate) unguarded: Vec<String>,
}

/// Looks at the pod and the host.
///
/// # Errors
///
/// See [`RoutingError`].
pub(crate) fn find(netns: &Netns) -> Result<Interfaces, RoutingError> {
    let in_pod: Vec<Link> = in_pod(netns, links)?;
    let on_host: Vec<Link> = in_runtime(links)?;
    Ok(sort(&in_pod, &on_host))
}

#[derive(Clone, Debug)]
struct Link {
    index: u32,
    name: String,
    /// The index of the other end or the device below, if that is in another namespace.
    elsewhere: Option<u32>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Loopback,
    Veth,
    /// A device of its own: what drives it is no part of the kernel's virtual networks.
    Device,
    Other,
}

fn sort(in_pod: &[Link], on_host: &[Link]) -> Interfaces {
    let mut found = Interfaces::default();
    for pod in in_pod {
        // Each end must name the other: indexes repeat in other namespaces.
        let host_end = on_host
            .iter()
            .find(|host| pod.elsewhere == Some(host.index) && host.elsewhere == Some(pod.index));
        match (host_end, pod.kind) {
            (Some(host), Kind::Veth) => drop(found.host_ends.insert(host.index)),
            // Its other end is in a namespace nested in the pod.
            (None, Kind::Veth) | (_, Kind::Loopback) => {}
            // What has nothing below it in another namespace leaves by another interface, or not
            // at all: bridges, tunnels.
            (_, Kind::Other) if pod.elsewhere.is_none() => {}
            (_, Kind::Device | Kind::Other) => found.unguarded.push(pod.name.clone()),
        }
    }
    found
}

async fn links(handle: Handle) -> Result<Vec<Link>, RoutingError> {
    let messages: Vec<_> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|source| RoutingError::Request {
            what: "ip link",
            source,
        })?;
    Ok(messages.iter().map(link).collect())
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        elsewhere: None,
        kind: Kind::Device,
    };
    let mut other = None;
    let mut in_another_namespace = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Link(index) => other = Some(*index),
            LinkAttribute::LinkNetNsId(_) => in_another_namespace = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Veth) => link.kind = Kind::Veth,
                        LinkInfo::Kind(_) => link.kind = Kind::Other,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if message.header.flags.contains(LinkFlags::Loopback) {
        link.kind = Kind::Loopback;
    }
    link.elsewhere = other.filter(|_| in_another_namespace);
    link
}

/// Tells the keeper of changes of pods' interfaces.
#[derive(Clone, Debug)]
pub(crate) struct Watcher {
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) to: Sender<Command>,
}

/// One pod is watched as long as this lives.
#[derive(Debug)]
pub(crate) struct Watched(AbortHandle);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watcher {
    /// Sends [`Command::InterfacesChanged`] from now on whenever an interface of the pod comes,
    /// changes or goes.
    ///
    /// # Errors
    ///
    /// There is no netlink socket to be had.
    pub(crate) fn watch(&self, uid: &str, netns: &Netns) -> Result<Watched, RoutingError> {
        let socket = netns.within(subscribe)?.map_err(RoutingError::Netlink)?;
        let entered = self.runtime.enter();
        let socket = seqpacket::register(socket).map_err(RoutingError::Netlink)?;
        drop(entered);
        let (uid, to) = (uid.to_owned(), self.to.clone());
        let task = self.runtime.spawn(async move {
            while let Ok(mut ready) = socket.readable().await {
                drain(socket.get_ref());
                ready.clear_ready();
                let uid = uid.clone();
                if to.send(Command::InterfacesChanged { uid }).is_err() {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Ok(Watched(task.abort_handle()))
    }
}

fn subscribe() -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    bind(
        socket.as_raw_fd(),
        &NetlinkAddr::new(0, libc::RTMGRP_LINK.cast_unsigned()),
    )?;
    Ok(socket)
}

/// Reads until nothing is left; what it says is looked up, and so is what was lost for want of room.
fn drain(socket: &OwnedFd) {
    let mut message = [0; 64];
    while recv(socket.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT)
        .is_ok_and(|length| length > 0)
    {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, elsewhere: Option<u32>, kind: Kind) -> Link {
        Link {
            index,
            name: format!("if{index}"),
            elsewhere,
            kind,
        }
    }

    #[test]
    fn two_interfaces_are_a_pair_only_if_each_names_the_other() {
        let pod = [
            link(1, None, Kind::Loopback),
            link(2, Some(40), Kind::Veth),
            link(3, Some(41), Kind::Veth),
            link(4, Some(42), Kind::Veth),
        ];
        let host = [
            link(2, None, Kind::Device),
            link(40, Some(2), Kind::Veth),
            link(41, Some(9), Kind::Veth),
            link(42, None, Kind::Veth),
        ];
        let found = sort(&pod, &host);
        assert_eq!(found.host_ends, [40].into());
        assert!(found.unguarded.is_empty(), "{found:?}");
    }

    #[test]
    fn a_way_out_without_a_hosts_end_is_named() {
        let pod = [
            // macvlan, whose device is the host's; a network card; a tunnel's, a bridge.
            link(2, Some(40), Kind::Other),
            link(3, None, Kind::Device),
            link(4, None, Kind::Other),
        ];
        let host = [link(40, None, Kind::Device)];
        let found = sort(&pod, &host);
        assert!(found.host_ends.is_empty(), "{found:?}");
        assert_eq!(found.unguarded, ["if2", "if3"]);
    }
}
