//! The guard at the host's ends of veths: by pinned TCX links, or by tc filters before Linux 6.6.

use std::{
    ffi::CString,
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};
use nix::net::if_;

use super::{
    RedirectError, Result,
    links::{self, Done, Journal, Wanted},
    object::{GUARD, Loaded, Pins},
    sys::{self, AttachType},
};

/// Our place among tc filters: before those of most, and known by its handle.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x5e1e);

/// How the guard attaches on this kernel.
#[derive(Debug)]
pub(super) struct Guard {
    tcx: AtomicBool,
}

impl Guard {
    pub(super) fn new() -> Self {
        Self {
            tcx: AtomicBool::new(true),
        }
    }

    pub(super) fn by_tcx(&self) -> bool {
        self.tcx.load(Ordering::Relaxed)
    }

    /// Attaches the guard to an interface and says whose it is.
    pub(super) fn attach(
        &self,
        loaded: &mut Loaded,
        pins: &Pins,
        cookie: u64,
        ifindex: u32,
        journal: &mut Journal,
    ) -> Result<Done> {
        loaded
            .guarded
            .insert(ifindex, cookie, 0)
            .map_err(|error| RedirectError::program("writing map GUARDED", error))?;
        if self.by_tcx() {
            let wanted = Wanted {
                pin: pins.guard(cookie, ifindex),
                program: loaded.program(GUARD)?,
                attach_type: AttachType::TcxIngress,
                target: ifindex,
                target_id: u64::from(ifindex),
                flags: sys::BEFORE,
            };
            match links::ensure(&wanted, journal) {
                Err(error) if error.errno() == Some(libc::EINVAL) => {
                    self.tcx.store(false, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        filter(loaded, ifindex)
    }

    /// Takes the guard off an interface; an interface that is gone is fine.
    pub(super) fn detach(
        &self,
        loaded: &mut Loaded,
        pins: &Pins,
        cookie: u64,
        ifindex: u32,
    ) -> Result<()> {
        // Only if it has not become another pod's since.
        if loaded
            .guarded
            .get(&ifindex, 0)
            .is_ok_and(|owner| owner == cookie)
        {
            let _ = loaded.guarded.remove(&ifindex);
            if !self.by_tcx()
                && let Ok(name) = interface(ifindex)
                && let Ok(link) = existing(&name)
            {
                // Dropped: aya detaches the filter.
                drop(link);
            }
        }
        links::remove(&pins.guard(cookie, ifindex))
    }
}

/// Attaches as a tc filter, in place of ours that may be there.
fn filter(loaded: &mut Loaded, ifindex: u32) -> Result<Done> {
    let name = interface(ifindex)?;
    if let Err(error) = tc::qdisc_add_clsact(&name)
        && !present(&error)
    {
        return Err(RedirectError::program(
            format!("adding a clsact qdisc to {name}"),
            error,
        ));
    }
    let program: &mut SchedClassifier = loaded
        .program_mut(GUARD)?
        .try_into()
        .map_err(|error| RedirectError::program("program guard", error))?;
    let failed = |error| RedirectError::program(format!("attaching the guard to {name}"), error);
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        handle: HANDLE,
        classid: None,
    });
    let (id, done) = match program.attach_with_options(&name, TcAttachType::Ingress, options) {
        Ok(id) => (id, Done::Made),
        // Ours is there, with an older program.
        Err(_) => {
            let link = existing(&name)?;
            (program.attach_to_link(link).map_err(failed)?, Done::Updated)
        }
    };
    // A dropped link would detach the filter, which is to outlive the agent.
    std::mem::forget(program.take_link(id).map_err(failed)?);
    Ok(done)
}

fn existing(name: &str) -> Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name, TcAttachType::Ingress, PRIORITY, HANDLE, None)
        .map_err(|error| RedirectError::call("if_nametoindex", name, error))
}

fn interface(ifindex: u32) -> Result<String> {
    let failed = |error: io::Error| {
        RedirectError::call("if_indextoname", format!("interface {ifindex}"), error)
    };
    let name: CString = if_::if_indextoname(ifindex).map_err(|error| failed(error.into()))?;
    name.into_string()
        .map_err(|error| failed(io::Error::other(error)))
}

/// Whether the error says that the qdisc is there already.
fn present(error: &tc::TcError) -> bool {
    match error {
        tc::TcError::AlreadyAttached => true,
        tc::TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}
