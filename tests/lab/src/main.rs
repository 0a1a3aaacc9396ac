//! `seine-lab`: a mesh on one Linux machine, from a directory of Kubernetes manifests.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use seine_lab::cli::Arguments;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("seine-lab: {error:#}");
            ExitCode::from(1)
        }
    }
}
