//! Whom we trust to sign: the roots of each trust domain.
//!
//! [`TrustBundles`] is immutable; [`SharedBundles`] is the place where the newest one is found.
//! Written by the certificate manager (roots come with certificates) and whoever configures
//! federation; read by every handshake without a lock.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use spiffe::{TrustDomain, X509Bundle, X509BundleSet};

/// The roots of each trust domain, ready for verification.
///
/// A chain is only ever checked against the anchors of one domain, that of its own SAN: a
/// federated domain's root can't sign for ours.
#[derive(Clone, Default)]
pub struct TrustBundles {
    set: X509BundleSet,
    anchors: BTreeMap<TrustDomain, Arc<[TrustAnchor<'static>]>>,
}

/// A root that can't serve as a trust anchor.
#[derive(Debug, thiserror::Error)]
#[error("root {index} of trust domain {trust_domain} can't be used: {reason}")]
pub struct BundleError {
    /// Whose bundle it is.
    pub trust_domain: TrustDomain,
    /// Which root, counted from 0.
    pub index: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl TrustBundles {
    /// Trusts nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// These bundles with `bundle` in the place of its domain's former one.
    ///
    /// # Errors
    ///
    /// If one of the roots can't be parsed. `self` is unchanged then.
    pub fn with(&self, bundle: X509Bundle) -> Result<Self, BundleError> {
        let domain = bundle.trust_domain().clone();
        let anchors = bundle
            .authorities()
            .iter()
            .enumerate()
            .map(|(index, root)| {
                webpki::anchor_from_trusted_cert(&CertificateDer::from(root.as_bytes()))
                    .map(|anchor| anchor.to_owned())
                    .map_err(|error| BundleError {
                        trust_domain: domain.clone(),
                        index,
                        reason: error.to_string(),
                    })
            })
            .collect::<Result<Arc<[_]>, _>>()?;
        let mut new = self.clone();
        new.set.add_bundle(bundle);
        new.anchors.insert(domain, anchors);
        Ok(new)
    }

    /// These bundles without a domain's.
    pub fn without(&self, domain: &TrustDomain) -> Self {
        let mut new = Self {
            set: X509BundleSet::default(),
            anchors: self.anchors.clone(),
        };
        new.anchors.remove(domain);
        for (_, bundle) in self.set.iter().filter(|(other, _)| *other != domain) {
            new.set.add_bundle(X509Bundle::clone(bundle));
        }
        new
    }

    /// The bundles as the `spiffe` crate's type.
    pub fn bundle_set(&self) -> &X509BundleSet {
        &self.set
    }

    /// The bundle of a domain.
    pub fn bundle(&self, domain: &TrustDomain) -> Option<&Arc<X509Bundle>> {
        self.set.get_ref(domain)
    }

    /// The domains that have a bundle.
    pub fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.anchors.keys()
    }

    /// What a chain of this domain may end in; `None` if the domain is unknown.
    pub(crate) fn anchors(&self, domain: &TrustDomain) -> Option<&Arc<[TrustAnchor<'static>]>> {
        self.anchors.get(domain)
    }
}

impl TryFrom<&X509BundleSet> for TrustBundles {
    type Error = BundleError;

    fn try_from(set: &X509BundleSet) -> Result<Self, BundleError> {
        set.iter().try_fold(Self::new(), |bundles, (_, bundle)| {
            bundles.with(X509Bundle::clone(bundle))
        })
    }
}

impl PartialEq for TrustBundles {
    fn eq(&self, other: &Self) -> bool {
        self.set == other.set
    }
}

impl std::fmt::Debug for TrustBundles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map()
            .entries(
                self.anchors
                    .iter()
                    .map(|(domain, roots)| (domain.as_str(), roots.len())),
            )
            .finish()
    }
}

/// Where the newest [`TrustBundles`] are.
#[derive(Debug, Default)]
pub struct SharedBundles(ArcSwap<TrustBundles>);

impl SharedBundles {
    /// Starts with these.
    pub fn new(bundles: TrustBundles) -> Self {
        Self(ArcSwap::from_pointee(bundles))
    }

    /// The newest.
    pub fn load(&self) -> Arc<TrustBundles> {
        self.0.load_full()
    }

    /// From now on handshakes are judged by these.
    pub fn store(&self, bundles: TrustBundles) {
        self.0.store(Arc::new(bundles));
    }

    /// Trusts a domain no more; true if it was trusted.
    pub fn withdraw(&self, domain: &TrustDomain) -> bool {
        let old = self.0.rcu(|current| match current.bundle(domain) {
            Some(_) => Arc::new(current.without(domain)),
            None => Arc::clone(current),
        });
        old.bundle(domain).is_some()
    }

    /// Replaces the bundle of one domain; true if that changed anything. Concurrent calls for
    /// different domains lose nothing.
    ///
    /// # Errors
    ///
    /// If one of the roots can't be parsed; nothing changes then.
    pub fn replace(&self, bundle: X509Bundle) -> Result<bool, BundleError> {
        let mut outcome = Ok(false);
        self.0.rcu(|current| {
            if current
                .bundle(bundle.trust_domain())
                .is_some_and(|old| **old == bundle)
            {
                outcome = Ok(false);
                return Arc::clone(current);
            }
            match current.with(bundle.clone()) {
                Ok(new) => {
                    outcome = Ok(true);
                    Arc::new(new)
                }
                Err(error) => {
                    outcome = Err(error);
                    Arc::clone(current)
                }
            }
        });
        outcome
    }
}
