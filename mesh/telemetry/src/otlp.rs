//! Logs and traces to an OpenTelemetry collector.

use opentelemetry::KeyValue;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use thiserror::Error;

/// The endpoint can't be used; nothing was sent.
#[derive(Debug, Error)]
#[error("OTLP endpoint {endpoint}: {source}; expected for example http://collector:4317")]
pub struct OtlpError {
    endpoint: String,
    source: opentelemetry_otlp::ExporterBuildError,
}

/// The providers behind the subscriber's OTLP layers. They batch, and send from threads of their
/// own; what the collector does not take is dropped, never waited for.
pub(crate) struct Otlp {
    pub(crate) traces: SdkTracerProvider,
    pub(crate) logs: SdkLoggerProvider,
}

impl Otlp {
    pub(crate) fn start(
        endpoint: &str,
        service: &str,
        instance: &str,
        sampling: f64,
    ) -> Result<Self, OtlpError> {
        let failed = |source| OtlpError {
            endpoint: endpoint.to_owned(),
            source,
        };
        let resource = Resource::builder()
            .with_service_name(service.to_owned())
            .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let spans = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .map_err(failed)?;
        let records = opentelemetry_otlp::LogExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .build()
            .map_err(failed)?;
        Ok(Self {
            traces: SdkTracerProvider::builder()
                .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                    sampling,
                ))))
                .with_batch_exporter(spans)
                .with_resource(resource.clone())
                .build(),
            logs: SdkLoggerProvider::builder()
                .with_batch_exporter(records)
                .with_resource(resource)
                .build(),
        })
    }

    pub(crate) fn stop(&self) {
        for stopped in [self.traces.shutdown(), self.logs.shutdown()] {
            if let Err(error) = stopped {
                tracing::warn!(%error, "OTLP export did not end cleanly; the last batch may be lost");
            }
        }
    }
}
