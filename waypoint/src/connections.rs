//! How many connections there may be to the endpoints of a service.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of one service.
#[derive(Debug)]
pub(crate) struct Connections {
    max: usize,
    free: Arc<Semaphore>,
}

/// One of them, as long as it stands.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Of which limit.
    pub(crate) of: Arc<Connections>,
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    pub(crate) fn new(max: usize) -> Self {
        let free = Arc::new(Semaphore::new(max));
        Self { max, free }
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Whether there may be no more at the moment.
    pub(crate) fn is_full(&self) -> bool {
        self.free.available_permits() == 0
    }

    /// One more, if there may be.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Connection> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(self.with(permit))
    }

    /// One more, when another has ended.
    pub(crate) async fn next(self: &Arc<Self>) -> Connection {
        let permit = self.free.clone().acquire_owned().await;
        self.with(permit.expect("it is never closed"))
    }

    fn with(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Connection {
        Connection {
            of: self.clone(),
            _permit: permit,
        }
    }
}
