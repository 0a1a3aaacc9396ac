//! What is known of each file, and the set that follows from it. No threads, no events.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{is_hidden, is_object_file, memory::Memory};
use crate::{InForce, Kind, Object, ObjectKey, ObjectSet, Problem, parse_text};

/// Larger files are refused.
const MAX_FILE_BYTES: u64 = 64 << 20;

pub(super) struct DirectoryState {
    directory: PathBuf,
    files: BTreeMap<PathBuf, FileState>,
    /// Folders that couldn't be listed; what is below them stays.
    walk_problems: Vec<Problem>,
    objects: Arc<ObjectSet>,
    problems: Arc<Vec<Problem>>,
    memory: Option<Memory>,
}

/// The objects of a file, with their lines.
pub(super) type FileObjects = BTreeMap<(Kind, ObjectKey), (Object, u64)>;

/// A file as it was when last read.
struct FileState {
    stamp: Option<Stamp>,
    objects: FileObjects,
    problems: Vec<Problem>,
}

/// A file whose stamp is the same is not read again, unless an event names it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl DirectoryState {
    /// With a memory, each file begins as it is remembered.
    pub(super) fn new(directory: PathBuf, memory: Option<Memory>) -> io::Result<Self> {
        let remembered = memory.as_ref().map_or(Ok(Vec::new()), Memory::recall)?;
        let files = remembered.into_iter().map(|(file, objects)| {
            let state = FileState {
                stamp: None,
                objects,
                problems: Vec::new(),
            };
            (directory.join(file), state)
        });
        Ok(Self {
            files: files.collect(),
            directory,
            walk_problems: Vec::new(),
            objects: Arc::default(),
            problems: Arc::default(),
            memory,
        })
    }

    pub(super) fn objects(&self) -> Arc<ObjectSet> {
        self.objects.clone()
    }

    pub(super) fn problems(&self) -> Arc<Vec<Problem>> {
        self.problems.clone()
    }

    /// Looks at every file; those that changed or are `touched` are read. `true`: something may
    /// have changed.
    pub(super) fn rescan(&mut self, touched: &[PathBuf]) -> bool {
        let mut walk = Walk::default();
        walk.folder(&self.directory, 0);
        let touched: BTreeSet<_> = touched.iter().map(PathBuf::as_path).collect();

        let mut changed = self.walk_problems != walk.problems;
        self.files.retain(|path, _| {
            let stays = walk.files.contains_key(path)
                || walk
                    .unreadable
                    .iter()
                    .any(|folder| path.starts_with(folder));
            if let (false, Some(memory)) = (stays, &self.memory) {
                memory.forget(relative(path, &self.directory));
            }
            changed |= !stays;
            stays
        });
        self.walk_problems = walk.problems;
        for (path, stamp) in walk.files {
            let known = self.files.get(&path);
            if known.is_some_and(|file| file.stamp == Some(stamp))
                && !touched.contains(path.as_path())
            {
                continue;
            }
            let read = read_file(&path, stamp, known);
            if let Some(memory) = &self.memory
                && known.is_none_or(|known| known.objects != read.objects)
            {
                memory.remember(relative(&path, &self.directory), &read.objects);
            }
            self.files.insert(path, read);
            changed = true;
        }
        if changed {
            self.rebuild();
        }
        changed
    }

    fn rebuild(&mut self) {
        let mut set = ObjectSet::default();
        let mut problems = self.walk_problems.clone();
        let mut owners: BTreeMap<(Kind, &ObjectKey), &Path> = BTreeMap::new();
        for (path, file) in &self.files {
            problems.extend(file.problems.iter().cloned());
            for ((kind, key), (object, line)) in &file.objects {
                if let Some(owner) = owners.get(&(*kind, key)) {
                    problems.push(Problem {
                        file: path.clone(),
                        line: Some(*line),
                        object: Some(format!("{kind} {key}")),
                        generation: None,
                        field: None,
                        message: format!("is defined in {} already, which counts", owner.display()),
                        in_force: InForce::Nothing,
                    });
                    continue;
                }
                owners.insert((*kind, key), path);
                set.insert(key.clone(), object.clone());
            }
        }
        set.share_unchanged(&self.objects);
        self.objects = Arc::new(set);
        self.problems = Arc::new(problems);
    }
}

