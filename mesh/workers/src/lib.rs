//! The threads that move bytes.
//!
//! Each [`Worker`] is one thread with a runtime of its own, and with what its tasks share there alone, such as a pool of
//! tunnels: so a connection's two sockets, its tunnel and the cryptography stay on one core. Handing bytes from thread to
//! thread costs more than it wins. A listener has a home among them, where its connections go; only when that one has
//! clearly more to do than another, new ones go to the other. What is there stays where it is. What is not about bytes
//! belongs to the process's main thread, where nothing that takes long delays them.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use seine_telemetry::{Lines, limited};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

/// Connections that a home may have more than another worker before new ones go there. To hand one over costs a
/// wake-up of the other thread, and a second thread for the same peer a tunnel of its own.
const BIAS: usize = 8;

/// Whoever makes many connections decides how many fail.
static LINES: Lines = Lines::new();

/// All of them.
pub struct Workers<T> {
    all: Vec<Arc<Worker<T>>>,
    next_home: AtomicUsize,
    stop: CancellationToken,
}

/// One thread, its runtime, and what its tasks share.
pub struct Worker<T> {
    runtime: Handle,
    own: T,
    /// Connections and tunnels that live here.
    load: AtomicUsize,
}

/// A connection's or tunnel's place on a worker, given back when dropped.
pub struct Place<T>(Arc<Worker<T>>);

impl<T: Send + Sync + 'static> Workers<T> {
    /// Starts so many threads, at least one; `own` is called for each, within its runtime. They end when this is
    /// dropped, and what runs there with them.
    pub fn start(threads: usize, own: impl Fn() -> T) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut all = Vec::with_capacity(threads);
        for number in 0..threads.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let own = {
                let _within = runtime.enter();
                own()
            };
            all.push(Arc::new(Worker {
                runtime: runtime.handle().clone(),
                own,
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

    /// The home of a new listener, or of all that a pod has.
    pub fn home(&self) -> Arc<Worker<T>> {
        let turn = self.next_home.fetch_add(1, Ordering::Relaxed);
        self.all[turn % self.all.len()].clone()
    }

    /// What the tasks of each worker share.
    pub fn own(&self) -> impl Iterator<Item = &T> {
        self.all.iter().map(|worker| &worker.own)
    }

    /// Where a new connection goes.
    pub fn for_connection(&self, home: &Arc<Worker<T>>) -> Place<T> {
        self.choose(home, BIAS)
    }

    /// Where a new tunnel goes: it will carry many connections, and they can't go anywhere else.
    pub fn for_tunnel(&self, home: &Arc<Worker<T>>) -> Place<T> {
        self.choose(home, 0)
    }

    fn choose(&self, home: &Arc<Worker<T>>, bias: usize) -> Place<T> {
        let least = self.all.iter().min_by_key(|worker| worker.load());
        match least {
            Some(least) if home.load() > least.load() + bias => Place::on(least),
            _ => Place::on(home),
        }
    }
}

impl<T> Drop for Workers<T> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl<T: Send + Sync + 'static> Worker<T> {
    /// What its tasks share.
    pub fn own(&self) -> &T {
        &self.own
    }

    fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Runs a task on this thread.
    pub fn run<F>(&self, tasks: &TaskTracker, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tasks.spawn_on(task, &self.runtime);
    }

    /// Serves a listener on this thread.
    pub fn listen<F>(
        &self,
        tasks: &TaskTracker,
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
        tasks.spawn_on(task, &self.runtime);
    }
}

impl<T: Send + Sync + 'static> Place<T> {
    fn on(worker: &Arc<Worker<T>>) -> Self {
        worker.load.fetch_add(1, Ordering::Relaxed);
        Self(worker.clone())
    }

    /// What the tasks of this worker share.
    pub fn own(&self) -> &T {
        &self.0.own
    }

    /// Runs a connection's task here. `home` is the worker that accepted it, and the one that calls.
    pub fn serve<F>(
        self,
        home: &Arc<Worker<T>>,
        tasks: &TaskTracker,
        tcp: TcpStream,
        serve: impl FnOnce(Self, TcpStream) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        if Arc::ptr_eq(&self.0, home) {
            tasks.spawn(serve(self, tcp));
            return;
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
        tasks.spawn_on(task, &runtime);
    }
}

impl<T> Clone for Place<T> {
    fn clone(&self) -> Self {
        self.0.load.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T> std::fmt::Debug for Worker<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("load", &self.load)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_stay_at_home_until_another_has_clearly_less_to_do() {
        let workers = Workers::start(2, || ()).unwrap();
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

        let workers = Workers::start(2, || ()).unwrap();
        let (home, other) = (workers.home(), workers.home());
        let tasks = TaskTracker::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accept_home, accept_tasks) = (home.clone(), tasks.clone());
        let echo = move |listener: TcpListener| async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let serve = |_place, mut tcp: TcpStream| async move {
                let name = std::thread::current().name().map(str::to_owned);
                tcp.write_all(name.unwrap().as_bytes()).await.unwrap();
            };
            Place::on(&other).serve(&accept_home, &accept_tasks, tcp, serve);
        };
        home.listen(&tasks, listener, echo);
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut told = String::new();
        client.read_to_string(&mut told).await.unwrap();
        assert_eq!(told, "worker-1");
    }
}
