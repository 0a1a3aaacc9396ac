//! `sock_ops` at the kubelet's own cgroup: files the tuples of its connections in `PROBES`, where
//! `steer` finds those of probes. The cgroup is the proof; no address or mark is trusted. Minimum
//! kernel 5.15.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE},
    macros::sock_ops,
    programs::SockOpsContext,
};

use crate::{
    context::SockOps,
    maps::PROBES,
    watch::{states, watch_state},
};

#[sock_ops]
pub fn watch_kubelet(ctx: SockOpsContext) -> u32 {
    let ops = SockOps(ctx.ops);
    match ops.callback() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            let _ = PROBES.insert(&ops.tuple(0), 1, u64::from(BPF_ANY));
            watch_state(&ctx);
        }
        BPF_SOCK_OPS_STATE_CB if states(ops).1 == BPF_TCP_CLOSE => {
            let _ = PROBES.remove(&ops.tuple(0));
        }
        _ => {}
    }
    1
}
