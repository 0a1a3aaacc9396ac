//! What node proxies hold and do, by their own pages.

use std::fmt;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;

use crate::{
    output::{Outcome, Table},
    pages::Program,
};

/// Which proxies.
#[derive(Args)]
pub struct Which {
    /// Of this node alone.
    #[arg(long, global = true)]
    pub node: Option<String>,
    /// Of this pod alone.
    #[arg(long, global = true)]
    pub pod: Option<String>,
    /// Ask HOST:PORT, which must be an admin page of a ztunnel, without a cluster.
    #[arg(long, global = true, value_name = "HOST:PORT", conflicts_with_all = ["node", "pod"])]
    pub address: Option<String>,
}

/// What to show.
#[derive(Clone, Debug, Subcommand)]
pub enum What {
    /// The workloads that the proxy knows.
    Workloads,
    /// The services that the proxy knows.
    Services,
    /// The policies that the proxy holds.
    Policies,
    /// The certificates of the proxy's pods, and how long they are good for.
    Certificates,
    /// The live connections.
    Connections,
    /// Show the log's level, or set it until the proxy restarts.
    Log {
        /// A level or directives, as `debug` or `info,access=off`.
        level: Option<String>,
    },
}

/// Answers of several proxies.
#[derive(Debug, Serialize)]
pub struct Answers {
    /// One each.
    pub proxies: Vec<Answer>,
    #[serde(skip)]
    what: Columns,
}

/// The answer of one proxy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Its pod, or its address.
    pub proxy: String,
    /// Its node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// What was asked for, as the proxy says it; for `log`, the level.
    pub items: Value,
}

/// A heading, and where the column's value is.
type Columns = &'static [(&'static str, &'static str)];

const WORKLOADS: Columns = &[
    ("NAMESPACE", "namespace"),
    ("NAME", "name"),
    ("ADDRESS", "addresses"),
    ("NODE", "node"),
    ("PROTOCOL", "protocol"),
    ("HEALTHY", "healthy"),
    ("WAYPOINT", "waypoint"),
    ("POLICIES", "policies"),
];
const SERVICES: Columns = &[
    ("NAMESPACE", "namespace"),
    ("NAME", "name"),
    ("ADDRESS", "addresses"),
    ("PORTS", "ports"),
    ("WAYPOINT", "waypoint"),
    ("ENDPOINTS", "endpoints"),
];
const POLICIES: Columns = &[
    ("POLICY", "name"),
    ("SCOPE", "scope"),
    ("ACTION", "action"),
    ("DRY RUN", "dryRun"),
    ("RULES", "rules"),
];
const CERTIFICATES: Columns = &[
    ("IDENTITY", "identity"),
    ("STATE", "state"),
    ("GOOD FOR", "secondsLeft"),
    ("SERIAL", "serial"),
    ("ERROR", "lastError"),
];
const CONNECTIONS: Columns = &[
    ("DIRECTION", "direction"),
    ("SECURITY", "security"),
    ("CLIENT", "client"),
    ("TO", "original"),
    ("SOURCE", "sourceIdentity"),
    ("DESTINATION", "destinationIdentity"),
    ("SENT", "bytesSent"),
    ("RECEIVED", "bytesReceived"),
];
const LOG: Columns = &[("LEVEL", "")];

impl What {
    /// Asks every proxy; the first that doesn't answer is the error.
    pub async fn ask(&self, proxies: &[Program]) -> anyhow::Result<(Answers, Outcome)> {
        let mut answers = Vec::new();
        for proxy in proxies {
            answers.push(Answer {
                proxy: proxy.name.clone(),
                node: proxy.node.clone(),
                items: self.items(proxy).await?,
            });
        }
        let outcome = Outcome::of(!matches!(self, Self::Certificates) || all_valid(&answers));
        let what = self.columns();
        Ok((
            Answers {
                proxies: answers,
                what,
            },
            outcome,
        ))
    }

