//! The verdict and its reasons.

use std::fmt;
use std::sync::Arc;

use crate::matching::Subject;
use crate::model::{Action, Connection, Policy, PolicyKey, Provider};

/// Judges a connection by the policies that apply to its destination, in any order.
///
/// Any DENY that matches denies; with no ALLOW, the connection is allowed; any ALLOW that matches
/// allows; else it is denied. A policy with a provider takes no part in that where there is a request: whom it names is to
/// be asked about what it matches ([`Decision::asks`]); where there is none it denies. Dry-run policies take no part in that; what they would have done is
/// in [`Decision::audit`]. Allocates nothing unless a dry-run policy applies, or somebody is to be asked.
pub fn verdict(policies: &[Arc<Policy>], connection: &Connection<'_>) -> Decision {
    evaluate(policies, connection, &mut |_, _| ())
}

/// The policies that apply to a workload, or the reason why they aren't known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applicable {
    /// All are here: judge by them.
    Ready(Arc<[Arc<Policy>]>),
    /// The workload is unknown, or these policies are known by name alone. Wait for a change, and
    /// deny ([`Decision::missing`]) when waiting has taken too long.
    Missing(Arc<[Arc<str>]>),
}

/// Whether a connection may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may.
    pub allowed: bool,
    /// Why, or why not.
    pub because: Reason,
    /// What would have been decided had the dry-run policies been in force; none if no dry-run
    /// policy applies.
    pub audit: Option<Box<Audit>>,
    /// Who must say yes, too, before an allowed request goes on. Empty where there is no request.
    pub asks: Vec<Ask>,
}

/// Somebody who has to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The policy that says so.
    pub policy: PolicyKey,
    /// Index of the rule in it that matched.
    pub rule: usize,
    /// Who.
    pub provider: Arc<Provider>,
}

/// A verdict that includes dry-run policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Whether the connection would have been allowed.
    pub allowed: bool,
    /// Why, or why not.
    pub because: Reason,
}

/// Why a verdict is what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No ALLOW policy applies, and no DENY policy matched: allowed.
    NoAllowPolicy,
    /// A rule of an ALLOW policy matched, and no DENY policy did: allowed.
    Allowed {
        /// The policy.
        policy: PolicyKey,
        /// Index of the rule in it.
        rule: usize,
    },
    /// A rule of a DENY policy matched: denied.
    Denied {
        /// The policy.
        policy: PolicyKey,
        /// Index of the rule in it.
        rule: usize,
    },
    /// ALLOW policies apply, and none matched: denied.
    NoAllowMatched {
        /// The first of them.
        policy: PolicyKey,
        /// How many there are.
        policies: usize,
    },
    /// The policies of the destination haven't arrived: denied.
    PoliciesMissing {
        /// Their names, or what is unknown.
        names: Arc<[Arc<str>]>,
    },
    /// The port is bound to a waypoint, and the connection didn't come from it: denied.
    BoundToWaypoint {
        /// The target port.
        port: u16,
    },
}

impl Decision {
    /// The denial of a connection whose policies didn't arrive in time.
    pub fn missing(names: Arc<[Arc<str>]>) -> Self {
        Self {
            allowed: false,
            because: Reason::PoliciesMissing { names },
            audit: None,
            asks: Vec::new(),
        }
    }

    /// The denial of a connection that went around the waypoint that its port is bound to.
    pub fn bound_to_waypoint(port: u16) -> Self {
        Self {
            allowed: false,
            because: Reason::BoundToWaypoint { port },
            audit: None,
            asks: Vec::new(),
        }
    }

    /// Whether the dry-run policies, in force, would have denied what was allowed.
    pub fn would_deny(&self) -> bool {
        self.allowed && self.audit.as_ref().is_some_and(|audit| !audit.allowed)
    }
}

