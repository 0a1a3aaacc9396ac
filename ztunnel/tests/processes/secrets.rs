//! The key of a running proxy is looked for wherever the proxy writes.

use std::fs;
use std::path::Path;

use prost::Message;
use seine_proto::handover::{Hello, Introduction, Peer, Role};
use seine_ztunnel::seqpacket::SeqPacket;

use crate::{Node, exchange, finish};

/// The pod's private scalar, taken as a successor takes it.
async fn private_key(meeting: &Path) -> [u8; 32] {
    let agent = SeqPacket::connect(meeting).unwrap();
    let hello = Hello {
        role: Role::Successor.into(),
    };
    agent.send_bytes(&hello.encode_to_vec()).await.unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let (length, mut ends) = agent.recv(&mut buffer).await.unwrap().unwrap();
    let introduction = Introduction::decode(&buffer[..length]).unwrap();
    assert_eq!(introduction.peer(), Peer::Connected);
    let old = SeqPacket::from_descriptor(ends.pop().unwrap()).unwrap();
    old.send_bytes(b"seine-handover 1").await.unwrap();
    let (length, _) = old.recv(&mut buffer).await.unwrap().unwrap();
    assert!(buffer[..length].starts_with(b"keys "));
    let (length, _) = old.recv(&mut buffer).await.unwrap().unwrap();
    // ECPrivateKey (RFC 5915): version 1, then 32 octets.
    let head = [2, 1, 1, 4, 32];
    let at = position(&buffer[..length], &head).unwrap() + head.len();
    buffer[at..at + 32].try_into().unwrap()
}

fn position(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len()).position(|part| part == needle)
}

/// Whether bytes have a part of the key, as it is, in hexadecimal, in base64 or as a list of numbers.
fn has(text: &[u8], key: &[u8]) -> bool {
    let hexadecimal: String = key[..12].iter().map(|byte| format!("{byte:02x}")).collect();
    let list: Vec<_> = key[..8].iter().map(ToString::to_string).collect();
    let mut needles = vec![
        key[..12].to_vec(),
        hexadecimal.clone().into_bytes(),
        hexadecimal.to_uppercase().into_bytes(),
        list.join(", ").into_bytes(),
        list.join(",").into_bytes(),
    ];
    // Base64 depends on where among three bytes the key begins.
    needles.extend((0..3).map(|skip| base64(&key[skip..skip + 12])));
    let plain: Vec<u8> = text
        .iter()
        .copied()
        .filter(|byte| !matches!(byte, b'\n' | b'\r'))
        .collect();
    needles.iter().any(|needle| {
        position(text, needle)
            .or(position(&plain, needle))
            .is_some()
    })
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: usize| DIGITS[bits & 63];
    bytes
        .chunks_exact(3)
        .flat_map(|three| {
            let bits = three
                .iter()
                .fold(0, |bits, &byte| bits << 8 | usize::from(byte));
            [
                digit(bits >> 18),
                digit(bits >> 12),
                digit(bits >> 6),
                digit(bits),
            ]
        })
        .collect()
}

#[test]
fn a_key_is_found_however_it_is_written() {
    let key: Vec<u8> = (100..132).collect();
    for text in [
        "xx\nZGVmZ2hpamts\nbW5v",
        "6465666768696a6b6c6d6e6f",
        "[100, 101, 102, 103, 104, 105, 106, 107, 108]",
    ] {
        assert!(has(text.as_bytes(), &key), "{text}");
    }
    assert!(has(&key, &key));
    assert!(!has(b"ZGVmZ2hpamtsbW4", &key));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_is_in_the_state_the_log_the_pages_or_a_core_dump() {
    let Some(node) = Node::new() else {
        println!("SKIPPED where keys are not: it needs root");
        return;
    };
    let _control = node.control.start();
    let proxy = node.proxy_with("only", &[("--log", "trace")]);
    proxy.says(&["200 OK"]).await;
    let mut connection = node.connect().await.unwrap();
    exchange(&mut connection).await.unwrap();
    let folder = node.folder.path();
    while !folder.join("state/configuration").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let key = private_key(&folder.join("handover")).await;
    proxy
        .logs(&["a hand-over was begun and not finished"])
        .await;
    for page in [
        "/config_dump",
        "/certificates",
        "/connections",
        "/stats",
        "/logging",
        "/",
    ] {
        let text = proxy.admin(&format!("GET {page}"));
        assert!(text.len() > 100, "{page}: {text}");
        assert!(!has(text.as_bytes(), &key), "{page} has the key");
    }
    finish(connection).await.unwrap();
    let mut files = 0;
    for entry in fs::read_dir(folder.join("state")).unwrap() {
        let path = entry.unwrap().path();
        assert!(!has(&fs::read(&path).unwrap(), &key), "{}", path.display());
        files += 1;
    }
    assert!(files > 0);
    let log = proxy.log();
    assert!(log.contains("TRACE"), "the log is not at its finest");
    assert!(!has(log.as_bytes(), &key), "the log has the key");

    let limits = fs::read_to_string(format!("/proc/{}/limits", proxy.process.id())).unwrap();
    let core = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"))
        .unwrap();
    let limits: Vec<_> = core.split_ascii_whitespace().collect();
    assert_eq!(limits[..2], ["0", "0"]);
}
