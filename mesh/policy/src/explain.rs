//! How a verdict came about.

use std::fmt;
use std::sync::Arc;

use crate::model::{Action, Connection, Policy, Scope};
use crate::verdict::{Decision, evaluate};

/// Judges as [`crate::verdict()`] does, and keeps what each policy contributed.
pub fn explain(policies: &[Arc<Policy>], connection: &Connection<'_>) -> Explanation {
    let mut steps = Vec::with_capacity(policies.len());
    let decision = evaluate(policies, connection, &mut |policy, matched| {
        steps.push(PolicyStep {
            policy: policy.clone(),
            matched,
        });
    });
    Explanation { decision, steps }
}

/// A decision with every policy that took part in it, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What [`crate::verdict()`] returns for the same arguments.
    pub decision: Decision,
    /// One step for each policy.
    pub steps: Vec<PolicyStep>,
}

/// What one policy contributed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyStep {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Index of its first rule that matches.
    pub matched: Option<usize>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        let outcome = if self.decision.allowed {
            "ALLOWED"
        } else {
            "DENIED"
        };
        write!(f, "{outcome}: {}", self.decision.because)?;
        for ask in &self.decision.asks {
            write!(
                f,
                "\nif {} says so (policy {}, rule {})",
                ask.provider, ask.policy, ask.rule
            )?;
        }
        if let Some(audit) = &self.decision.audit {
            let outcome = if audit.allowed { "ALLOWED" } else { "DENIED" };
            write!(
                f,
                "\nwith dry-run policies in force {outcome}: {}",
                audit.because
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for PolicyStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = &self.policy;
        let action = match (policy.action, &policy.provider) {
            (Action::Allow, _) => "ALLOW",
            (Action::Deny, None) => "DENY",
            (Action::Deny, Some(_)) => "EXTERNAL",
        };
        let scope = match policy.scope {
            Scope::Global => "mesh",
            Scope::Namespace => "namespace",
            Scope::Workload => "workload",
        };
        let dry_run = if policy.dry_run { ", dry run" } else { "" };
        write!(f, "{action} {} ({scope}{dry_run}): ", policy.key)?;
        match self.matched {
            Some(rule) => write!(f, "rule {rule} matches")?,
            None if policy.rules.is_empty() => write!(f, "has no rules and never matches")?,
            None => write!(f, "none of {} rules matches", policy.rules.len())?,
        }
        if !policy.unenforced_fields.is_empty() {
            write!(
                f,
                "; needs a waypoint for {}",
                policy.unenforced_fields.join(", ")
            )?;
        }
        Ok(())
    }
}
