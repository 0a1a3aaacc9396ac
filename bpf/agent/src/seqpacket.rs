//! SEQPACKET Unix sockets for tokio: whole messages with descriptors, and who the peer is.

use std::io;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::Backlog;
use nix::sys::socket::ControlMessage;
use nix::sys::socket::ControlMessageOwned;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::UnixAddr;
use nix::sys::socket::accept4;
use nix::sys::socket::bind;
use nix::sys::socket::connect;
use nix::sys::socket::getsockopt;
use nix::sys::socket::listen;
use nix::sys::socket::recvmsg;
use nix::sys::socket::sendmsg;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt;
use seine_telemetry::Lines;
use seine_telemetry::limited;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The most descriptors in one message; more are dropped by the kernel, and the message is refused.
const MAX_DESCRIPTORS: usize = 16;

static ACCEPT: Lines = Lines::new();

/// A listening socket at a path, readable and writable for its owner alone.
#[derive(Debug)]
pub struct Listener {
    fd: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, in the place of what an earlier process left there. The caller makes sure
    /// that no other process serves the path.
    ///
    /// # Errors
    ///
    /// The folder can't be written, or the path is longer than a socket's address may be.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let address = UnixAddr::new(path)?;
        let fd = new_socket()?;
        bind(fd.as_raw_fd(), &address)?;
        // Nobody can connect before listen(2), so there is no moment of wider permissions.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listen(&fd, Backlog::new(128)?)?;
        Ok(Self {
            fd: register(fd)?,
            path: path.to_owned(),
        })
    }

    /// The next connection.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors or memory.
    pub async fn accept(&self) -> io::Result<Connection> {
        let fd = self
            .fd
            .async_io(Interest::READABLE, |fd| {
                let raw = accept4(
                    fd.as_raw_fd(),
                    SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                )?;
                // SAFETY: accept4 just returned this descriptor, and nothing else has it.
                Ok(unsafe { OwnedFd::from_raw_fd(raw) })
            })
            .await?;
        Connection::new(fd)
    }

    /// Waits for the next process that connects, `whom` as the log calls it. What keeps one from being accepted
    /// passes: descriptors and memory come back.
    pub async fn next(&self, whom: &str) -> Connection {
        loop {
            match self.accept().await {
                Ok(connection) => return connection,
                Err(error) => {
                    limited!(
                        ACCEPT, "accept",
                        warn: %error, path = %self.path.display(), "can't accept {whom}; trying again"
                    );
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// One connection; each message is one packet.
#[derive(Debug)]
pub struct Connection {
    fd: AsyncFd<OwnedFd>,
}

/// The peer as the kernel recorded it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// As this process's PID namespace sees it; 0 if it is not in it.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
}

impl Connection {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: register(fd)? })
    }

    /// Connects to a listener; for tests and tools.
    ///
    /// # Errors
    ///
    /// Nobody listens there, or it may not be used.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = new_socket()?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Self::new(fd)
    }

    /// Who connected.
    ///
    /// # Errors
    ///
    /// None that is known for a connected Unix socket.
    pub fn credentials(&self) -> io::Result<Credentials> {
        let peer = getsockopt(self.fd.get_ref(), sockopt::PeerCredentials)?;
        Ok(Credentials {
            pid: peer.pid(),
            uid: peer.uid(),
        })
    }

    /// A descriptor of the peer's process (Linux 6.5), which no later process can take the place
    /// of. `None` on kernels without it, and if the process has ended.
    pub fn peer_pidfd(&self) -> Option<OwnedFd> {
        const SO_PEERPIDFD: libc::c_int = 77;
        let mut raw: RawFd = -1;
        let mut length = libc::socklen_t::try_from(size_of::<RawFd>()).ok()?;
        // SAFETY: the value and its length point to a c_int and its size.
        let result = unsafe {
            libc::getsockopt(
                self.fd.get_ref().as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERPIDFD,
                (&raw mut raw).cast(),
                &raw mut length,
            )
        };
        // SAFETY: on success the kernel made this descriptor for us.
        (result == 0 && raw >= 0).then(|| unsafe { OwnedFd::from_raw_fd(raw) })
    }

    /// The next message and its descriptors; `None` when the peer has closed.
    ///
    /// # Errors
    ///
    /// `InvalidData` for a message longer than `limit` or with too many descriptors; else the
    /// connection broke.
    pub async fn receive(&self, limit: usize) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        self.fd
            .async_io(Interest::READABLE, |fd| receive(fd.as_fd(), limit))
            .await
    }

    /// Sends one message with its descriptors.
    ///
    /// # Errors
    ///
    /// The peer has closed, or the message is too long.
    pub async fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        self.fd
            .async_io(Interest::WRITABLE, |fd| {
                let rights = [ControlMessage::ScmRights(&raw)];
                let control: &[_] = if raw.is_empty() { &[] } else { &rights };
                sendmsg::<()>(
                    fd.as_raw_fd(),
                    &[IoSlice::new(message)],
                    control,
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                )?;
                Ok(())
            })
            .await
    }

    /// Resolves when the peer has closed or something is to be read.
    ///
    /// # Errors
    ///
    /// The runtime is shutting down.
    pub async fn readable(&self) -> io::Result<()> {
        // The readiness stays set: the next receive finds out what it was.
        self.fd.readable().await.map(drop)
    }
}

pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is valid and owned, and neither replaced nor closed inside AsyncFd:
    // both types here lend it as a shared reference only.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?)
}

fn receive(fd: BorrowedFd<'_>, limit: usize) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; limit];
    let mut control = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let received = recvmsg::<()>(
        fd.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            for raw in raw {
                // SAFETY: the kernel installed this descriptor for this message; it is ours alone.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
    }
    let (length, flags) = (received.bytes, received.flags);
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        let what = format!("a message longer than {limit} bytes or with too many descriptors");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    if length == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    buffer.truncate(length);
    Ok(Some((buffer, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_keep_their_bounds_and_carry_descriptors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let client = Connection::connect(&path).unwrap();
        let server = listener.accept().await.unwrap();
        let file = tempfile::tempfile().unwrap();
        client
            .send(b"one", &[file.as_fd(), file.as_fd()])
            .await
            .unwrap();
        client.send(b"two", &[]).await.unwrap();
        let (message, descriptors) = server.receive(64).await.unwrap().unwrap();
        assert_eq!(
            (message.as_slice(), descriptors.len()),
            (b"one".as_slice(), 2)
        );
        let (message, descriptors) = server.receive(64).await.unwrap().unwrap();
        assert_eq!(
            (message.as_slice(), descriptors.len()),
            (b"two".as_slice(), 0)
        );
        client.send(&[7; 65], &[]).await.unwrap();
        let error = server.receive(64).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(client);
        assert!(server.receive(64).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn the_peers_credentials_are_this_processs_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let _client = Connection::connect(&path).unwrap();
        let server = listener.accept().await.unwrap();
        let credentials = server.credentials().unwrap();
        assert_eq!(credentials.pid, std::process::id().cast_signed());
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
