//! Network namespaces: where the sockets of a pod are made.
//!
//! A socket belongs for ever to the namespace that its thread was in when it was made. [`Netns::run`] enters the
//! namespace, runs a short closure that never blocks (make a socket, set options, bind), and comes back, on the calling
//! thread. It is not asynchronous, so no other task of the runtime can run in between. Two `setns`
//! calls cost about 10 µs (measured); handing each socket over from a thread of the pod's own would
//! cost two wake-ups of 50 µs and more.
//!
//! What always holds: outside of [`Netns::run`] every thread is in the namespace the process began in. If coming back
//! fails, the process aborts: to go on would send one pod's traffic from another's namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, OnceLock};

use nix::sched::{CloneFlags, setns};

/// The namespace that the process began in.
static HOME: OnceLock<File> = OnceLock::new();

/// Opens the process's own namespace; `main` calls it before any other thread exists.
pub fn remember_home() -> io::Result<()> {
    if HOME.get().is_none() {
        let home = File::open("/proc/thread-self/ns/net")?;
        // Lost a race: the other one opened the same.
        let _ = HOME.set(home);
    }
    Ok(())
}

/// A network namespace. Clones share one descriptor, which keeps the namespace alive.
#[derive(Debug, Clone)]
pub struct Netns(Place);

#[derive(Debug, Clone)]
enum Place {
    /// Where the process is anyway.
    Home,
    Elsewhere {
        namespace: Arc<File>,
        id: NetnsId,
    },
}

/// What tells one namespace from another on this node for as long as either exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl Netns {
    /// The process's own namespace.
    pub fn home() -> Self {
        Self(Place::Home)
    }

    /// The namespace behind a descriptor. Fails where the descriptor is none of a namespace.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        let namespace = File::from(descriptor);
        let about = namespace.metadata()?;
        // Anything but a network namespace is refused by setns itself (EINVAL), but then only when the first
        // connection comes.
        let id = NetnsId {
            device: about.dev(),
            inode: about.ino(),
        };
        let netns = Self(Place::Elsewhere {
            namespace: Arc::new(namespace),
            id,
        });
        netns.run(|| ())?;
        Ok(netns)
    }

    /// The namespace's identity; `None` for the process's own.
    pub fn id(&self) -> Option<NetnsId> {
        match &self.0 {
            Place::Home => None,
            Place::Elsewhere { id, .. } => Some(*id),
        }
    }

    /// Runs `work` in the namespace, on this thread. `work` must not block.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> io::Result<R> {
        let Place::Elsewhere { namespace, .. } = &self.0 else {
            return Ok(work());
        };
        remember_home()?;
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| {
            io::Error::new(
                io::Error::from(errno).kind(),
                format!("setns to the pod's network namespace: {errno}"),
            )
        })?;
        let _back = Back;
        Ok(work())
    }
}

/// Brings the thread home when dropped, also when the work panics.
struct Back;

impl Drop for Back {
    fn drop(&mut self) {
        let came_back = HOME
            .get()
            .is_some_and(|home| setns(home, CloneFlags::CLONE_NEWNET).is_ok());
        if !came_back {
            eprintln!("seine-ztunnel: a thread can't leave a pod's network namespace; stopping");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_at_home_needs_no_privilege() {
        assert_eq!(Netns::home().run(|| 7).unwrap(), 7);
        assert_eq!(Netns::home().id(), None);
    }

    #[test]
    fn a_descriptor_that_is_no_namespace_is_refused() {
        let file = File::open("/dev/null").unwrap();
        assert!(Netns::from_descriptor(file.into()).is_err());
    }
}
