//! A stream of bytes that both ends can make for themselves, so that each byte is checked.

use super::report::Received;

/// The stream, from its beginning on.
#[derive(Debug, Default)]
pub struct Pattern {
    offset: u64,
}

impl Pattern {
    /// The stream's word at `index`: splitmix64, so that no part of it looks like another.
    fn word(index: u64) -> u64 {
        let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Writes what comes next.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            let word = Self::word(self.offset / 8).to_le_bytes();
            let within = usize::try_from(self.offset % 8).expect("below 8");
            let length = rest.len().min(8 - within);
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(&word[within..within + length]);
            self.offset += length as u64;
            rest = later;
        }
    }
}

/// Compares what is received with the stream.
#[derive(Debug)]
pub struct Checker {
    pattern: Pattern,
    expected: Vec<u8>,
    received: Received,
}

impl Default for Checker {
    fn default() -> Self {
        Self {
            pattern: Pattern::default(),
            expected: Vec::new(),
            received: Received {
                bytes: 0,
                first_wrong: None,
                checksum: 0xcbf2_9ce4_8422_2325,
            },
        }
    }
}

impl Checker {
    /// Takes the next bytes.
    pub fn take(&mut self, bytes: &[u8]) {
        self.expected.resize(bytes.len(), 0);
        self.pattern.fill(&mut self.expected);
        if bytes != self.expected && self.received.first_wrong.is_none() {
            let same = bytes.iter().zip(&self.expected).take_while(|(a, b)| a == b);
            self.received.first_wrong = Some(self.received.bytes + same.count() as u64);
        }
        for &byte in bytes {
            self.received.checksum =
                (self.received.checksum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.received.bytes += bytes.len() as u64;
    }

    /// What came.
    pub fn end(self) -> Received {
        self.received
    }
}

/// What a receiver of `bytes` of the stream must report.
pub fn expected(bytes: u64) -> Received {
    let mut pattern = Pattern::default();
    let mut checker = Checker::default();
    let mut left = bytes;
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let length = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        pattern.fill(&mut buffer[..length]);
        checker.take(&buffer[..length]);
        left -= length as u64;
    }
    checker.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_does_not_depend_on_how_it_is_cut() {
        let mut whole = vec![0; 1000];
        Pattern::default().fill(&mut whole);
        let mut pattern = Pattern::default();
        let mut pieces = vec![0; 1000];
        for piece in pieces.chunks_mut(13) {
            pattern.fill(piece);
        }
        assert_eq!(whole, pieces);
    }

    #[test]
    fn a_wrong_byte_is_found_and_named() {
        let mut bytes = vec![0; 100];
        Pattern::default().fill(&mut bytes);
        bytes[42] ^= 1;
        let mut checker = Checker::default();
        checker.take(&bytes[..30]);
        checker.take(&bytes[30..]);
        let received = checker.end();
        assert_eq!(received.first_wrong, Some(42));
        assert_ne!(received.checksum, expected(100).checksum);
    }
}
