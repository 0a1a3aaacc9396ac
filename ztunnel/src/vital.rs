//! The tasks without which the proxy would go on by what it knew last, and say that all is well: the control plane's
//! stream, the agent's, certificates, verdicts on live connections. A panic in one of them ends the process. The agent
//! keeps the listeners, so that new connections wait for the proxy that is started in its place.

use tokio::sync::watch;

/// Starts them, and tells when one is lost. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Vital(watch::Sender<Option<&'static str>>);

impl Vital {
    /// Starts a task. One that returns has done what it is for.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (vital, task) = (self.clone(), tokio::spawn(task));
        tokio::spawn(async move {
            if task.await.is_err_and(|error| error.is_panic()) {
                vital.0.send_replace(Some(name));
            }
        });
    }

    /// Watches over a task that somebody else started, and that ends only by a panic.
    pub fn watch(&self, name: &'static str, ended: impl Future<Output = ()> + Send + 'static) {
        let vital = self.clone();
        tokio::spawn(async move {
            ended.await;
            vital.0.send_replace(Some(name));
        });
    }

    /// Waits until a task is lost, and names it.
    pub async fn lost(&self) -> &'static str {
        let mut lost = self.0.subscribe();
        match lost.wait_for(Option::is_some).await.map(|name| *name) {
            Ok(Some(name)) => name,
            // `self` holds the sender.
            _ => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures::future::BoxFuture;
    use seine_identity::{CertificateSource, Identity, SourceError, Svid};

    use super::*;
    use crate::app::share;
    use crate::config::Config;
    use crate::shared::Environment;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_named_and_one_that_returns_is_not() {
        let vital = Vital::default();
        vital.spawn("done", async {});
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, vital.lost()).await.is_err());
        vital.spawn("broken", async { panic!("injected") });
        assert_eq!(vital.lost().await, "broken");
    }

    /// A CA client with a bug.
    struct Broken;

    impl CertificateSource for Broken {
        fn fetch<'a>(&'a self, _: &'a Identity) -> BoxFuture<'a, Result<Svid, SourceError>> {
            panic!("injected")
        }
    }

    #[tokio::test]
    async fn a_panic_over_a_certificate_is_not_silent() {
        let config = Config::defaults();
        let shared = share(config, Arc::new(Broken), Environment::default()).unwrap();
        let identity = "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap();
        shared.certificates.prefetch(&identity);
        assert_eq!(shared.vital.lost().await, "certificates");
    }
}
