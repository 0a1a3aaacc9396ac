//! Pinned links: made once, then updated in place, so that at every time one program runs.

use std::{
    fmt, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{
    RedirectError, Result,
    sys::{self, AttachType, LinkInfo},
};

/// What a link should be.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) pin: PathBuf,
    pub(super) program: BorrowedFd<'a>,
    pub(super) attach_type: AttachType,
    /// The descriptor's number, or the interface index, to make the link with.
    pub(super) target: u32,
    /// Cgroup id, netns inode or interface index, as the link tells it.
    pub(super) target_id: u64,
    pub(super) flags: u32,
}

/// What [`ensure`] had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// Nothing.
    Nothing,
    /// There was no link.
    Made,
    /// The link's target was gone or another; a new link replaced it.
    Moved,
    /// The link runs this program now instead of another.
    Updated,
    /// The link was not wanted.
    Removed,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "is right",
            Self::Made => "was missing and has been attached",
            Self::Moved => "was attached elsewhere and has been moved",
            Self::Updated => "ran another program and has been updated",
            Self::Removed => "was attached but is not wanted, and has been removed",
        })
    }
}

/// What a take-over did to links, so that it can be undone: the programs of one agent work together, and
/// a node with some of each is none that anybody has tested.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// The link and the program that it ran.
    updated: Vec<(PathBuf, OwnedFd)>,
    made: Vec<PathBuf>,
}

impl Journal {
    /// Updates a link and remembers how it was.
    pub(super) fn update(
        &mut self,
        pin: &Path,
        link: BorrowedFd<'_>,
        info: LinkInfo,
        program: BorrowedFd<'_>,
    ) -> Result<()> {
        let failed = |call| {
            let name = pin.display().to_string();
            move |error: io::Error| RedirectError::call(call, name, error)
        };
        let before =
            sys::program_by_id(info.program_id).map_err(failed("BPF_PROG_GET_FD_BY_ID"))?;
        sys::link_update(link, program).map_err(failed("BPF_LINK_UPDATE"))?;
        self.updated.push((pin.to_owned(), before));
        Ok(())
    }

    /// Gives every link its program back, and removes those that were not there. Where no link ran
    /// another program, what was made stays: it is of the same agent as the rest.
    pub(super) fn undo(self) {
        if self.updated.is_empty() {
            return;
        }
        for pin in self.made.into_iter().rev() {
            if let Err(error) = remove(&pin) {
                tracing::error!(%error, "undo a take-over");
            }
        }
        for (pin, program) in self.updated.into_iter().rev() {
            let undone = sys::pinned(&pin).and_then(|link| match link {
                Some(link) => sys::link_update(link.as_fd(), program.as_fd()),
                None => Ok(()),
            });
            if let Err(error) = undone {
                tracing::error!(pin = %pin.display(), %error, "undo a take-over");
            }
        }
    }
}

/// Makes a pinned link be as wanted.
pub(super) fn ensure(wanted: &Wanted<'_>, journal: &mut Journal) -> Result<Done> {
    let name = wanted.pin.display().to_string();
    let failed = |call| {
        let name = name.clone();
        move |error: io::Error| RedirectError::call(call, name, error)
    };
    let Some(link) = sys::pinned(&wanted.pin).map_err(failed("BPF_OBJ_GET"))? else {
        make(wanted, &wanted.pin)?;
        journal.made.push(wanted.pin.clone());
        return Ok(Done::Made);
    };
    let info = sys::link_info(link.as_fd()).map_err(failed("BPF_OBJ_GET_INFO_BY_FD"))?;
    if info.target != wanted.target_id || info.attach_type != wanted.attach_type as u32 {
        // The new one first: between the two, both run (at different places), never none.
        let beside = beside(&wanted.pin);
        let _ = std::fs::remove_file(&beside);
        make(wanted, &beside)?;
        std::fs::rename(&beside, &wanted.pin).map_err(failed("rename"))?;
        return Ok(Done::Moved);
    }
    let program = sys::program_id(wanted.program).map_err(failed("BPF_OBJ_GET_INFO_BY_FD"))?;
    if info.program_id == program {
        return Ok(Done::Nothing);
    }
    journal.update(&wanted.pin, link.as_fd(), info, wanted.program)?;
    Ok(Done::Updated)
}

fn make(wanted: &Wanted<'_>, pin: &Path) -> Result<()> {
    let name = pin.display().to_string();
    let link = sys::link_create(
        wanted.program,
        wanted.target,
        wanted.attach_type,
        wanted.flags,
    )
    .map_err(|error| RedirectError::call("BPF_LINK_CREATE", name.clone(), error))?;
    sys::pin(link.as_fd(), pin).map_err(|error| RedirectError::call("BPF_OBJ_PIN", name, error))
}

/// A name beside a pin that no pin of ours has (bpffs reserves names with a dot).
fn beside(pin: &Path) -> PathBuf {
    let mut name = pin.file_name().unwrap_or_default().to_owned();
    name.push("-next");
    pin.with_file_name(name)
}

/// What a pinned link is; nothing if there is no pin.
pub(super) fn look(pin: &Path) -> Result<Option<LinkInfo>> {
    let failed = |error| RedirectError::call("BPF_OBJ_GET", pin.display().to_string(), error);
    let Some(link) = sys::pinned(pin).map_err(failed)? else {
        return Ok(None);
    };
    sys::link_info(link.as_fd()).map(Some).map_err(failed)
}

/// Removes a pin, and with it the link; none is fine.
pub(super) fn remove(pin: &Path) -> Result<()> {
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RedirectError::call(
            "unlink",
            pin.display().to_string(),
            error,
        )),
        _ => Ok(()),
    }
}
