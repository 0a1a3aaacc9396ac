//! Our plugin in the chain that the node's container runtime uses.
//!
//! One thread owns it. It copies the plugin's program, puts the plugin's entry into the network
//! configuration that the runtime uses, watches both folders, and repairs what another program
//! rewrites. What always holds: the program is there before the entry is; nothing is taken out but
//! by [`remove`], which an uninstall calls. The end of an agent leaves the chain as it is, so that
//! an opted-in pod that starts meanwhile waits.

mod choose;
mod edit;
mod files;

use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use notify::RecursiveMode;
use notify::Watcher;
use seine_cni::PLUGIN_TYPE;
use seine_cni::PluginEntry;
use seine_telemetry::Readiness;
use serde::Serialize;
use tokio::sync::watch;

pub use choose::Chain;
#[doc(hidden)]
pub use edit::check_edits;
pub use files::FileError;
pub(crate) use files::write_new;

use crate::metrics::Metrics;
use edit::Edit;
use files::Applied;

/// Readiness condition: the runtime's chain has our plugin.
pub(crate) const CHAIN: &str = "cni";

/// Changes come in groups.
const QUIET: Duration = Duration::from_millis(20);
/// Both folders are looked at this often, whatever the watch says.
const RESCAN: Duration = Duration::from_secs(10);
/// Between two repairs, so that two programs that undo each other's work don't take a processor.
const BETWEEN_REPAIRS: Duration = Duration::from_secs(1);
/// So many repairs within [`FIGHT`] are no accident.
const FIGHT_REPAIRS: usize = 5;
const FIGHT: Duration = Duration::from_secs(60);
/// Tries to write one file that somebody else keeps writing, before the next event is waited for.
const TRIES: usize = 10;

/// Where the runtime's files are, and what is put there.
#[derive(Clone, Debug)]
pub struct ChainSettings {
    /// The plugin's program, as it came with the agent.
    pub program: PathBuf,
    /// The folder from which the runtime runs plugins.
    pub bin_dir: PathBuf,
    /// The folder of network configurations.
    pub conf_dir: PathBuf,
    /// The plugin's part of the configuration.
    pub entry: PluginEntry,
}

/// Where the chain stands, for people and for Events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChainStatus {
    /// The file that has our plugin and that the runtime uses.
    pub file: Option<String>,
    /// Why there is none, as a sentence.
    pub waiting: Option<String>,
    /// How many times this agent repaired what another program had rewritten.
    pub repairs: u64,
    /// What the last repair was.
    pub last_repair: Option<String>,
}

/// The thread that keeps our plugin in the chain. Dropping it waits for the thread's end, and takes
/// nothing out.
pub(crate) struct Installer {
    wake: Sender<Wake>,
    thread: Option<thread::JoinHandle<()>>,
    status: watch::Receiver<ChainStatus>,
}

enum Wake {
    Changed,
    Stop,
}

impl Installer {
    /// Begins once nothing of `first` is pending in `readiness`.
    pub(crate) fn start(
        settings: ChainSettings,
        readiness: Readiness,
        first: &'static [&'static str],
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        readiness.pending(CHAIN, "redirection comes first");
        let (wake, wakes) = channel();
        let (status_out, status) = watch::channel(ChainStatus::default());
        let work = Work {
            settings,
            readiness,
            metrics,
            status: status_out,
            events: wake.clone(),
            watched: None,
            program: None,
            was_installed: false,
            repairs: Vec::new(),
        };
        let thread = thread::Builder::new()
            .name("cni-chain".into())
            .spawn(move || work.run(first, &wakes))?;
        Ok(Self {
            wake,
            thread: Some(thread),
            status,
        })
    }

    pub(crate) fn status(&self) -> watch::Receiver<ChainStatus> {
        self.status.clone()
    }
}

impl Drop for Installer {
    fn drop(&mut self) {
        // The thread may have ended by itself.
        let _ = self.wake.send(Wake::Stop);
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            tracing::error!("the thread of the CNI chain panicked");
        }
    }
}

