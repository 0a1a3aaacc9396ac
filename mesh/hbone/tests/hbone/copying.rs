//! Streams joined to TCP connections, over loopback.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use seine_hbone::copy::Side;
use seine_hbone::{
    CopyEnd, CopyOptions, Counters, Ended, Fault, Memory, Pool, Role, Settings, copy, copy_plain,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::{pair, server};

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), accepted.unwrap().0)
}

/// Two applications, joined through two proxies, or through one that copies plainly.
struct Joined {
    client: TcpStream,
    server: TcpStream,
    /// The copy next to the client.
    outbound: JoinHandle<CopyEnd>,
    inbound: Option<JoinHandle<CopyEnd>>,
    counters: Arc<Counters>,
}

async fn joined(meshed: bool, options: CopyOptions) -> Joined {
    let (client, near) = tcp_pair().await;
    let (far, application) = tcp_pair().await;
    let copying = join(meshed, near, far, options).await;
    Joined {
        client,
        server: application,
        outbound: copying.outbound,
        inbound: copying.inbound,
        counters: copying.counters,
    }
}

/// What moves the bytes between the two connections.
struct Copying {
    outbound: JoinHandle<CopyEnd>,
    inbound: Option<JoinHandle<CopyEnd>>,
    counters: Arc<Counters>,
}

async fn join(meshed: bool, near: TcpStream, far: TcpStream, options: CopyOptions) -> Copying {
    let counters = Arc::new(Counters::default());
    let counted = Arc::clone(&counters);
    if !meshed {
        let outbound = tokio::spawn(async move { copy_plain(near, far, &options, &counted).await });
        return Copying {
            outbound,
            inbound: None,
            counters,
        };
    }
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let (up, down) = pair(&pool, &server, &mut seen).await;
    let both = options.clone();
    let outbound = tokio::spawn(async move {
        let _kept = (pool, server, seen);
        copy(near, up, &options, &counted).await
    });
    let inbound = tokio::spawn(async move { copy(far, down, &both, &Counters::default()).await });
    Copying {
        outbound,
        inbound: Some(inbound),
        counters,
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

#[tokio::test]
async fn bytes_arrive_whole_in_both_directions_at_once() {
    for meshed in [true, false] {
        let mut joined = joined(meshed, CopyOptions::default()).await;
        let sent = pattern(6_000_001);
        let (mut client_read, mut client_write) = joined.client.into_split();
        let (mut server_read, mut server_write) = joined.server.split();
        let (forth, back) = (sent.clone(), &sent[1..]);
        let (mut got_back, mut got_forth) = (Vec::new(), Vec::new());
        let write = async {
            client_write.write_all(&forth).await.unwrap();
            client_write.shutdown().await.unwrap();
        };
        let answer = async {
            server_write.write_all(back).await.unwrap();
            server_write.shutdown().await.unwrap();
        };
        let (_, _, a, b) = tokio::join!(
            write,
            answer,
            client_read.read_to_end(&mut got_back),
            server_read.read_to_end(&mut got_forth)
        );
        a.unwrap();
        b.unwrap();
        assert!(got_back == back && got_forth == forth, "meshed: {meshed}");
        let end = joined.outbound.await.unwrap();
        assert!(matches!(end.how, Ended::Finished), "{:?}", end.how);
        assert_eq!(
            (end.forth, end.back),
            (forth.len() as u64, back.len() as u64)
        );
        assert_eq!(end.fault(Role::Outbound), None);
        assert_eq!(joined.counters.forth(), end.forth);
        if let Some(inbound) = joined.inbound {
            let end = inbound.await.unwrap();
            assert!(matches!(end.how, Ended::Finished), "{:?}", end.how);
            assert_eq!(
                (end.forth, end.back),
                (back.len() as u64, forth.len() as u64)
            );
        }
    }
}

#[tokio::test]
async fn an_answer_may_follow_the_end_of_the_request() {
    for meshed in [true, false] {
        let mut joined = joined(meshed, CopyOptions::default()).await;
        joined.client.write_all(b"question").await.unwrap();
        joined.client.shutdown().await.unwrap();
        let mut got = String::new();
        joined.server.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "question");
        tokio::time::sleep(Duration::from_millis(50)).await;
        joined.server.write_all(b"answer").await.unwrap();
        drop(joined.server);
        got.clear();
        joined.client.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "answer");
        assert!(matches!(
            joined.outbound.await.unwrap().how,
            Ended::Finished
        ));
    }
}

