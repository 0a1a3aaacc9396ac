//! Whether the kernel takes each kind of program, and lets it attach: to the pods' cgroup, and in a network
//! namespace that is made for it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

use nix::sched::CloneFlags;
use nix::sched::unshare;

use super::Finding;
use super::Verdict;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;

const TCX_INGRESS: u32 = 46;
/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;

struct Kind {
    name: &'static str,
    program_type: u32,
    attach_type: u32,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Cgroup,
    Netns,
    Interface,
}

/// Numbers of `enum bpf_prog_type` and `enum bpf_attach_type` of the kernel's `bpf.h`.
const KINDS: [Kind; 13] = {
    const fn cgroup(name: &'static str, program_type: u32, attach_type: u32) -> Kind {
        Kind {
            name,
            program_type,
            attach_type,
            at: At::Cgroup,
        }
    }
    const SOCK: u32 = 9;
    const SOCK_OPS: u32 = 13;
    const SOCK_ADDR: u32 = 18;
    const SOCKOPT: u32 = 25;
    [
        cgroup("cgroup/connect4", SOCK_ADDR, 10),
        cgroup("cgroup/connect6", SOCK_ADDR, 11),
        cgroup("cgroup/sendmsg4", SOCK_ADDR, 14),
        cgroup("cgroup/sendmsg6", SOCK_ADDR, 15),
        cgroup("cgroup/recvmsg4", SOCK_ADDR, 19),
        cgroup("cgroup/recvmsg6", SOCK_ADDR, 20),
        cgroup("cgroup/getpeername4", SOCK_ADDR, 29),
        cgroup("cgroup/getpeername6", SOCK_ADDR, 30),
        cgroup("cgroup/getsockopt", SOCKOPT, 21),
        cgroup("cgroup/sock_create", SOCK, 2),
        cgroup("sock_ops", SOCK_OPS, 3),
        Kind {
            name: "sk_lookup",
            program_type: 30,
            attach_type: 36,
            at: At::Netns,
        },
        Kind {
            name: "tc classifier",
            program_type: 3,
            attach_type: TCX_INGRESS,
            at: At::Interface,
        },
    ]
};

pub(super) fn check(pods_cgroup: &Path) -> Vec<Finding> {
    let cgroup = File::open(pods_cgroup);
    KINDS
        .iter()
        .map(|kind| match load(kind) {
            Err(error) => Finding::new(
                kind.name,
                Verdict::Missing,
                format!("bpf(BPF_PROG_LOAD): {error}"),
                "a kernel with CONFIG_CGROUP_BPF and CONFIG_NET_CLS_BPF, and the capabilities above",
            ),
            Ok(program) => match (kind.at, &cgroup) {
                (At::Cgroup, Ok(cgroup)) => {
                    attach(kind, program.as_fd(), cgroup.as_raw_fd().cast_unsigned())
                }
                (At::Cgroup, Err(_)) => Finding::new(
                    kind.name,
                    Verdict::Warning,
                    "loads; no cgroup to attach it to",
                    "see the pods' cgroup above",
                ),
                (At::Netns | At::Interface, _) => attach_in_scratch_netns(kind, program.as_fd()),
            },
        })
        .collect()
}

/// The namespace ends with the thread that made it.
fn attach_in_scratch_netns(kind: &Kind, program: BorrowedFd<'_>) -> Finding {
    let work = || -> io::Result<Finding> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let netns = File::open("/proc/thread-self/ns/net")?;
        let target = match kind.at {
            At::Interface => LOOPBACK,
            At::Cgroup | At::Netns => netns.as_raw_fd().cast_unsigned(),
        };
        Ok(attach(kind, program, target))
    };
    let found = thread::scope(|scope| scope.spawn(work).join());
    let result = found.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
    result.unwrap_or_else(|error| {
        Finding::new(
            kind.name,
            Verdict::Missing,
            format!("loads; make a network namespace to attach it in: {error}"),
            "CAP_SYS_ADMIN",
        )
    })
}

/// Attaches and, by closing the link, detaches at once. The target is a descriptor's number or an
/// interface's index.
fn attach(kind: &Kind, program: BorrowedFd<'_>, target: u32) -> Finding {
    /// Head of `union bpf_attr` for BPF_LINK_CREATE.
    #[repr(C)]
    struct LinkCreate {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        rest: [u64; 6],
    }
    let attributes = LinkCreate {
        program: program.as_raw_fd().cast_unsigned(),
        target,
        attach_type: kind.attach_type,
        flags: 0,
        rest: [0; 6],
    };
    match bpf(BPF_LINK_CREATE, &attributes) {
        Ok(_link) => Finding::new(kind.name, Verdict::Ok, "loads and attaches", ""),
        Err(error) if kind.at == At::Interface && error.raw_os_error() == Some(libc::EINVAL) => {
            let found = "loads; no TCX before Linux 6.6: it is attached as a tc filter";
            Finding::new(kind.name, Verdict::Ok, found, "")
        }
        Err(error) => Finding::new(
            kind.name,
            Verdict::Missing,
            format!("bpf(BPF_LINK_CREATE): {error}"),
            "EPERM: a program attached without flags to a parent cgroup forbids any below it (bpftool cgroup tree); \
             EINVAL: the kernel does not know this attach point",
        ),
    }
}

/// A program that lets everything pass.
fn load(kind: &Kind) -> io::Result<OwnedFd> {
    /// `r0 = 1; exit`, as `struct bpf_insn`.
    const PASS: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
    /// Head of `union bpf_attr` for BPF_PROG_LOAD, up to `expected_attach_type`.
    #[repr(C)]
    struct ProgramLoad {
        program_type: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        expected_attach_type: u32,
    }
    let attributes = ProgramLoad {
        program_type: kind.program_type,
        instructions: 2,
        code: PASS.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"seine_check\0\0\0\0\0",
        interface: 0,
        // What tc programs expect was not asked before TCX.
        expected_attach_type: match kind.at {
            At::Interface => 0,
            At::Cgroup | At::Netns => kind.attach_type,
        },
    };
    bpf(BPF_PROG_LOAD, &attributes)
}

/// One call of bpf(2) that makes a descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are a plain structure of the size that is given, laid out as the
    // kernel's, and what they point to is static.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    let raw = i32::try_from(result).map_err(io::Error::other)?;
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
