//! Pods that run already when the agent comes to a node: found by the cgroup that the kubelet makes
//! for each, whose name carries the pod's UID.

use std::collections::HashMap;
use std::path::Path;
use std::path::PathBuf;

use crate::door;

/// A path to the network namespace of each of the wanted pods that has a process, by UID.
pub(crate) fn running(pods_cgroup: &Path, wanted: &[String]) -> HashMap<String, PathBuf> {
    let mut found = HashMap::new();
    if wanted.is_empty() {
        return found;
    }
    door::any_below(pods_cgroup, &mut |folder| {
        let name = folder
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        for uid in wanted {
            if !found.contains_key(uid)
                && is_cgroup_of(name, uid)
                && let Some(pid) = door::processes(folder).first()
            {
                found.insert(uid.clone(), PathBuf::from(format!("/proc/{pid}/ns/net")));
            }
        }
        found.len() == wanted.len()
    });
    found
}

/// The cgroup of each of these pods that has one.
pub(crate) fn cgroups(pods_cgroup: &Path, uids: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if uids.is_empty() {
        return found;
    }
    door::any_below(pods_cgroup, &mut |folder| {
        let name = folder.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| uids.iter().any(|uid| is_cgroup_of(name, uid))) {
            found.push(folder.to_owned());
        }
        found.len() == uids.len()
    });
    found.sort();
    found
}

/// `pod<uid>` with the cgroupfs driver, `kubepods-<class>-pod<uid with underscores>.slice` with
/// systemd's.
fn is_cgroup_of(folder: &str, uid: &str) -> bool {
    let name = folder.strip_suffix(".slice").unwrap_or(folder);
    let end = name
        .rsplit_once("-pod")
        .map_or_else(|| name.strip_prefix("pod"), |(_, end)| Some(end));
    // A cgroupfs name has hyphens of its own in the UID.
    name.strip_prefix("pod") == Some(uid) || end.is_some_and(|end| end == uid.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_cgroup_drivers_names_are_known() {
        let uid = "2b5f8f5e-5d4c-4f5e";
        assert!(is_cgroup_of("pod2b5f8f5e-5d4c-4f5e", uid));
        assert!(is_cgroup_of(
            "kubepods-burstable-pod2b5f8f5e_5d4c_4f5e.slice",
            uid
        ));
        assert!(!is_cgroup_of("kubepods-burstable.slice", uid));
        assert!(!is_cgroup_of("pod2b5f8f5e-5d4c-4f5f", uid));
    }

    #[test]
    fn a_pods_process_leads_to_its_namespace() {
        let folder = tempfile::tempdir().unwrap();
        let container = folder.path().join("burstable/podu-1/c1");
        std::fs::create_dir_all(&container).unwrap();
        std::fs::write(container.join("cgroup.procs"), "4321\n").unwrap();
        let found = running(folder.path(), &["u-1".to_owned(), "u-2".to_owned()]);
        assert_eq!(
            found,
            [("u-1".to_owned(), PathBuf::from("/proc/4321/ns/net"))].into()
        );
        assert_eq!(
            cgroups(folder.path(), &["u-2", "u-1"]),
            [folder.path().join("burstable/podu-1")]
        );
    }
}
