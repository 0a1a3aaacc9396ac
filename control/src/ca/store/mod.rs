//! Where a CA's keys are kept between two runs: a directory, or a Secret.
//!
//! A store has one [`Material`] and replaces it as a whole. Whoever replaces says which revision it
//! thought of; if the store has another by then, nothing is written and the answer is
//! [`CaError::Conflict`]. So of two replicas that start at once only one makes a root.

mod directory;
mod secret;

use std::fmt;
use std::time::Duration;

pub use directory::DirectoryStore;
pub use secret::SecretStore;

use super::CaError;
use super::material::Material;

/// One version of what a store has; only compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(pub(super) String);

/// What a store has.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Nothing if no CA was made there yet.
    pub material: Option<Material>,
    /// Nothing if not even an empty place for it is there.
    pub revision: Option<Revision>,
    /// An operator asks for a new root.
    pub rotation_asked: bool,
}

/// The keeper of a CA's keys.
#[tonic::async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// For messages: the directory, or the Secret.
    fn place(&self) -> String;

    /// For how long another process may sign with keys that were replaced: zero where there is no
    /// other. It makes a rotation's phases longer, and a process that could not read the store for
    /// as long stops signing.
    fn lag(&self) -> Duration;

    /// Reads everything.
    async fn load(&self) -> Result<Loaded, CaError>;

    /// Whether it has another revision than this one (then all of it), or a request for a new root.
    async fn poll(&self, seen: Option<&Revision>) -> Result<Loaded, CaError>;

    /// Puts `material` in the place of the revision `over`, whole or not at all.
    async fn replace(
        &self,
        material: &Material,
        over: Option<&Revision>,
    ) -> Result<Revision, CaError>;

    /// The request for a new root was answered.
    async fn rotation_answered(&self) -> Result<(), CaError>;

    /// Waits until it may have changed. May never be ready.
    async fn changed(&self);
}