#[tokio::test]
async fn a_reset_by_either_application_reaches_the_other_as_a_reset() {
    for meshed in [true, false] {
        for by_client in [true, false] {
            let joined = joined(meshed, CopyOptions::default()).await;
            let (by, mut at) = match by_client {
                true => (joined.client, joined.server),
                false => (joined.server, joined.client),
            };
            by.set_zero_linger().unwrap();
            drop(by);
            let error = at.read(&mut [0; 16]).await.unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionReset,
                "{meshed} {by_client}"
            );
            let end = joined.outbound.await.unwrap();
            let fault = end.fault(Role::Outbound);
            let expected = if by_client {
                Fault::Downstream
            } else {
                Fault::Upstream
            };
            assert_eq!(fault, Some(expected), "{:?}", end.how);
            if let (true, true) = (by_client, meshed) {
                assert!(
                    matches!(end.how, Ended::Tcp(Side::First, _)),
                    "{:?}",
                    end.how
                );
            }
        }
    }
}

/// Writes until nothing is taken any more.
async fn fill(writer: &mut TcpStream) -> usize {
    let piece = pattern(1 << 20);
    let mut written = 0usize;
    let full = Duration::from_millis(300);
    while let Ok(count) = tokio::time::timeout(full, writer.write(&piece)).await {
        written += count.unwrap();
        assert!(written < 64 << 20, "nothing stops the writer");
    }
    written
}

