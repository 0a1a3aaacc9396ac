//! The two folders of a node's container runtime: reading, and changes in one step.
//!
//! What always holds: a reader sees a file whole, the old or the new one; a change that somebody
//! else makes at the same time is not lost, whoever is first. Temporary files end in a way that no
//! runtime reads.

use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::fcntl::RenameFlags;
use nix::fcntl::renameat2;

use super::choose::Configuration;
use super::edit;
use super::edit::Edit;

/// Network configurations are a few kilobytes.
const MAX_BYTES: u64 = 1 << 20;

/// A failure, and on which file.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}: {source}")]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// What became of an edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// It is done.
    Done,
    /// The file is not any more what the edit was made for: read and decide again.
    ChangedMeanwhile,
}

/// The network configurations of a folder, in any order.
pub(crate) fn read(folder: &Path) -> Result<Vec<Configuration>, FileError> {
    let failed = |source| FileError {
        action: "list",
        path: folder.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // A symbolic link is read, by us as by the runtime.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder || !edit::is_configuration(&name) {
            continue;
        }
        let text = match read_bounded(&entry.path()) {
            // Gone since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_link(&entry.path()) => {
                continue;
            }
            Err(error) => Err(error.to_string()),
            Ok(bytes) => String::from_utf8(bytes).map_err(|error| error.to_string()),
        };
        found.push(Configuration { name, text });
    }
    Ok(found)
}

/// Applies an edit that was made for what `files` says.
pub(crate) fn apply(
    folder: &Path,
    files: &[Configuration],
    edit: &Edit,
) -> Result<Applied, FileError> {
    let text_of = |name: &str| {
        let file = files.iter().find(|file| file.name == name);
        file.and_then(|file| file.text.as_ref().ok())
            .map_or("", String::as_str)
    };
    match edit {
        Edit::None => Ok(Applied::Done),
        Edit::Replace { name, text } => {
            let path = folder.join(name);
            replace(&path, text_of(name).as_bytes(), text.as_bytes())
                .map_err(|source| error("write", path, source))
        }
        Edit::Rename {
            name,
            text,
            instead_of,
        } => {
            let (path, old) = (folder.join(name), folder.join(instead_of));
            if edit::single(instead_of).is_some() && path.exists() {
                // Its owner wrote the single file again meanwhile; that one is right.
                return remove(&old).map(|()| Applied::Done);
            }
            let mode = mode_of(&old);
            write_new(&path, text.as_bytes(), mode)
                .map_err(|source| error("write", path, source))?;
            // What its owner wrote since then is newer than our list of it.
            if read_bounded(&old).is_ok_and(|now| now != text_of(instead_of).as_bytes()) {
                return Ok(Applied::ChangedMeanwhile);
            }
            remove(&old).map(|()| Applied::Done)
        }
    }
}

/// Makes `path` be the same as `program`, executable; `false`: it was already.
pub(crate) fn install_program(program: &Path, path: &Path) -> Result<bool, FileError> {
    let wanted = fs::read(program).map_err(|source| error("read", program.to_owned(), source))?;
    let right = fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o111 == 0o111)
        && fs::read(path).is_ok_and(|found| found == wanted);
    if right {
        return Ok(false);
    }
    write_new(path, &wanted, 0o755).map_err(|source| error("write", path.to_owned(), source))?;
    Ok(true)
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.and_then(|()| sync_folder(path)),
    };
    removed.map_err(|source| error("remove", path.to_owned(), source))
}

/// What tells a file from a later one of the same name without reading it.
pub(crate) fn stamp(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let m = fs::metadata(path).ok()?;
    Some((m.ino(), m.size(), m.ctime(), m.ctime_nsec()))
}

fn error(action: &'static str, path: PathBuf, source: io::Error) -> FileError {
    FileError {
        action,
        path,
        source,
    }
}

/// Exchanges the file with the new one and looks at what came out: if that is not what was expected,
/// it goes back.
fn replace(path: &Path, expected: &[u8], new: &[u8]) -> io::Result<Applied> {
    let temporary = write_temporary(path, new, mode_of(path))?;
    let exchanged = exchange(&temporary, path);
    let result = match exchanged {
        Ok(()) => {
            if read_bounded(&temporary).is_ok_and(|old| old == expected) {
                Ok(Applied::Done)
            } else {
                put_back(&temporary, path, new)
            }
        }
        // A file system that can't exchange: what is left is a moment between look and rename.
        Err(Errno::EINVAL | Errno::ENOSYS) => match read_bounded(path) {
            Ok(now) if now == expected => fs::rename(&temporary, path).map(|()| Applied::Done),
            _ => Ok(Applied::ChangedMeanwhile),
        },
        Err(Errno::ENOENT) => Ok(Applied::ChangedMeanwhile),
        Err(errno) => Err(errno.into()),
    };
    // After a rename it is not there any more.
    let _ = fs::remove_file(&temporary);
    result.and_then(|applied| sync_folder(path).map(|()| applied))
}

