//! Requests as they are answered, for who watches them on the admin page.
//!
//! Nobody's watching costs a request one load of a number. A watcher that falls behind misses requests, and is told how many; it never
//! holds one up. What it sees is what the access log has: no header, no query, no body.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::failure::fault_name;
use crate::path;
use crate::telemetry::Entry;

/// So many may watch at a time.
const MAX_WATCHERS: usize = 8;
/// So many requests wait for a watcher.
const MAX_WAITING: usize = 1024;

/// Who watches.
#[derive(Default)]
pub(crate) struct Tap {
    /// As many as are in the list.
    count: AtomicUsize,
    watchers: Mutex<Vec<Arc<Watcher>>>,
}

struct Watcher {
    filter: Filter,
    state: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Bytes>,
    /// Requests that the filter let through.
    seen: u64,
    /// Those for which there was no room, since the last line.
    missed: u64,
    waker: Option<Waker>,
}

/// Which requests are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    method: Option<String>,
    /// With a `*` at its end what it begins with.
    path: Option<String>,
    host: Option<String>,
    /// `404`, or `5xx`.
    status: Option<String>,
    /// A SPIFFE id, or the end of one: `sa/web`, `ns/shop/sa/web`.
    caller: Option<String>,
    /// One of so many.
    one_in: u64,
}

impl Filter {
    /// Reads the query of the page's address.
    ///
    /// # Errors
    ///
    /// A sentence about what is wrong.
    pub(crate) fn parse(query: &str) -> Result<Self, String> {
        let mut filter = Self {
            one_in: 1,
            ..Self::default()
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = String::from_utf8_lossy(&path::decode(value)).into_owned();
            match name {
                "method" => filter.method = Some(value),
                "path" => filter.path = Some(value),
                "host" => filter.host = Some(value.to_ascii_lowercase()),
                "status" if is_status(&value) => filter.status = Some(value),
                "status" => return Err(format!("status: {value:?} is neither 404 nor 5xx")),
                "caller" => filter.caller = Some(value),
                "one-in" => {
                    let number = value.parse().ok().filter(|number| *number > 0);
                    filter.one_in = number.ok_or(format!("one-in: {value:?} is no number"))?;
                }
                // One that isn't known would show more than is wanted.
                _ => {
                    return Err(format!(
                        "{name} is no filter: there are method, path, host, status, caller and one-in"
                    ));
                }
            }
        }
        Ok(filter)
    }

