//! What the demo prints.

use std::process::ExitCode;
use std::time::Duration;

use seine_lab::Lab;
use seine_lab::protocol::Component;

/// Counts claims while printing them.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    held: usize,
    failed: usize,
    titles: usize,
}

impl Transcript {
    /// The next part.
    pub(crate) fn title(&mut self, text: &str) {
        self.titles += 1;
        println!("\n{}. {text}", self.titles);
    }

    /// Something to know.
    #[expect(
        clippy::unused_self,
        reason = "all printing goes through the transcript"
    )]
    pub(crate) fn say(&mut self, text: &str) {
        for line in text.lines() {
            println!("     {line}");
        }
    }

    /// A claim, and what was seen instead where it does not hold.
    pub(crate) fn claim(&mut self, text: &str, holds: bool, instead: impl FnOnce() -> String) {
        if holds {
            self.held += 1;
            println!("  ✔  {text}");
        } else {
            self.failed += 1;
            println!("  ✘  {text}");
            self.say(&instead());
        }
    }

    /// The demo could not go on.
    pub(crate) fn broke(&mut self, error: &anyhow::Error) {
        self.failed += 1;
        println!("  ✘  the demo could not go on: {error:#}");
    }

    /// Whether a claim did not hold.
    pub(crate) fn failed(&self) -> bool {
        self.failed > 0
    }

    /// The ends of the mesh's logs, for whoever has to find out why.
    pub(crate) fn logs(&mut self, lab: &Lab) {
        for component in [Component::Control, Component::Agent, Component::Ztunnel] {
            for node in [1, 2] {
                if component == Component::Control && node == 2 {
                    continue;
                }
                println!("\n--- the end of {} on node{node}", component.name());
                let text = lab
                    .logs(component, node)
                    .unwrap_or_else(|error| error.to_string());
                let telling = |line: &&str| !line.contains("connection closed");
                let lines: Vec<&str> = text.lines().filter(telling).collect();
                for line in &lines[lines.len().saturating_sub(15)..] {
                    println!("{line}");
                }
            }
        }
    }

    /// The sum, as the exit status.
    pub(crate) fn end(&self, took: Duration) -> ExitCode {
        let seconds = took.as_secs_f64();
        if self.failed == 0 {
            println!("\nAll {} claims hold ({seconds:.0} s).", self.held);
            ExitCode::SUCCESS
        } else {
            println!(
                "\n{} claims FAILED, {} hold ({seconds:.0} s).",
                self.failed, self.held
            );
            ExitCode::FAILURE
        }
    }
}
