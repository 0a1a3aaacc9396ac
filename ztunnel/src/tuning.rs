//! Settings that few need: sizes and times of tunnels, connections and DNS.
//!
//! The defaults are measured or follow from those of others, as each says. A memory size of 0 or a time of 0 where that
//! makes no sense is refused at start.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;
use seine_hbone::{CopyOptions, Settings};
use socket2::TcpKeepalive;

use crate::config::duration;
use crate::dns::DnsOptions;

/// Sizes and times of tunnels, connections and DNS.
#[derive(Debug, Clone, Args)]
pub struct Tuning {
    /// Bytes that a peer may send on one connection within a tunnel before they were passed on: what a slow reader costs
    /// here. 1 MiB carries 8 Gbit/s over a round trip of 1 ms, and 160 Mbit/s over one of 50 ms.
    #[arg(long, env = "SEINE_STREAM_WINDOW", default_value = "1MiB", value_parser = size)]
    pub stream_window: NonZeroU32,
    /// Bytes of one connection that may wait to be sent into its tunnel.
    #[arg(long, env = "SEINE_SEND_BUFFER", default_value = "512KiB", value_parser = size)]
    pub send_buffer: NonZeroU32,
    /// Bytes that TLS of one tunnel may hold before they are written.
    #[arg(long, env = "SEINE_TLS_BUFFER", default_value = "144KiB", value_parser = size)]
    pub tls_buffer: NonZeroU32,
    /// Connections in one tunnel; beyond it, another one is made. A peer's tunnels may have twice as many.
    #[arg(long, env = "SEINE_STREAMS_PER_TUNNEL", default_value = "100")]
    pub streams_per_tunnel: NonZeroU32,
    /// How often a tunnel's peer is asked whether it lives (HTTP/2 PING).
    #[arg(long, env = "SEINE_PING_INTERVAL", default_value = "10s", value_parser = time)]
    pub ping_interval: Duration,
    /// A peer that takes longer to answer is dead, and its connections are reset.
    #[arg(long, env = "SEINE_PING_TIMEOUT", default_value = "20s", value_parser = time)]
    pub ping_timeout: Duration,
    /// A tunnel without connections is closed after this time; one that a peer made after up to twice as long.
    #[arg(long, env = "SEINE_TUNNEL_IDLE_TIMEOUT", default_value = "5m", value_parser = time)]
    pub tunnel_idle_timeout: Duration,
    /// How long a peer may take to answer a CONNECT: longer than it takes itself to give the application up.
    #[arg(long, env = "SEINE_RESPONSE_TIMEOUT", default_value = "20s", value_parser = time)]
    pub response_timeout: Duration,

    /// Ends a connection on which nothing moved for so long; 0s never does. TCP knows no such limit, and databases keep
    /// connections for days.
    #[arg(long, env = "SEINE_CONNECTION_IDLE_TIMEOUT", default_value = "0s", value_parser = duration)]
    pub connection_idle_timeout: Duration,
    /// Ends a connection of which one side has finished and on which nothing moved for so long; 0s never does.
    #[arg(long, env = "SEINE_HALF_CLOSED_TIMEOUT", default_value = "1h", value_parser = duration)]
    pub half_closed_timeout: Duration,
    /// TCP keepalive towards applications and unmeshed peers: the first probe after this time. One that vanished without
    /// a word is found after 60 + 3 × 20 s with the defaults, instead of the kernel's two hours.
    #[arg(long, env = "SEINE_KEEPALIVE_TIME", default_value = "60s", value_parser = seconds)]
    pub keepalive_time: Duration,
    /// TCP keepalive: between probes.
    #[arg(long, env = "SEINE_KEEPALIVE_INTERVAL", default_value = "20s", value_parser = seconds)]
    pub keepalive_interval: Duration,
    /// TCP keepalive: probes without an answer, at most 127.
    #[arg(long, env = "SEINE_KEEPALIVE_PROBES", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=127))]
    pub keepalive_probes: u32,

    /// How long each resolver is waited for. Clients usually ask again after 5 s.
    #[arg(long, env = "SEINE_DNS_TIMEOUT", default_value = "2s", value_parser = time)]
    pub dns_timeout: Duration,
    /// Queries of a pod over UDP that wait for a resolver at one time; more are dropped, and the client asks again.
    #[arg(long, env = "SEINE_DNS_MAX_FORWARDED", default_value = "256")]
    pub dns_max_forwarded: NonZeroU32,
    /// DNS connections of a pod over TCP at one time; more wait.
    #[arg(long, env = "SEINE_DNS_MAX_TCP", default_value = "32")]
    pub dns_max_tcp: NonZeroU32,
    /// How long a DNS connection over TCP may be idle.
    #[arg(long, env = "SEINE_DNS_TCP_IDLE", default_value = "10s", value_parser = time)]
    pub dns_tcp_idle: Duration,
}

impl Tuning {
    /// Of tunnels.
    pub fn tunnels(&self) -> Settings {
        Settings {
            stream_window: self.stream_window.get(),
            send_buffer: self.send_buffer.get() as usize,
            tls_buffer: self.tls_buffer.get() as usize,
            streams_used: self.streams_per_tunnel.get() as usize,
            streams_accepted: self.streams_per_tunnel.get().saturating_mul(2),
            ping_interval: self.ping_interval,
            ping_timeout: self.ping_timeout,
            idle_timeout: self.tunnel_idle_timeout,
            response_timeout: self.response_timeout,
            ..Settings::default()
        }
    }

