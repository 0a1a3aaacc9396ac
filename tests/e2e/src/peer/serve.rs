//! The servers.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::client::canonical;
use super::pattern::{Checker, Pattern};
use super::report::{Failure, Stage};

/// What a server does with a connection.
#[derive(Clone, Copy, Debug)]
enum Behaviour {
    /// Sends back whatever comes, and ends its direction when the client has ended its own.
    Echo,
    /// Speaks first: `hello from POD to CLIENT at SERVER`; then as `echo`.
    Greet,
    /// Reads all, then reports it and ends: works only if half-closing does.
    Sink,
    /// Reads a number, sends so many bytes of the stream, and ends.
    Source,
    /// Reads a line and resets the connection.
    Reset,
    /// As `echo`, and then prints to its log how it ended: `end: 3 bytes from IP, then ECONNRESET`.
    End,
    /// Answers an HTTP request with 200 and `ok`, and ends.
    Http,
    /// Says whether requests may go on, see [`super::authz`].
    Authz,
    /// Answers an HTTP request with the file of its path.
    Page,
    /// Answers HTTP requests with what it sees of them, see [`super::mirror`].
    Mirror,
    /// Ends calls of gRPC in the ways that there are, see [`super::rpc`].
    Rpc,
}

/// Runs servers given as `echo:8080` until killed; `collect:4317` takes spans and prints them.
pub async fn run(servers: &[String]) -> Result<()> {
    super::load::raise_file_limit()?;
    let mut tasks = tokio::task::JoinSet::new();
    for server in servers {
        if let Some(port) = server.strip_prefix("collect:") {
            let collected = seine_lab::collect::collect(listen(port.parse()?)?);
            tasks.spawn(async { Ok(collected.await?) });
            continue;
        }
        let (behaviour, port) = parse(server)?;
        let listener = listen(port).with_context(|| format!("listening for {server}"))?;
        tasks.spawn(accept(listener, behaviour));
    }
    println!("serving {servers:?}");
    if servers.is_empty() {
        std::future::pending::<()>().await;
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

fn parse(server: &str) -> Result<(Behaviour, u16)> {
    let (behaviour, port) = server.split_once(':').context("as echo:8080")?;
    let behaviour = match behaviour {
        "echo" => Behaviour::Echo,
        "greet" => Behaviour::Greet,
        "sink" => Behaviour::Sink,
        "source" => Behaviour::Source,
        "reset" => Behaviour::Reset,
        "end" => Behaviour::End,
        "http" => Behaviour::Http,
        "page" => Behaviour::Page,
        "authz" => Behaviour::Authz,
        "mirror" => Behaviour::Mirror,
        "rpc" => Behaviour::Rpc,
        other => bail!("no such behaviour: {other}"),
    };
    Ok((behaviour, port.parse()?))
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(4096)?;
    Ok(TcpListener::from_std(socket.into())?)
}

async fn accept(listener: TcpListener, behaviour: Behaviour) -> Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                tokio::spawn(async move {
                    // What goes wrong is the client's to see and report.
                    let _ = serve(stream, canonical(client), behaviour).await;
                });
            }
            Err(error) => {
                println!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn serve(mut stream: TcpStream, client: SocketAddr, behaviour: Behaviour) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match behaviour {
        Behaviour::Echo => echo(&mut stream).await,
        Behaviour::Greet => {
            let pod = nix::unistd::gethostname()?;
            let pod = pod.to_string_lossy();
            let own = canonical(stream.local_addr()?);
            let hello = format!("hello from {pod} to {client} at {own}\n");
            stream.write_all(hello.as_bytes()).await?;
            echo(&mut stream).await
        }
        Behaviour::Sink => sink(&mut stream).await,
        Behaviour::Source => source(&mut stream).await,
        Behaviour::Reset => {
            let mut line = String::new();
            BufReader::new(&mut stream).read_line(&mut line).await?;
            // With what has been sent acknowledged, so that only the reset is under way.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            Ok(())
        }
        Behaviour::End => {
            let (count, how) = match echo_to_the_end(&mut stream).await {
                (count, Ok(())) => (count, "EOF".to_owned()),
                (count, Err(error)) => (count, Failure::new(Stage::Receive, &error).errno),
            };
            println!("end: {count} bytes from {}, then {how}", client.ip());
            Ok(())
        }
        Behaviour::Http => http(&mut stream).await,
        Behaviour::Page => page(&mut stream).await,
        Behaviour::Authz => super::authz::authorize(&mut stream).await,
        Behaviour::Mirror => super::mirror::mirror(&mut stream, client).await,
        Behaviour::Rpc => super::rpc::serve(&mut stream).await,
    }
}

async fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let (mut from, mut to) = stream.split();
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

/// How many bytes it echoed until the end, and what the end was.
async fn echo_to_the_end(stream: &mut TcpStream) -> (usize, io::Result<()>) {
    let mut count = 0;
    let mut buffer = vec![0; 1 << 12];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return (count, Ok(())),
            Ok(read) => {
                count += read;
                if let Err(error) = stream.write_all(&buffer[..read]).await {
                    return (count, Err(error));
                }
            }
            Err(error) => return (count, Err(error)),
        }
    }
}

async fn sink(stream: &mut TcpStream) -> io::Result<()> {
    let mut checker = Checker::default();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            count => checker.take(&buffer[..count]),
        }
    }
    let report = serde_json::to_vec(&checker.end())?;
    stream.write_all(&report).await?;
    stream.shutdown().await
}

async fn source(stream: &mut TcpStream) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(&mut *stream).read_line(&mut line).await?;
    let mut left: u64 = line.trim().parse().map_err(io::Error::other)?;
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let length = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        pattern.fill(&mut buffer[..length]);
        stream.write_all(&buffer[..length]).await?;
        left -= length as u64;
    }
    stream.shutdown().await
}

async fn page(stream: &mut TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut asked, mut line) = (String::new(), String::new());
    reader.read_line(&mut asked).await?;
    while reader.read_line(&mut line).await? > 0 && line != "\r\n" {
        line.clear();
    }
    let path = asked.split(' ').nth(1).unwrap_or_default();
    println!("page: {path}");
    let (status, text) = match tokio::fs::read_to_string(path).await {
        Ok(text) => ("200 OK", text),
        Err(error) => ("404 Not Found", error.to_string()),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    reader.get_mut().write_all(answer.as_bytes()).await?;
    reader.get_mut().shutdown().await
}

async fn http(stream: &mut TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).await? > 0 {
        if line == "\r\n" {
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n";
            reader.get_mut().write_all(answer.as_bytes()).await?;
            return reader.get_mut().shutdown().await;
        }
        line.clear();
    }
    Ok(())
}
