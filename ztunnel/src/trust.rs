//! Whether the peer of a live tunnel is trusted still: judged again whenever the trust bundles change, and for peers of
//! other trust domains when their certificate has ended.
//!
//! The local control plane ends the connections of a workload that it no longer vouches for, so that those of its own
//! domain outlive their certificates. Of a federated domain nothing is heard but its certificates: one that is not
//! followed by a newer within the grace is its revocation.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use seine_hbone::TrustWatch;
use seine_identity::{CertificateManager, Changes, Clock, Identity, PeerChain};
use tokio::sync::watch;

use crate::config::Config;

/// Watches over the peers of all tunnels. Clones share everything.
#[derive(Clone, Debug)]
pub(crate) struct Trust(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    certificates: CertificateManager,
    own_domain: String,
    grace: Duration,
    /// The end of the newest certificate that each identity of another domain has shown, for as long as that matters.
    shown: Mutex<HashMap<Identity, SystemTime>>,
}

impl Trust {
    pub(crate) fn new(certificates: CertificateManager, config: &Config) -> Self {
        Self(Arc::new(Inner {
            certificates,
            own_domain: config.trust_domain.clone(),
            grace: config.federated_grace,
            shown: Mutex::default(),
        }))
    }

    /// Begins to watch, before a handshake: no change of the bundles since is missed.
    pub(crate) fn before_handshake(&self) -> Watch {
        let mut changes = self.0.certificates.changes();
        let judged = changes.borrow_and_update().bundles;
        Watch {
            trust: self.0.clone(),
            changes,
            judged,
        }
    }

    /// The same for a tunnel that the pool makes.
    pub(crate) fn watch(&self) -> TrustWatch {
        let watch = self.before_handshake();
        Box::new(move |chain| Box::pin(watch.lost(chain)))
    }
}

/// Watches over one peer.
pub(crate) struct Watch {
    trust: Arc<Inner>,
    changes: watch::Receiver<Changes>,
    judged: u64,
}

impl Watch {
    /// Waits until the peer that presented a chain is no longer trusted, and says why.
    pub(crate) async fn lost(self, chain: PeerChain) -> Arc<str> {
        let Self {
            trust,
            changes,
            judged,
        } = self;
        if chain.identity().trust_domain().as_str() == trust.own_domain {
            return trust.refused(&chain, changes, judged).await;
        }
        trust.note(&chain);
        tokio::select! {
            reason = trust.refused(&chain, changes, judged) => reason,
            reason = trust.not_renewed(&chain) => reason,
        }
    }
}

impl Inner {
    /// Waits until the bundles no longer lead to the chain.
    async fn refused(
        &self,
        chain: &PeerChain,
        mut changes: watch::Receiver<Changes>,
        mut judged: u64,
    ) -> Arc<str> {
        loop {
            if changes.changed().await.is_err() {
                // The manager lives as long as the process.
                return std::future::pending().await;
            }
            let bundles = changes.borrow_and_update().bundles;
            if bundles == judged {
                continue;
            }
            judged = bundles;
            if let Err(error) = chain.verify(self.certificates.bundles(), SystemTime::now()) {
                return error.to_string().into();
            }
        }
    }

    /// Waits until the grace after the end of the newest certificate that the identity has shown is over.
    async fn not_renewed(&self, chain: &PeerChain) -> Arc<str> {
        let mut last = chain.not_after() + self.grace;
        loop {
            Clock::SYSTEM.passed(last).await;
            let shown = self.shown.lock().get(chain.identity()).copied();
            match shown.map(|end| end + self.grace) {
                Some(newer) if newer > last => last = newer,
                _ => break,
            }
        }
        format!(
            "the certificate of {} ended, and no newer one was shown within {:?}",
            chain.identity(),
            self.grace
        )
        .into()
    }

    fn note(&self, chain: &PeerChain) {
        let now = SystemTime::now();
        let mut shown = self.shown.lock();
        shown.retain(|_, end| *end + self.grace >= now);
        let end = shown
            .entry(chain.identity().clone())
            .or_insert(chain.not_after());
        *end = chain.not_after().max(*end);
    }
}
