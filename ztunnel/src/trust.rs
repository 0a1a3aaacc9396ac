//! Whether the peer of a live tunnel is trusted still: judged again whenever the trust bundles change.

use std::sync::Arc;

use seine_hbone::TrustWatch;
use seine_identity::{CertificateManager, Changes, PeerChain};
use tokio::sync::watch;

/// The bundles from before a handshake on, so that no change of them is missed.
pub(crate) struct Trust {
    certificates: CertificateManager,
    changes: watch::Receiver<Changes>,
    judged: u64,
}

impl Trust {
    /// Made before the handshake.
    pub(crate) fn new(certificates: &CertificateManager) -> Self {
        let mut changes = certificates.changes();
        let judged = changes.borrow_and_update().bundles;
        Self {
            certificates: certificates.clone(),
            changes,
            judged,
        }
    }

    /// Waits until the bundles no longer lead to the peer's chain, and says why.
    pub(crate) async fn lost(mut self, chain: PeerChain) -> Arc<str> {
        loop {
            if self.changes.changed().await.is_err() {
                // The manager lives as long as the process.
                return std::future::pending().await;
            }
            let bundles = self.changes.borrow_and_update().bundles;
            if bundles == self.judged {
                continue;
            }
            self.judged = bundles;
            if let Err(error) = chain.verify(self.certificates.bundles()) {
                return error.to_string().into();
            }
        }
    }

    /// The same for a tunnel that the pool makes.
    pub(crate) fn watch(certificates: &CertificateManager) -> TrustWatch {
        let trust = Self::new(certificates);
        Box::new(move |chain| Box::pin(trust.lost(chain)))
    }
}
