//! [`Identity`]: who a workload is.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use spiffe::{SpiffeId, TrustDomain};

/// Scheme of every identity as a URI.
const SCHEME: &str = "spiffe://";

/// The longest namespace or service account name: that of a Kubernetes DNS subdomain.
const MAX_NAME: usize = 253;

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Cheap to clone (one reference count). Equality, order and hash are those of the URI.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    uri: Box<str>,
    trust_domain: TrustDomain,
    namespace: Box<str>,
    service_account: Box<str>,
}

/// Why something is not the identity of a workload.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Not a SPIFFE ID at all.
    #[error("`{uri}` is not a SPIFFE ID: {source}")]
    NotSpiffe {
        /// What was given, shortened.
        uri: String,
        /// What is wrong with it.
        source: spiffe::SpiffeIdError,
    },
    /// A SPIFFE ID, but not of a service account.
    #[error("`{uri}` is not of the form spiffe://DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
    NotServiceAccount {
        /// What was given, shortened.
        uri: String,
    },
    /// A namespace or a service account that no SPIFFE path may contain.
    #[error("`{name}` can't be a {what} in a SPIFFE ID")]
    BadName {
        /// "namespace" or "service account".
        what: &'static str,
        /// What was given, shortened.
        name: String,
    },
}

impl Identity {
    /// The identity of a service account in a trust domain.
    ///
    /// # Errors
    ///
    /// [`IdentityError::BadName`] if a name is empty, too long, or has a character that a SPIFFE
    /// path may not have.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        check_name("namespace", namespace)?;
        check_name("service account", service_account)?;
        let uri = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}");
        Ok(Self(Arc::new(Inner {
            uri: uri.into(),
            trust_domain,
            namespace: namespace.into(),
            service_account: service_account.into(),
        })))
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.0.service_account
    }

    /// `spiffe://…`.
    pub fn as_str(&self) -> &str {
        &self.0.uri
    }

    /// The URI without `spiffe://`, as principals are matched in policies (WIRE.md section 1).
    pub fn principal(&self) -> &str {
        &self.0.uri[SCHEME.len()..]
    }

    /// The same as the `spiffe` crate's type.
    pub fn to_spiffe_id(&self) -> SpiffeId {
        SpiffeId::new(self.as_str()).expect("the parts were checked by the same rules")
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let id = SpiffeId::new(uri).map_err(|source| IdentityError::NotSpiffe {
            uri: shorten(uri),
            source,
        })?;
        Self::try_from(&id)
    }
}

impl TryFrom<&SpiffeId> for Identity {
    type Error = IdentityError;

    fn try_from(id: &SpiffeId) -> Result<Self, IdentityError> {
        let not = || IdentityError::NotServiceAccount {
            uri: shorten(&id.to_string()),
        };
        let mut segments = id.path().split('/');
        let parts = (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        );
        let (Some(""), Some("ns"), Some(namespace), Some("sa"), Some(account), None) = parts else {
            return Err(not());
        };
        Self::new(id.trust_domain().clone(), namespace, account)
    }
}

impl From<&Identity> for SpiffeId {
    fn from(identity: &Identity) -> Self {
        identity.to_spiffe_id()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.uri == other.0.uri
    }
}

impl Eq for Identity {}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.uri.hash(state);
    }
}

impl Ord for Identity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.uri.cmp(&other.0.uri)
    }
}

impl PartialOrd for Identity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), IdentityError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if name.is_empty()
        || name.len() > MAX_NAME
        || matches!(name, "." | "..")
        || !name.bytes().all(legal)
    {
        return Err(IdentityError::BadName {
            what,
            name: shorten(name),
        });
    }
    Ok(())
}

/// What a peer or a file gave us, safe to log: at most 128 characters, none of them a control.
pub(crate) fn shorten(text: &str) -> String {
    let mut short: String = text
        .chars()
        .take(128)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(128).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str) -> TrustDomain {
        TrustDomain::new(name).unwrap()
    }

    #[test]
    fn an_identity_is_the_same_through_its_uri_and_its_spiffe_id() {
        let identity = Identity::new(domain("cluster.local"), "shop", "api").unwrap();
        assert_eq!(identity.as_str(), "spiffe://cluster.local/ns/shop/sa/api");
        assert_eq!(identity.principal(), "cluster.local/ns/shop/sa/api");
        assert_eq!(identity, identity.to_string().parse().unwrap());
        assert_eq!(
            identity,
            Identity::try_from(&identity.to_spiffe_id()).unwrap()
        );
    }

    #[test]
    fn a_trust_domain_is_the_same_in_any_case_but_a_path_is_not() {
        let a: Identity = "spiffe://Cluster.Local/ns/a/sa/b".parse().unwrap();
        let b: Identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let c: Identity = "spiffe://cluster.local/ns/a/sa/B".parse().unwrap();
        assert_eq!(a, b);
        assert_ne!(b, c);
    }

    #[test]
    fn what_is_not_a_service_account_is_refused() {
        for uri in [
            "spiffe://cluster.local",
            "spiffe://cluster.local/ns/a",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/sa/a/ns/b",
            "spiffe://cluster.local/workload",
        ] {
            let error = uri.parse::<Identity>().unwrap_err();
            assert!(
                matches!(error, IdentityError::NotServiceAccount { .. }),
                "{uri}: {error}"
            );
        }
        for uri in [
            "",
            "https://cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local:8443/ns/a/sa/b",
            "spiffe://user@cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b?x=y",
            "spiffe://cluster.local/ns/a/sa/b#x",
            "spiffe://cluster.local/ns/a%2f/sa/b",
        ] {
            let error = uri.parse::<Identity>().unwrap_err();
            assert!(
                matches!(error, IdentityError::NotSpiffe { .. }),
                "{uri}: {error}"
            );
        }
    }

    #[test]
    fn names_that_would_change_the_path_are_refused() {
        for (namespace, account) in [
            ("", "a"),
            ("a", ""),
            ("a/sa/x", "b"),
            ("..", "b"),
            ("a", "b c"),
        ] {
            assert!(Identity::new(domain("d"), namespace, account).is_err());
        }
        assert!(Identity::new(domain("d"), &"n".repeat(254), "b").is_err());
    }

    #[test]
    fn what_an_error_repeats_is_short_and_has_no_controls() {
        let error = format!("x\n{}", "y".repeat(500))
            .parse::<Identity>()
            .unwrap_err();
        let text = error.to_string();
        assert!(text.len() < 300 && !text.contains('\n'), "{text}");
    }
}
