//! The eBPF programs that hand the connections of enrolled pods to the node proxy.
//!
//! One module is one program or one pair for the two families; each says where it attaches and its
//! minimum kernel. `maps` has what they share, `context` how they read what the kernel hands them.
//! Nothing here runs per packet but `guard`.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod context;
mod create;
mod dns;
mod guard;
mod kubelet;
mod maps;
mod original;
mod peer;
mod steer;
mod watch;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
