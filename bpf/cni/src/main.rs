//! The chained CNI plugin: reads the environment and standard input, as the specification says.

#![forbid(unsafe_code)]

use std::io::Read;
use std::process::ExitCode;

use seine_cni::CniError;
use seine_cni::Environment;

/// A configuration is a few kilobytes; what is larger than this is not one.
const MAX_INPUT: u64 = 4 * 1024 * 1024;

fn main() -> ExitCode {
    let mut bytes = Vec::new();
    let input = match std::io::stdin().take(MAX_INPUT).read_to_end(&mut bytes) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            eprintln!("seine-cni: read standard input: {error}");
            String::new()
        }
    };
    let result = seine_cni::run(&Environment::of_process(), &input, &mut |note| {
        eprintln!("seine-cni: {note}");
    });
    match result {
        Ok(output) => {
            if !output.is_empty() {
                println!("{output}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", report(&error, &input));
            ExitCode::FAILURE
        }
    }
}

fn report(error: &CniError, input: &str) -> String {
    let version = serde_json::from_str::<serde_json::Value>(input)
        .ok()
        .and_then(|v| Some(v.get("cniVersion")?.as_str()?.to_owned()));
    error.to_json(version.as_deref().unwrap_or("1.1.0"))
}
