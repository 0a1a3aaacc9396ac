//! Taking everything off a node: programs, maps, and what pods' network namespaces were given.

use std::path::Path;

use crate::agent;
use crate::last_known;
use crate::netns::Netns;
use crate::redirect::Redirect;
use crate::redirect::RedirectConfig;
use crate::redirect::RedirectError;
use crate::registry::Registry;
use crate::routing;

/// Why a node could not be cleaned.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// It would enrol the pods again.
    #[error("an agent is running: stop it first")]
    Running,
    /// Programs or maps could not be removed; pods may still be enrolled.
    #[error(transparent)]
    Redirect(#[from] RedirectError),
}

/// Releases every pod and removes the programs. Afterwards the pods talk in plaintext.
///
/// # Errors
///
/// See [`UninstallError`].
pub fn uninstall(redirect: RedirectConfig, state_dir: &Path) -> Result<(), UninstallError> {
    if agent::is_running(state_dir) {
        return Err(UninstallError::Running);
    }
    Redirect::load(redirect)?.uninstall()?;
    last_known::remove_all(state_dir);
    let records = match Registry::open(state_dir) {
        Ok(registry) => registry.load().map(|records| (registry, records)),
        Err(error) => Err(error),
    };
    let (registry, records) = match records {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "the registry of pods; their rules and routes do no harm");
            return Ok(());
        }
    };
    for record in records {
        // A pod that is gone took its rules with it.
        if let Ok(netns) = Netns::open(&record.netns)
            && netns.cookie() == record.cookie
            && let Err(error) = routing::remove(&netns)
        {
            tracing::warn!(pod = %record.name, %error, "remove the rule and route of a pod");
        }
        if let Err(error) = registry.remove(&record.uid) {
            tracing::warn!(pod = %record.name, %error, "remove a pod's record");
        }
    }
    Ok(())
}
