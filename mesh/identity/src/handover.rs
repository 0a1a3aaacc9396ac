//! Keys on their way from a running ztunnel to the one that replaces it.
//!
//! The only form in which keys leave a process: bytes for the hand-over socket, which checks who
//! reads it. They are wiped from memory when dropped and `Debug` shows no key. Not a file format:
//! nothing here is ever written to disk.
//!
//! Layout: `SEINEKEYS1`, number of SVIDs, then for each: trust domain, key (PKCS#8), number of
//! certificates, each certificate, number of roots, each root. Numbers are `u32` in network order;
//! every byte string is preceded by its length.

use std::fmt;

use rustls_pki_types::CertificateDer;
use spiffe::{TrustDomain, X509Bundle};
use zeroize::Zeroizing;

use crate::svid::{Svid, SvidError};

const MAGIC: &[u8] = b"SEINEKEYS1";

/// No part of an export is longer.
const MAX_PART: usize = 1 << 20;

/// SVIDs with their keys.
pub struct KeyExport {
    svids: Vec<Svid>,
}

/// Bytes that are no export. The sender is at fault; the new process asks the CA instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandoverError {
    /// Of another version, or not an export at all.
    #[error("these bytes are no key export of this version")]
    Version,
    /// Cut off, or a length that can't be.
    #[error("the key export is cut off or damaged at byte {at}")]
    Damaged {
        /// Where.
        at: usize,
    },
    /// An SVID that can't be used.
    #[error("SVID {index} of the key export can't be used: {source}")]
    Svid {
        /// Which, from 0.
        index: usize,
        /// Why.
        source: SvidError,
    },
    /// Roots or a trust domain that can't be parsed.
    #[error("the bundle of SVID {index} of the key export can't be used: {reason}")]
    Bundle {
        /// Which, from 0.
        index: usize,
        /// Why.
        reason: String,
    },
}

impl KeyExport {
    /// For these SVIDs.
    pub fn new<'a>(svids: impl IntoIterator<Item = &'a Svid>) -> Self {
        Self {
            svids: svids.into_iter().map(Svid::duplicate).collect(),
        }
    }

    /// How many SVIDs.
    pub fn len(&self) -> usize {
        self.svids.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.svids.is_empty()
    }

    /// The SVIDs.
    pub fn into_svids(self) -> Vec<Svid> {
        self.svids
    }

    /// For the hand-over socket.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        // Sized beforehand: a vector that grows leaves copies of keys behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.size()));
        bytes.extend_from_slice(MAGIC);
        put_number(&mut bytes, self.svids.len());
        for svid in &self.svids {
            put(
                &mut bytes,
                svid.identity().trust_domain().as_str().as_bytes(),
            );
            put(&mut bytes, svid.key());
            put_number(&mut bytes, svid.chain().len());
            svid.chain().iter().for_each(|part| put(&mut bytes, part));
            let roots = svid.bundle().authorities();
            put_number(&mut bytes, roots.len());
            roots
                .iter()
                .for_each(|root| put(&mut bytes, root.as_bytes()));
        }
        bytes
    }

    /// What [`Self::to_bytes`] made.
    ///
    /// # Errors
    ///
    /// If the bytes are damaged or an SVID in them can't be used.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HandoverError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(HandoverError::Version)?;
        let mut reader = Reader {
            all: bytes.len(),
            rest,
        };
        let count = reader.number()?;
        let mut svids = Vec::new();
        for index in 0..count {
            svids.push(reader.svid(index)?);
        }
        if reader.rest.is_empty() {
            Ok(Self { svids })
        } else {
            Err(reader.damaged())
        }
    }

    fn size(&self) -> usize {
        let parts = |svid: &Svid| {
            let chain: usize = svid.chain().iter().map(|part| part.len() + 4).sum();
            let roots = svid.bundle().authorities();
            let roots: usize = roots.iter().map(|root| root.as_bytes().len() + 4).sum();
            svid.identity().trust_domain().as_str().len() + svid.key().len() + 16 + chain + roots
        };
        MAGIC.len() + 4 + self.svids.iter().map(parts).sum::<usize>()
    }
}

impl fmt::Debug for KeyExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.svids).finish()
    }
}

