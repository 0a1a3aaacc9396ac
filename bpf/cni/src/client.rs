//! One exchange with the agent, bounded in time.

use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::ControlMessage;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::UnixAddr;
use nix::sys::socket::connect;
use nix::sys::socket::recv;
use nix::sys::socket::sendmsg;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt;
use nix::sys::time::TimeVal;

use crate::api;

/// The agent's `cni.sock`.
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

/// Why there is no answer. In each case the agent may not have done what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, the socket is not there, or it may not be used.
    #[error("connect to the agent at {socket}: {errno}")]
    Connect {
        /// The socket's path.
        socket: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
    /// The exchange broke off or took too long.
    #[error("{action} the agent at {socket}: {errno}")]
    Exchange {
        /// `send to` or `answer from`.
        action: &'static str,
        /// The socket's path.
        socket: PathBuf,
        /// What the kernel said; EAGAIN is the timeout.
        errno: Errno,
    },
    /// The agent closed without an answer, as it does to a peer that it refuses.
    #[error("the agent at {0} closed the connection without an answer: see its log")]
    Closed(PathBuf),
    /// The answer is not JSON of the local API.
    #[error("the agent at {socket} gave an answer that can't be read: {error}")]
    Answer {
        /// The socket's path.
        socket: PathBuf,
        /// Where it is wrong.
        error: serde_json::Error,
    },
}

impl Client {
    /// A client of the socket; each step waits no longer than `timeout`.
    pub fn new(socket: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self {
            socket: socket.into(),
            timeout,
        }
    }

    /// Sends one request, with the network namespace where it wants one, and waits for the answer.
    ///
    /// # Errors
    ///
    /// The agent can't be reached or doesn't answer in time; see [`ClientError`].
    pub fn call(
        &self,
        request: &api::Request,
        netns: Option<BorrowedFd<'_>>,
    ) -> Result<api::Response, ClientError> {
        let path: &Path = &self.socket;
        let refused = |errno| ClientError::Connect {
            socket: path.to_owned(),
            errno,
        };
        let exchange = |action| {
            move |errno| ClientError::Exchange {
                action,
                socket: path.to_owned(),
                errno,
            }
        };
        let address = UnixAddr::new(path).map_err(refused)?;
        let socket = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(refused)?;
        let limit = TimeVal::new(i64::try_from(self.timeout.as_secs()).unwrap_or(i64::MAX), 0);
        setsockopt(&socket, sockopt::SendTimeout, &limit).map_err(refused)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit).map_err(refused)?;
        connect(socket.as_raw_fd(), &address).map_err(refused)?;

        let message =
            serde_json::to_vec(request).expect("the request has only strings and lists of them");
        let descriptors: Vec<_> = netns.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control: &[_] = if descriptors.is_empty() { &[] } else { &rights };
        sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&message)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(exchange("send to"))?;

        let mut buffer = vec![0; api::MAX_MESSAGE];
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
            .map_err(exchange("answer from"))?;
        if length == 0 {
            return Err(ClientError::Closed(path.to_owned()));
        }
        serde_json::from_slice(&buffer[..length]).map_err(|error| ClientError::Answer {
            socket: path.to_owned(),
            error,
        })
    }
}
