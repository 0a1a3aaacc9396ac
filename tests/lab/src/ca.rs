//! The lab's certificate authority in somebody else's hands: an attacker's, or of a proxy that asks for no certificate itself.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, Issuer, KeyPair};

/// What signs in a lab.
pub struct LabCa {
    issuer: Issuer<'static, KeyPair>,
    /// The certificate that signs, in PEM.
    pub intermediate: String,
    /// The roots, in PEM.
    pub roots: String,
}

impl LabCa {
    /// Reads key and certificates from the folder of a lab's state.
    pub fn read(state: &Path) -> Result<Self> {
        let folder = state.join("ca");
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let text = read("intermediate-1.pem")?;
        let intermediate = section(&text, "CERTIFICATE")?;
        let key = KeyPair::from_pem(&section(&text, "PRIVATE KEY")?)?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_pem(&intermediate, key)?,
            intermediate,
            roots: read("root-cert.pem")?,
        })
    }

    /// Makes a key and signs a certificate for it; the chain and the key, in PEM.
    pub fn sign(&self, params: CertificateParams) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain = format!("{}{}", certificate.pem(), self.intermediate);
        Ok((chain, key.serialize_pem()))
    }
}

/// The first section of this kind.
fn section(text: &str, kind: &str) -> Result<String> {
    let (begin, end) = (
        format!("-----BEGIN {kind}-----"),
        format!("-----END {kind}-----"),
    );
    let (_, after) = text.split_once(&begin).context(begin.clone())?;
    let (body, _) = after.split_once(&end).context(end.clone())?;
    Ok(format!("{begin}{body}{end}\n"))
}
