//! Network namespaces: entering one, and its identity.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};

use super::{RedirectError, Result};

const SO_NETNS_COOKIE: i32 = 71;

/// The identity of a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) cookie: u64,
    pub(super) inode: u32,
}

/// Runs `work` on a thread of its own inside a network namespace.
pub(super) fn within<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)
                .map_err(|error| RedirectError::call("setns", "the pod's netns", error))?;
            work()
        });
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The cookie of the network namespace behind a descriptor: its identity for as long as the machine
/// runs. Needs Linux 5.14.
///
/// # Errors
///
/// When the descriptor is not a network namespace, or the kernel has no cookies.
pub fn netns_cookie(netns: BorrowedFd<'_>) -> Result<u64> {
    within(netns, current_cookie)
}

pub(super) fn identity(netns: BorrowedFd<'_>) -> Result<Identity> {
    let inode = nix::sys::stat::fstat(netns)
        .map_err(|error| RedirectError::call("fstat", "the pod's netns", error))?
        .st_ino as u32;
    Ok(Identity {
        cookie: netns_cookie(netns)?,
        inode,
    })
}

/// The cookie of the calling thread's network namespace.
pub(super) fn current_cookie() -> Result<u64> {
    let failed = |error: io::Error| RedirectError::call("SO_NETNS_COOKIE", "netns", error);
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).map_err(failed)?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer has the length that is said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    Ok(cookie)
}

/// Cookies that are never enrolled: the agent's own netns, and that of the machine's first process.
pub(super) fn host_cookies() -> Result<Vec<u64>> {
    let mut cookies = vec![current_cookie()?];
    // Not readable in a container with its own processes; then only our own is known.
    if let Ok(first) = File::open("/proc/1/ns/net") {
        cookies.push(netns_cookie(first.as_fd())?);
    }
    Ok(cookies)
}