/// Takes the plugin out of every configuration, then its program away. No `Installer` may run.
///
/// # Errors
///
/// A file can't be read or written; the rest is done all the same, and the program stays.
pub fn remove(settings: &ChainSettings) -> Result<(), RemoveError> {
    let mut left = Vec::new();
    for _ in 0..TRIES {
        left.clear();
        let found = match files::read(&settings.conf_dir) {
            Ok(found) => found,
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(RemoveError(vec![error.to_string()])),
        };
        let (edits, unknown) = choose::removal(&found);
        let mentions = |name: &str| {
            let file = found.iter().find(|file| file.name == name);
            file.is_some_and(|f| f.text.as_ref().map_or(true, |t| t.contains(PLUGIN_TYPE)))
        };
        left.extend(
            unknown
                .iter()
                .filter(|(name, _)| mentions(name))
                .map(|(name, why)| format!("{}: {why}", settings.conf_dir.join(name).display())),
        );
        let mut again = false;
        for edit in &edits {
            match files::apply(&settings.conf_dir, &found, edit) {
                Ok(Applied::Done) => tracing::info!(?edit, "took the plugin out of the chain"),
                Ok(Applied::ChangedMeanwhile) => again = true,
                Err(error) => left.push(error.to_string()),
            }
        }
        if !again {
            break;
        }
        left.push(format!(
            "{}: another program keeps rewriting it",
            settings.conf_dir.display()
        ));
    }
    if !left.is_empty() {
        return Err(RemoveError(left));
    }
    files::remove(&settings.bin_dir.join(PLUGIN_TYPE))
        .map_err(|error| RemoveError(vec![error.to_string()]))
}

/// What an uninstall could not take out of the chain.
#[derive(Debug, thiserror::Error)]
#[error("our CNI plugin may still be in the chain: {}", .0.join("; "))]
pub struct RemoveError(Vec<String>);

/// The thread's own.
struct Work {
    settings: ChainSettings,
    readiness: Readiness,
    metrics: Metrics,
    status: watch::Sender<ChainStatus>,
    events: Sender<Wake>,
    watched: Option<Watched>,
    /// Of the source and of the copy, when they were last the same.
    program: Option<(Stamp, Stamp)>,
    was_installed: bool,
    repairs: Vec<Instant>,
}

type Stamp = Option<(u64, u64, i64, i64)>;

/// A folder that was removed and made again needs a new watch.
struct Watched {
    _watcher: notify::RecommendedWatcher,
    folders: [Option<Identity>; 2],
}

/// Inode and time of birth: inodes are used again.
type Identity = (u64, Option<SystemTime>);

