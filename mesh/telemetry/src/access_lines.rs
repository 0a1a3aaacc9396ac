//! Lines of the access log, many in one write.
//!
//! There may be one for each request, and a system call each would be a tenth of what the request costs. Lines of the target
//! `access` wait for at most [`DELAY`], in memory that is bounded: where standard error takes no more, whoever writes waits as
//! without this. All other lines are written at once.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

/// How long a line waits for others.
const DELAY: Duration = Duration::from_millis(20);
/// As many bytes wait at most.
const BOUND: usize = 256 << 10;

/// The target of lines that may wait.
const ACCESS: &str = "access";

/// Where lines go. It ends, and what waits is written, when [`AccessLines::stop`] is called.
pub(crate) struct AccessLines {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    /// Something waits, or nothing is to wait any more.
    some: Condvar,
    /// There is room again.
    room: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    stopped: bool,
}

impl AccessLines {
    /// Starts the thread that writes to `output`.
    pub(crate) fn start(mut output: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            some: Condvar::new(),
            room: Condvar::new(),
        });
        let own = shared.clone();
        let writer = thread::Builder::new()
            .name("access-log".into())
            .spawn(move || own.run(&mut output))?;
        Ok(Self {
            shared,
            writer: Mutex::new(Some(writer)),
        })
    }

    /// What is to be given to the subscriber.
    pub(crate) fn sink(&self) -> Sink {
        Sink(self.shared.clone())
    }

    /// Writes what waits. Lines that come afterwards are written at once.
    pub(crate) fn stop(&self) {
        self.shared.waiting.lock().stopped = true;
        self.shared.some.notify_one();
        self.shared.room.notify_all();
        if let Some(writer) = self.writer.lock().take() {
            // It doesn't panic, and there would be nobody to tell.
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn run(&self, output: &mut impl Write) {
        let mut lines = Vec::new();
        loop {
            let stopped = {
                let mut waiting = self.waiting.lock();
                while waiting.lines.is_empty() && !waiting.stopped {
                    self.some.wait(&mut waiting);
                }
                waiting.stopped
            };
            if !stopped {
                thread::sleep(DELAY);
            }
            mem::swap(&mut self.waiting.lock().lines, &mut lines);
            self.room.notify_all();
            // Without a reader of standard error nobody can be told.
            let _ = output.write_all(&lines);
            lines.clear();
            if stopped {
                return;
            }
        }
    }

    /// Whether the line waits; otherwise the caller is to write it.
    fn add(&self, line: &[u8]) -> bool {
        let mut waiting = self.waiting.lock();
        while waiting.lines.len() > BOUND && !waiting.stopped {
            self.room.wait(&mut waiting);
        }
        if waiting.stopped {
            return false;
        }
        let first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        if first {
            self.some.notify_one();
        }
        true
    }
}

/// Makes a [`Line`] for each event.
pub(crate) struct Sink(Arc<Shared>);

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(None)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        Line((metadata.target() == ACCESS).then_some(&*self.0))
    }
}

/// Takes one line, in one piece.
pub(crate) struct Line<'a>(Option<&'a Shared>);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.is_some_and(|shared| shared.add(line)) {
            return Ok(line.len());
        }
        io::stderr().write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    /// Remembers each write.
    #[derive(Clone, Default)]
    struct Writes(Arc<Mutex<Vec<String>>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().push(String::from_utf8_lossy(bytes).into());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_of_the_access_log_are_written_together_in_order_and_none_is_lost_at_the_end() {
        let writes = Writes::default();
        let lines = AccessLines::start(writes.clone()).unwrap();
        let layer = tracing_subscriber::fmt::layer()
            .without_time()
            .with_ansi(false)
            .with_target(false)
            .with_writer(lines.sink());
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..1000 {
                tracing::info!(target: "access", n);
            }
        });
        lines.stop();
        let written = writes.0.lock().clone();
        let expected: String = (0..1000).map(|n| format!(" INFO n={n}\n")).collect();
        assert_eq!(written.concat(), expected);
        assert!(written.len() < 100, "{} writes", written.len());
        assert!(!lines.shared.add(b"afterwards"), "it is written at once");
    }

    /// Takes nothing until the other end lets it.
    struct Blocked(std::sync::mpsc::Receiver<()>, Writes);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whoever_writes_waits_while_there_is_no_room() {
        let (go, wait) = std::sync::mpsc::channel();
        let writes = Writes::default();
        let lines = AccessLines::start(Blocked(wait, writes.clone())).unwrap();
        let shared = lines.shared.clone();
        let half = vec![b'x'; BOUND / 2 + 1];
        let (added, adding) = std::sync::mpsc::channel();
        let writer = thread::spawn(move || {
            for _ in 0..8 {
                assert!(shared.add(&half));
                added.send(()).unwrap();
            }
        });
        // At most two are with the thread that writes, and two wait.
        let first = adding.iter().take(2).count();
        assert_eq!(first, 2);
        while adding.recv_timeout(DELAY * 10).is_ok() {}
        assert!(!writer.is_finished());
        drop(go);
        writer.join().unwrap();
        lines.stop();
        let total: usize = writes.0.lock().iter().map(String::len).sum();
        assert_eq!(total, 8 * (BOUND / 2 + 1));
    }
}
