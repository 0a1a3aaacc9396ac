//! The list and watch of one kind, through whatever happens to the API server.

use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::DynamicObject;
use kube::core::Status;
use kube::runtime::WatchStreamExt;
use kube::runtime::wait::{Condition as _, await_condition, conditions::is_crd_established};
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client};
use seine_objects::{Invalid, Kind, Object, ObjectKey, parse_object};
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::scope::resource;

/// A kind that the API server doesn't know is looked for this often, should its definition go unnoticed.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What a watch has to say of its kind.
#[derive(Debug)]
pub(crate) enum Report {
    /// A list begins: what is not in it by its end is gone.
    Listing,
    /// The list is complete.
    Listed,
    /// The API server does not know the kind.
    Unknown,
    /// An object as it is now.
    Is(ObjectKey, Object),
    /// An object that can't be used as it is now, and its `metadata.generation`.
    Invalid(Invalid, Option<i64>),
    /// An object is gone.
    Gone(ObjectKey),
}

/// Watches until the receiver of the reports is gone.
pub(crate) async fn follow(
    client: Client,
    kind: Kind,
    fields: Option<String>,
    reports: Sender<(Kind, Report)>,
) {
    let mut config = Config::default().streaming_lists();
    config.field_selector = fields;
    let watch = Watch {
        client,
        kind,
        reports,
    };
    while watch.once(&mut config).await.is_continue() {}
}

struct Watch {
    client: Client,
    kind: Kind,
    reports: Sender<(Kind, Report)>,
}

impl Watch {
    /// Until it has to be begun anew, in another way.
    async fn once(&self, config: &mut Config) -> ControlFlow<()> {
        let kind = self.kind;
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource(kind));
        let mut events = pin!(watcher(api, config.clone()).default_backoff());
        while let Some(event) = events.next().await {
            let error = match event {
                Ok(event) => {
                    self.report_event(event).await?;
                    continue;
                }
                Err(error) => error,
            };
            let status = status(&error);
            let code = status.map_or(0, |status| status.code);
            let streaming = config.initial_list_strategy != watcher::InitialListStrategy::ListWatch;
            if streaming && matches!(code, 400 | 422) {
                info!(%kind, "the API server has no streaming lists: listing in pages");
                config.initial_list_strategy = watcher::InitialListStrategy::ListWatch;
                return ControlFlow::Continue(());
            }
            if code == 404 && self.is_undefined().await {
                info!(%kind, "the API server does not know this kind: watching for its definition");
                self.report(Report::Unknown).await?;
                self.await_definition().await;
                return ControlFlow::Continue(());
            }
            if code == 410 {
                debug!(%kind, %error, "the watch is too old: listing again");
            } else {
                warn!(%kind, error = chain(&error), "no watch at the API server; keeping what is known");
            }
            let wait =
                status.and_then(|status| status.details.as_ref()?.retry_after_seconds.into());
            if let Some(seconds @ 1..) = wait {
                sleep(Duration::from_secs(seconds.into())).await;
            }
        }
        // A watcher has no end.
        ControlFlow::Continue(())
    }

    async fn report_event(&self, event: Event<DynamicObject>) -> ControlFlow<()> {
        let report = match event {
            Event::Init => Report::Listing,
            Event::InitDone => Report::Listed,
            Event::InitApply(object) | Event::Apply(object) => self.read(object),
            Event::Delete(object) => {
                let metadata = object.metadata;
                let namespace = metadata.namespace.unwrap_or_default();
                Report::Gone(ObjectKey::new(namespace, metadata.name.unwrap_or_default()))
            }
        };
        self.report(report).await
    }

    fn read(&self, object: DynamicObject) -> Report {
        let generation = object.metadata.generation;
        let read = serde_json::to_value(object)
            .map_err(|error| Invalid::unreadable(self.kind, &error))
            .and_then(|mut value| {
                // Items of a list come without them.
                let resource = resource(self.kind);
                value["apiVersion"] = resource.api_version.into();
                value["kind"] = resource.kind.into();
                parse_object(self.kind, value)
            });
        match read {
            Ok((key, object)) => Report::Is(key, object),
            Err(invalid) => Report::Invalid(invalid, generation),
        }
    }

    /// Breaks when nobody wants to know any more.
    async fn report(&self, report: Report) -> ControlFlow<()> {
        match self.reports.send((self.kind, report)).await {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// Whether the kind's definition is not there, or doesn't have our version, for certain: what is known of the kind
    /// goes then.
    async fn is_undefined(&self) -> bool {
        let definitions = Api::<CustomResourceDefinition>::all(self.client.clone());
        let version = resource(self.kind).version;
        match definitions.get_opt(&self.definition()).await {
            Ok(Some(definition)) => !serves(&definition, &version),
            Ok(None) => true,
            Err(_) => false,
        }
    }

    async fn await_definition(&self) {
        let definitions = Api::all(self.client.clone());
        let name = self.definition();
        let version = resource(self.kind).version;
        let serves = |definition: Option<&CustomResourceDefinition>| {
            definition.is_some_and(|definition| serves(definition, &version))
        };
        let found = await_condition(definitions, &name, is_crd_established().and(serves));
        if let Ok(Err(error)) = timeout(LOOK_AGAIN, found).await {
            debug!(%name, %error, "its definition can't be watched");
            sleep(LOOK_AGAIN).await;
        }
    }

    /// The name of the kind's CustomResourceDefinition.
    fn definition(&self) -> String {
        let resource = resource(self.kind);
        format!("{}.{}", resource.plural, resource.group)
    }
}

/// An older Istio's definition may not have the version that we read.
fn serves(definition: &CustomResourceDefinition, version: &str) -> bool {
    let mut versions = definition.spec.versions.iter();
    versions.any(|found| found.name == version && found.served)
}

/// What the API server answered, if it was it.
fn status(error: &watcher::Error) -> Option<&Status> {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => Some(status),
        _ => None,
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_fails_is_asked_less_and_less_often() {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let service = tower::service_fn(move |_: Request<Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            async {
                let mut answer = Response::new(Body::empty());
                *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                Ok::<_, Infallible>(answer)
            }
        });
        let client = Client::new(service, "default");
        let (reports, _reported) = tokio::sync::mpsc::channel(16);
        let following = follow(client, Kind::Namespace, None, reports);
        let _ = timeout(Duration::from_secs(120), following).await;
        let requests = requests.load(Ordering::Relaxed);
        // After 0.8, 1.6, 3.2 s and so on to 30, each with its jitter.
        assert!((4..=16).contains(&requests), "{requests} in two minutes");
    }
}
