//! The Prometheus registry, sent to an OpenTelemetry collector.
//!
//! One registry holds every metric of the process, so what is scraped and what is pushed can't
//! differ. Counters become monotonic cumulative sums, gauges gauges, histograms histograms with
//! explicit bounds (OTLP metrics data model 1.x).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prometheus_client::encoding::prometheus_protobuf::{self, prometheus_data_model as model};
use prometheus_client::registry::Registry;
use tonic::transport::Endpoint;
use tracing::warn;

use crate::conventions;

/// Pushes `registry` to `endpoint` every `period`, until the future is dropped. A push that fails is
/// logged and the next one carries the totals: nothing is lost but resolution.
pub async fn push(
    registry: Arc<Registry>,
    endpoint: Endpoint,
    service: &'static str,
    instance: String,
    period: Duration,
) {
    let started = SystemTime::now();
    let mut client = MetricsServiceClient::new(endpoint.connect_lazy());
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let request =
            match export_request(&registry, service, &instance, started, SystemTime::now()) {
                Ok(request) => request,
                Err(error) => {
                    warn!(%error, "metrics could not be encoded");
                    continue;
                }
            };
        if let Err(status) = client.export(request).await {
            warn!(code = %status.code(), message = status.message(), "metrics were not taken by the OTLP endpoint");
        }
    }
}

/// The registry's content as one OTLP request.
pub fn export_request(
    registry: &Registry,
    service: &str,
    instance: &str,
    started: SystemTime,
    now: SystemTime,
) -> Result<ExportMetricsServiceRequest, std::fmt::Error> {
    let times = Times {
        start: nanos(started),
        now: nanos(now),
    };
    let families = prometheus_protobuf::encode(registry)?;
    let metrics = families
        .into_iter()
        .filter_map(|family| metric(family, times))
        .collect();
    Ok(ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource {
                attributes: vec![
                    attribute("service.name", service),
                    attribute("service.instance.id", instance),
                ],
                ..Default::default()
            }),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(InstrumentationScope {
                    name: "seine".to_owned(),
                    ..Default::default()
                }),
                metrics,
                ..Default::default()
            }],
            ..Default::default()
        }],
    })
}

#[derive(Clone, Copy)]
struct Times {
    start: u64,
    now: u64,
}

