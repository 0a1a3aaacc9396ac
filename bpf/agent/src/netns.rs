//! Pods' network namespaces: entering them, and telling one from another.
//!
//! A thread that entered a pod's namespace never does anything else: it is made for one piece of
//! work and ends with it, also where the work panics.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use nix::sched::CloneFlags;
use nix::sched::setns;
use socket2::Domain;
use socket2::Socket;
use socket2::Type;

/// A pod's network namespace, held open.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    cookie: u64,
}

/// Why a namespace can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path is gone: so is the pod.
    #[error("open network namespace {path}: {source}")]
    Open {
        /// As the CNI plugin named it.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It could not be entered: not a network namespace, or the agent lacks `CAP_SYS_ADMIN`.
    #[error("enter the pod's network namespace: {0}")]
    Enter(#[source] io::Error),
    /// No process of the pod is left.
    #[error("the network namespace can't be found, and the pod has no process")]
    Gone,
    /// It is the agent's own.
    #[error("it is the host's network namespace, which is never enrolled")]
    Host,
}

impl Netns {
    /// Takes a descriptor that the CNI plugin passed.
    ///
    /// # Errors
    ///
    /// It is no network namespace, or the host's.
    pub fn new(fd: OwnedFd) -> Result<Self, NetnsError> {
        let cookie = within(fd.as_fd(), own_cookie)
            .map_err(NetnsError::Enter)?
            .map_err(NetnsError::Enter)?;
        if cookie == own_cookie().map_err(NetnsError::Enter)? {
            return Err(NetnsError::Host);
        }
        Ok(Self {
            fd: Arc::new(fd),
            cookie,
        })
    }

    /// Opens the namespace at a path.
    ///
    /// # Errors
    ///
    /// Nothing is there, or as [`Netns::new`].
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = File::open(path).map_err(|source| NetnsError::Open {
            path: path.display().to_string(),
            source,
        })?;
        Self::new(file.into())
    }

    /// Names the namespace; no other has it until the machine restarts.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The descriptor, to be passed on.
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }

    /// Runs `work` in the namespace.
    ///
    /// # Errors
    ///
    /// The namespace can't be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        within(self.fd.as_fd(), work).map_err(NetnsError::Enter)
    }

    /// Is a process in the namespace, as far as the agent sees processes?
    pub fn has_processes(&self) -> bool {
        first_process(self.fd.as_fd()).is_some()
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn within<T: Send>(fd: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("in-pod-netns".into())
            .spawn_scoped(scope, || {
                setns(fd, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the work in the namespace panicked")))
    })
}

/// The cookie of the calling thread's namespace (Linux 5.14).
fn own_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the value and its length point to a u64 and its size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

fn first_process(netns: BorrowedFd<'_>) -> Option<i32> {
    let wanted = nix::sys::stat::fstat(netns).ok()?;
    std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            nix::sys::stat::stat(format!("/proc/{pid}/ns/net").as_str())
                .is_ok_and(|found| (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_namespace_and_other_files_are_refused() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let error = Netns::open(Path::new("/proc/self/ns/net")).unwrap_err();
        assert!(matches!(error, NetnsError::Host), "{error}");
        let error = Netns::open(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, NetnsError::Enter(_)), "{error}");
        let error = Netns::open(Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, NetnsError::Open { .. }), "{error}");
    }
}
