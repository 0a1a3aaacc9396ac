//! The DNS proxy of a pod (WIRE.md section 5).
//!
//! A pod's queries come to port 15053 of its own network namespace. What names a service of the
//! mesh is answered from the store ([`answer()`], a pure function); everything else is forwarded to
//! the pod's resolver byte for byte but for the id, which is chosen anew so that nobody can guess
//! it. The cluster's DNS stays the authority for whatever the store doesn't know: only a name that
//! the mesh owns is ever answered with "no such name" or "no such record".
//!
//! One task per pod runs [`serve()`]; forwarded queries and TCP connections are tasks below it,
//! bounded in number, and end with it.

mod answer;
#[cfg(test)]
mod answer_tests;
mod forward;
#[doc(hidden)]
pub mod message;
mod names;
mod serve;
#[cfg(test)]
mod serve_tests;
#[cfg(test)]
mod testing;

pub use answer::{Answer, Transport, answer};
pub use forward::{ForwardError, Forwarder, PodSockets, UpstreamSockets};
#[doc(hidden)]
pub use forward::{read_message, write_message};
pub use names::View;
pub use serve::{DnsClient, DnsOptions, DnsSockets, DnsStats, serve};

use std::net::{IpAddr, SocketAddr};

/// The name servers of a `resolv.conf`, port 53, in their order.
pub fn nameservers(resolv_conf: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        let address: IpAddr = words.next()?.parse().ok()?;
        Some(SocketAddr::new(address, 53))
    };
    resolv_conf.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn name_servers_are_read_from_a_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 10.96.0.10\n\
                    nameserver\tfd00::a\nnameserver nonsense\noptions ndots:5\n";
        let servers = super::nameservers(text);
        assert_eq!(
            servers,
            [
                "10.96.0.10:53".parse().unwrap(),
                "[fd00::a]:53".parse().unwrap()
            ]
        );
    }
}
