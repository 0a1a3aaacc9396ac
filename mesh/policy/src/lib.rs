//! The policy model and the one verdict function.
//!
//! [`verdict()`] judges a connection by the policies that apply to its destination. It is pure: the
//! proxies enforce what it says, [`explain()`] shows how it came to say it (by the same evaluation,
//! watched), and tests compare the two with what a running proxy does.
//!
//! Which policies apply is for the caller to gather (`seine_workload::Store::policies_for`): those
//! of the destination's namespace, the global ones, and those that the workload lists. A policy
//! that is known by name alone is never skipped: the gatherer answers [`Applicable::Missing`], and
//! the connection waits for it and is then denied ([`Decision::missing`]).

#![forbid(unsafe_code)]

mod explain;
mod matching;
mod model;
mod pattern;
#[cfg(test)]
mod tests;
mod verdict;

pub use explain::{Explanation, PolicyStep, explain};
pub use model::{
    Action, Claim, ClaimMatch, Clause, Connection, HeaderMatch, Match, Policy, PolicyKey, Provider,
    ProviderProtocol, Request, RequestMatch, Rule, Scope, ServiceAccountMatch, StringMatch, Token,
    TokenMatch,
};
pub use pattern::{BadPattern, Pattern};
pub use verdict::{Applicable, Ask, Audit, Decision, Reason, verdict};
