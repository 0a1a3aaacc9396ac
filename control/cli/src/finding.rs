//! What checks and analyses find: what, where, and what to do.

use std::fmt;

use serde::Serialize;

use crate::output::Table;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know.
    Info,
    /// It works, and hardly as meant.
    Warning,
    /// It doesn't work.
    Error,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A word for machines, which doesn't change.
    pub code: &'static str,
    /// What it is about: `Kind namespace/name`, or what was checked.
    pub about: String,
    /// What was found.
    pub message: String,
    /// What to do, where something is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

/// All of them, in the order of asking.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    /// One each.
    pub findings: Vec<Finding>,
}

impl Findings {
    /// Adds one.
    pub fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        about: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.findings.push(Finding {
            severity,
            code,
            about: about.into(),
            message: message.into(),
            advice: advice.into(),
        });
    }

    /// Whether nothing is as bad as that, or worse.
    pub fn better_than(&self, severity: Severity) -> bool {
        self.findings.iter().all(|found| found.severity < severity)
    }

    fn count(&self, severity: Severity) -> usize {
        let found = self.findings.iter();
        found.filter(|found| found.severity == severity).count()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["", "ABOUT", "FOUND"]);
        for found in &self.findings {
            let severity = match found.severity {
                Severity::Ok => "ok",
                Severity::Info => "info",
                Severity::Warning => "WARNING",
                Severity::Error => "ERROR",
            };
            table.row([
                severity.to_owned(),
                found.about.clone(),
                found.message.clone(),
            ]);
            if !found.advice.is_empty() {
                table.row([
                    String::new(),
                    String::new(),
                    format!("-> {} [{}]", found.advice, found.code),
                ]);
            }
        }
        write!(f, "{table}")?;
        if !table.is_empty() {
            writeln!(f)?;
        }
        match (self.count(Severity::Error), self.count(Severity::Warning)) {
            (0, 0) => writeln!(f, "no problems"),
            (errors, warnings) => writeln!(f, "{errors} errors, {warnings} warnings"),
        }
    }
}
