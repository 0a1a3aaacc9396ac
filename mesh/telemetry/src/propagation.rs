//! Trace context in the headers of HTTP requests: taken over from whoever asks, and passed on to whoever is asked.
//!
//! W3C `traceparent` and `tracestate`, and B3 in one header or several. The former wins where both are there. What is passed
//! on is in W3C's form, and in each form of B3 that came, so that who understands one form alone sees no gap.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::trace::{parse, traceparent};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Makes a span that was just made, and not yet entered, the child of the one that these headers name. What can't be parsed
/// is ignored: the span begins a trace of its own.
pub fn continue_from(span: &Span, headers: &HeaderMap) {
    if let Some(parent) = w3c(headers).or_else(|| b3(headers)) {
        // Fails only where no traces are exported.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// Has a request continue the trace of `span`, which continues that of its headers. Without one they stay as they are.
pub fn pass_on(span: &Span, headers: &mut HeaderMap) {
    let Some(text) = traceparent(span).and_then(|text| HeaderValue::try_from(text).ok()) else {
        return;
    };
    let context = span.context();
    let span = context.span();
    let of = span.span_context();
    if w3c(headers).is_none() {
        // It is of another trace.
        headers.remove(TRACESTATE);
    }
    headers.insert(TRACEPARENT, text);
    let sampled = match of.is_sampled() {
        true => "1",
        false => "0",
    };
    let (trace, id) = (of.trace_id().to_string(), of.span_id().to_string());
    if headers.contains_key(&B3) {
        set(headers, B3, &format!("{trace}-{id}-{sampled}"));
    }
    let several = [B3_TRACE, B3_SPAN, B3_SAMPLED, B3_FLAGS];
    if several.iter().any(|name| headers.contains_key(name)) {
        headers.remove(B3_PARENT);
        headers.remove(B3_FLAGS);
        set(headers, B3_TRACE, &trace);
        set(headers, B3_SPAN, &id);
        set(headers, B3_SAMPLED, sampled);
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn w3c(headers: &HeaderMap) -> Option<SpanContext> {
    parse(text(headers, &TRACEPARENT)?)
}

fn b3(headers: &HeaderMap) -> Option<SpanContext> {
    if let Some(one) = text(headers, &B3) {
        let mut parts = one.split('-');
        return match (parts.next()?, parts.next()) {
            ("0", None) => Some(unsampled()),
            (trace, span) => of_b3(trace, span?, parts.next()),
        };
    }
    let debug = text(headers, &B3_FLAGS) == Some("1");
    let sampled = text(headers, &B3_SAMPLED).filter(|_| !debug);
    match (text(headers, &B3_TRACE), text(headers, &B3_SPAN)) {
        (Some(trace), Some(span)) => of_b3(trace, span, sampled),
        (None, None) if matches!(sampled, Some("0" | "false")) => Some(unsampled()),
        _ => None,
    }
}

/// Who says nothing of sampling wants it, as who begins a trace without a word.
fn of_b3(trace: &str, span: &str, sampled: Option<&str>) -> Option<SpanContext> {
    if !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    let flags = match sampled {
        Some("0" | "false") => TraceFlags::default(),
        None | Some("1" | "d" | "true") => TraceFlags::SAMPLED,
        Some(_) => return None,
    };
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        flags,
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

/// A trace that is not sampled, for who was asked not to and not told of one.
fn unsampled() -> SpanContext {
    let ids = RandomIdGenerator::default();
    let (trace, span) = (ids.new_trace_id(), ids.new_span_id());
    SpanContext::new(
        trace,
        span,
        TraceFlags::default(),
        true,
        TraceState::default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).unwrap();
            (HeaderName::from_static(name), value)
        });
        pairs.collect()
    }

    #[test]
    fn the_context_of_each_form_is_read_and_junk_is_ignored() {
        let read = |pairs: &[(&'static str, &str)]| {
            let headers = headers(pairs);
            let found = w3c(&headers).or_else(|| b3(&headers))?;
            Some((found.trace_id().to_string(), found.is_sampled()))
        };
        let full = |sampled| Some((TRACE.to_owned(), sampled));
        let one = |rest: &str| format!("{TRACE}-{SPAN}{rest}");
        let parent = format!("00-{TRACE}-{SPAN}-00");
        assert_eq!(read(&[("traceparent", &parent)]), full(false));
        for (value, sampled) in [
            (one(""), Some(true)),
            (one("-1"), Some(true)),
            (one("-d"), Some(true)),
            (one("-0"), Some(false)),
            (one("-1-05e3ac9a4f6e3b90"), Some(true)),
            (one("-x"), None),
            (format!("{TRACE}-{TRACE}-1"), None),
            (format!("{SPAN}0-{SPAN}-1"), None),
            ("1".into(), None),
            (String::new(), None),
        ] {
            assert_eq!(read(&[("b3", &value)]), sampled.and_then(full), "{value:?}");
        }
        assert!(!read(&[("b3", "0")]).unwrap().1);
        let short = read(&[("b3", &format!("{SPAN}-{SPAN}-1"))]).unwrap().0;
        assert_eq!(short, format!("0000000000000000{SPAN}"));
        let several = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
        let with = |more: &[(&'static str, &str)]| read(&[&several[..], more].concat());
        assert_eq!(with(&[]), full(true));
        assert_eq!(with(&[("x-b3-sampled", "0")]), full(false));
        let debug = [("x-b3-sampled", "0"), ("x-b3-flags", "1")];
        assert_eq!(with(&debug), full(true));
        assert_eq!(read(&several[..1]), None);
        // W3C's own wins.
        let other = format!("00-{}-{SPAN}-01", TRACE.replace('a', "b"));
        assert_eq!(
            with(&[("traceparent", &other)]),
            Some((TRACE.replace('a', "b"), true))
        );
    }

    #[test]
    fn without_export_headers_stay_as_they_are() {
        let pairs = [("b3", "0"), ("tracestate", "a=b")];
        let mut passed = headers(&pairs);
        let span = tracing::info_span!("request");
        continue_from(&span, &passed);
        pass_on(&span, &mut passed);
        assert_eq!(passed, headers(&pairs));
    }
}
