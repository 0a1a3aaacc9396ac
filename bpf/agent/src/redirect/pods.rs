//! Pods: put into the maps, their links made, and taken out again.
//!
//! A pod is enrolled when it is in map `ENROLLED`. That comes last on the way in, when everything
//! behind it works, and goes first on the way out.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use seine_bpf_common::ListenerKey;

use super::{
    EnrolledPod, InboundListeners, PodSettings, RedirectError, Repairs, Result,
    guard::Guard,
    links::{self, Done, Journal, Wanted},
    netns::Identity,
    object::{GUARD, Loaded, Pins},
    settings,
    sys::{self, AttachType},
};

/// Enrols a pod, or makes it be as the settings say.
pub(super) fn enrol(
    loaded: &mut Loaded,
    pins: &Pins,
    guard: &Guard,
    identity: Identity,
    netns: BorrowedFd<'_>,
    settings: &PodSettings,
    inbound: InboundListeners<'_>,
) -> Result<()> {
    let cookie = identity.cookie;
    let folder = pins.pod(cookie);
    std::fs::create_dir_all(&folder)
        .map_err(|error| RedirectError::call("mkdir", folder.display().to_string(), error))?;
    settings::write(loaded, cookie, settings)?;
    set_listeners(loaded, cookie, inbound)?;
    let program = loaded.load_steer(cookie)?;
    let steer = Wanted {
        pin: pins.steer(cookie),
        program: program.as_fd(),
        attach_type: AttachType::SkLookup,
        target: netns.as_raw_fd() as u32,
        target_id: u64::from(identity.inode),
        flags: 0,
    };
    links::ensure(&steer, &mut Journal::default())?;
    set_guards(loaded, pins, guard, cookie, &settings.host_ifindexes)?;
    loaded
        .enrolled
        .insert(cookie, settings::enrolled(identity, settings), 0)
        .map_err(|error| RedirectError::program("writing map ENROLLED", error))
}

/// Changes the settings of an enrolled pod.
pub(super) fn update(
    loaded: &mut Loaded,
    pins: &Pins,
    guard: &Guard,
    cookie: u64,
    settings: &PodSettings,
) -> Result<()> {
    let old = loaded
        .enrolled
        .get(&cookie, 0)
        .map_err(|_| RedirectError::NotEnrolled(cookie))?;
    settings::write(loaded, cookie, settings)?;
    set_guards(loaded, pins, guard, cookie, &settings.host_ifindexes)?;
    let identity = Identity {
        cookie,
        inode: old.netns_inode,
    };
    loaded
        .enrolled
        .insert(cookie, settings::enrolled(identity, settings), 0)
        .map_err(|error| RedirectError::program("writing map ENROLLED", error))
}

/// Puts a pod's listeners into the socket map; a family without one is refused from then on.
pub(super) fn set_listeners(
    loaded: &mut Loaded,
    cookie: u64,
    inbound: InboundListeners<'_>,
) -> Result<()> {
    for (family, listener) in [(4, inbound.ipv4), (6, inbound.ipv6)] {
        let key = ListenerKey {
            cookie,
            family,
            reserved: 0,
        };
        match listener {
            Some(listener) => loaded
                .listeners
                .insert(key, listener.as_raw_fd(), 0)
                .map_err(|error| RedirectError::program("writing map LISTENERS", error))?,
            None => drop(loaded.listeners.remove(&key)),
        }
    }
    Ok(())
}

fn set_guards(
    loaded: &mut Loaded,
    pins: &Pins,
    guard: &Guard,
    cookie: u64,
    wanted: &BTreeSet<u32>,
) -> Result<()> {
    for ifindex in guarded(loaded, pins, cookie)? {
        if !wanted.contains(&ifindex) {
            guard.detach(loaded, pins, cookie, ifindex)?;
        }
    }
    for ifindex in wanted {
        guard.attach(loaded, pins, cookie, *ifindex, &mut Journal::default())?;
    }
    Ok(())
}

/// Interfaces that have, or should have, a pod's guard: by the map and by the pins.
fn guarded(loaded: &Loaded, pins: &Pins, cookie: u64) -> Result<BTreeSet<u32>> {
    let mut interfaces = BTreeSet::new();
    for entry in loaded.guarded.iter() {
        let (ifindex, owner) =
            entry.map_err(|error| RedirectError::program("reading map GUARDED", error))?;
        if owner == cookie {
            interfaces.insert(ifindex);
        }
    }
    for entry in std::fs::read_dir(pins.pod(cookie))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let ifindex: Option<u32> = name
            .to_str()
            .and_then(|name| name.strip_prefix(GUARD)?.strip_prefix('-')?.parse().ok());
        interfaces.extend(ifindex);
    }
    Ok(interfaces)
}

