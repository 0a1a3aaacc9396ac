//! OpenTelemetry's own names of the metrics that are by its semantic conventions: Prometheus writes them with underscores and
//! with their unit, and every attribute as text.

use opentelemetry_proto::tonic::common::v1::any_value::Value;

/// What a metric is called in OTLP, and the unit in UCUM.
pub(crate) struct Names {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
}

/// The conventions' name of a family of Prometheus; `None`: it is not by them.
pub(crate) fn metric(family: &str) -> Option<Names> {
    let name = match family {
        "http_server_request_duration_seconds" => "http.server.request.duration",
        "rpc_server_call_duration_seconds" => "rpc.server.call.duration",
        _ => return None,
    };
    Some(Names { name, unit: "s" })
}

/// An attribute of such a metric; `None`: it has no value, and then the conventions leave it out.
pub(crate) fn attribute(label: &str, value: &str) -> Option<(String, Value)> {
    if value.is_empty() {
        return None;
    }
    let text = || Value::StringValue(value.to_owned());
    let number = || value.parse().map_or_else(|_| text(), Value::IntValue);
    let (name, value) = match label {
        "http_request_method" => ("http.request.method", text()),
        "http_response_status_code" => ("http.response.status_code", number()),
        "http_route" => ("http.route", text()),
        "error_type" => ("error.type", text()),
        "network_protocol_version" => ("network.protocol.version", text()),
        "url_scheme" => ("url.scheme", text()),
        "server_address" => ("server.address", text()),
        "server_port" => ("server.port", number()),
        "rpc_system_name" => ("rpc.system.name", text()),
        "rpc_method" => ("rpc.method", text()),
        "rpc_response_status_code" => ("rpc.response.status_code", text()),
        "seine_backend" => ("seine.backend", text()),
        "seine_route" => ("seine.route", text()),
        other => (other, text()),
    };
    Some((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_by_the_conventions_has_their_names_and_kinds() {
        let duration = metric("http_server_request_duration_seconds").unwrap();
        assert_eq!(
            (duration.name, duration.unit),
            ("http.server.request.duration", "s")
        );
        assert!(metric("seine_connections_opened").is_none());
        let of = |label: &str, value: &str| attribute(label, value);
        let code = Some(("http.response.status_code".to_owned(), Value::IntValue(200)));
        assert_eq!(of("http_response_status_code", "200"), code);
        // Label sets beyond their bound.
        let other = Some(("server.port".to_owned(), Value::StringValue("other".into())));
        assert_eq!(of("server_port", "other"), other);
        assert_eq!(of("error_type", ""), None);
    }
}