    fn shows(&self, entry: &Entry) -> bool {
        let is = |wanted: &Option<String>, found: &str| {
            wanted
                .as_ref()
                .is_none_or(|wanted| match wanted.strip_suffix('*') {
                    Some(begin) => found.starts_with(begin),
                    None => wanted == found,
                })
        };
        let method = entry.method.as_ref().map_or("", |method| method.as_str());
        let status = entry.status.map_or(0, |status| status.as_u16());
        let status = match &self.status {
            None => true,
            Some(wanted) if wanted.ends_with("xx") => {
                wanted.starts_with(&(status / 100).to_string())
            }
            Some(wanted) => *wanted == status.to_string(),
        };
        let caller = self.caller.as_ref().is_none_or(|wanted| {
            let identity = entry.bound.first.identity.as_ref();
            identity.is_some_and(|identity| {
                let rest = identity.as_str().strip_suffix(wanted.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
            })
        });
        is(&self.method, method)
            && is(&self.path, &entry.path)
            && is(&self.host, &entry.host)
            && status
            && caller
    }
}

fn is_status(text: &str) -> bool {
    let (first, rest) = text.split_at_checked(1).unwrap_or_default();
    ("1".."6").contains(&first)
        && (rest == "xx" || rest.len() == 2 && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

impl Tap {
    /// Watches from now on; `None`: enough others do.
    pub(crate) fn watch(self: &Arc<Self>, filter: Filter) -> Option<Watched> {
        let watcher = Arc::new(Watcher {
            filter,
            state: Mutex::default(),
        });
        let mut watchers = self.watchers.lock();
        if watchers.len() >= MAX_WATCHERS {
            return None;
        }
        watchers.push(watcher.clone());
        self.count.store(watchers.len(), Ordering::Relaxed);
        Some(Watched {
            watcher,
            tap: Arc::downgrade(self),
        })
    }

    /// Shows a request that has been answered to whom it is of interest.
    pub(crate) fn offer(&self, entry: &Entry, flag: &str, took: Duration) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let watchers = self.watchers.lock();
        let mut shown: Option<Value> = None;
        for watcher in watchers
            .iter()
            .filter(|watcher| watcher.filter.shows(entry))
        {
            let mut state = watcher.state.lock();
            state.seen += 1;
            if (state.seen - 1) % watcher.filter.one_in != 0 {
                continue;
            }
            if state.lines.len() >= MAX_WAITING {
                state.missed += 1;
                continue;
            }
            let shown = shown.get_or_insert_with(|| show(entry, flag, took));
            if state.missed > 0 {
                shown["missed"] = json!(state.missed);
            }
            let line = Bytes::from(format!("{shown}\n"));
            if let Some(fields) = shown.as_object_mut().filter(|_| state.missed > 0) {
                fields.remove("missed");
            }
            state.missed = 0;
            state.lines.push_back(line);
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        }
    }
}

/// What is shown of a request. What isn't known is left out.
fn show(entry: &Entry, flag: &str, took: Duration) -> Value {
    let bound = &entry.bound;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let policy = entry.decision.as_ref();
    let policy = policy.and_then(|decision| decision.because.policy());
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let all = json!({
        "unixMillis": now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(0)),
        "source": bound.first.address.to_string(),
        "caller": bound.first.identity.as_ref().map(ToString::to_string),
        "principal": entry.principal,
        "service": bound.service.key.to_string(),
        "port": bound.port,
        "host": text(&entry.host),
        "method": entry.method.as_ref().map(|method| method.as_str()),
        "path": text(&entry.path),
        "protocol": entry.method.as_ref().map(|_| format!("{:?}", entry.version)),
        "status": entry.status.map(|status| status.as_u16()),
        "grpcStatus": entry.grpc_status().map(|status| status as u16),
        "route": entry.rule,
        "backend": entry.backend,
        "endpoint": entry.endpoint.as_ref().map(|endpoint| endpoint.address.to_string()),
        "policy": policy.map(ToString::to_string),
        "retries": Some(entry.retries).filter(|retries| *retries > 0),
        "bytes": entry.bytes,
        "durationMillis": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        "flags": Some(flag).filter(|flag| *flag != "-"),
        "fault": entry.fault().map(fault_name),
        "error": entry.failure.as_ref().map(ToString::to_string),
    });
    match all {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .collect(),
        other => other,
    }
}

/// What a watcher is sent: a line of JSON for each request, for ever.
pub(crate) struct Watched {
    watcher: Arc<Watcher>,
    tap: Weak<Tap>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut state = self.watcher.state.lock();
        match state.lines.pop_front() {
            Some(line) => Poll::Ready(Some(Ok(Frame::data(line)))),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(tap) = self.tap.upgrade() {
            let mut watchers = tap.watchers.lock();
            watchers.retain(|other| !Arc::ptr_eq(other, &self.watcher));
            tap.count.store(watchers.len(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_not_understood_shows_nothing() {
        let filter = Filter::parse("method=GET&path=/a%2ab*&status=5xx&one-in=10").unwrap();
        assert_eq!(filter.path.as_deref(), Some("/a*b*"));
        assert_eq!((filter.one_in, filter.status.as_deref()), (10, Some("5xx")));
        assert_eq!(Filter::parse("").unwrap().one_in, 1);
        for bad in [
            "status=6xx",
            "status=5x",
            "status=",
            "status=40",
            "one-in=0",
            "cookie=a",
        ] {
            assert!(Filter::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn as_many_watch_as_may_and_who_goes_makes_room() {
        let tap = Arc::new(Tap::default());
        let mut all: Vec<_> = (0..MAX_WATCHERS)
            .map(|_| tap.watch(Filter::default()).unwrap())
            .collect();
        assert!(tap.watch(Filter::default()).is_none());
        all.pop();
        assert_eq!(tap.count.load(Ordering::Relaxed), MAX_WATCHERS - 1);
        assert!(tap.watch(Filter::default()).is_some());
    }
}
