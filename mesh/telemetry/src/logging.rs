//! The process's one `tracing` subscriber.

use std::str::FromStr;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use thiserror::Error;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::access_lines::AccessLines;
use crate::otlp::{Otlp, OtlpError};
use crate::text::TextFields;

/// How lines on standard error look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("log format {other:?}: expected text or json")),
        }
    }
}

/// What a process wants of its telemetry.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `service.name` of everything that is exported.
    pub service: &'static str,
    /// `service.instance.id`: the node or replica.
    pub instance: String,
    /// Lines on standard error.
    pub format: LogFormat,
    /// `tracing` directives: `info`, `info,seine_hbone=debug`.
    pub level: String,
    /// gRPC endpoint of an OpenTelemetry collector, `http://host:4317`.
    pub otlp_endpoint: Option<String>,
    /// Share of the traces that begin here and are exported, from 0 to 1; of others, who began them decides.
    pub trace_sampling: f64,
}

/// Why telemetry did not start. The process is misconfigured, or started it twice.
#[derive(Debug, Error)]
pub enum StartError {
    /// The directives could not be parsed.
    #[error("log level {directives:?}: {source}; expected for example info,seine_hbone=debug")]
    Level {
        /// What was given.
        directives: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The OTLP endpoint could not be used.
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// The thread that writes the access log.
    #[error("starting a thread for the access log: {0}")]
    Thread(std::io::Error),
    /// Another subscriber is installed.
    #[error("telemetry was started twice: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// The running telemetry of the process; [`Telemetry::stop`] flushes what is not sent yet.
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
    otlp: Option<Otlp>,
    access: AccessLines,
}

impl Telemetry {
    /// Installs the subscriber. Needs a tokio runtime where an OTLP endpoint is given.
    pub fn start(settings: &Settings) -> Result<Self, StartError> {
        let (filter, handle) = reload::Layer::new(parse(&settings.level)?);
        let access = AccessLines::start(std::io::stderr()).map_err(StartError::Thread)?;
        let lines = tracing_subscriber::fmt::layer().with_writer(access.sink());
        let lines = match settings.format {
            LogFormat::Text => lines.with_ansi(false).fmt_fields(TextFields).boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        let otlp = match &settings.otlp_endpoint {
            Some(endpoint) => Some(Otlp::start(
                endpoint,
                settings.service,
                &settings.instance,
                settings.trace_sampling,
            )?),
            None => None,
        };
        let spans = otlp.as_ref().map(|otlp| {
            let tracer = otlp.traces.tracer("seine");
            // Spans are of connections; the transports' own would only repeat them.
            tracing_opentelemetry::layer()
                .with_tracer(tracer)
                // A span says what it is of; where in the code it was made tells operators nothing.
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_filter(only_own())
        });
        let events = otlp.as_ref().map(|otlp| {
            // Without this, sending an event over gRPC would make further events.
            OpenTelemetryTracingBridge::new(&otlp.logs).with_filter(only_own())
        });
        Registry::default()
            .with(filter)
            .with(lines)
            .with(spans)
            .with(events)
            .try_init()?;
        Ok(Self {
            filter: handle,
            otlp,
            access,
        })
    }

    /// Replaces the directives while running.
    pub fn set_level(&self, directives: &str) -> Result<(), StartError> {
        let filter = parse(directives)?;
        // Fails only when the subscriber is gone, and it lives as long as the process.
        let _ = self.filter.reload(filter);
        Ok(())
    }

    /// The directives in force.
    pub fn level(&self) -> String {
        self.filter
            .with_current(ToString::to_string)
            .unwrap_or_default()
    }

    /// Writes and sends what is buffered, and stops exporting. Blocks for at most some seconds.
    pub fn stop(&self) {
        self.access.stop();
        if let Some(otlp) = &self.otlp {
            otlp.stop();
        }
    }
}

fn parse(directives: &str) -> Result<EnvFilter, StartError> {
    EnvFilter::builder()
        .parse(directives)
        .map_err(|source| StartError::Level {
            directives: directives.to_owned(),
            source,
        })
}

/// Events and spans of Seine's own code, and the access log.
fn only_own() -> tracing_subscriber::filter::FilterFn {
    tracing_subscriber::filter::filter_fn(|metadata| {
        metadata.target().starts_with("seine") || metadata.target() == "access"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_that_cannot_be_parsed_are_named_in_the_error() {
        let error = parse("info,=debug=x").unwrap_err().to_string();
        assert!(error.contains("info,=debug=x"), "{error}");
        assert!(parse("info,seine_hbone=debug").is_ok());
    }
}
