//! An HTTP server that answers with what it sees, and as a request's headers want it.
//!
//! The answer has the name of the pod, its client's address, the request's head and its body. `x-fail-first: WORD` makes
//! the first request with this word fail with 503; `x-answer: STATUS` is what it is answered with; `x-wait: MILLISECONDS` lets it take its time; after a request for
//! another protocol what comes is sent back; `x-size: BYTES` lets the answer go on for so many. Each request is printed to the log.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Words with which a request failed already.
static FAILED: Mutex<Option<HashSet<String>>> = Mutex::new(None);

/// Answers the requests of a connection.
pub(super) async fn mirror(stream: &mut TcpStream, client: SocketAddr) -> io::Result<()> {
    let pod = nix::unistd::gethostname()?;
    let pod = pod.to_string_lossy();
    let mut stream = BufReader::new(stream);
    while let Some(head) = head(&mut stream).await? {
        let body = body(&mut stream, &head).await?;
        println!("request: {}", head.lines().next().unwrap_or_default());
        if let Some(millis) = header(&head, "x-wait").and_then(|text| text.parse().ok()) {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        if let Some(protocol) = header(&head, "upgrade") {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await?;
            let (mut from, mut to) = tokio::io::split(stream);
            tokio::io::copy(&mut from, &mut to).await?;
            return to.shutdown().await;
        }
        let fails = header(&head, "x-fail-first").is_some_and(|word| {
            let mut failed = FAILED.lock();
            failed.get_or_insert_default().insert(word.to_owned())
        });
        let status = match (fails, header(&head, "x-answer")) {
            (true, _) => "503 Service Unavailable",
            (false, Some(status)) => status,
            (false, None) => "200 OK",
        };
        let mut text = format!("pod {pod} client {}\n{head}{body}", client.ip());
        if let Some(size) = header(&head, "x-size").and_then(|text| text.parse().ok()) {
            text += &".".repeat(size);
        }
        let answer = format!(
            "HTTP/1.1 {status}\r\nx-mirror: {pod}\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        stream.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

/// A request's lines; `None` at the end of the connection.
async fn head(stream: &mut BufReader<&mut TcpStream>) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if stream.read_line(&mut head).await? == 0 {
            return Ok(None);
        }
        if &head[before..] == "\r\n" {
            head.truncate(before);
            return Ok(Some(head));
        }
    }
}

async fn body(stream: &mut BufReader<&mut TcpStream>, head: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(length) = header(head, "content-length") {
        bytes = vec![0; length.parse().map_err(io::Error::other)?];
        stream.read_exact(&mut bytes).await?;
    } else if header(head, "transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await?;
            bytes.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().skip(1);
    lines.find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
