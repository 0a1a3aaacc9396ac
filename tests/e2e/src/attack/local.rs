//! The node's local sockets, all of kind SEQPACKET, used by a process that has no business there.

use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::{Uid, setuid};
use socket2::{Domain, SockAddr, Socket, Type};

use super::report::Said;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends one packet, given in hexadecimal, and waits for one.
pub fn say(path: &Path, packet: &str) -> Result<Said> {
    let packet = from_hexadecimal(packet)?;
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    if let Err(error) = socket.connect(&SockAddr::unix(path)?) {
        return Ok(Said::NotConnected(error.to_string()));
    }
    // Who is turned away may be told so before the packet is out.
    let _ = socket.send_with_flags(&packet, nix::libc::MSG_NOSIGNAL);
    receive(&socket)
}

/// Listens at the path, as `user` in the eyes of whoever connects, and waits for the first packet.
pub fn listen(path: &Path, user: Option<u32>, patience: Duration) -> Result<Said> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| path.display().to_string());
        }
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    if let Some(user) = user {
        setuid(Uid::from_raw(user)).context("setuid")?;
    }
    // The credentials of this moment are those that a client sees.
    socket.listen(4)?;
    socket.set_nonblocking(true)?;
    let deadline = Instant::now() + patience;
    let mut last = Said::Silence;
    // A client that doesn't trust us closes and comes again.
    while Instant::now() < deadline {
        match socket.accept() {
            Ok((client, _)) => {
                client.set_nonblocking(false)?;
                last = receive(&client)?;
                if matches!(last, Said::Answered(_)) {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error).context("accept"),
        }
    }
    Ok(last)
}

fn receive(mut socket: &Socket) -> Result<Said> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 1 << 16];
    match socket.read(&mut buffer) {
        Ok(0) => Ok(Said::Closed),
        Ok(length) => Ok(Said::Answered(buffer[..length].to_vec())),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(Said::Silence),
            ErrorKind::ConnectionReset => Ok(Said::Closed),
            _ => Err(error).context("receive"),
        },
    }
}

/// Bytes of their hexadecimal digits.
fn from_hexadecimal(text: &str) -> Result<Vec<u8>> {
    ensure!(
        text.is_ascii() && text.len().is_multiple_of(2),
        "pairs of hexadecimal digits are wanted"
    );
    (0..text.len() / 2)
        .map(|index| Ok(u8::from_str_radix(&text[2 * index..2 * index + 2], 16)?))
        .collect()
}

/// The hexadecimal digits of bytes, as [`say`] takes them.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_give_the_bytes_back() {
        for bytes in [&b""[..], b"\x00\xff", b"{}"] {
            assert_eq!(from_hexadecimal(&hexadecimal(bytes)).unwrap(), bytes);
        }
        assert!(from_hexadecimal("0").is_err());
        assert!(from_hexadecimal("zz").is_err());
    }
}
