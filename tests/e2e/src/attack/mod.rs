//! What the attackers of the end-to-end tests do, one subcommand of `seine-e2e-attacker` each.
//!
//! It prints what came of it as one line of JSON, in the types of [`report`], and exits with
//! status 0 also where it got nowhere: whether that is right is the test's to say.

pub mod certificate;
pub mod garbage;
pub mod local;
pub mod marked;
pub mod report;
pub mod tunnel;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use seine_identity::Identity;

use crate::peer::report::print;

/// The program of the attackers.
#[derive(Parser)]
#[command(name = "seine-e2e-attacker")]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Open an HBONE tunnel and a stream in it; send a text, half-close, read to the end.
    Tunnel {
        /// Folder of a good SVID: by its roots the server is judged.
        #[arg(long)]
        svid: PathBuf,
        /// Folder of the certificate to present instead.
        #[arg(long)]
        present: Option<PathBuf>,
        /// Present none.
        #[arg(long, conflicts_with = "present")]
        anonymous: bool,
        /// The HBONE address of the pod.
        #[arg(long)]
        peer: SocketAddr,
        /// Who that is.
        #[arg(long)]
        expect: Identity,
        /// What is asked for.
        #[arg(long)]
        authority: String,
        /// What is sent.
        #[arg(long, default_value = "")]
        send: String,
    },
    /// Send bytes that no protocol has, and wait until the other side ends the connection.
    Garbage {
        /// As datagrams of UDP; whatever comes back within a moment is counted.
        #[arg(long)]
        datagrams: bool,
        /// To whom.
        addresses: Vec<SocketAddr>,
    },
    /// Connect with a mark on the socket, send, half-close, read to the end.
    Marked {
        /// To whom.
        address: SocketAddr,
        /// The mark.
        #[arg(long)]
        mark: u32,
        /// What is sent.
        #[arg(long)]
        send: String,
    },
    /// Ask the CA for a certificate, as a node proxy does.
    Certificate {
        /// `https://HOST:PORT`
        #[arg(long)]
        address: String,
        /// PEM file of the CA's roots.
        #[arg(long)]
        roots: PathBuf,
        /// The name in its server certificate.
        #[arg(long)]
        server_name: String,
        /// File of the bearer token.
        #[arg(long)]
        token: PathBuf,
        /// For whom.
        #[arg(long)]
        identity: Identity,
    },
    /// Connect to a local socket, send one packet, and wait for one.
    Say {
        /// Path of the socket.
        socket: PathBuf,
        /// The packet, in hexadecimal.
        packet: String,
    },
    /// Listen where the agent does, and wait for a node proxy's first packet.
    Listen {
        /// Path of the socket; whatever is there is replaced.
        socket: PathBuf,
        /// Become this user before.
        #[arg(long)]
        user: Option<u32>,
        /// Seconds to wait.
        #[arg(long, default_value_t = 12)]
        patience: u64,
    },
}

impl Arguments {
    /// Does what was asked for.
    pub fn run(self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the runtime")?;
        runtime.block_on(self.action.run())
    }
}

impl Action {
    async fn run(self) -> Result<()> {
        match self {
            Self::Tunnel {
                svid,
                present,
                anonymous,
                peer,
                expect,
                authority,
                send,
            } => {
                let presents = match (present, anonymous) {
                    (Some(folder), _) => tunnel::Presents::Other(folder),
                    (None, true) => tunnel::Presents::Nothing,
                    (None, false) => tunnel::Presents::Own,
                };
                let client = tunnel::Client::new(&svid, &presents, expect)?;
                print(&client.ask(peer, &authority, &send).await?)
            }
            Self::Garbage {
                addresses,
                datagrams: false,
            } => print(&garbage::send(&addresses).await),
            Self::Garbage {
                addresses,
                datagrams: true,
            } => print(&garbage::send_datagrams(&addresses).await?),
            Self::Marked {
                address,
                mark,
                send,
            } => print(&marked::ask(address, mark, &send).await?),
            Self::Certificate {
                address,
                roots,
                server_name,
                token,
                identity,
            } => print(&certificate::ask(address, roots, server_name, token, &identity).await),
            Self::Say { socket, packet } => print(&local::say(&socket, &packet)?),
            Self::Listen {
                socket,
                user,
                patience,
            } => print(&local::listen(
                &socket,
                user,
                Duration::from_secs(patience),
            )?),
        }
    }
}