/// Releases a pod; one that is not enrolled, or half, is fine.
pub(super) fn release(loaded: &mut Loaded, pins: &Pins, guard: &Guard, cookie: u64) -> Result<()> {
    let _ = loaded.enrolled.remove(&cookie);
    for ifindex in guarded(loaded, pins, cookie)? {
        guard.detach(loaded, pins, cookie, ifindex)?;
    }
    links::remove(&pins.steer(cookie))?;
    set_listeners(loaded, cookie, InboundListeners::default())?;
    settings::erase(loaded, cookie)?;
    let folder = pins.pod(cookie);
    for left in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        links::remove(&left.path())?;
    }
    match std::fs::remove_dir(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(RedirectError::call(
            "rmdir",
            folder.display().to_string(),
            error,
        )),
        _ => Ok(()),
    }
}

/// The enrolled pods, as maps and links have them.
pub(super) fn list(loaded: &Loaded, pins: &Pins, guard: &Guard) -> Result<Vec<EnrolledPod>> {
    let mut pods = Vec::new();
    for entry in loaded.enrolled.iter() {
        let (cookie, value) =
            entry.map_err(|error| RedirectError::program("reading map ENROLLED", error))?;
        let steer = links::look(&pins.steer(cookie))?;
        let mut guarded_ifindexes = BTreeSet::new();
        for ifindex in guarded(loaded, pins, cookie)? {
            let alive = !guard.by_tcx()
                || links::look(&pins.guard(cookie, ifindex))?.is_some_and(|link| link.target != 0);
            if alive {
                guarded_ifindexes.insert(ifindex);
            }
        }
        pods.push(EnrolledPod {
            cookie,
            netns_inode: value.netns_inode,
            ipv4: settings::octets(&value.ipv4).map(|ip| [ip[12], ip[13], ip[14], ip[15]].into()),
            ipv6: settings::octets(&value.ipv6).map(Into::into),
            dns: settings::dns(&value),
            steered: steer.is_some_and(|link| link.target != 0),
            guarded_ifindexes,
        });
    }
    pods.sort_by_key(|pod| pod.cookie);
    Ok(pods)
}

/// Gives every pod this agent's programs, repairs guards, and releases pods whose netns is gone.
/// With `reload`, the programs of the pods' netns are loaded anew.
pub(super) fn reconcile(
    loaded: &mut Loaded,
    pins: &Pins,
    guard: &Guard,
    reload: bool,
    journal: &mut Journal,
) -> Result<Repairs> {
    let mut repairs = Repairs::default();
    for cookie in half_enrolled(loaded, pins)? {
        release(loaded, pins, guard, cookie)?;
        repairs.repaired.push(format!(
            "pod {cookie} was half enrolled and has been released"
        ));
    }
    for pod in list(loaded, pins, guard)? {
        let cookie = pod.cookie;
        match links::look(&pins.steer(cookie))? {
            Some(link) if link.target == 0 => {
                release(loaded, pins, guard, cookie)?;
                repairs.vanished.push(cookie);
                continue;
            }
            Some(_) if reload => update_steer(loaded, pins, cookie, journal)?,
            Some(_) => {}
            // Its netns is not known here: it stays caught, and its owner enrols it again.
            None => repairs.repaired.push(format!(
                "pod {cookie} has lost its inbound link: it must be enrolled again"
            )),
        }
        for ifindex in guarded(loaded, pins, cookie)? {
            if nix::net::if_::if_indextoname(ifindex).is_err() {
                guard.detach(loaded, pins, cookie, ifindex)?;
                repairs.repaired.push(format!(
                    "interface {ifindex} of pod {cookie} is gone; so is its guard"
                ));
                continue;
            }
            let done = guard.attach(loaded, pins, cookie, ifindex, journal)?;
            if done != Done::Nothing && guard.by_tcx() {
                repairs.repaired.push(format!(
                    "the guard at interface {ifindex} of pod {cookie} {done}"
                ));
            }
        }
    }
    Ok(repairs)
}

/// Pods with a folder of links that are not enrolled: an agent stopped in between.
fn half_enrolled(loaded: &Loaded, pins: &Pins) -> Result<Vec<u64>> {
    let folder = pins.pods();
    let entries = std::fs::read_dir(&folder)
        .map_err(|error| RedirectError::call("readdir", folder.display().to_string(), error))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| u64::from_str_radix(entry.file_name().to_str()?, 16).ok())
        .filter(|cookie| loaded.enrolled.get(cookie, 0).is_err())
        .collect())
}

fn update_steer(
    loaded: &mut Loaded,
    pins: &Pins,
    cookie: u64,
    journal: &mut Journal,
) -> Result<()> {
    let pin = pins.steer(cookie);
    let failed = |call| {
        let name = pin.display().to_string();
        move |error| RedirectError::call(call, name, error)
    };
    let Some(link) = sys::pinned(&pin).map_err(failed("BPF_OBJ_GET"))? else {
        return Ok(());
    };
    let program = loaded.load_steer(cookie)?;
    let info = sys::link_info(link.as_fd()).map_err(failed("BPF_OBJ_GET_INFO_BY_FD"))?;
    journal.update(&pin, link.as_fd(), info, program.as_fd())
}
