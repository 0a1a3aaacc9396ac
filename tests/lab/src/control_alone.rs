//! A control plane without a lab around it, from a folder of objects: for who tests or measures that alone.
//!
//! Below its folder are `objects`, `ca`, and the log.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::token::Issuer;

/// The process; it is killed when this is dropped.
pub struct ControlAlone {
    child: Child,
    folder: PathBuf,
    listen: SocketAddr,
    issuer: Issuer,
}

impl ControlAlone {
    /// Starts `program` on what is in `folder/objects`. When this returns it serves.
    pub fn start(
        program: &Path,
        folder: &Path,
        arguments: &[&str],
        patience: Duration,
    ) -> Result<Self> {
        let issuer = Issuer::create(folder)?;
        let (listen, admin) = (free()?, free()?);
        let log = folder.join("control.log");
        let child = Command::new(program)
            .arg("--directory")
            .arg(folder.join("objects"))
            .arg("--ca-dir")
            .arg(folder.join("ca"))
            .arg("--token-public-key")
            .arg(issuer.public_key())
            .arg(format!("--listen={listen}"))
            .arg(format!("--admin-address={admin}"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let control = Self {
            child,
            folder: folder.to_owned(),
            listen,
            issuer,
        };
        let begun = Instant::now();
        while !is_ready(admin) {
            ensure!(
                begun.elapsed() < patience,
                "the control plane is not ready after {patience:?}: {}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(control)
    }

    /// Where xDS and the CA are.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The PEM file of the roots of its server certificate, and of all others.
    pub fn roots(&self) -> PathBuf {
        self.folder.join("ca/root-cert.pem")
    }

    /// Whose tokens it takes.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// Of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes a file of objects, whole or not at all: it is read when it changes.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let new = self.folder.join("new");
        fs::write(&new, text)?;
        fs::rename(new, self.folder.join("objects").join(name))?;
        Ok(())
    }
}

impl Drop for ControlAlone {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ready(admin: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(admin)?;
        stream.write_all(b"GET /healthz/ready HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.split(' ').nth(1) == Some("200"))
}

/// Nobody else of this machine takes it in the next moment, or the start fails.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