#[tokio::test]
async fn a_reset_passes_the_bytes_that_wait_for_a_reader_that_never_reads() {
    for case in 0..8 {
        let (meshed, client_writes, writer_resets) = (case & 1 == 0, case & 2 == 0, case & 4 == 0);
        let joined = joined(meshed, CopyOptions::default()).await;
        let (mut writer, reader) = match client_writes {
            true => (joined.client, joined.server),
            false => (joined.server, joined.client),
        };
        fill(&mut writer).await;
        let (by, mut at) = match writer_resets {
            true => (writer, reader),
            false => (reader, writer),
        };
        by.set_zero_linger().unwrap();
        drop(by);
        // Nobody reads until both ends of the mesh have let go.
        let case = format!("{meshed} {client_writes} {writer_resets}");
        let both = async {
            joined.outbound.await.unwrap();
            if let Some(inbound) = joined.inbound {
                inbound.await.unwrap();
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(20), both).await;
        assert!(seen.is_ok(), "the reset is not passed on: {case}");
        let mut left = Vec::new();
        let error = at.read_to_end(&mut left).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{case}");
    }
}

#[tokio::test]
async fn a_reset_after_the_end_of_the_request_reaches_the_other_side() {
    for meshed in [true, false] {
        let mut joined = joined(meshed, CopyOptions::default()).await;
        joined.client.shutdown().await.unwrap();
        assert_eq!(joined.server.read(&mut [0]).await.unwrap(), 0);
        joined.client.set_zero_linger().unwrap();
        drop(joined.client);
        let ended = tokio::time::timeout(Duration::from_secs(20), joined.outbound).await;
        assert!(ended.is_ok(), "the reset is not passed on: {meshed}");
        if let Some(inbound) = joined.inbound {
            inbound.await.unwrap();
        }
        let error = joined.server.write_all(b"late").await.err();
        let error = match error {
            Some(error) => error,
            None => joined.server.write_all(b"later").await.unwrap_err(),
        };
        assert!(
            matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_a_reset_to_both_applications() {
    for meshed in [true, false] {
        let mut joined = joined(meshed, CopyOptions::default()).await;
        joined.client.write_all(b"x").await.unwrap();
        joined.server.read_exact(&mut [0]).await.unwrap();
        joined.outbound.abort();
        for application in [&mut joined.client, &mut joined.server] {
            let error = application.read(&mut [0; 16]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
}

/// Set in the process that copies: how, and where the two applications listen.
const COPYING_PROCESS: &str = "SEINE_TEST_COPYING_PROCESS";

#[tokio::test]
async fn a_kill_of_the_copying_process_is_a_reset_to_both_applications() {
    if let Ok(task) = std::env::var(COPYING_PROCESS) {
        return copy_until_killed(&task).await;
    }
    for meshed in [true, false] {
        let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let task = format!(
            "{meshed} {} {}",
            near.local_addr().unwrap(),
            far.local_addr().unwrap()
        );
        let mut process = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "copying::a_kill_of_the_copying_process_is_a_reset_to_both_applications",
            ])
            .env(COPYING_PROCESS, task)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let (mut client, _) = near.accept().await.unwrap();
        let (mut server, _) = far.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        server.read_exact(&mut [0; 8]).await.unwrap();
        server.write_all(b"half an ans").await.unwrap();
        client.read_exact(&mut [0; 11]).await.unwrap();
        // SIGKILL: nothing of the process runs any more.
        process.kill().unwrap();
        process.wait().unwrap();
        for application in [&mut client, &mut server] {
            let end = application.read(&mut [0; 16]).await;
            assert_eq!(
                end.unwrap_err().kind(),
                ErrorKind::ConnectionReset,
                "meshed: {meshed}"
            );
        }
    }
}

async fn copy_until_killed(task: &str) {
    let words: Vec<&str> = task.split(' ').collect();
    let near = TcpStream::connect(words[1]).await.unwrap();
    let far = TcpStream::connect(words[2]).await.unwrap();
    let copying = join(words[0] == "true", near, far, CopyOptions::default()).await;
    copying.outbound.await.unwrap();
}

#[tokio::test]
async fn a_writer_is_stopped_by_a_reader_that_stalls_and_goes_on_with_it() {
    for meshed in [true, false] {
        let mut joined = joined(meshed, CopyOptions::default()).await;
        let written = fill(&mut joined.client).await;
        let mut got = vec![0; written];
        joined.server.read_exact(&mut got).await.unwrap();
        joined.client.write_all(b"more").await.unwrap();
        joined.server.read_exact(&mut got[..4]).await.unwrap();
        assert_eq!(&got[..4], b"more");
    }
}

#[tokio::test]
async fn readers_that_stall_share_a_bound_and_the_first_of_them_is_ended() {
    // Plainly a connection holds a batch, in the mesh a window.
    for (meshed, bound) in [(true, 3 << 20), (false, 600 << 10)] {
        let memory = Memory::new(bound);
        let options = CopyOptions {
            memory: Some(Arc::clone(&memory)),
            ..CopyOptions::default()
        };
        let mut stalled = Vec::new();
        for _ in 0..6 {
            let mut joined = joined(meshed, options.clone()).await;
            let written = fill(&mut joined.client).await;
            stalled.push((joined, written));
        }
        let (mut last, written) = stalled.pop().unwrap();
        let (first, _) = stalled.swap_remove(0);
        let copying = first.inbound.unwrap_or(first.outbound);
        let end = tokio::time::timeout(Duration::from_secs(20), copying).await;
        let how = end.expect("it is ended").unwrap().how;
        assert!(matches!(how, Ended::Stalled(_)), "{how:?}");
        assert!(memory.held() <= bound);
        // The last one goes on when its reader does, and holds nothing more.
        let mut got = vec![0; written];
        last.server.read_exact(&mut got).await.unwrap();
        drop(stalled);
        last.client.write_all(b"more").await.unwrap();
        last.server.read_exact(&mut got[..4]).await.unwrap();
    }
}

#[tokio::test]
async fn a_tunnel_that_takes_nothing_holds_no_more_than_the_bound() {
    const BOUND: usize = 1 << 20;
    let memory = Memory::new(BOUND);
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let mut pairs = Vec::new();
    for _ in 0..6 {
        pairs.push(pair(&pool, &server, &mut seen).await);
    }
    server.frozen.send_replace(true);
    let (mut copies, mut others) = (tokio::task::JoinSet::new(), Vec::new());
    for (up, down) in pairs {
        others.push(down);
        let (mut client, near) = tcp_pair().await;
        let options = CopyOptions {
            memory: Some(Arc::clone(&memory)),
            ..CopyOptions::default()
        };
        copies.spawn(async move { copy(near, up, &options, &Counters::default()).await.how });
        // Until it is reset.
        tokio::spawn(async move { while client.write_all(&[1; 64 << 10]).await.is_ok() {} });
    }
    // The send buffers of six are 3 MiB: two fit.
    for _ in 0..4 {
        let ended = tokio::time::timeout(Duration::from_secs(20), copies.join_next()).await;
        let how = ended.expect("it is ended").unwrap().unwrap();
        assert!(matches!(how, Ended::Stalled(Side::Second)), "{how:?}");
    }
    assert!(
        (1..=BOUND).contains(&memory.held()),
        "{} bytes",
        memory.held()
    );
}

#[tokio::test]
async fn an_idle_connection_ends_at_its_limit_and_a_used_one_does_not() {
    for meshed in [true, false] {
        let limit = Duration::from_millis(400);
        let options = CopyOptions {
            idle_timeout: Some(limit),
            ..CopyOptions::default()
        };
        let mut joined = joined(meshed, options).await;
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            joined.client.write_all(b"x").await.unwrap();
            joined.server.read_exact(&mut [0]).await.unwrap();
        }
        assert!(!joined.outbound.is_finished());
        let end = joined.outbound.await.unwrap();
        // In the mesh either proxy's clock may be the first.
        assert!(
            matches!(end.how, Ended::Idle(_) | Ended::Stream(_)),
            "{:?}",
            end.how
        );
        assert!(joined.client.read(&mut [0]).await.is_err());
    }
}

#[tokio::test]
async fn a_half_closed_connection_has_a_limit_of_its_own() {
    let limit = Duration::from_millis(200);
    let options = CopyOptions {
        idle_timeout: None,
        half_closed_timeout: Some(limit),
        memory: None,
    };
    let mut joined = joined(false, options).await;
    tokio::time::sleep(limit * 2).await;
    assert!(!joined.outbound.is_finished());
    joined.client.shutdown().await.unwrap();
    let end = joined.outbound.await.unwrap();
    assert!(matches!(end.how, Ended::HalfClosed(_)), "{:?}", end.how);
    assert_eq!(end.fault(Role::Inbound), Some(Fault::Internal));
}

#[tokio::test]
async fn a_held_connection_costs_little() {
    let (near, _client) = tcp_pair().await;
    let (far, _server) = tcp_pair().await;
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let (up, _down) = pair(&pool, &server, &mut seen).await;
    let (options, counters) = (CopyOptions::default(), Counters::default());
    let meshed = copy(near, up, &options, &counters);
    assert!(
        size_of_val(&meshed) <= 1024,
        "{} bytes",
        size_of_val(&meshed)
    );
    let (near, _other) = tcp_pair().await;
    let plain = copy_plain(near, far, &options, &counters);
    assert!(size_of_val(&plain) <= 1024, "{} bytes", size_of_val(&plain));
}
