//! Sizes and times of HBONE, with defaults that say why.

use std::time::Duration;

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

/// Sizes, limits and times of both ends of a tunnel.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes that a peer may send on one stream before we have passed them on: what a slow reader
    /// costs here. The bound of a whole connection is this times its streams, 200 MiB with the
    /// defaults, which is why it isn't the 4 MiB that others use. 1 MiB carries 8 Gbit/s over a
    /// round trip of 1 ms and 160 Mbit/s over 50 ms; raise it where tunnels are longer.
    pub stream_window: u32,
    /// The largest HTTP/2 frame that we accept: with 16 KiB frames a bulk stream spends its time
    /// on headers.
    pub max_frame_size: u32,
    /// Bytes that one stream may have waiting to be sent. Two batches: one being encrypted while
    /// the next is read.
    pub send_buffer: usize,
    /// Plaintext and records that rustls may hold before they are written. Half a batch and then some: what is
    /// encrypted is still in the processor's cache when it is written, and the peer begins while the rest is
    /// encrypted. With a whole batch bulk costs a fifth more; a limit of exactly a batch, or half of one, leaves
    /// some bytes over, which cost a record, a system call and a packet of their own.
    pub tls_buffer: usize,
    /// Streams that a client puts on one connection; beyond, it opens another one.
    pub streams_used: usize,
    /// Streams that a server accepts on one connection: more than a client uses, so that streams
    /// which are closing never cause a refusal.
    pub streams_accepted: u32,
    /// Longest header block that we decode. HBONE's headers fit in a quarter of it.
    pub max_header_list: u32,
    /// A PING goes out this often.
    pub ping_interval: Duration,
    /// A peer that takes longer to answer a PING is dead.
    pub ping_timeout: Duration,
    /// A tunnel without streams is closed after this time; by a server, which can't know when its
    /// client will need it, after up to twice as long.
    pub idle_timeout: Duration,
    /// TCP, TLS and HTTP/2 handshakes together, as a client.
    pub connect_timeout: Duration,
    /// From CONNECT to its answer. Longer than a peer's own limit for its dial of the application,
    /// so that its 503 arrives before we give up.
    pub response_timeout: Duration,
    /// TLS and HTTP/2 handshakes together, as a server: a client that stalls holds memory.
    pub handshake_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stream_window: MIB,
            max_frame_size: MIB,
            send_buffer: 512 * KIB as usize,
            tls_buffer: 144 * KIB as usize,
            streams_used: 100,
            streams_accepted: 200,
            max_header_list: 16 * KIB,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(20),
            handshake_timeout: Duration::from_secs(5),
        }
    }
}

impl Settings {
    /// The connection's window, for `streams` streams at a time.
    ///
    /// h2 gives credit for the stream and for the connection back together, when the bytes were
    /// passed on. With the usual 16 MiB, four readers that stall would hold all of the
    /// connection's credit and stop every other stream of the tunnel. So the connection's window
    /// is what all streams together could hold: it never binds, and the streams' windows alone
    /// bound the memory.
    fn connection_window(&self, streams: u32) -> u32 {
        const LARGEST: u32 = (1 << 31) - 1;
        self.stream_window
            .saturating_mul(streams)
            .clamp(65_535, LARGEST)
    }

    pub(crate) fn client(&self) -> h2::client::Builder {
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window(self.streams_used as u32))
            .max_frame_size(self.max_frame_size)
            .max_header_list_size(self.max_header_list)
            .max_send_buffer_size(self.send_buffer)
            .initial_max_send_streams(self.streams_used)
            .max_concurrent_reset_streams(RESET_MEMORY)
            .max_local_error_reset_streams(Some(LOCAL_ERRORS));
        builder
    }

    pub(crate) fn server(&self) -> h2::server::Builder {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window(self.streams_accepted))
            .max_frame_size(self.max_frame_size)
            .max_header_list_size(self.max_header_list)
            .max_send_buffer_size(self.send_buffer)
            .max_concurrent_streams(self.streams_accepted)
            .max_concurrent_reset_streams(RESET_MEMORY)
            .max_local_error_reset_streams(Some(LOCAL_ERRORS))
            .max_pending_accept_reset_streams(RAPID_RESETS);
        builder
    }
}

/// Streams reset by us that h2 still remembers, so that late frames of theirs are no error.
const RESET_MEMORY: usize = 50;
/// Resets that a peer's broken frames may cause before the connection is closed.
const LOCAL_ERRORS: usize = 128;
/// Streams that a peer may open and reset before we took them (CVE-2023-44487).
const RAPID_RESETS: usize = 50;
