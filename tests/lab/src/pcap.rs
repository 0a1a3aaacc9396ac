//! Reading a capture: enough to say what was on the wire.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// One TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Who sent it.
    pub source: (IpAddr, u16),
    /// To whom.
    pub destination: (IpAddr, u16),
    /// SYN without ACK: an attempt to connect.
    pub opens: bool,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Segment {
    /// Whether one of its ends is this port.
    pub fn touches(&self, port: u16) -> bool {
        self.source.1 == port || self.destination.1 == port
    }

    /// Whether it begins with a TLS record.
    pub fn is_tls(&self) -> bool {
        matches!(self.payload.as_slice(), [20..=23, 3, 0..=4, ..])
    }
}

/// What a capture holds.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    /// The file, to look for bytes wherever they are.
    pub raw: Vec<u8>,
    /// Its TCP segments.
    pub segments: Vec<Segment>,
}

impl Capture {
    /// Reads a file as tcpdump writes it, of an Ethernet interface. A packet that is cut off at
    /// the end is left out.
    pub fn read(path: &Path) -> Result<Self> {
        let raw = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let segments = parse(&raw).with_context(|| path.display().to_string())?;
        Ok(Self { raw, segments })
    }

    /// How often `needle` occurs in what was captured, within packets.
    pub fn count(&self, needle: &[u8]) -> usize {
        self.raw
            .windows(needle.len())
            .filter(|window| *window == needle)
            .count()
    }

    /// How many segments with a payload each destination port below 32768 got.
    pub fn by_port(&self) -> BTreeMap<u16, usize> {
        let mut ports = BTreeMap::new();
        let carrying = self
            .segments
            .iter()
            .filter(|segment| !segment.payload.is_empty());
        for segment in carrying.filter(|segment| segment.destination.1 < 32768) {
            *ports.entry(segment.destination.1).or_default() += 1;
        }
        ports
    }
}

fn parse(raw: &[u8]) -> Result<Vec<Segment>> {
    let magic = raw.get(..4).context("no header")?;
    let nanoseconds_or_not = [0xa1b2_c3d4_u32, 0xa1b2_3c4d];
    let little = u32::from_le_bytes(magic.try_into()?);
    ensure!(
        nanoseconds_or_not.contains(&little),
        "not a pcap file of this machine"
    );
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(raw.get(at..at + 4)?.try_into().ok()?))
    };
    ensure!(word(20) == Some(1), "not of an Ethernet interface");
    let mut segments = Vec::new();
    let mut at = 24;
    while let Some(length) = word(at + 8) {
        let length = usize::try_from(length)?;
        let Some(frame) = raw.get(at + 16..at + 16 + length) else {
            break;
        };
        segments.extend(segment(frame));
        at += 16 + length;
    }
    Ok(segments)
}

fn segment(frame: &[u8]) -> Option<Segment> {
    let kind = frame.get(12..14)?;
    let packet = frame.get(14..)?;
    let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match kind {
        [0x08, 0x00] => {
            if *packet.get(9)? != 6 {
                return None;
            }
            let header = usize::from(packet.first()? & 15) * 4;
            let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
            let address = |range: std::ops::Range<usize>| -> Option<IpAddr> {
                Some(<[u8; 4]>::try_from(packet.get(range)?).ok()?.into())
            };
            (
                address(12..16)?,
                address(16..20)?,
                packet.get(header..total.min(packet.len()))?,
            )
        }
        [0x86, 0xdd] => {
            if *packet.get(6)? != 6 {
                return None;
            }
            let length = usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
            let address = |range: std::ops::Range<usize>| -> Option<IpAddr> {
                Some(<[u8; 16]>::try_from(packet.get(range)?).ok()?.into())
            };
            let end = (40 + length).min(packet.len());
            (address(8..24)?, address(24..40)?, packet.get(40..end)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        source: (source, port(0)?),
        destination: (destination, port(2)?),
        opens: tcp.get(13)? & 0x12 == 0x02,
        payload: tcp.get(header..)?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut raw = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        raw.extend([2, 0, 4, 0]);
        raw.extend([0; 12]);
        raw.extend(1_u32.to_le_bytes());
        for frame in frames {
            raw.extend([0; 8]);
            let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
            raw.extend(length);
            raw.extend(length);
            raw.extend(frame);
        }
        raw
    }

    fn frame(flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x9c, 0x40, 0x3a, 0xa0]);
        frame.extend([0; 8]);
        frame.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        // Ethernet pads short frames; that is no payload.
        frame.extend([0; 6]);
        frame
    }

    #[test]
    fn segments_are_told_by_ports_flags_and_payload() {
        let raw = file(&[frame(2, b""), frame(0x18, &[23, 3, 3, 0, 1, 9])]);
        let segments = parse(&raw).unwrap();
        assert_eq!(segments.len(), 2);
        assert_eq!(
            segments[0].destination,
            ("10.0.0.2".parse().unwrap(), 15008)
        );
        assert!(segments[0].opens && segments[0].payload.is_empty());
        assert!(!segments[1].opens && segments[1].is_tls() && segments[1].touches(15008));
    }

    #[test]
    fn a_capture_that_is_cut_off_gives_what_is_whole() {
        let raw = file(&[frame(2, b""), frame(0x18, b"password")]);
        assert_eq!(parse(&raw[..raw.len() - 3]).unwrap().len(), 1);
        assert!(parse(b"garbage").is_err());
    }
}
