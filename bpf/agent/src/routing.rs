//! The way back from an application that ztunnel dialled with the client's own address.
//!
//! ztunnel marks those sockets; with `tcp_fwmark_accept` the application's end takes the mark over,
//! and one rule sends marked packets to a table in which every address is local. So the answer
//! stays in the pod, though it is addressed to a client elsewhere. Another mesh's node proxy marks all of
//! its sockets so; two rules before that one let its tunnels, in either direction, leave the pod. Both families use the sysctl
//! `net.ipv4.tcp_fwmark_accept`. A port on which nobody listens has no socket to take the mark over:
//! `fwmark_reflect` puts it on the reset, so that ztunnel hears of the refusal at once. Runs in the
//! pod's network namespace.

use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use rtnetlink::Handle;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::packet_route::rule::RuleAttribute;
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::rule::RulePortRange;

use crate::netns::Netns;
use crate::netns::NetnsError;
use crate::sysctl;

/// Mark of ztunnel's sockets towards the application.
const MARK: u32 = 0x539;
const MASK: u32 = 0xfff;
const TABLE: u32 = 539;
/// Before the main table (32766) and behind the local one (0).
const PRIORITY: u32 = 1539;
const TUNNEL_PRIORITY: u32 = PRIORITY - 1;
const TABLE_MAIN: u32 = 254;
/// HBONE.
const TUNNEL_PORT: RulePortRange = RulePortRange {
    start: 15008,
    end: 15008,
};
/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;
const SYSCTLS_V4: [&str; 2] = [
    "sys/net/ipv4/tcp_fwmark_accept",
    "sys/net/ipv4/fwmark_reflect",
];
const SYSCTL_V6: &str = "sys/net/ipv6/fwmark_reflect";

/// What went wrong in the pod's namespace.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    /// The namespace can't be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The sysctl can't be written: does the agent have `CAP_SYS_ADMIN`?
    #[error("set /proc/{path} in the pod: {source}")]
    Sysctl {
        /// Which one.
        path: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// No netlink socket, or no runtime for it.
    #[error("netlink in the pod's network namespace: {0}")]
    Netlink(#[source] io::Error),
    /// The kernel refused a rule or route.
    #[error("{what} in the pod's network namespace: {source}")]
    Request {
        /// The request, as `ip` would have it.
        what: &'static str,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
}

/// Makes the way back; what is there already stays. `ipv6` says whether the pod has IPv6.
///
/// # Errors
///
/// See [`RoutingError`]; a part of it may be there.
pub fn install(netns: &Netns, ipv6: bool) -> Result<(), RoutingError> {
    in_pod(netns, move |handle| async move {
        for path in SYSCTLS_V4.into_iter().chain(ipv6.then_some(SYSCTL_V6)) {
            sysctl::enable(path).map_err(|source| RoutingError::Sysctl { path, source })?;
        }
        add(
            &handle,
            rules(false),
            route_v4(),
            ["ip rule add", "ip route add"],
        )
        .await?;
        if ipv6 {
            add(
                &handle,
                rules(true),
                route_v6(),
                ["ip -6 rule add", "ip -6 route add"],
            )
            .await?;
        }
        Ok(())
    })
}

/// Takes it away again; the sysctl stays, since it does nothing without the rule.
///
/// # Errors
///
/// See [`RoutingError`].
pub fn remove(netns: &Netns) -> Result<(), RoutingError> {
    in_pod(netns, |handle| async move {
        for message in rules(false).into_iter().chain(rules(true)) {
            gone("ip rule del", handle.rule().del(message).execute().await)?;
        }
        for message in [route_v4(), route_v6()] {
            gone("ip route del", handle.route().del(message).execute().await)?;
        }
        Ok(())
    })
}

pub(crate) fn in_pod<T, F, W>(netns: &Netns, work: W) -> Result<T, RoutingError>
where
    T: Send,
    F: Future<Output = Result<T, RoutingError>>,
    W: FnOnce(Handle) -> F + Send,
{
    netns.within(|| in_runtime(work))?
}

/// Runs on a runtime of its own, in the calling thread, which must not be one of a runtime.
pub(crate) fn in_runtime<T, F, W>(work: W) -> Result<T, RoutingError>
where
    F: Future<Output = Result<T, RoutingError>>,
    W: FnOnce(Handle) -> F,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(RoutingError::Netlink)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(RoutingError::Netlink)?;
        let driver = tokio::spawn(connection);
        let result = work(handle).await;
        driver.abort();
        result
    })
}

fn rules(v6: bool) -> [RuleMessage; 3] {
    let to_main = |ports| {
        let attributes = [
            RuleAttribute::Priority(TUNNEL_PRIORITY),
            RuleAttribute::Table(TABLE_MAIN),
            RuleAttribute::IpProtocol(IpProtocol::Tcp),
            ports,
        ];
        rule(v6, attributes.into())
    };
    [
        to_main(RuleAttribute::SourcePortRange(TUNNEL_PORT)),
        to_main(RuleAttribute::DestinationPortRange(TUNNEL_PORT)),
        rule(
            v6,
            vec![
                RuleAttribute::Priority(PRIORITY),
                RuleAttribute::Table(TABLE),
            ],
        ),
    ]
}

/// A rule for marked packets.
fn rule(v6: bool, attributes: Vec<RuleAttribute>) -> RuleMessage {
    use rtnetlink::packet_route::AddressFamily;
    let mut message = RuleMessage::default();
    message.header.family = if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    message.header.action = RuleAction::ToTable;
    message.attributes = attributes;
    message
        .attributes
        .extend([RuleAttribute::FwMark(MARK), RuleAttribute::FwMask(MASK)]);
    message
}

fn route_v4() -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
        .output_interface(LOOPBACK)
        .table_id(TABLE)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .build()
}

fn route_v6() -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
        .output_interface(LOOPBACK)
        .table_id(TABLE)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .build()
}

async fn add(
    handle: &Handle,
    rules: [RuleMessage; 3],
    route: RouteMessage,
    [rule_add, route_add]: [&'static str; 2],
) -> Result<(), RoutingError> {
    for rule in rules {
        let mut request = handle.rule().add();
        *request.message_mut() = rule;
        present(rule_add, request.execute().await)?;
    }
    present(route_add, handle.route().add(route).execute().await)
}

fn present(what: &'static str, result: Result<(), rtnetlink::Error>) -> Result<(), RoutingError> {
    tolerate(what, result, &[libc::EEXIST])
}

fn gone(what: &'static str, result: Result<(), rtnetlink::Error>) -> Result<(), RoutingError> {
    tolerate(
        what,
        result,
        &[libc::ENOENT, libc::ESRCH, libc::EAFNOSUPPORT],
    )
}

fn tolerate(
    what: &'static str,
    result: Result<(), rtnetlink::Error>,
    fine: &[i32],
) -> Result<(), RoutingError> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message))
            if fine.contains(&message.raw_code().saturating_neg()) =>
        {
            Ok(())
        }
        other => other.map_err(|source| RoutingError::Request { what, source }),
    }
}
