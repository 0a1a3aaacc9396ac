//! What the API server has of a kind, as a watch tells it.

use std::collections::HashMap;

use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::runtime::watcher::{self, Event};
use seine_objects::ObjectKey;
use tracing::{debug, warn};

/// The objects of a kind, with what of each is of interest.
pub(super) struct Watched<T> {
    objects: HashMap<ObjectKey, T>,
    /// While a list is under way.
    listed: HashMap<ObjectKey, T>,
    complete: bool,
}

impl<T> Default for Watched<T> {
    fn default() -> Self {
        Self {
            objects: HashMap::new(),
            listed: HashMap::new(),
            complete: false,
        }
    }
}

impl<T> Watched<T> {
    /// Takes what the watch of `kind` tells. A watch that failed is tried again by who drives it.
    pub(super) fn see(
        &mut self,
        kind: &str,
        event: watcher::Result<Event<DynamicObject>>,
        read: impl Fn(DynamicObject) -> T,
    ) {
        match event {
            Ok(Event::Init) => self.listed.clear(),
            Ok(Event::InitApply(object)) => {
                self.listed.insert(key_of(&object), read(object));
            }
            Ok(Event::InitDone) => {
                self.objects = std::mem::take(&mut self.listed);
                self.complete = true;
            }
            Ok(Event::Apply(object)) => self.put(key_of(&object), read(object)),
            Ok(Event::Delete(object)) => drop(self.objects.remove(&key_of(&object))),
            Err(error) if is_unknown_kind(&error) => {
                self.objects.clear();
                debug!(kind, "the API server does not know this kind yet");
            }
            Err(error) => warn!(kind, %error, "the watch failed; tried again"),
        }
    }

    /// What was just written, before the watch brings it: so that it is not written again.
    pub(super) fn put(&mut self, key: ObjectKey, object: T) {
        self.objects.insert(key, object);
    }

    /// One of them.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<&T> {
        self.objects.get(key)
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &T)> {
        self.objects.iter()
    }

    /// Whether every object is known.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }
}

fn key_of(object: &DynamicObject) -> ObjectKey {
    ObjectKey::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// The kind's CRD is not installed, or has no such version.
fn is_unknown_kind(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        // Of a group that it does not know, the API server says so without a Status, and so without a reason.
        | WatchFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}
