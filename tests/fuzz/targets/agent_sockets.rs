//! What a process that came through the door of one of the agent's sockets for node proxies could say there: ZDS, listeners,
//! hand-over. The agent hears it to its end.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType, send, shutdown, socketpair,
};
use seine_agent::conversation::{Socket, hear};
use seine_fuzz::run;

// A byte for the socket, then messages, each behind its length in a byte.
fuzz_target!(|bytes: &[u8]| {
    let Some((which, mut rest)) = bytes.split_first() else {
        return;
    };
    let socket = match which % 3 {
        0 => Socket::Ztunnel,
        1 => Socket::Listeners,
        _ => Socket::Handover,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (proxy, agent) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("two sockets");
    for _ in 0..16 {
        let Some((length, tail)) = rest.split_first() else {
            break;
        };
        let (message, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        send(&proxy, message, SendFlags::NOSIGNAL).expect("there is room");
        rest = tail;
    }
    // It still takes answers.
    shutdown(&proxy, Shutdown::Write).expect("an open socket");
    let _ = run(async { hear(socket, agent).await });
});
