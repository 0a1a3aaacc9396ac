//! Requests as a waypoint answers them.

use std::{fmt::Write as _, ops::ControlFlow};

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use seine_objects::gateway::GATEWAY_NAME_LABEL;
use serde_json::Value;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    cluster::Cluster,
    output::{self, Format},
    pages::{Program, WAYPOINT},
};

/// Requests that were shown and are not printed yet.
const WAITING: usize = 1024;

/// Which requests, of which waypoint.
#[derive(Args, Debug)]
pub struct Tapped {
    /// The waypoint's Gateway, or one that takes connections from outside.
    #[arg(required_unless_present = "address")]
    gateway: Option<String>,
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Of this pod alone.
    #[arg(long)]
    pod: Option<String>,
    /// Ask HOST:PORT, which must be an admin page of a waypoint, without a cluster.
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["gateway", "pod"])]
    address: Option<String>,
    #[command(flatten)]
    filter: Filter,
    /// End after so many requests.
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
}

/// What must hold of a request that is shown.
#[derive(Args, Debug)]
struct Filter {
    /// Its method.
    #[arg(long)]
    method: Option<String>,
    /// Its path; with a * at its end what it begins with.
    #[arg(long)]
    path: Option<String>,
    /// Its host; with a * at its end what it begins with.
    #[arg(long)]
    host: Option<String>,
    /// The answer's status: 404, or 5xx.
    #[arg(long)]
    status: Option<String>,
    /// Who asks: a SPIFFE id, or the end of one, as sa/web.
    #[arg(long)]
    caller: Option<String>,
    /// One of so many.
    #[arg(long, value_name = "NUMBER")]
    one_in: Option<u64>,
}

impl Filter {
    fn page(&self) -> String {
        let one_in = self.one_in.map(|number| number.to_string());
        let fields = [
            ("method", &self.method),
            ("path", &self.path),
            ("host", &self.host),
            ("status", &self.status),
            ("caller", &self.caller),
            ("one-in", &one_in),
        ];
        let mut page = String::from("/tap");
        let set = fields
            .iter()
            .filter_map(|(name, value)| Some((name, value.as_ref()?)));
        for (index, (name, value)) in set.enumerate() {
            page.push(if index == 0 { '?' } else { '&' });
            page += name;
            page.push('=');
            for byte in value.bytes() {
                // Writing to a string does not fail.
                let _ = match byte.is_ascii_alphanumeric() || b"-._~/*".contains(&byte) {
                    true => write!(page, "{}", char::from(byte)),
                    false => write!(page, "%{byte:02X}"),
                };
            }
        }
        page
    }
}

impl Tapped {
    /// The waypoint's programs.
    pub async fn programs(
        &self,
        cluster: impl AsyncFnOnce() -> anyhow::Result<Cluster>,
    ) -> anyhow::Result<Vec<Program>> {
        if let Some(address) = &self.address {
            return Ok(vec![Program::at(address)]);
        }
        let name = self.gateway.as_deref().unwrap_or_default();
        let cluster = cluster().await?;
        let pods = Api::<Pod>::namespaced(cluster.client.clone(), &self.namespace);
        let labels = ListParams::default().labels(&format!("{GATEWAY_NAME_LABEL}={name}"));
        let found = pods.list(&labels).await;
        let found = found
            .with_context(|| format!("listing pods in {}", self.namespace))?
            .items;
        let is_running = |pod: &Pod| {
            let phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
        };
        let found: Vec<Pod> = found.into_iter().filter(is_running).collect();
        if found.is_empty() {
            bail!("no pod of Gateway {}/{name} runs", self.namespace);
        }
        let found = Cluster::select(found, self.pod.as_deref(), None)?;
        let program = |pod| Program::in_pod(&cluster, pod, WAYPOINT);
        Ok(found.iter().map(program).collect())
    }

    /// Prints requests until there were enough, or the programs end.
    pub async fn follow(&self, programs: Vec<Program>, format: Format) -> anyhow::Result<()> {
        let page = self.filter.page();
        let (sender, mut shown) = mpsc::channel::<(String, Value)>(WAITING);
        let mut taps = JoinSet::new();
        for program in programs {
            let (sender, page) = (sender.clone(), page.clone());
            taps.spawn(async move {
                let name = program.name.clone();
                let tell = |line: &str| {
                    let request = serde_json::from_str(line);
                    let request =
                        request.with_context(|| format!("{name}: {line:?} is no JSON"))?;
                    Ok(match sender.try_send((name.clone(), request)) {
                        Err(mpsc::error::TrySendError::Closed(_)) => ControlFlow::Break(()),
                        // A terminal that is too slow misses some.
                        Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => {
                            ControlFlow::Continue(())
                        }
                    })
                };
                program.lines(&page, tell).await
            });
        }
        drop(sender);
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0
            && let Some((pod, request)) = shown.recv().await
        {
            print(&pod, request, format)?;
            left -= 1;
        }
        if left == 0 {
            return Ok(());
        }
        while let Some(ended) = taps.join_next().await {
            ended??;
        }
        bail!("the waypoint ended")
    }
}

fn print(pod: &str, mut request: Value, format: Format) -> anyhow::Result<()> {
    request["waypoint"] = pod.into();
    match format {
        Format::Table => output::print_text(&line(&request)),
        Format::Json => output::print_text(&format!("{request}\n")),
        Format::Yaml => output::print_text(&format!("---\n{}", serde_saphyr::to_string(&request)?)),
    }
}

/// A request in a line, for people.
fn line(request: &Value) -> String {
    let text = |field: &str| match &request[field] {
        Value::Null => "-".to_owned(),
        // What a client chose must not look like another line, or move the terminal's cursor.
        Value::String(text) => text.escape_default().to_string(),
        other => other.to_string(),
    };
    let caller = match &request["caller"] {
        Value::Null => text("source"),
        _ => text("caller").replacen("spiffe://", "", 1),
    };
    let mut line = format!(
        "{} {} {}{} from {caller} to {} in {} ms",
        text("status"),
        text("method"),
        text("host"),
        text("path"),
        text("endpoint"),
        text("durationMillis"),
    );
    for field in ["route", "policy", "retries", "flags", "error", "missed"] {
        if !request[field].is_null() {
            let _ = write!(line, " {field}={}", text(field));
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn filters_are_escaped_and_a_line_cannot_be_forged() {
        let filter = Filter {
            method: None,
            path: Some("/a&b=c*".into()),
            host: None,
            status: Some("5xx".into()),
            caller: None,
            one_in: Some(3),
        };
        assert_eq!(filter.page(), "/tap?path=/a%26b%3Dc*&status=5xx&one-in=3");
        let shown = line(&json!({
            "status": 200, "method": "GET", "host": "web", "path": "/a\n\u{1b}[2J", "source": "10.0.0.1:1",
            "endpoint": "10.0.0.2:80", "durationMillis": 3, "missed": 2,
        }));
        assert_eq!(
            shown,
            "200 GET web/a\\n\\u{1b}[2J from 10.0.0.1:1 to 10.0.0.2:80 in 3 ms missed=2\n"
        );
    }
}
