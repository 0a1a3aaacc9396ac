//! The bpf(2) calls that aya keeps to itself: making, updating and asking links, and pins.
//!
//! Attributes are written out as the kernel's `union bpf_attr` has them, up to the last field used;
//! the kernel takes what is missing for zero.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const PROG_GET_FD_BY_ID: i32 = 13;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const LINK_CREATE: i32 = 28;
const LINK_UPDATE: i32 = 29;

/// Puts a TCX link before all others.
pub(super) const BEFORE: u32 = 1 << 3;

/// Where and how a link is attached (`enum bpf_attach_type`).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachType {
    SockCreate = 2,
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getsockopt = 21,
    Getpeername4 = 29,
    Getpeername6 = 30,
    SkLookup = 36,
    TcxIngress = 46,
}

/// What a link is attached to and runs; a part that is gone is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    pub(super) program_id: u32,
    /// Cgroup id, netns inode or interface index, by the kind of link; 0: gone.
    pub(super) target: u64,
    pub(super) attach_type: u32,
}

#[repr(C)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    revision: u64,
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Calls bpf(2).
fn call<T>(command: i32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are a structure of integers laid out as the kernel's; the pointers in
    // them are to memory of the caller that lives across the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>() as libc::c_uint,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us (close-on-exec) and nobody else
    // knows of it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Makes a link; `target` is a descriptor's number or an interface index.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreateAttr {
        program: program.as_raw_fd() as u32,
        target,
        attach_type: attach_type as u32,
        flags,
        relative: 0,
        padding: 0,
        revision: 0,
    };
    call(LINK_CREATE, &mut attributes).map(owned)
}

/// Makes a link run another program, atomically.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkUpdateAttr {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    call(LINK_UPDATE, &mut attributes).map(drop)
}

/// Pins a link.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = PinAttr {
        path: path.as_ptr() as u64,
        fd: object.as_raw_fd() as u32,
        flags: 0,
    };
    call(OBJ_PIN, &mut attributes).map(drop)
}

/// Opens what is pinned; nothing if there is no such pin.
pub(super) fn pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = c_path(path)?;
    let mut attributes = PinAttr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    match call(OBJ_GET, &mut attributes) {
        Ok(descriptor) => Ok(Some(owned(descriptor))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first words of an object's info.
fn info(object: BorrowedFd<'_>) -> io::Result<[u32; 32]> {
    let mut words = [0_u32; 32];
    let mut attributes = InfoAttr {
        fd: object.as_raw_fd() as u32,
        length: size_of_val(&words) as u32,
        info: words.as_mut_ptr() as u64,
    };
    call(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(words)
}

/// What a link is attached to, and the program it runs.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    const CGROUP: u32 = 3;
    // struct bpf_link_info: type, id, program id, padding, then by type.
    let words = info(link)?;
    let (target, attach_type) = if words[0] == CGROUP {
        (u64::from(words[4]) | (u64::from(words[5]) << 32), words[6])
    } else {
        (u64::from(words[4]), words[5])
    };
    Ok(LinkInfo {
        program_id: words[2],
        target,
        attach_type,
    })
}

/// The id of a loaded program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(info(program)?[1])
}

/// A program that is loaded.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct ByIdAttr {
        id: u32,
        next: u32,
        flags: u32,
    }
    let mut attributes = ByIdAttr {
        id,
        next: 0,
        flags: 0,
    };
    call(PROG_GET_FD_BY_ID, &mut attributes).map(owned)
}

/// The type of the file system that a path is on.
pub(super) fn filesystem(path: &Path) -> io::Result<i64> {
    let path = c_path(path)?;
    // SAFETY: statfs is made of integers, for which zero is a value.
    let mut result: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte, the result is ours.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut result) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result.f_type)
}