    /// Of connections that stand.
    pub fn connections(&self) -> CopyOptions {
        let limit = |limit: Duration| (!limit.is_zero()).then_some(limit);
        CopyOptions {
            idle_timeout: limit(self.connection_idle_timeout),
            half_closed_timeout: limit(self.half_closed_timeout),
            memory: None,
        }
    }

    /// Of TCP connections.
    pub fn keepalive(&self) -> TcpKeepalive {
        TcpKeepalive::new()
            .with_time(self.keepalive_time)
            .with_interval(self.keepalive_interval)
            .with_retries(self.keepalive_probes)
    }

    /// Of the DNS proxy, without resolvers.
    pub fn dns(&self) -> DnsOptions {
        DnsOptions {
            timeout: self.dns_timeout,
            max_forwarded: self.dns_max_forwarded.get() as usize,
            max_tcp: self.dns_max_tcp.get() as usize,
            tcp_idle: self.dns_tcp_idle,
            ..DnsOptions::default()
        }
    }
}

/// Parses `65536`, `512KiB`, `1MiB`, up to the 2 GiB of an HTTP/2 window.
pub(crate) fn size(text: &str) -> Result<NonZeroU32, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u32 = number
        .parse()
        .map_err(|_| format!("{text:?} has no number, as in 512KiB"))?;
    let unit = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return Err(format!("{text:?} has no unit: KiB, MiB, or none for bytes")),
    };
    let bytes = number.checked_mul(unit).filter(|bytes| *bytes < 1 << 31);
    bytes
        .and_then(NonZeroU32::new)
        .ok_or_else(|| format!("{text:?} is not between 1 byte and 2 GiB"))
}

/// A duration that is not 0.
fn time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("{text:?} would end everything at once")),
        time => Ok(time),
    }
}

/// Whole seconds, as the kernel counts keepalives: it refuses 0 and what is longer than 32,767.
fn seconds(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    let whole = time.subsec_nanos() == 0 && (1..=32_767).contains(&time.as_secs());
    whole
        .then_some(time)
        .ok_or_else(|| format!("{text:?} is not between 1s and 32767s in whole seconds"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Config;

    fn tuning(flags: &[&str]) -> Tuning {
        let program = std::iter::once(&"seine-ztunnel");
        Config::try_parse_from(program.chain(flags)).unwrap().tuning
    }

    #[test]
    fn the_defaults_of_the_flags_are_those_of_the_libraries() {
        let tuning = tuning(&[]);
        let (ours, theirs) = (tuning.tunnels(), Settings::default());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
        let (ours, theirs) = (tuning.connections(), CopyOptions::default());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
        let (ours, theirs) = (tuning.dns(), DnsOptions::default());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    }

    #[test]
    fn every_flag_arrives() {
        let tuning = tuning(&[
            "--stream-window=2MiB",
            "--send-buffer=3KiB",
            "--tls-buffer=4096",
            "--streams-per-tunnel=7",
            "--ping-interval=11s",
            "--ping-timeout=12s",
            "--tunnel-idle-timeout=13s",
            "--response-timeout=14s",
            "--connection-idle-timeout=15s",
            "--half-closed-timeout=0s",
            "--keepalive-time=16s",
            "--keepalive-interval=17s",
            "--keepalive-probes=18",
            "--dns-timeout=19s",
            "--dns-max-forwarded=20",
            "--dns-max-tcp=21",
            "--dns-tcp-idle=22s",
        ]);
        let second = Duration::from_secs;
        let tunnels = tuning.tunnels();
        assert_eq!(
            (
                tunnels.stream_window,
                tunnels.send_buffer,
                tunnels.tls_buffer
            ),
            (2 << 20, 3 << 10, 4096)
        );
        assert_eq!((tunnels.streams_used, tunnels.streams_accepted), (7, 14));
        assert_eq!(tunnels.ping_interval, second(11));
        assert_eq!(tunnels.ping_timeout, second(12));
        assert_eq!(tunnels.idle_timeout, second(13));
        assert_eq!(tunnels.response_timeout, second(14));
        let connections = tuning.connections();
        assert_eq!(connections.idle_timeout, Some(second(15)));
        assert_eq!(connections.half_closed_timeout, None);
        let keepalive = TcpKeepalive::new()
            .with_time(second(16))
            .with_interval(second(17))
            .with_retries(18);
        assert_eq!(
            format!("{:?}", tuning.keepalive()),
            format!("{keepalive:?}")
        );
        let dns = tuning.dns();
        assert_eq!((dns.timeout, dns.tcp_idle), (second(19), second(22)));
        assert_eq!((dns.max_forwarded, dns.max_tcp), (20, 21));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            "--stream-window=0",
            "--stream-window=2048MiB",
            "--stream-window=1MB",
            "--ping-timeout=0s",
            "--keepalive-time=500ms",
            "--keepalive-probes=128",
            "--dns-max-tcp=0",
            "--streams-per-tunnel=0",
        ] {
            let parsed = Config::try_parse_from(["seine-ztunnel", bad]);
            assert!(parsed.is_err(), "{bad}");
        }
    }
}
