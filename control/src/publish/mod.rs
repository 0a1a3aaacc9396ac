//! What the control plane writes to the API server.
//!
//! Each replica writes what its proxies hold ([`held`], [`held_map`]). Everything else is the
//! leader's: the trust bundle ([`trust_bundle`]), what runs waypoints ([`waypoint`]), conditions ([`conditions`], [`writer`]) and Events
//! ([`events`]). Nothing is written that is equal to what the API server has; what fails is tried
//! again.

mod compare;
pub mod conditions;
pub mod events;
pub mod gateway_status;
pub mod held;
pub mod held_map;
pub mod trust_bundle;
mod watched;
pub mod waypoint;
pub mod writer;

pub use held::{Held, Totals};

/// Who we are to server-side apply.
pub const FIELD_MANAGER: &str = "seine-control";

/// The label of what is ours; its value is [`FIELD_MANAGER`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
