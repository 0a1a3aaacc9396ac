//! `SOCK_SEQPACKET` Unix sockets on tokio: whole messages, with descriptors in `SCM_RIGHTS`.
//!
//! Every local protocol of the node proxy (pods and listeners from the agent, hand-over from another proxy) is one
//! message a packet on such a socket. A message longer than the receiver's buffer is an error, never cut silently.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
};
use tokio::net::{UnixListener, UnixStream};

/// The most descriptors that one packet may carry: the kernel's own bound is 253; a pod has ten listeners.
const MAX_DESCRIPTORS: usize = 16;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// One end of a connection.
#[derive(Debug)]
pub struct SeqPacket(UnixStream);

impl SeqPacket {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = unix_socket()?;
        // On a Unix socket connect(2) either succeeds at once or fails (EAGAIN: the backlog is full).
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(wrap(socket)?))
    }

    /// Two ends that are connected to each other.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        Ok((Self(wrap(a)?), Self(wrap(b)?)))
    }

    /// An end that came from another process.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        Ok(Self(wrap(descriptor)?))
    }

    /// Sends one packet.
    pub async fn send(&self, bytes: &[u8], descriptors: &[impl AsFd]) -> io::Result<()> {
        self.0
            .async_io(tokio::io::Interest::WRITABLE, || {
                let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
                let mut space =
                    [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !borrowed.is_empty()
                    && !control.push(rustix::net::SendAncillaryMessage::ScmRights(&borrowed))
                {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "too many descriptors in a packet",
                    ));
                }
                sendmsg(
                    &self.0,
                    &[IoSlice::new(bytes)],
                    &mut control,
                    SendFlags::NOSIGNAL,
                )?;
                Ok(())
            })
            .await
    }

    /// Sends one packet without descriptors.
    pub async fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        self.send(bytes, &[] as &[OwnedFd]).await
    }

    /// Receives one packet of at most `buffer.len()` bytes, and its descriptors. `None`: the peer closed.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
        self.0
            .async_io(tokio::io::Interest::READABLE, || {
                let mut space =
                    [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let got = recvmsg(
                    &self.0,
                    &mut [IoSliceMut::new(buffer)],
                    &mut control,
                    RecvFlags::CMSG_CLOEXEC,
                )?;
                let descriptors: Vec<OwnedFd> = control
                    .drain()
                    .filter_map(|message| match message {
                        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                        _ => None,
                    })
                    .flatten()
                    .collect();
                if got
                    .flags
                    .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
                {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a packet is longer than the protocol allows",
                    ));
                }
                if got.bytes == 0 && descriptors.is_empty() {
                    return Ok(None);
                }
                Ok(Some((got.bytes, descriptors)))
            })
            .await
    }

    /// The peer process's user id and process id, as the kernel recorded them at connect.
    pub fn peer(&self) -> io::Result<Peer> {
        // Not rustix's: to it a process of a PID namespace that we don't see is an error.
        let credentials = getsockopt(&self.0, sockopt::PeerCredentials)?;
        Ok(Peer {
            uid: credentials.uid(),
            pid: credentials.pid(),
        })
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Who is at the other end of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Process id in this process's PID namespace; 0 if it has none there, as the agent in another pod.
    pub pid: i32,
}

impl Peer {
    /// Whether the peer runs as root or as this process's own user, and, where `cgroup` is given, below that cgroup.
    ///
    /// The cgroup is read from `/proc` after the connection was made: a process that has exited since is refused.
    pub fn is_trusted(&self, cgroup: Option<&str>) -> Result<(), String> {
        let own = rustix::process::geteuid().as_raw();
        if self.uid != 0 && self.uid != own {
            return Err(format!("its user id is {}, neither 0 nor {own}", self.uid));
        }
        let Some(wanted) = cgroup else { return Ok(()) };
        if self.pid <= 0 {
            return Err("its process is in a PID namespace that is not visible here".to_owned());
        }
        let text =
            std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).map_err(|error| {
                format!("the cgroup of process {} can't be read: {error}", self.pid)
            })?;
        let unified = text
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .unwrap_or("");
        let wanted = wanted.trim_end_matches('/');
        match unified.strip_prefix(wanted) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Ok(()),
            _ => Err(format!(
                "process {} is in cgroup {unified:?}, not below {wanted:?}",
                self.pid
            )),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct SeqPacketListener(UnixListener);

impl SeqPacketListener {
    /// Binds at `path`, taking the place of whatever socket was there, in one step: who connects meanwhile reaches
    /// either the old one or the new one. Only the owner may connect.
    pub fn replace(path: &Path) -> io::Result<Self> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = Path::new(&temporary);
        match std::fs::remove_file(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = unix_socket()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(temporary)?)?;
        std::fs::set_permissions(
            temporary,
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )?;
        rustix::net::listen(&socket, 4)?;
        std::fs::rename(temporary, path)?;
        // The type is tokio's for stream sockets: accept(2) doesn't care.
        Ok(Self(UnixListener::from_std(socket.into())?))
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<SeqPacket> {
        let (accepted, _) = self.0.accept().await?;
        Ok(SeqPacket(accepted))
    }
}

/// Registers a socket with the runtime under tokio's type for stream sockets, whose readiness is the same. Its own
/// `read` and `write` are never used here.
fn wrap(socket: OwnedFd) -> io::Result<UnixStream> {
    UnixStream::from_std(socket.into())
}

fn unix_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        FLAGS,
        None,
    )?)
}

/// Whether a descriptor that came from another process is a listening socket.
pub(crate) fn is_listening(fd: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_acceptconn(fd).unwrap_or(false)
}

/// Whether a descriptor is a UDP socket.
pub(crate) fn is_udp(fd: &OwnedFd) -> bool {
    let protocol = rustix::net::sockopt::socket_protocol(fd);
    protocol.is_ok_and(|protocol| protocol == Some(rustix::net::ipproto::UDP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_keep_their_boundaries_and_carry_descriptors() {
        let (a, b) = SeqPacket::pair().unwrap();
        let file = std::fs::File::open("/proc/self/ns/net").unwrap();
        a.send(b"one", &[&file]).await.unwrap();
        a.send_bytes(b"two").await.unwrap();
        let mut buffer = [0; 64];
        let (length, descriptors) = b.recv(&mut buffer).await.unwrap().unwrap();
        assert_eq!((&buffer[..length], descriptors.len()), (&b"one"[..], 1));
        let (length, descriptors) = b.recv(&mut buffer).await.unwrap().unwrap();
        assert_eq!((&buffer[..length], descriptors.len()), (&b"two"[..], 0));
        drop(a);
        assert!(b.recv(&mut buffer).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_packet_that_is_too_long_is_an_error() {
        let (a, b) = SeqPacket::pair().unwrap();
        a.send_bytes(&[0; 65]).await.unwrap();
        assert_eq!(
            b.recv(&mut [0; 64]).await.unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[tokio::test]
    async fn a_new_listener_takes_the_path_of_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let old = SeqPacketListener::replace(&path).unwrap();
        let first = SeqPacket::connect(&path).unwrap();
        old.accept().await.unwrap();
        let new = SeqPacketListener::replace(&path).unwrap();
        let second = SeqPacket::connect(&path).unwrap();
        let accepted = new.accept().await.unwrap();
        assert_eq!(accepted.peer().unwrap().pid, std::process::id() as i32);
        accepted.peer().unwrap().is_trusted(None).unwrap();
        assert!(
            accepted
                .peer()
                .unwrap()
                .is_trusted(Some("/no/such/cgroup"))
                .is_err()
        );
        drop((first, second));
    }
}