impl Work {
    fn run(mut self, first: &[&'static str], wakes: &Receiver<Wake>) {
        while first.iter().any(|name| self.readiness.is_pending(name)) {
            match wakes.recv_timeout(Duration::from_millis(50)) {
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Wake::Changed) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
        loop {
            self.watch();
            let repaired = self.pass();
            let pause = if repaired { BETWEEN_REPAIRS } else { QUIET };
            if !wait(wakes, RESCAN) || !settle(wakes, pause) {
                return;
            }
        }
    }

    fn watch(&mut self) {
        use std::os::unix::fs::MetadataExt;
        let folders = [&self.settings.conf_dir, &self.settings.bin_dir];
        let identity = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.created().ok()))
        };
        let now = folders.map(identity);
        if self.watched.as_ref().is_some_and(|w| w.folders == now) {
            return;
        }
        let events = self.events.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| event.kind.is_access()) {
                return;
            }
            // The thread has ended: nobody needs the event.
            let _ = events.send(Wake::Changed);
        })
        .and_then(|mut watcher| {
            for (folder, identity) in folders.into_iter().zip(now) {
                if identity.is_some() {
                    watcher.watch(folder, RecursiveMode::NonRecursive)?;
                }
            }
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => {
                self.watched = Some(Watched {
                    _watcher: watcher,
                    folders: now,
                });
            }
            Err(error) => tracing::warn!(
                %error, every = ?RESCAN,
                "the folders of the CNI configuration can't be watched; they are looked at all the same"
            ),
        }
    }

    /// Brings both folders to what they should be; whether that was a repair.
    fn pass(&mut self) -> bool {
        let done = self.program().and_then(|copied| {
            let (edited, chain) = self.configuration()?;
            Ok((copied, edited, chain))
        });
        let (copied, edited, chain) = match done {
            Ok(done) => done,
            Err(error) => {
                let reason = error.to_string();
                self.say(None, Some(reason));
                return false;
            }
        };
        let what = match (edited, copied) {
            (Some(file), _) => Some(format!("the network configuration {file}")),
            (None, true) => Some(format!(
                "the program {}",
                self.settings.bin_dir.join(PLUGIN_TYPE).display()
            )),
            (None, false) => None,
        };
        let repaired = what.filter(|_| self.was_installed);
        if let Some(what) = &repaired {
            self.repaired(what);
        }
        match chain {
            Chain::Installed { file } => {
                self.was_installed = true;
                self.say(Some(file), None);
            }
            Chain::NoConfiguration => self.say(None, Some(format!(
                "there is no network configuration in {} yet: the cluster's CNI makes one when it is installed",
                self.settings.conf_dir.display()
            ))),
            Chain::Broken { file, why } => self.say(None, Some(format!(
                "the network configuration that comes first, {}, {why}; its owner has to put it right",
                self.settings.conf_dir.join(file).display()
            ))),
        }
        repaired.is_some()
    }

    fn program(&mut self) -> Result<bool, FileError> {
        let (from, to) = (
            &self.settings.program,
            self.settings.bin_dir.join(PLUGIN_TYPE),
        );
        let stamps = || (files::stamp(from), files::stamp(&to));
        if self.program.is_some_and(|same| same == stamps()) && files::stamp(&to).is_some() {
            return Ok(false);
        }
        let copied = files::install_program(from, &to)?;
        self.program = Some(stamps());
        Ok(copied)
    }

    /// Which file was written, and where the chain stands.
    fn configuration(&self) -> Result<(Option<String>, Chain), FileError> {
        let (folder, entry) = (&self.settings.conf_dir, self.settings.entry.to_value());
        let mut edited = None;
        for _ in 0..TRIES {
            let found = files::read(folder)?;
            let decision = choose::decide(&found, &entry);
            let name = match &decision.edit {
                Edit::None => return Ok((edited, decision.chain)),
                Edit::Replace { name, .. } | Edit::Rename { name, .. } => name.clone(),
            };
            if files::apply(folder, &found, &decision.edit)? == Applied::Done {
                tracing::info!(file = %name, "put the plugin into the chain");
                edited = Some(name);
            }
        }
        let why = "is written by another program all the time".to_owned();
        let file = edited.clone().unwrap_or_default();
        Ok((edited, Chain::Broken { file, why }))
    }

    fn repaired(&mut self, what: &str) {
        self.repairs.retain(|at| at.elapsed() < FIGHT);
        self.repairs.push(Instant::now());
        let fight = if self.repairs.len() >= FIGHT_REPAIRS {
            "; another program writes it again and again: tell that one to leave other plugins alone \
             (Cilium: cni.exclusive=false)"
        } else {
            ""
        };
        let repair = format!("{what} had lost the mesh's CNI plugin and has it again{fight}");
        tracing::warn!("{repair}");
        self.metrics.cni_repairs.inc();
        self.status.send_modify(|status| {
            status.repairs += 1;
            status.last_repair = Some(repair);
        });
    }

    fn say(&self, file: Option<String>, waiting: Option<String>) {
        match &waiting {
            Some(reason) => {
                if self.status.borrow().waiting != waiting {
                    tracing::warn!(%reason, "the CNI plugin is not in the runtime's chain");
                }
                self.readiness.pending(CHAIN, reason.clone());
            }
            None => self.readiness.done(CHAIN),
        }
        self.status.send_if_modified(|status| {
            let changed = status.file != file || status.waiting != waiting;
            (status.file, status.waiting) = (file, waiting);
            changed
        });
    }
}

/// Until something changed or the time is over; `false`: stop.
fn wait(wakes: &Receiver<Wake>, at_most: Duration) -> bool {
    match wakes.recv_timeout(at_most) {
        Ok(Wake::Changed) | Err(RecvTimeoutError::Timeout) => true,
        Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => false,
    }
}

/// Takes what comes within that time; `false`: stop.
fn settle(wakes: &Receiver<Wake>, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        match wakes.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Wake::Changed) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

#[cfg(test)]
mod tests;