fn metric(family: model::MetricFamily, times: Times) -> Option<Metric> {
    let names = conventions::metric(&family.name);
    let named = |labels: &[model::LabelPair]| attributes(labels, names.is_some());
    let cumulative = AggregationTemporality::Cumulative.into();
    let kind = family.r#type();
    let points = family.metric.into_iter();
    let data = match kind {
        model::MetricType::Counter => metric::Data::Sum(Sum {
            data_points: points
                .filter_map(|point| Some(number(named(&point.label), times, point.counter?.value)))
                .collect(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        model::MetricType::Gauge => metric::Data::Gauge(Gauge {
            data_points: points
                .filter_map(|point| Some(number(named(&point.label), times, point.gauge?.value)))
                .collect(),
        }),
        model::MetricType::Histogram => metric::Data::Histogram(Histogram {
            data_points: points
                .filter_map(|point| Some(histogram(named(&point.label), times, &point.histogram?)))
                .collect(),
            aggregation_temporality: cumulative,
        }),
        // The registry has no metric of these kinds.
        model::MetricType::Summary
        | model::MetricType::Untyped
        | model::MetricType::GaugeHistogram => return None,
    };
    let (name, unit) = match names {
        Some(names) => (names.name.to_owned(), names.unit.to_owned()),
        None => (family.name, family.unit),
    };
    Some(Metric {
        name,
        description: family.help,
        unit,
        data: Some(data),
        ..Default::default()
    })
}

fn number(attributes: Vec<KeyValue>, times: Times, value: f64) -> NumberDataPoint {
    NumberDataPoint {
        attributes,
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..Default::default()
    }
}

/// Prometheus counts in each bucket what is in the lower ones too, OTLP doesn't; OTLP leaves the
/// last bound, infinity, unsaid.
fn histogram(
    attributes: Vec<KeyValue>,
    times: Times,
    value: &model::Histogram,
) -> HistogramDataPoint {
    let mut below = 0;
    let mut bucket_counts = Vec::with_capacity(value.bucket.len() + 1);
    let mut explicit_bounds = Vec::with_capacity(value.bucket.len());
    for bucket in value
        .bucket
        .iter()
        .filter(|bucket| bucket.upper_bound < f64::MAX)
    {
        bucket_counts.push(bucket.cumulative_count.saturating_sub(below));
        explicit_bounds.push(bucket.upper_bound);
        below = bucket.cumulative_count;
    }
    bucket_counts.push(value.sample_count.saturating_sub(below));
    HistogramDataPoint {
        attributes,
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        count: value.sample_count,
        sum: Some(value.sample_sum),
        bucket_counts,
        explicit_bounds,
        ..Default::default()
    }
}

/// Of a metric by the conventions under their names.
fn attributes(labels: &[model::LabelPair], conventional: bool) -> Vec<KeyValue> {
    let own = |label: &model::LabelPair| attribute(&label.name, &label.value);
    match conventional {
        false => labels.iter().map(own).collect(),
        true => {
            let known = labels.iter();
            let known = known.filter_map(|label| conventions::attribute(&label.name, &label.value));
            known.map(|(key, value)| key_value(key, value)).collect()
        }
    }
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = any_value::Value::StringValue(value.to_owned());
    key_value(key.to_owned(), value)
}

fn key_value(key: String, value: any_value::Value) -> KeyValue {
    KeyValue {
        key,
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;

    fn exported(registry: &Registry) -> Vec<Metric> {
        let now = UNIX_EPOCH + Duration::from_secs(10);
        let request = export_request(registry, "ztunnel", "node1", UNIX_EPOCH, now).unwrap();
        request
            .resource_metrics
            .into_iter()
            .next()
            .unwrap()
            .scope_metrics
            .remove(0)
            .metrics
    }

    #[test]
    fn a_counter_becomes_a_monotonic_sum_with_its_labels() {
        let mut registry = Registry::default();
        let family = Family::<Vec<(String, String)>, Counter>::default();
        registry.register("seine_connections_opened", "Opened", family.clone());
        family
            .get_or_create(&vec![("reporter".into(), "source".into())])
            .inc_by(3);
        let metrics = exported(&registry);
        let Some(metric::Data::Sum(sum)) = &metrics[0].data else {
            panic!("{metrics:?}")
        };
        assert!(sum.is_monotonic);
        assert_eq!(
            sum.data_points[0].value,
            Some(number_data_point::Value::AsDouble(3.0))
        );
        assert_eq!(
            sum.data_points[0].attributes,
            vec![attribute("reporter", "source")]
        );
    }

    #[test]
    fn a_metric_by_the_conventions_has_their_names() {
        let mut registry = Registry::default();
        let family = Family::<Vec<(String, String)>, Histogram>::new_with_constructor(|| {
            Histogram::new([1.0])
        });
        let unit = prometheus_client::registry::Unit::Seconds;
        registry.register_with_unit("http_server_request_duration", "Time", unit, family.clone());
        let labels = [("http_response_status_code", "200"), ("error_type", "")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        family.get_or_create(&labels.to_vec()).observe(0.5);
        let metrics = exported(&registry);
        assert_eq!(metrics[0].name, "http.server.request.duration");
        assert_eq!(metrics[0].unit, "s");
        let Some(metric::Data::Histogram(found)) = &metrics[0].data else {
            panic!("{metrics:?}")
        };
        let code = any_value::Value::IntValue(200);
        let expected = key_value("http.response.status_code".into(), code);
        assert_eq!(found.data_points[0].attributes, vec![expected]);
    }

    #[test]
    fn a_gauge_and_a_histogram_keep_their_values_and_bounds() {
        let mut registry = Registry::default();
        let gauge = Gauge::<i64>::default();
        registry.register("seine_pods", "Pods", gauge.clone());
        gauge.set(-4);
        let histogram = Histogram::new([0.1, 1.0]);
        registry.register("seine_handshake", "Time", histogram.clone());
        histogram.observe(0.05);
        histogram.observe(5.0);
        let metrics = exported(&registry);
        let Some(metric::Data::Gauge(gauge)) = &metrics[0].data else {
            panic!("{metrics:?}")
        };
        assert_eq!(
            gauge.data_points[0].value,
            Some(number_data_point::Value::AsDouble(-4.0))
        );
        let Some(metric::Data::Histogram(found)) = &metrics[1].data else {
            panic!("{metrics:?}")
        };
        assert_eq!(found.data_points[0].explicit_bounds, vec![0.1, 1.0]);
        assert_eq!(found.data_points[0].bucket_counts, vec![1, 0, 1]);
        assert_eq!(found.data_points[0].count, 2);
    }
}
