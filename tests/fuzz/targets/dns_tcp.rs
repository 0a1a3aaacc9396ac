//! The messages in a TCP connection of DNS, from a pod or from a name server.

#![no_main]

use futures::executor::block_on;
use libfuzzer_sys::fuzz_target;
use seine_ztunnel::dns::{read_message, write_message};

fuzz_target!(|bytes: &[u8]| {
    let mut stream = bytes;
    let mut again = Vec::new();
    // What is left at an error is half a message.
    while let Ok(Some(message)) = block_on(read_message(&mut stream)) {
        block_on(write_message(&mut again, &message)).expect("no more than was read");
    }
    assert!(bytes.starts_with(&again), "message by message the same");
    assert!(bytes.len() - again.len() < 2 + usize::from(u16::MAX));
});
