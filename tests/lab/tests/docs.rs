//! The commands of `docs/LAB.md` work as they stand there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A line of the page, run by a shell at the root of the repository, with this test's program and lab.
fn run(line: &str) -> Output {
    let line = line.replace("target/debug/seine-lab", env!("CARGO_BIN_EXE_seine-lab"));
    Command::new("sh")
        .args(["-c", &line])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .env("SEINE_LAB_NAME", "t-docs")
        .output()
        .unwrap()
}

/// Ends the lab also where the test fails.
struct Down;

impl Drop for Down {
    fn drop(&mut self) {
        run("target/debug/seine-lab down");
    }
}

#[test]
fn the_commands_on_the_labs_page_work() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED the_commands_on_the_labs_page_work: it needs root");
        return;
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/LAB.md");
    let page = fs::read_to_string(page).unwrap();
    let commands: Vec<&str> = page
        .lines()
        .skip_while(|line| !line.starts_with("    cargo build"))
        .skip(1)
        .map_while(|line| line.strip_prefix("    "))
        .collect();
    assert!(
        commands.len() >= 5 && commands.last().unwrap().ends_with(" down"),
        "{commands:?}"
    );
    run("target/debug/seine-lab down");
    let _down = Down;
    for command in commands {
        let output = run(command);
        let text = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {text}{error}");
        if command.contains("curl") {
            assert!(text.contains("rye"), "{command}: {text}{error}");
        }
    }
}
