//! What runs a Gateway that is a waypoint: ServiceAccount, Service, Deployment, HorizontalPodAutoscaler and
//! PodDisruptionBudget of its name, in its namespace. They belong to the Gateway, and go with it by garbage collection.
//!
//! [`objects()`] says what they should be, without I/O; [`make()`] has the API server have them so.

mod make;
mod objects;

pub use make::{Made, Outcome, make};
pub use objects::{BadParameter, Template, TemplateError, objects};
