//! What applications do in the tests, each in words that the tests compare.

use std::{
    io::{self, Read as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// Connects and tells what the other side said, or the error.
pub(crate) fn ask(to: impl Into<SocketAddr>) -> String {
    let to = to.into();
    TcpStream::connect_timeout(&to, PATIENCE)
        .and_then(read)
        .unwrap_or_else(word)
}

/// Reads what the other side says.
pub(crate) fn read(mut stream: TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// An error in one word.
pub(crate) fn word(error: io::Error) -> String {
    format!("{:?}", error.kind())
}

/// Connects a socket that was prepared somehow, and tells what the other side said.
pub(crate) fn ask_with(to: SocketAddr, prepare: impl FnOnce(&Socket)) -> String {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    prepare(&socket);
    socket
        .connect_timeout(&to.into(), PATIENCE)
        .and_then(|()| read(socket.into()))
        .unwrap_or_else(word)
}

/// Sends a query to a resolver and tells the answer and whom it came from.
pub(crate) fn query(resolver: SocketAddr, connected: bool) -> String {
    let any: SocketAddr = if resolver.is_ipv4() {
        "0.0.0.0:0".parse()
    } else {
        "[::]:0".parse()
    }
    .unwrap();
    let exchange = || -> io::Result<String> {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        if connected {
            socket.connect(resolver)?;
            socket.send(b"query")?;
        } else {
            socket.send_to(b"query", resolver)?;
        }
        let mut answer = [0; 512];
        let (length, from) = socket.recv_from(&mut answer)?;
        Ok(format!(
            "{} from {from}",
            String::from_utf8_lossy(&answer[..length])
        ))
    };
    exchange().unwrap_or_else(word)
}