fn relative<'a>(path: &'a Path, directory: &Path) -> &'a Path {
    path.strip_prefix(directory).unwrap_or(path)
}

fn read_file(path: &Path, stamp: Stamp, known: Option<&FileState>) -> FileState {
    let kept = || known.map(|file| file.objects.clone()).unwrap_or_default();
    let unreadable = |message: String| FileState {
        // No stamp: tried again at the next look.
        stamp: None,
        objects: kept(),
        problems: vec![Problem {
            file: path.into(),
            line: None,
            object: None,
            generation: None,
            field: None,
            message,
            in_force: match known {
                Some(file) if !file.objects.is_empty() => InForce::LastGood,
                _ => InForce::Nothing,
            },
        }],
    };
    if stamp.size > MAX_FILE_BYTES {
        return unreadable(format!(
            "{} bytes: at most {MAX_FILE_BYTES} are read",
            stamp.size
        ));
    }
    let text = match fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => return unreadable("is not UTF-8".into()),
        Err(error) => return unreadable(error.to_string()),
    };
    let parsed = parse_text(path, &text);
    let mut problems = parsed.problems;
    let mut objects = BTreeMap::new();
    for (key, object, line) in parsed.objects {
        let kind = object.kind();
        if objects.contains_key(&(kind, key.clone())) {
            problems.push(Problem {
                file: path.into(),
                line: Some(line),
                object: Some(format!("{kind} {key}")),
                generation: None,
                field: None,
                message: "is defined twice in this file; the first counts".into(),
                in_force: InForce::Nothing,
            });
        } else {
            objects.insert((kind, key), (object, line));
        }
    }
    // The last good versions stay: of what is invalid, and of whatever an unreadable part may be.
    for (id, kept) in known.iter().flat_map(|file| &file.objects) {
        if (parsed.unreadable || parsed.invalid.contains(id)) && !objects.contains_key(id) {
            objects.insert(id.clone(), kept.clone());
            let name = format!("{} {}", id.0, id.1);
            for problem in &mut problems {
                if problem.object.as_ref().is_none_or(|object| *object == name) {
                    problem.in_force = InForce::LastGood;
                }
            }
        }
    }
    FileState {
        stamp: Some(stamp),
        objects,
        problems,
    }
}

#[derive(Default)]
struct Walk {
    files: BTreeMap<PathBuf, Stamp>,
    unreadable: Vec<PathBuf>,
    problems: Vec<Problem>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, depth: usize) {
        // A link that leads to a folder around it.
        if depth > 32 {
            return;
        }
        let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => return,
            Err(error) => return self.failed(folder, &error),
        };
        for entry in entries {
            let path = entry.path();
            if is_hidden(&path) {
                continue;
            }
            // Follows links: a mounted ConfigMap is made of them.
            match fs::metadata(&path) {
                Ok(found) if found.is_dir() => self.folder(&path, depth + 1),
                Ok(found) if found.is_file() && is_object_file(&path) => {
                    let stamp = Stamp {
                        inode: found.ino(),
                        size: found.size(),
                        modified: (found.mtime(), found.mtime_nsec()),
                        changed: (found.ctime(), found.ctime_nsec()),
                    };
                    self.files.insert(path, stamp);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.failed(&path, &error),
            }
        }
    }

    fn failed(&mut self, path: &Path, error: &io::Error) {
        self.unreadable.push(path.into());
        self.problems.push(Problem {
            file: path.into(),
            line: None,
            object: None,
            generation: None,
            field: None,
            message: error.to_string(),
            in_force: InForce::LastGood,
        });
    }
}
