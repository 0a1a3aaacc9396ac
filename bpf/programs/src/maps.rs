//! The maps, and the questions about them that several programs ask. All are pinned by the agent,
//! under these names.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE},
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage, SockHash, lpm_trie::Key,
    },
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_sk_storage_get},
    macros::btf_map,
};
use core::ffi::c_void;
use seine_bpf_common::{
    Address, CIDR_HEAD_BITS, CidrData, Counter, Enrolled, ListenerKey, Meta, Original, PortKey,
    Proxies, SocketState, Tuple, cidr_data,
};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
static META: Array<Meta, 1> = Array::new();
#[btf_map]
static COUNTERS: PerCpuArray<u64, 64> = PerCpuArray::new();
#[btf_map]
pub(crate) static ENROLLED: HashMap<u64, Enrolled, 4096, ON_DEMAND> = HashMap::new();
#[btf_map]
static PROXIES: Array<Proxies, 1> = Array::new();
#[btf_map]
static PORTS: HashMap<PortKey, u8, 65536, ON_DEMAND> = HashMap::new();
#[btf_map]
static CIDRS: LpmTrie<CidrData, u8, 65536> = LpmTrie::new();
/// Originals heal themselves when full: an entry lives for a handshake.
#[btf_map]
pub(crate) static ORIGINALS: LruHashMap<Tuple, Original, 65536> = LruHashMap::new();
/// Not an LRU map: the loss of a live entry would send the proxy's own dial back to it.
#[btf_map]
pub(crate) static PROXY_DIALS: HashMap<Tuple, u8, 1048576, ON_DEMAND> = HashMap::new();
#[btf_map]
pub(crate) static PROBES: LruHashMap<Tuple, u8, 16384> = LruHashMap::new();
#[btf_map]
pub(crate) static GUARDED: HashMap<u32, u64, 16384, ON_DEMAND> = HashMap::new();
#[btf_map]
pub(crate) static LISTENERS: SockHash<ListenerKey, 8192> = SockHash::new();
#[btf_map]
static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// Adds one to a counter.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this processor's own, and a program is not interrupted by itself; a
        // program that interrupts it may lose one count.
        unsafe { *value += 1 };
    }
}

/// The storage of a socket, if it has any.
#[inline(always)]
pub(crate) fn socket_state(socket: *mut c_void) -> Option<&'static mut SocketState> {
    storage(socket, 0)
}

/// The storage of a socket, made if it has none; nothing when memory is short.
#[inline(always)]
pub(crate) fn make_socket_state(socket: *mut c_void) -> Option<&'static mut SocketState> {
    storage(socket, u64::from(BPF_SK_STORAGE_GET_F_CREATE))
}

#[inline(always)]
fn storage(socket: *mut c_void, flags: u64) -> Option<&'static mut SocketState> {
    let map = (&raw const SOCKETS).cast_mut().cast::<c_void>();
    // SAFETY: the map is a socket storage of this type, the pointer is a socket that the kernel
    // handed to the program, and the storage lives as long as the program runs.
    unsafe {
        bpf_sk_storage_get(map, socket, core::ptr::null_mut(), flags)
            .cast::<SocketState>()
            .as_mut()
    }
}

/// Whether the running process is a node proxy.
#[inline(always)]
pub(crate) fn current_is_proxy() -> bool {
    let Some(proxies) = PROXIES.get(0) else {
        return false;
    };
    let mut slot = 0;
    while slot < proxies.slots.len() {
        let proxy = &proxies.slots[slot];
        if proxy.id != 0 {
            // SAFETY: the helper reads the running task only.
            let id = unsafe { bpf_get_current_ancestor_cgroup_id(proxy.level as i32) };
            if id == proxy.id {
                return true;
            }
        }
        slot += 1;
    }
    false
}

/// Whether this port of the pod has the meaning `kind`.
#[inline(always)]
pub(crate) fn port_is(cookie: u64, port: u16, kind: u16) -> bool {
    PORTS
        .get_ptr(PortKey {
            cookie,
            port,
            kind,
            reserved: 0,
        })
        .is_some()
}

/// Whether connections from or to this remote address are left alone.
#[inline(always)]
pub(crate) fn network_excluded(cookie: u64, direction: u32, remote: &Address) -> bool {
    CIDRS
        .get(&Key::new(
            CIDR_HEAD_BITS + 128,
            cidr_data(cookie, direction, remote),
        ))
        .is_some()
}

/// Files the proxy's own connection.
#[inline(always)]
pub(crate) fn file_dial(tuple: &Tuple) -> bool {
    PROXY_DIALS.insert(tuple, 1, u64::from(BPF_ANY)).is_ok()
}