/// The other's file is in `temporary` and ours in its place.
fn put_back(temporary: &Path, path: &Path, ours: &[u8]) -> io::Result<Applied> {
    exchange(temporary, path)?;
    // Unless a third version took our place meanwhile, which is the newest.
    if read_bounded(temporary).is_ok_and(|out| out != ours) {
        fs::rename(temporary, path)?;
    }
    Ok(Applied::ChangedMeanwhile)
}

fn exchange(a: &Path, b: &Path) -> nix::Result<()> {
    renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE)
}

/// Replaces a file in one step, of this mode from its first byte on.
pub(crate) fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_temporary(path, content, mode)?;
    fs::rename(&temporary, path).inspect_err(|_| {
        // The rename's failure is what counts.
        let _ = fs::remove_file(&temporary);
    })?;
    sync_folder(path)
}

fn write_temporary(path: &Path, content: &[u8], mode: u32) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or(OsStr::new("file"));
    let temporary = path.with_file_name(format!(".{}.seine-new", name.to_string_lossy()));
    // One that a killed agent left would keep its own mode, or be a link to somewhere.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    let written = file
        .write_all(content)
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all());
    written.inspect_err(|_| {
        // The failure to write is what counts.
        let _ = fs::remove_file(&temporary);
    })?;
    Ok(temporary)
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).map_or(0o644, |m| m.permissions().mode() & 0o777)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "is larger than any network configuration",
        ));
    }
    Ok(bytes)
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink())
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(name: &str, text: &str) -> Configuration {
        Configuration {
            name: name.into(),
            text: Ok(text.into()),
        }
    }

    fn replace_edit(text: &str) -> Edit {
        Edit::Replace {
            name: "a.conflist".into(),
            text: text.into(),
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_replaced_file_keeps_its_mode_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conflist");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let files = read(folder.path()).unwrap();
        assert_eq!(files, [configuration("a.conflist", "old")]);
        let applied = apply(folder.path(), &files, &replace_edit("new")).unwrap();
        assert_eq!(applied, Applied::Done);
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(mode_of(&path), 0o600);
        assert_eq!(names(folder.path()), ["a.conflist"]);
    }

    #[test]
    fn what_another_wrote_meanwhile_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conflist");
        fs::write(&path, "newer, of another").unwrap();
        let read_before = [configuration("a.conflist", "old")];
        let applied = apply(folder.path(), &read_before, &replace_edit("ours")).unwrap();
        assert_eq!(applied, Applied::ChangedMeanwhile);
        assert_eq!(fs::read_to_string(&path).unwrap(), "newer, of another");
        fs::remove_file(&path).unwrap();
        let applied = apply(folder.path(), &read_before, &replace_edit("ours")).unwrap();
        assert_eq!(applied, Applied::ChangedMeanwhile, "and gone stays gone");
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_single_file_that_its_owner_rewrote_meanwhile_stays_beside_the_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.conf");
        fs::write(&path, "newer").unwrap();
        let edit = Edit::Rename {
            name: "a.conf.conflist".into(),
            text: "list".into(),
            instead_of: "a.conf".into(),
        };
        let applied = apply(folder.path(), &[configuration("a.conf", "old")], &edit).unwrap();
        assert_eq!(applied, Applied::ChangedMeanwhile);
        assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
        let applied = apply(folder.path(), &[configuration("a.conf", "newer")], &edit).unwrap();
        assert_eq!(applied, Applied::Done);
        assert_eq!(names(folder.path()), ["a.conf.conflist"]);
        // The way back, with the owner's own file there again.
        fs::write(&path, "the owner's").unwrap();
        let back = Edit::Rename {
            name: "a.conf".into(),
            text: "ours".into(),
            instead_of: "a.conf.conflist".into(),
        };
        apply(folder.path(), &[], &back).unwrap();
        assert_eq!(names(folder.path()), ["a.conf"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "the owner's");
    }

    #[test]
    fn a_program_is_copied_once_and_again_when_it_is_not_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (program, path) = (folder.path().join("p"), folder.path().join("seine-cni"));
        fs::write(&program, "one").unwrap();
        assert!(install_program(&program, &path).unwrap());
        assert!(!install_program(&program, &path).unwrap());
        assert_eq!(mode_of(&path), 0o755);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(install_program(&program, &path).unwrap(), "not executable");
        fs::write(&path, "tampered").unwrap();
        assert!(install_program(&program, &path).unwrap());
        let error = install_program(&folder.path().join("none"), &path).unwrap_err();
        assert!(error.to_string().starts_with("read "), "{error}");
    }

    #[test]
    fn a_dangling_link_is_a_file_that_can_not_be_read() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/nowhere/x", folder.path().join("a.conf")).unwrap();
        fs::create_dir(folder.path().join("folder.conf")).unwrap();
        fs::write(folder.path().join("binary.conf"), [0xff, 0xfe]).unwrap();
        let mut files = read(folder.path()).unwrap();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["a.conf", "binary.conf"]);
        assert!(files.iter().all(|file| file.text.is_err()), "{files:?}");
    }
}