    async fn items(&self, proxy: &Program) -> anyhow::Result<Value> {
        let part = |mut page: Value, name: &str| page[name].take();
        Ok(match self {
            Self::Workloads => part(proxy.json("/config_dump").await?, "workloads"),
            Self::Services => part(proxy.json("/config_dump").await?, "services"),
            Self::Policies => part(proxy.json("/config_dump").await?, "policies"),
            Self::Certificates => proxy.json("/certificates").await?,
            Self::Connections => proxy.json("/connections").await?,
            Self::Log { level: None } => proxy.get("/logging").await?.trim_end().into(),
            Self::Log { level: Some(level) } => {
                let level = level.replace('=', "%3D").replace(',', "%2C");
                let path = format!("/logging?level={level}");
                proxy.get(&path).await?.trim_end().into()
            }
        })
    }

    fn columns(&self) -> Columns {
        match self {
            Self::Workloads => WORKLOADS,
            Self::Services => SERVICES,
            Self::Policies => POLICIES,
            Self::Certificates => CERTIFICATES,
            Self::Connections => CONNECTIONS,
            Self::Log { .. } => LOG,
        }
    }
}

/// No certificate is missing or over.
fn all_valid(answers: &[Answer]) -> bool {
    let mut certificates = answers
        .iter()
        .flat_map(|answer| answer.items.as_array().into_iter().flatten());
    certificates.all(|one| one["secondsLeft"].as_u64().is_some_and(|left| left > 0))
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for answer in &self.proxies {
            let empty = Vec::new();
            let items = match &answer.items {
                Value::Array(items) => items,
                Value::String(level) => {
                    writeln!(f, "{}: {level}", answer.proxy)?;
                    continue;
                }
                _ => &empty,
            };
            if self.proxies.len() > 1 {
                writeln!(f, "{} ({})", answer.proxy, answer.node)?;
            }
            write!(f, "{}", columns(self.what, items))?;
            if items.is_empty() {
                writeln!(f, "none")?;
            }
        }
        Ok(())
    }
}

fn columns(columns: Columns, items: &[Value]) -> String {
    let mut table: Vec<Vec<String>> =
        vec![columns.iter().map(|(name, _)| (*name).to_owned()).collect()];
    for item in items {
        let cells = columns.iter().map(|(_, field)| cell(field, &item[*field]));
        table.push(cells.collect());
    }
    Table::from_rows(table).to_string()
}

fn cell(field: &str, value: &Value) -> String {
    match (field, value) {
        (_, Value::Null) => "-".to_owned(),
        ("secondsLeft", Value::Number(left)) => span(left.as_u64().unwrap_or(0)),
        // Long lists are told by their number; -o json has them.
        ("policies" | "endpoints" | "rules", Value::Array(items)) => items.len().to_string(),
        ("ports", Value::Array(ports)) => {
            let pair = |port: &Value| format!("{}:{}", port[0], port[1]);
            ports.iter().map(pair).collect::<Vec<_>>().join(",")
        }
        (_, Value::Array(items)) => {
            let items = items.iter().map(|item| cell("", item));
            items.collect::<Vec<_>>().join(",")
        }
        (_, Value::String(text)) => text.clone(),
        (_, other) => other.to_string(),
    }
}

/// `23h59m`, `4m10s`, `12s`.
pub fn span(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        (1..48, _) => format!("{hours}h{minutes}m"),
        _ => format!("{}d{}h", hours / 24, hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cells_are_short() {
        assert_eq!(
            cell("ports", &json!([[80, 8080], [443, 0]])),
            "80:8080,443:0"
        );
        assert_eq!(cell("policies", &json!(["a/b", "a/c"])), "2");
        assert_eq!(
            cell("addresses", &json!(["10.0.0.1", "fd00::1"])),
            "10.0.0.1,fd00::1"
        );
        assert_eq!(cell("lastError", &Value::Null), "-");
        assert_eq!(cell("secondsLeft", &json!(86_000)), "23h53m");
        assert_eq!(span(250), "4m10s");
        assert_eq!(span(400 * 3600), "16d16h");
    }

    #[test]
    fn a_certificate_that_is_missing_or_over_makes_the_answer_bad() {
        let answer = |items| {
            vec![Answer {
                proxy: "p".into(),
                node: "n".into(),
                items,
            }]
        };
        assert!(all_valid(&answer(json!([{"secondsLeft": 5}]))));
        assert!(!all_valid(&answer(
            json!([{"secondsLeft": 5}, {"secondsLeft": null}])
        )));
        assert!(!all_valid(&answer(json!([{"secondsLeft": 0}]))));
    }
}
