//! End-to-end tests of the mesh, in the lab with the real programs.
//!
//! A file of tests has one lab, a [`Bed`], which its tests share and which [`trial::main`] starts
//! before the first and ends after the last. Manifests are made by [`manifests`]; what runs in the
//! pods is this crate's own program `seine-e2e-peer`, whose servers and clients are in [`peer`]
//! and report what happened, errno by errno, as JSON.
//!
//! No test measures time. Whatever takes effect later is waited for, with a bound:
//! [`bed::until`].

#![forbid(unsafe_code)]

pub mod attack;
pub mod bed;
pub mod guard;
pub mod manifests;
pub mod peer;
pub mod trial;

pub use bed::{Bed, Family, Running, until, until_within};
