//! `seine-e2e-peer`: what runs in the pods of the end-to-end tests.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use seine_e2e::peer::Arguments;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seine-e2e-peer: {error:#}");
            ExitCode::FAILURE
        }
    }
}
