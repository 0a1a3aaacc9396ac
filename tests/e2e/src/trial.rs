//! Running the tests of a file one after the other on one lab.
//!
//! The output is that of `cargo test`. Without root, where that is needed, each test is skipped, and says so.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

/// A test: its name is a sentence about behaviour.
pub type Trial<B> = (&'static str, fn(&B) -> Result<()>);

/// What the tests of a file share.
pub trait Shared {
    /// What helps to understand a failure that just was.
    fn last_words(&self) -> String;
}

/// Lists functions as tests under their own names.
#[macro_export]
macro_rules! trials {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), $name)),*]
    };
}

/// What the command line asks for; unknown options of libtest are ignored.
#[derive(Default)]
struct Selection {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
}

impl Selection {
    fn parse(arguments: impl Iterator<Item = String>) -> Self {
        let mut selection = Self::default();
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => selection.list = true,
                "--exact" => selection.exact = true,
                "--skip" => selection.skip.extend(arguments.next()),
                "--test-threads" | "--format" | "--color" | "-Z" => drop(arguments.next()),
                option if option.starts_with('-') => {}
                _ => selection.filters.push(argument),
            }
        }
        selection
    }

    fn takes(&self, name: &str) -> bool {
        let hit = |filter: &String| match self.exact {
            true => name == filter,
            false => name.contains(filter.as_str()),
        };
        (self.filters.is_empty() || self.filters.iter().any(hit)) && !self.skip.iter().any(hit)
    }
}

/// The main function of a file of tests that need root: starts what they share, runs them, ends it.
pub fn main<B: Shared>(up: impl FnOnce() -> Result<B>, trials: &[Trial<B>]) -> ExitCode {
    run(up, trials, nix::unistd::geteuid().is_root())
}

/// As [`main`], of tests that anybody may run.
pub fn anywhere<B: Shared>(up: impl FnOnce() -> Result<B>, trials: &[Trial<B>]) -> ExitCode {
    run(up, trials, true)
}

fn run<B: Shared>(up: impl FnOnce() -> Result<B>, trials: &[Trial<B>], may: bool) -> ExitCode {
    let selection = Selection::parse(std::env::args().skip(1));
    let chosen: Vec<_> = trials.iter().filter(|t| selection.takes(t.0)).collect();
    if selection.list {
        for (name, _) in chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let filtered = trials.len() - chosen.len();
    if chosen.is_empty() {
        return end(&[], 0, 0, filtered);
    }
    if !may {
        for (name, _) in &chosen {
            println!("SKIPPED: {name}: needs root");
        }
        return end(&[], 0, chosen.len(), filtered);
    }
    let begun = Instant::now();
    let shared = match catch_unwind(AssertUnwindSafe(up)) {
        Ok(Ok(shared)) => shared,
        Ok(Err(error)) => {
            println!("what the tests share did not start: {error:#}");
            let names: Vec<_> = chosen.iter().map(|(name, _)| *name).collect();
            return end(&names, 0, 0, filtered);
        }
        Err(_) => return ExitCode::FAILURE,
    };
    println!("(ready after {:.1?})", begun.elapsed());
    let mut failed = Vec::new();
    let mut passed = 0;
    for (name, trial) in chosen {
        let begun = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| trial(&shared)));
        let took = begun.elapsed();
        match result {
            Ok(Ok(())) => {
                passed += 1;
                println!("test {name} ... ok ({took:.1?})");
            }
            Ok(Err(error)) => {
                println!("test {name} ... FAILED ({took:.1?})\n{error:#}");
                println!("{}", shared.last_words());
                failed.push(*name);
            }
            Err(_) => {
                println!("test {name} ... FAILED ({took:.1?}), it panicked");
                failed.push(*name);
            }
        }
    }
    drop(shared);
    end(&failed, passed, 0, filtered)
}

fn end(failed: &[&str], passed: usize, ignored: usize, filtered: usize) -> ExitCode {
    if !failed.is_empty() {
        println!("\nfailures:");
        for name in failed {
            println!("    {name}");
        }
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {} failed; {ignored} ignored; 0 measured; \
         {filtered} filtered out\n",
        failed.len()
    );
    ExitCode::from(u8::from(!failed.is_empty()))
}
