//! What a process that got hold of the agent's sockets could tell a node proxy of listeners and of another proxy, and what
//! that other one could hand over.

#![no_main]

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use seine_fuzz::run;
use seine_ztunnel::seqpacket::SeqPacket;
use seine_ztunnel::{handover, listeners};

/// Sockets to be handed over: two that fit, and one that never does.
fn descriptors(count: u8) -> Vec<OwnedFd> {
    let one = |index: u8| -> OwnedFd {
        match index % 3 {
            0 => TcpListener::bind("127.0.0.1:0").expect("a port").into(),
            1 => UdpSocket::bind("127.0.0.1:0").expect("a port").into(),
            _ => std::fs::File::open("/dev/null")
                .expect("it is there")
                .into(),
        }
    };
    (0..count).map(one).collect()
}

// A byte for how many descriptors come along, then a message; for keys, messages, each behind its length in two bytes.
fuzz_target!(|bytes: &[u8]| {
    let Some((count, message)) = bytes.split_first() else {
        return;
    };
    run(async {
        let alone = listeners::understands(message, Vec::new());
        let count = count % 4;
        let with_some = listeners::understands(message, descriptors(count));
        assert!(
            !(alone && with_some) || count == 0,
            "as many sockets as it names"
        );
        let alone = handover::understands(message, Vec::new());
        let (end, _other) = UnixStream::pair().expect("two sockets");
        let with_one = handover::understands(message, vec![end.into()]);
        assert!(!(alone && with_one), "somebody, or nobody");

        let (here, there) = SeqPacket::pair().expect("two sockets");
        let mut rest = message;
        let mut sent = Vec::new();
        while let [high, low, tail @ ..] = rest
            && sent.len() < 16
        {
            let length = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
            let (part, tail) = tail.split_at(length);
            there.send_bytes(part).await.expect("there is room");
            sent.push(part);
            rest = tail;
        }
        drop(there);
        if let Ok(keys) = handover::receive_keys(&here).await {
            let all: Vec<u8> = sent[1..].concat();
            assert!(all.starts_with(&keys), "as they were sent");
        }
    });
});
