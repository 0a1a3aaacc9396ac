//! The pods of this node, on disk: what the CNI plugin said of them, so that an agent that restarts
//! knows them all.
//!
//! One file for each pod, replaced in one step. A record of an earlier boot is worthless, since its
//! network namespace is gone, and is removed.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::plan::Plan;

/// Version of [`Record`]: raised when a field changes its meaning. A field that a record lacks has its
/// default, and one that this agent doesn't know is passed over.
pub const VERSION: u32 = 1;

/// One pod as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The pod's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The runtime's identifier of its sandbox; empty for a pod found without the CNI plugin.
    pub container_id: String,
    /// Where its network namespace can be opened again.
    pub netns: PathBuf,
    /// The namespace's cookie, by which it is told from a later one at the same path.
    pub cookie: u64,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Interfaces on the host's side, by name, as the plugin heard of them.
    pub host_interfaces: Vec<String>,
    /// How it is enrolled; nothing if it is not.
    pub plan: Option<Plan>,
    /// Since when it is enrolled, in seconds since 1970; an agent that restarts changes nothing in it.
    #[serde(default)]
    pub enrolled_since: Option<u64>,
    /// [`VERSION`] of the agent that wrote it.
    #[serde(default = "first_version")]
    pub version: u32,
    /// The boot in which this was written.
    pub boot: String,
}

/// The folder of records.
#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    boot: String,
}

impl Registry {
    /// Opens the registry below the agent's state folder.
    ///
    /// # Errors
    ///
    /// The folder can't be made.
    pub fn open(state: &Path) -> io::Result<Self> {
        let folder = state.join("pods");
        fs::create_dir_all(&folder)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned();
        Ok(Self { folder, boot })
    }

    /// This boot's identifier.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// All records of this boot. Those of earlier boots, and what can't be understood, are removed, with
    /// a line in the log for the latter: the pod itself is still in the kernel's map.
    ///
    /// # Errors
    ///
    /// The folder can't be read.
    pub fn load(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            match fs::read_to_string(&path).map(|text| serde_json::from_str::<Record>(&text)) {
                Ok(Ok(record)) if record.boot != self.boot => fs::remove_file(&path)?,
                Ok(Ok(record)) if record.version > VERSION => {
                    tracing::warn!(path = %path.display(), "a pod's record is of a newer agent");
                    fs::remove_file(&path)?;
                }
                Ok(Ok(record)) => records.push(record),
                Ok(Err(error)) => {
                    tracing::warn!(path = %path.display(), %error, "a pod's record is damaged");
                    fs::remove_file(&path)?;
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a pod's record can't be read");
                }
            }
        }
        Ok(records)
    }

    /// Writes a pod's record.
    ///
    /// # Errors
    ///
    /// The disk is full or read-only; the earlier record is still there.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        let path = self.path(&record.uid);
        let temporary = path.with_extension("new");
        fs::write(&temporary, serde_json::to_vec_pretty(record)?)?;
        fs::rename(temporary, path)
    }

    /// Forgets a pod; one that is not known is fine.
    ///
    /// # Errors
    ///
    /// The folder is read-only.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        match fs::remove_file(self.path(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.folder.join(format!("{uid}.json"))
    }
}

fn first_version() -> u32 {
    1
}

/// May this be a pod's UID? It becomes a file's name.
pub fn is_uid(uid: &str) -> bool {
    (1..=128).contains(&uid.len())
        && uid
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.')
        && !uid.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: &str, boot: &str) -> Record {
        Record {
            uid: uid.into(),
            namespace: "shop".into(),
            name: "web".into(),
            container_id: "c".into(),
            netns: "/run/netns/x".into(),
            cookie: 7,
            ips: vec!["10.0.0.1".parse().unwrap()],
            host_interfaces: vec!["veth0".into()],
            plan: Some(Plan::default()),
            enrolled_since: Some(1_700_000_000),
            version: VERSION,
            boot: boot.into(),
        }
    }

    #[test]
    fn records_of_this_boot_come_back_and_others_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(folder.path()).unwrap();
        let own = record("u1", registry.boot());
        registry.save(&own).unwrap();
        registry.save(&record("u2", "another boot")).unwrap();
        let mut newer = record("u4", registry.boot());
        newer.version = VERSION + 1;
        registry.save(&newer).unwrap();
        fs::write(folder.path().join("pods/u3.json"), "{half").unwrap();
        assert_eq!(registry.load().unwrap(), [own]);
        assert_eq!(fs::read_dir(folder.path().join("pods")).unwrap().count(), 1);
        registry.remove("u1").unwrap();
        registry.remove("u1").unwrap();
        assert!(registry.load().unwrap().is_empty());
    }

    #[test]
    fn a_uid_can_not_leave_the_folder() {
        for bad in ["", "../x", "a/b", ".hidden", "a\0b"] {
            assert!(!is_uid(bad), "{bad:?}");
        }
        assert!(is_uid("2b5f8f5e-5d4c-4f5e-9d3d-0a1b2c3d4e5f"));
    }
}
