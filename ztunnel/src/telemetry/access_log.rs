//! The access log: one line at a connection's end, under the target `access`.
//!
//! Denials are warnings and are written also where the access log is off: they are what an operator looks for.

use std::fmt::{self, Write};

use seine_policy::Reason;
use tracing::{info, warn};

use crate::config::AccessLog;
use crate::connection::{ConnectionInfo, Direction, Live, Party, Security};
use crate::failure::{Failure, fault_name};

pub(super) fn closed(format: AccessLog, live: &Live, failure: Option<&Failure>) {
    let mut line = Line::about(format, &live.info, failure);
    line.number("bytes_sent", live.from_client());
    line.number("bytes_received", live.to_client());
    line.write(format, "connection closed", failure);
}

pub(super) fn failed(format: AccessLog, info: &ConnectionInfo, failure: &Failure) {
    let line = Line::about(format, info, Some(failure));
    let denied = failure.is_denial();
    line.write(
        format,
        if denied {
            "connection denied"
        } else {
            "connection failed"
        },
        Some(failure),
    );
}

/// `key=value` pairs, or the inside of a JSON object.
struct Line {
    json: bool,
    text: String,
}

impl Line {
    fn about(format: AccessLog, info: &ConnectionInfo, failure: Option<&Failure>) -> Self {
        let mut line = Self {
            json: format == AccessLog::Json,
            text: String::with_capacity(512),
        };
        line.text(
            "direction",
            if info.direction == Direction::Outbound {
                "outbound"
            } else {
                "inbound"
            },
        );
        line.text(
            "security",
            if info.security == Security::MutualTls {
                "mutual_tls"
            } else {
                "none"
            },
        );
        line.display("src.addr", info.client);
        line.party("src", &info.source);
        line.display("dst.addr", info.upstream.unwrap_or(info.original));
        line.display("dst.original", info.original);
        line.party("dst", &info.destination);
        if let Some(service) = &info.service {
            line.text("dst.service", &service.key.hostname);
        }
        if info.through_waypoint {
            line.text("via", "waypoint");
        }
        if let Some(first) = &info.on_behalf_of {
            line.display("on_behalf_of", first);
        }
        if let Some(policy) = info.because.as_ref().and_then(Reason::policy) {
            line.display("policy", policy);
        }
        line.number(
            "duration_ms",
            u64::try_from(info.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        );
        if let Some(failure) = failure {
            line.text("response_flags", failure.flag());
            line.text("fault", fault_name(failure.fault()));
            line.display("error", failure);
        } else {
            line.text("response_flags", "-");
        }
        line
    }

    fn party(&mut self, side: &str, party: &Party) {
        if let Some(workload) = &party.workload {
            self.text(&format!("{side}.workload"), &workload.name);
            self.text(&format!("{side}.namespace"), &workload.namespace);
        }
        if let Some(identity) = &party.identity {
            self.display(&format!("{side}.identity"), identity);
        }
    }

    fn display(&mut self, key: &str, value: impl fmt::Display) {
        self.text(key, &value.to_string());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        if self.json {
            self.text
                .push_str(&serde_json::Value::from(value).to_string());
        } else if value.is_empty()
            || value.contains(|c: char| c.is_whitespace() || c == '"' || c == '=' || c.is_control())
        {
            // Debug quotes and escapes, so that nothing of a peer's words can look like another field or line.
            let _ = write!(self.text, "{value:?}");
        } else {
            self.text.push_str(value);
        }
    }

    fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        let _ = write!(self.text, "{value}");
    }

    fn key(&mut self, key: &str) {
        match (self.json, self.text.is_empty()) {
            (true, first) => {
                let _ = write!(self.text, "{}\"{key}\":", if first { "" } else { "," });
            }
            (false, first) => {
                let _ = write!(self.text, "{}{key}=", if first { "" } else { " " });
            }
        }
    }

    fn write(self, format: AccessLog, what: &str, failure: Option<&Failure>) {
        let text = if self.json {
            format!("{{\"message\":\"{what}\",{}}}", self.text)
        } else {
            format!("{what} {}", self.text)
        };
        match (format, failure) {
            (_, Some(failure)) if failure.is_denial() => warn!(target: "access", "{text}"),
            (AccessLog::Off, _) => {}
            _ => info!(target: "access", "{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_can_not_pass_for_another_field() {
        let mut text = Line {
            json: false,
            text: String::new(),
        };
        text.text("a", "x b=y\nconnection closed");
        text.number("n", 3);
        assert_eq!(text.text, r#"a="x b=y\nconnection closed" n=3"#);
        let mut json = Line {
            json: true,
            text: String::new(),
        };
        json.text("a", "x\",\"b\":\"y");
        json.number("n", 3);
        let parsed: serde_json::Value =
            serde_json::from_str(&format!("{{{}}}", json.text)).unwrap();
        assert_eq!(
            (parsed["a"].as_str(), parsed["n"].as_u64(), parsed.get("b")),
            (Some("x\",\"b\":\"y"), Some(3), None)
        );
    }
}
