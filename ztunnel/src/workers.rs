//! The threads that move bytes.
//!
//! Each [`Worker`] is one thread with a runtime and tunnels of its own, so that a connection's two sockets, its tunnel
//! and the cryptography stay on one core: handing bytes from thread to thread costs more than it wins. A pod has a home
//! among them, where its listeners are and its connections go; only when that one has clearly more to do than another,
//! new ones go to the other. What is there stays where it is. A pod's DNS is at its home too. The control plane's stream,
//! certificates and the judging of live connections have the process's main thread, and what takes long there delays no
//! pod.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use seine_hbone::{Pool, Settings};
use seine_telemetry::{Lines, limited};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::drain::Lifetime;

/// Connections that a pod's home may have more than another worker before new ones go there. To hand one over costs a
/// wake-up of the other thread, and a second thread for the same peer a tunnel of its own.
const BIAS: usize = 8;

/// Whoever makes many connections decides how many fail.
static LINES: Lines = Lines::new();

/// All of them.
pub struct Workers {
    all: Vec<Arc<Worker>>,
    next_home: AtomicUsize,
    stop: CancellationToken,
}

/// One thread, its runtime, and the tunnels that are driven there.
pub struct Worker {
    runtime: Handle,
    pool: Pool,
    /// Connections and tunnels that live here.
    load: AtomicUsize,
}

/// A connection's or tunnel's place on a worker, given back when dropped.
pub struct Place(Arc<Worker>);

impl Workers {
    /// Starts so many threads. They end when this is dropped, and what runs there with them.
    pub fn start(threads: usize, settings: &Settings) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut all = Vec::with_capacity(threads);
        for number in 0..threads.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let pool = {
                let _within = runtime.enter();
                Pool::new(settings.clone())
            };
            all.push(Arc::new(Worker {
                runtime: runtime.handle().clone(),
                pool,
                load: AtomicUsize::new(0),
            }));
            let stopped = stop.clone();
            std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || runtime.block_on(stopped.cancelled()))?;
        }
        Ok(Self {
            all,
            next_home: AtomicUsize::new(0),
            stop,
        })
    }

    /// The home of a new pod.
    pub fn home(&self) -> Arc<Worker> {
        let turn = self.next_home.fetch_add(1, Ordering::Relaxed);
        self.all[turn % self.all.len()].clone()
    }

    /// The tunnels of every worker.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.all.iter().map(|worker| &worker.pool)
    }

    /// Where a new connection of a pod goes.
    pub(crate) fn for_connection(&self, home: &Arc<Worker>) -> Place {
        self.choose(home, BIAS)
    }

    /// Where a new tunnel towards a pod goes: it will carry many connections, and they can't go anywhere else.
    pub(crate) fn for_tunnel(&self, home: &Arc<Worker>) -> Place {
        self.choose(home, 0)
    }

    fn choose(&self, home: &Arc<Worker>, bias: usize) -> Place {
        let least = self.all.iter().min_by_key(|worker| worker.load());
        match least {
            Some(least) if home.load() > least.load() + bias => Place::on(least),
            _ => Place::on(home),
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Worker {
    fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Runs a pod's task on this thread.
    pub(crate) fn run<F>(&self, life: &Lifetime, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        life.spawn_on(task, &self.runtime);
    }

    /// Serves a listener on this thread.
    pub(crate) fn listen<F>(
        &self,
        life: &Lifetime,
        listener: TcpListener,
        run: impl FnOnce(TcpListener) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        // Fails only for want of memory or descriptors for the thread's own epoll.
        let task = async move {
            match listener.into_std().and_then(TcpListener::from_std) {
                Ok(listener) => run(listener).await,
                Err(error) => error!(%error, "a listener can't be polled and is not served"),
            }
        };
        life.spawn_on(task, &self.runtime);
    }
}

impl Place {
    fn on(worker: &Arc<Worker>) -> Self {
        worker.load.fetch_add(1, Ordering::Relaxed);
        Self(worker.clone())
    }

    /// The tunnels of this worker.
    pub(crate) fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// Runs a connection's task here. `home` is the worker that accepted it, and the one that calls.
    pub(crate) fn serve<F>(
        self,
        home: &Arc<Worker>,
        life: &Lifetime,
        tcp: TcpStream,
        serve: impl FnOnce(Self, TcpStream) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        if Arc::ptr_eq(&self.0, home) {
            return life.spawn(serve(self, tcp));
        }
        let tcp = match tcp.into_std() {
            Ok(tcp) => tcp,
            Err(error) => {
                return limited!(LINES, "thread", warn: %error, "a connection can't change its thread and is closed");
            }
        };
        let runtime = self.0.runtime.clone();
        let task = async move {
            match TcpStream::from_std(tcp) {
                Ok(tcp) => Box::pin(serve(self, tcp)).await,
                Err(error) => {
                    limited!(LINES, "poll", warn: %error, "a connection can't be polled and is closed");
                }
            }
        };
        life.spawn_on(task, &runtime);
    }
}

impl Clone for Place {
    fn clone(&self) -> Self {
        Self::on(&self.0)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("load", &self.load())
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pods_connections_stay_at_its_home_until_another_has_clearly_less_to_do() {
        let workers = Workers::start(2, &Settings::default()).unwrap();
        let (home, other) = (workers.home(), workers.home());
        assert!(!Arc::ptr_eq(&home, &other));
        let at_home: Vec<_> = (0..=BIAS).map(|_| workers.for_connection(&home)).collect();
        assert!(at_home.iter().all(|place| Arc::ptr_eq(&place.0, &home)));
        let beyond = workers.for_connection(&home);
        assert!(Arc::ptr_eq(&beyond.0, &other));
        let tunnel = workers.for_tunnel(&home);
        assert!(Arc::ptr_eq(&tunnel.0, &other));
        drop(at_home);
        assert_eq!((home.load(), other.load()), (0, 2));
    }

    #[tokio::test]
    async fn a_connection_that_changes_its_thread_goes_on() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let workers = Workers::start(2, &Settings::default()).unwrap();
        let (home, other) = (workers.home(), workers.home());
        let life = Lifetime::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accept_home, accept_life) = (home.clone(), life.clone());
        let echo = move |listener: TcpListener| async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let serve = |_place, mut tcp: TcpStream| async move {
                let name = std::thread::current().name().map(str::to_owned);
                tcp.write_all(name.unwrap().as_bytes()).await.unwrap();
            };
            Place::on(&other).serve(&accept_home, &accept_life, tcp, serve);
        };
        home.listen(&life, listener, echo);
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut told = String::new();
        client.read_to_string(&mut told).await.unwrap();
        assert_eq!(told, "worker-1");
    }
}
