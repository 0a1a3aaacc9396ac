//! The examples of the documentation are what the programs do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The YAML blocks of a page, but for those after a line `<!-- not ours: REASON -->`.
fn yaml_blocks(page: &str) -> Vec<String> {
    let parts: Vec<_> = page.split("```yaml\n").collect();
    let ours = |before: &str| {
        let last = before.trim_end().lines().last().unwrap_or_default();
        !last.trim_start().starts_with("<!-- not ours: ")
    };
    parts
        .windows(2)
        .filter(|pair| ours(pair[0]))
        .map(|pair| pair[1].split("```").next().unwrap().to_owned())
        .collect()
}

#[test]
fn every_manifest_in_the_docs_is_valid() {
    let mut seen = 0;
    let pages = fs::read_dir(repository().join("docs")).unwrap();
    let pages = pages.map(|entry| entry.unwrap().path());
    for page in pages.filter(|path| path.extension().is_some_and(|end| end == "md")) {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        for block in yaml_blocks(&fs::read_to_string(&page).unwrap()) {
            let parsed = seine_objects::parse_text(&name, &block);
            assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
            assert!(
                !parsed.objects.is_empty(),
                "{name} has YAML without objects:\n{block}"
            );
            seen += 1;
        }
    }
    assert!(seen >= 2, "{seen} blocks of YAML found");
}

#[test]
fn the_session_in_the_docs_is_what_the_program_prints() {
    let page = fs::read_to_string(repository().join("docs/CLI.md")).unwrap();
    let (_, session) = page.split_once("    $ seine ").unwrap();
    let (command, rest) = session.split_once('\n').unwrap();
    // The indented lines, up to the next paragraph.
    let shown: String = rest
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "))
        .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)))
        .collect();

    let output = Command::new(env!("CARGO_BIN_EXE_seine"))
        .args(command.split(' '))
        .current_dir(repository())
        .env_remove("KUBECONFIG")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.trim_end(), shown.trim_end());
    assert_eq!(output.status.code(), Some(1), "it is denied");
}
