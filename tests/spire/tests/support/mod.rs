//! A certificate manager that asks an agent, and what it knows.

#![allow(dead_code, reason = "each program of tests uses a part of it")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use seine_identity::{
    CertificateError, CertificateManager, Identity, ManagerOptions, SharedBundles, Spire, SpireApi,
    SpireOptions, TrustDomain,
};

pub(crate) const DOMAIN: &str = "cluster.local";
const PATIENCE: Duration = Duration::from_secs(40);

/// A proxy's part.
pub(crate) struct World {
    pub(crate) certificates: CertificateManager,
    bundles: Arc<SharedBundles>,
}

impl World {
    pub(crate) fn at(socket: PathBuf, api: SpireApi) -> Self {
        let spire = Arc::new(Spire::new(SpireOptions {
            socket,
            api,
            trust_domain: TrustDomain::new(DOMAIN).unwrap(),
        }));
        let bundles = Arc::new(SharedBundles::default());
        let options = ManagerOptions {
            wait: Duration::from_secs(10),
            refusal_grace: Duration::from_millis(500),
            ..ManagerOptions::default()
        };
        let certificates = CertificateManager::new(spire.clone(), bundles.clone(), options);
        tokio::spawn(spire.follow_bundles(certificates.clone()));
        Self {
            certificates,
            bundles,
        }
    }

    /// The certificate's that connections of an identity use now.
    pub(crate) async fn serial(&self, identity: &Identity) -> Result<String, CertificateError> {
        let credentials = self.certificates.get(identity).await?;
        Ok(credentials.svid().serial().to_owned())
    }

    /// The roots of a domain, DER.
    pub(crate) fn trusts(&self, domain: &str) -> Vec<Vec<u8>> {
        let domain = TrustDomain::new(domain).unwrap();
        let bundles = self.bundles.load();
        let bundle = bundles.bundle(&domain);
        let roots = bundle.map(|bundle| bundle.authorities().to_vec());
        let roots = roots.unwrap_or_default();
        roots.iter().map(|root| root.as_bytes().to_vec()).collect()
    }
}

/// Waits until it holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
}
