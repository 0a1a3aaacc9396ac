//! `seine-e2e-attacker`: what the attackers of the end-to-end tests run.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use seine_e2e::attack::Arguments;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seine-e2e-attacker: {error:#}");
            ExitCode::FAILURE
        }
    }
}
