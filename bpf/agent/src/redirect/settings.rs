//! A pod's settings in the maps: what should be there against what is.

use std::collections::HashSet;

use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use seine_bpf_common::{
    Address, CIDR_HEAD_BITS, CidrData, Enrolled, PRESENT, PortKey, cidr_data, directions, flags,
    mapped, port_kinds,
};

use super::{DnsCapture, PodSettings, RedirectError, Result, Udp, netns::Identity, object::Loaded};

/// Makes ports and networks of a pod be what its settings say.
pub(super) fn write(loaded: &mut Loaded, cookie: u64, settings: &PodSettings) -> Result<()> {
    replace_ports(loaded, cookie, wanted_ports(cookie, settings))?;
    replace_networks(loaded, cookie, wanted_networks(cookie, settings))
}

/// Removes ports and networks of a pod.
pub(super) fn erase(loaded: &mut Loaded, cookie: u64) -> Result<()> {
    replace_ports(loaded, cookie, HashSet::new())?;
    replace_networks(loaded, cookie, HashSet::new())
}

/// The enrolment itself, which the programs look at first.
pub(super) fn enrolled(identity: Identity, settings: &PodSettings) -> Enrolled {
    Enrolled {
        ipv4: settings
            .ipv4
            .map_or([0; 4], |ip| mapped(u32::from_ne_bytes(ip.octets()))),
        ipv6: settings.ipv6.map_or([0; 4], |ip| words(ip.octets())),
        flags: match settings.dns {
            DnsCapture::Off => 0,
            DnsCapture::Udp => flags::DNS_UDP,
            DnsCapture::UdpAndTcp => flags::DNS_UDP | flags::DNS_TCP,
        } | match settings.udp {
            Udp::Pass => 0,
            Udp::Drop => flags::DROP_UDP,
        },
        netns_inode: identity.inode,
    }
}

/// The inverse of [`enrolled`] for the addresses: octets of a non-zero address.
pub(super) fn octets(address: &Address) -> Option<[u8; 16]> {
    if *address == [0; 4] {
        return None;
    }
    let mut octets = [0; 16];
    for (part, word) in octets.chunks_exact_mut(4).zip(address) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    Some(octets)
}

/// Which DNS queries the flags of an enrolment say are caught.
pub(super) fn dns(enrolled: &Enrolled) -> DnsCapture {
    if enrolled.flags & flags::DNS_UDP == 0 {
        DnsCapture::Off
    } else if enrolled.flags & flags::DNS_TCP == 0 {
        DnsCapture::Udp
    } else {
        DnsCapture::UdpAndTcp
    }
}

fn words(octets: [u8; 16]) -> Address {
    let mut words = [0; 4];
    for (word, part) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = u32::from_ne_bytes([part[0], part[1], part[2], part[3]]);
    }
    words
}

type PortId = (u16, u16);
type NetworkId = (u32, CidrData);

fn wanted_ports(cookie: u64, settings: &PodSettings) -> HashSet<PortId> {
    let _ = cookie;
    let of = |ports: &std::collections::BTreeSet<u16>, kind: u16| {
        ports
            .iter()
            .map(move |port| (kind, *port))
            .collect::<Vec<_>>()
    };
    of(&settings.excluded_outbound_ports, port_kinds::EXCLUDED_OUT)
        .into_iter()
        .chain(of(
            &settings.excluded_inbound_ports,
            port_kinds::EXCLUDED_IN,
        ))
        .chain(of(&settings.probed_ports, port_kinds::PROBED))
        .collect()
}

fn wanted_networks(cookie: u64, settings: &PodSettings) -> HashSet<NetworkId> {
    let of = |networks: &std::collections::BTreeSet<IpNet>, direction: u32| {
        networks
            .iter()
            .map(|network| network_id(cookie, direction, network))
            .collect::<Vec<_>>()
    };
    of(&settings.excluded_outbound_networks, directions::OUT)
        .into_iter()
        .chain(of(&settings.excluded_inbound_networks, directions::IN))
        .collect()
}

fn network_id(cookie: u64, direction: u32, network: &IpNet) -> NetworkId {
    let (address, bits) = match network.trunc() {
        IpNet::V4(v4) => (
            mapped(u32::from_ne_bytes(v4.network().octets())),
            96 + u32::from(v4.prefix_len()),
        ),
        IpNet::V6(v6) => (words(v6.network().octets()), u32::from(v6.prefix_len())),
    };
    (
        CIDR_HEAD_BITS + bits,
        cidr_data(cookie, direction, &address),
    )
}

fn replace_ports(loaded: &mut Loaded, cookie: u64, mut wanted: HashSet<PortId>) -> Result<()> {
    let failed = |error| RedirectError::program("writing map PORTS", error);
    let present: Vec<PortKey> = loaded
        .ports
        .keys()
        .filter(|key| key.as_ref().map_or(true, |key| key.cookie == cookie))
        .collect::<std::result::Result<_, _>>()
        .map_err(failed)?;
    for key in present {
        if !wanted.remove(&(key.kind, key.port)) {
            loaded.ports.remove(&key).map_err(failed)?;
        }
    }
    for (kind, port) in wanted {
        let key = PortKey {
            cookie,
            port,
            kind,
            reserved: 0,
        };
        loaded.ports.insert(key, PRESENT, 0).map_err(failed)?;
    }
    Ok(())
}

fn replace_networks(
    loaded: &mut Loaded,
    cookie: u64,
    mut wanted: HashSet<NetworkId>,
) -> Result<()> {
    let failed = |error| RedirectError::program("writing map CIDRS", error);
    let [high, low] = [(cookie >> 32) as u32, cookie as u32];
    let mut present = Vec::new();
    for key in loaded.cidrs.keys() {
        let key = key.map_err(failed)?;
        let data: CidrData = key.data();
        if data[0] == high && data[1] == low {
            present.push((key.prefix_len(), data));
        }
    }
    for id in present {
        if !wanted.remove(&id) {
            loaded.cidrs.remove(&Key::new(id.0, id.1)).map_err(failed)?;
        }
    }
    for (bits, data) in wanted {
        loaded
            .cidrs
            .insert(&Key::new(bits, data), PRESENT, 0)
            .map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_each_family_lies_in_one_space_without_overlap() {
        let v4 = network_id(7, directions::OUT, &"10.1.2.3/8".parse().unwrap());
        assert_eq!(v4.0, 96 + 96 + 8);
        assert_eq!(v4.1[2], directions::OUT);
        assert_eq!(v4.1[6].to_ne_bytes(), [10, 0, 0, 0]);
        let v6 = network_id(7, directions::OUT, &"fd00::/8".parse().unwrap());
        assert_eq!(v6.0, 96 + 8);
        assert_eq!(v6.1[3].to_ne_bytes(), [0xfd, 0, 0, 0]);
    }

    #[test]
    fn an_enrolment_gives_back_the_addresses_it_was_made_of() {
        let settings = PodSettings {
            ipv4: Some([10, 0, 0, 1].into()),
            ipv6: Some("fd00::5".parse().unwrap()),
            dns: DnsCapture::UdpAndTcp,
            ..PodSettings::default()
        };
        let value = enrolled(
            Identity {
                cookie: 1,
                inode: 2,
            },
            &settings,
        );
        assert_eq!(octets(&value.ipv4).unwrap()[12..], [10, 0, 0, 1]);
        assert_eq!(
            octets(&value.ipv6).unwrap(),
            settings.ipv6.unwrap().octets()
        );
        assert_eq!(dns(&value), DnsCapture::UdpAndTcp);
    }
}
