//! The canary: a connection that must be caught, made as a pod would.
//!
//! A thread makes a network namespace of its own with listeners on the proxy's outbound port, and
//! enrols it. A child process in a fresh cgroup below the pods' connects to an address that exists
//! nowhere; the listener must get the connection and `SO_ORIGINAL_DST` must name that address.

use std::{
    fs::{File, OpenOptions},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::wait::waitpid,
    unistd::{ForkResult, fork},
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    DnsCapture, InboundListeners, OUTBOUND_PORT, OlderConnections, PodNetns, PodSettings, Redirect,
    RedirectError, Result,
};

/// Addresses for documentation (RFC 5737, RFC 3849): nobody answers there.
const TARGETS: [SocketAddr; 2] = [
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9)),
    SocketAddr::V6(SocketAddrV6::new(
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        9,
        0,
        0,
    )),
];
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn run(redirect: &Redirect, pods: &Path) -> Result<()> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| in_own_netns(redirect, pods));
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs on a thread that ends with this function, and with it its netns.
fn in_own_netns(redirect: &Redirect, pods: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|error| RedirectError::call("unshare", "the canary's netns", error))?;
    loopback_up()?;
    let netns = File::open("/proc/thread-self/ns/net")
        .map_err(|error| RedirectError::call("open", "the canary's netns", error))?;
    let cgroup = TemporaryCgroup::make(pods)?;
    let settings = PodSettings {
        dns: DnsCapture::Off,
        ..PodSettings::default()
    };
    let enrolment = redirect.enrol(PodNetns {
        netns: netns.as_fd(),
        settings: &settings,
        inbound: InboundListeners::default(),
        older_connections: OlderConnections::Leave,
    })?;
    let caught = TARGETS
        .iter()
        .try_for_each(|target| catch(*target, &cgroup));
    let released = redirect.release(enrolment.cookie);
    caught.and(released)
}

/// Makes one connection and sees where it goes.
fn catch(target: SocketAddr, cgroup: &TemporaryCgroup) -> Result<()> {
    let said = |what: &str| RedirectError::Canary(format!("to {target}: {what}"));
    let listener = match listen(target.is_ipv4()) {
        // No IPv6 on this node.
        Err(error)
            if target.is_ipv6()
                && matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
                ) =>
        {
            return Ok(());
        }
        other => other.map_err(|error| said(&format!("listening failed: {error}")))?,
    };
    let child = connect_from_child(target, cgroup)?;
    let deadline = Instant::now() + PATIENCE;
    let accepted = loop {
        match listener.accept() {
            Ok((socket, _)) => break Some(socket),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    break None;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(said(&format!("accept failed: {error}"))),
        }
    };
    let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
    let _ = waitpid(child, None);
    let Some(socket) = accepted else {
        return Err(said(
            "it did not arrive at the proxy's listener. Is the path of the pods' cgroup the \
             node's, and does no other program at a cgroup below change the address first?",
        ));
    };
    let original = match target {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    }
    .map_err(|error| {
        said(&format!(
            "it arrived, but SO_ORIGINAL_DST failed ({error}). \
             Is the agent's own cgroup below the pods', as its listeners' must be?"
        ))
    })?;
    if original.as_socket() != Some(target) {
        return Err(said(&format!(
            "it arrived with the original destination {original:?}"
        )));
    }
    Ok(())
}

fn listen(ipv4: bool) -> io::Result<Socket> {
    let (domain, address) = if ipv4 {
        (
            Domain::IPV4,
            SocketAddr::from((Ipv4Addr::LOCALHOST, OUTBOUND_PORT)),
        )
    } else {
        (
            Domain::IPV6,
            SocketAddr::from((Ipv6Addr::LOCALHOST, OUTBOUND_PORT)),
        )
    };
    let listener = Socket::new(domain, Type::STREAM, None)?;
    listener.bind(&address.into())?;
    listener.listen(1)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Starts a process in the cgroup that connects and then waits to be killed.
fn connect_from_child(target: SocketAddr, cgroup: &TemporaryCgroup) -> Result<nix::unistd::Pid> {
    let failed = |call| move |error| RedirectError::call(call, "the canary's process", error);
    let procs = OpenOptions::new()
        .write(true)
        .open(cgroup.path.join("cgroup.procs"))
        .map_err(|error| RedirectError::call("open", cgroup.path.display().to_string(), error))?;
    let address = SockAddr::from(target);
    let family = i32::from(address.family());
    // SAFETY: other threads of this process may hold locks, so the child makes system calls only:
    // no allocation, no lock, no return into this program.
    match unsafe { fork() }.map_err(failed("fork"))? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // SAFETY: descriptors and the address were made before the fork and live here too.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1);
                let socket = libc::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0);
                libc::connect(socket, address.as_ptr().cast(), address.len());
                // At most as long as the parent looks.
                libc::alarm(10);
                loop {
                    libc::pause();
                }
            }
        }
    }
}

fn loopback_up() -> Result<()> {
    let failed = |error: io::Error| RedirectError::call("SIOCSIFFLAGS", "the canary's lo", error);
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).map_err(failed)?;
    // SAFETY: ifreq is made of integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is the structure that this call takes.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw mut request,
        )
    };
    if result < 0 {
        Err(failed(io::Error::last_os_error()))
    } else {
        Ok(())
    }
}

/// A cgroup that goes when it is dropped.
struct TemporaryCgroup {
    path: PathBuf,
}

impl TemporaryCgroup {
    fn make(pods: &Path) -> Result<Self> {
        let path = pods.join(format!("seine-canary-{}", std::process::id()));
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(RedirectError::call(
                "mkdir",
                path.display().to_string(),
                error,
            )),
            _ => Ok(Self { path }),
        }
    }
}

impl Drop for TemporaryCgroup {
    fn drop(&mut self) {
        // The last process may take a moment to leave.
        for _ in 0..100 {
            match std::fs::remove_dir(&self.path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                _ => return,
            }
        }
    }
}
