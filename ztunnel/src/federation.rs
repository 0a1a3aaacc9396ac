//! Whom we trust of other trust domains: a bundle file for each, read anew when it changes.
//!
//! A domain's roots vouch for that domain alone, see [`TrustBundles`](seine_identity::TrustBundles).
//! An empty file withdraws the trust. Where a file is missing or can't be used, the roots that were read last stay;
//! before the first good reading nobody of that domain is trusted.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use seine_identity::CertificateManager;
use spiffe::{TrustDomain, X509Bundle};
use tracing::{error, info, warn};

/// Kubernetes changes a mounted ConfigMap within a minute or two; this adds little to it.
const EVERY: Duration = Duration::from_secs(5);

/// The bundle of a trust domain that this mesh federates with, as `DOMAIN=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederatedBundle {
    /// Whose roots they are.
    pub trust_domain: TrustDomain,
    /// A PEM file of the roots.
    pub file: PathBuf,
}

impl FromStr for FederatedBundle {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (domain, file) = text
            .split_once('=')
            .filter(|(_, file)| !file.is_empty())
            .ok_or_else(|| format!("{text:?} is not DOMAIN=FILE"))?;
        let trust_domain = TrustDomain::new(domain)
            .map_err(|error| format!("{domain:?} is no trust domain: {error}"))?;
        Ok(Self {
            trust_domain,
            file: file.into(),
        })
    }
}

impl FederatedBundle {
    /// The roots in a file's content.
    #[doc(hidden)]
    pub fn parse(&self, pem: &[u8]) -> anyhow::Result<X509Bundle> {
        let roots = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .context("it is not PEM")?;
        ensure!(!roots.is_empty(), "there is no certificate in it");
        let roots: Vec<&[u8]> = roots.iter().map(AsRef::as_ref).collect();
        Ok(X509Bundle::from_x509_authorities(
            self.trust_domain.clone(),
            &roots,
        )?)
    }

    /// Reads the file again and again, and trusts what is in it.
    pub(crate) async fn follow(self, certificates: CertificateManager) {
        let mut last = None;
        loop {
            let read = tokio::fs::read(&self.file)
                .await
                .map_err(|error| error.to_string());
            if last.as_ref() != Some(&read) {
                self.take(&certificates, &read);
                last = Some(read);
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    fn take(&self, certificates: &CertificateManager, read: &Result<Vec<u8>, String>) {
        let (trust_domain, file) = (&self.trust_domain, self.file.display());
        if read.as_ref().is_ok_and(|pem| pem.trim_ascii().is_empty()) {
            certificates.withdraw_bundle(trust_domain);
            return warn!(%trust_domain, %file, "the file is empty: the federated trust domain is not trusted");
        }
        let taken = read
            .as_ref()
            .map_err(|error| anyhow::Error::msg(error.clone()))
            .and_then(|pem| self.parse(pem))
            .and_then(|bundle| Ok(certificates.set_bundle(bundle)?));
        match taken {
            Ok(()) => info!(%trust_domain, %file, "the federated trust domain's roots were read"),
            Err(error) => error!(
                %trust_domain,
                %file,
                error = format!("{error:#}"),
                "the federated trust domain's roots can't be used; those read before stay, if there were any"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use seine_identity::ManagerOptions;
    use seine_identity::testing::TestCa;

    use super::*;
    use crate::testing::NoSource;

    #[test]
    fn a_domain_and_a_file_are_asked_for() {
        let good: FederatedBundle = "partner.example=/roots=1.pem".parse().unwrap();
        assert_eq!(good.trust_domain.as_str(), "partner.example");
        assert_eq!(good.file, PathBuf::from("/roots=1.pem"));
        for bad in [
            "",
            "partner.example",
            "partner.example=",
            "=file",
            "a b=file",
        ] {
            assert!(bad.parse::<FederatedBundle>().is_err(), "{bad:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_trusted_a_bad_one_changes_nothing_and_an_empty_one_withdraws() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("roots.pem");
        let [one, two] = [(), ()].map(|()| TestCa::new("partner.example"));
        let certificates = CertificateManager::new(
            Arc::new(NoSource),
            Arc::default(),
            ManagerOptions::default(),
        );
        let federated = FederatedBundle {
            trust_domain: one.bundle().trust_domain().clone(),
            file: file.clone(),
        };
        let domain = federated.trust_domain.clone();
        tokio::spawn(federated.follow(certificates.clone()));
        let trusted = || {
            certificates
                .bundles()
                .load()
                .bundle(&domain)
                .map(|bundle| X509Bundle::clone(bundle))
        };
        for (content, expected) in [
            (None, None),
            (Some(one.root_pem()), Some(one.bundle())),
            (Some("nonsense".into()), Some(one.bundle())),
            (Some(two.root_pem()), Some(two.bundle())),
            (Some("\n".into()), None),
            (Some(two.root_pem()), Some(two.bundle())),
        ] {
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            // The reading is done by a thread, which paused time does not wait for.
            for _ in 0..500 {
                tokio::time::sleep(EVERY).await;
                std::thread::sleep(Duration::from_millis(1));
                if trusted() == expected {
                    break;
                }
            }
            assert_eq!(trusted(), expected);
        }
    }
}
