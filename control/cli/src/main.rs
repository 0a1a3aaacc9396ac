//! The command line of Seine, also `kubectl seine`. Everything is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    seine_cli::main()
}