impl Reason {
    /// The policy that decided, if one did.
    pub fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Self::Allowed { policy, .. }
            | Self::Denied { policy, .. }
            | Self::NoAllowMatched { policy, .. } => Some(policy),
            Self::NoAllowPolicy | Self::PoliciesMissing { .. } | Self::BoundToWaypoint { .. } => {
                None
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAllowPolicy => f.write_str("no policy applies that restricts access"),
            Self::Allowed { policy, rule } => {
                write!(f, "allowed by policy {policy}, rule {rule}")
            }
            Self::Denied { policy, rule } => write!(f, "denied by policy {policy}, rule {rule}"),
            Self::NoAllowMatched {
                policy,
                policies: 1,
            } => {
                write!(f, "not allowed by policy {policy}")
            }
            Self::NoAllowMatched { policy, policies } => {
                write!(
                    f,
                    "not allowed by any of {policies} policies, among them {policy}"
                )
            }
            Self::PoliciesMissing { names } => {
                write!(f, "policies have not arrived: {}", names.join(", "))
            }
            Self::BoundToWaypoint { port } => {
                write!(f, "port {port} is reached through its waypoint alone")
            }
        }
    }
}

/// The evaluation. `watch` sees every policy with the rule of it that matched.
pub(crate) fn evaluate(
    policies: &[Arc<Policy>],
    connection: &Connection<'_>,
    watch: &mut dyn FnMut(&Arc<Policy>, Option<usize>),
) -> Decision {
    let subject = Subject::new(connection);
    let mut enforced = Tally::default();
    let mut with_dry_run = Tally::default();
    let mut dry_run = false;
    let mut asks = Vec::new();
    for policy in policies {
        let rule = policy.matching_rule(&subject);
        watch(policy, rule);
        if let (Some(provider), true) = (&policy.provider, connection.request.is_some()) {
            asks.extend(rule.map(|rule| Ask {
                policy: policy.key.clone(),
                rule,
                provider: provider.clone(),
            }));
            continue;
        }
        if !policy.enforced_only {
            with_dry_run.count(policy, rule);
        }
        if policy.dry_run {
            dry_run = true;
        } else {
            enforced.count(policy, rule);
        }
    }
    let (allowed, because) = enforced.result();
    let audit = dry_run.then(|| {
        let (allowed, because) = with_dry_run.result();
        Box::new(Audit { allowed, because })
    });
    if !allowed {
        // Nobody need be asked.
        asks.clear();
    }
    Decision {
        allowed,
        because,
        audit,
        asks,
    }
}

/// What the policies seen so far say.
#[derive(Default)]
struct Tally<'a> {
    denied: Option<(&'a Policy, usize)>,
    allowed: Option<(&'a Policy, usize)>,
    first_allow: Option<&'a Policy>,
    allows: usize,
}

impl<'a> Tally<'a> {
    fn count(&mut self, policy: &'a Policy, rule: Option<usize>) {
        match policy.action {
            Action::Deny => {
                if let Some(rule) = rule {
                    self.denied.get_or_insert((policy, rule));
                }
            }
            Action::Allow => {
                self.allows += 1;
                self.first_allow.get_or_insert(policy);
                if let Some(rule) = rule {
                    self.allowed.get_or_insert((policy, rule));
                }
            }
        }
    }

    fn result(&self) -> (bool, Reason) {
        if let Some((policy, rule)) = self.denied {
            return (
                false,
                Reason::Denied {
                    policy: policy.key.clone(),
                    rule,
                },
            );
        }
        match (self.first_allow, self.allowed) {
            (None, _) => (true, Reason::NoAllowPolicy),
            (_, Some((policy, rule))) => (
                true,
                Reason::Allowed {
                    policy: policy.key.clone(),
                    rule,
                },
            ),
            (Some(policy), None) => {
                let policies = self.allows;
                (
                    false,
                    Reason::NoAllowMatched {
                        policy: policy.key.clone(),
                        policies,
                    },
                )
            }
        }
    }
}