struct Reader<'a> {
    all: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn svid(&mut self, index: usize) -> Result<Svid, HandoverError> {
        let bundle_error = |reason: String| HandoverError::Bundle { index, reason };
        let domain = std::str::from_utf8(self.part()?).map_err(|e| bundle_error(e.to_string()))?;
        let domain = TrustDomain::new(domain).map_err(|e| bundle_error(e.to_string()))?;
        let key = Zeroizing::new(self.part()?.to_vec());
        let chain = self.parts()?;
        let chain = chain
            .into_iter()
            .map(|part| CertificateDer::from(part.to_vec()))
            .collect();
        let roots = self.parts()?;
        let bundle = X509Bundle::from_x509_authorities(domain, &roots)
            .map_err(|e| bundle_error(e.to_string()))?;
        Svid::new(chain, key, bundle).map_err(|source| HandoverError::Svid { index, source })
    }

    fn parts(&mut self) -> Result<Vec<&'a [u8]>, HandoverError> {
        (0..self.number()?).map(|_| self.part()).collect()
    }

    fn part(&mut self) -> Result<&'a [u8], HandoverError> {
        let length = self.number()?;
        match self.rest.split_at_checked(length) {
            Some((part, rest)) if length <= MAX_PART => {
                self.rest = rest;
                Ok(part)
            }
            _ => Err(self.damaged()),
        }
    }

    fn number(&mut self) -> Result<usize, HandoverError> {
        let (number, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| self.damaged())?;
        self.rest = rest;
        usize::try_from(u32::from_be_bytes(*number)).map_err(|_| self.damaged())
    }

    fn damaged(&self) -> HandoverError {
        HandoverError::Damaged {
            at: self.all - self.rest.len(),
        }
    }
}

fn put_number(bytes: &mut Vec<u8>, number: usize) {
    let number = u32::try_from(number).expect("certificates are few and small");
    bytes.extend_from_slice(&number.to_be_bytes());
}

fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    put_number(bytes, part.len());
    bytes.extend_from_slice(part);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestCa;

    #[test]
    fn what_is_handed_over_arrives_whole() {
        let ca = TestCa::new("cluster.local");
        let svids = [ca.svid("a", "b"), ca.svid("c", "d")];
        let export = KeyExport::new(&svids);
        let bytes = export.to_bytes();
        assert_eq!(bytes.len(), export.size());
        let arrived = KeyExport::from_bytes(&bytes).unwrap().into_svids();
        assert_eq!(arrived.len(), 2);
        for (sent, arrived) in svids.iter().zip(&arrived) {
            assert_eq!(sent.identity(), arrived.identity());
            assert_eq!(sent.serial(), arrived.serial());
            assert_eq!(sent.key(), arrived.key());
            assert_eq!(sent.chain(), arrived.chain());
            assert_eq!(sent.bundle(), arrived.bundle());
        }
    }

    #[test]
    fn every_cut_of_an_export_is_refused() {
        let ca = TestCa::new("cluster.local");
        let bytes = KeyExport::new(&[ca.svid("a", "b")]).to_bytes();
        for end in 0..bytes.len() {
            assert!(
                KeyExport::from_bytes(&bytes[..end]).is_err(),
                "cut at {end}"
            );
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(KeyExport::from_bytes(&longer).is_err());
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let ca = TestCa::new("cluster.local");
        let (certificate, _) = ca.sign(&crate::testing::TestLeaf::new(&ca.identity("a", "b")));
        let other = ca.svid("a", "b");
        let error = Svid::new(vec![certificate], other.key().clone(), ca.bundle()).unwrap_err();
        assert!(matches!(error, SvidError::Key(_)), "{error}");
    }

    #[test]
    fn debug_shows_no_key() {
        let ca = TestCa::new("cluster.local");
        let svid = ca.svid("a", "b");
        let text = format!("{svid:?} {:?}", KeyExport::new([&svid]));
        assert!(text.contains("redacted") && text.contains("spiffe://cluster.local/ns/a/sa/b"));
        let hex: String = svid.key()[60..68]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let decimal = format!("{}, {}, {}", svid.key()[60], svid.key()[61], svid.key()[62]);
        assert!(!text.contains(&hex) && !text.contains(&decimal));
    }
}
