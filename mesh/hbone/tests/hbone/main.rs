//! HBONE's two sides against each other: in memory, where time can be paused, and over loopback.

#![allow(
    clippy::unwrap_used,
    reason = "a test that can't go on should say where"
)]

mod copying;
mod hostile;
mod parsing;
mod pooling;
mod streams;
mod support;
