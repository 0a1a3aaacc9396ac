//! Network sysctls of the network namespace that the calling thread is in.
//!
//! A container's `/proc/sys` is read-only, also for root with every capability. So they are written
//! through a procfs of our own that is mounted nowhere (`fsopen`, Linux 5.2; `CAP_SYS_ADMIN`): which
//! namespace's values `sys/net` shows is decided by who looks.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::openat;
use rustix::mount::FsMountFlags;
use rustix::mount::FsOpenFlags;
use rustix::mount::MountAttrFlags;
use rustix::mount::fsconfig_create;
use rustix::mount::fsmount;
use rustix::mount::fsopen;

static PROCFS: OnceLock<OwnedFd> = OnceLock::new();

/// Sets `sys/net/…` to `1`.
pub(crate) fn enable(path: &str) -> io::Result<()> {
    let procfs = match PROCFS.get() {
        Some(procfs) => procfs,
        None => {
            let mounted = mount()?;
            PROCFS.get_or_init(|| mounted)
        }
    };
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    File::from(openat(procfs, path, flags, Mode::empty())?).write_all(b"1")
}

fn mount() -> io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}
