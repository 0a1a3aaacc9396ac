//! What a node needs: found or missing, and what to do.
//!
//! Every question is asked of the kernel itself where that is possible: programs are loaded, and
//! attached for a moment, to the pods' cgroup or in a namespace of their own; they let everything pass.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;

use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::socket;
use nix::sys::statfs::FsType;
use nix::sys::statfs::statfs;
use serde::Serialize;

use crate::door;
use crate::redirect;

mod programs;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    /// The cgroup that holds the node's pods.
    pub pods_cgroup: PathBuf,
    /// The kubelet's own cgroup.
    pub kubelet_cgroup: Option<PathBuf>,
    /// The folder for pins.
    pub bpffs: PathBuf,
}

/// How a question came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, with less.
    Warning,
    /// It can't work.
    Missing,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was asked.
    pub name: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do, where something is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

impl Finding {
    fn new(
        name: impl Into<String>,
        verdict: Verdict,
        found: impl Into<String>,
        advice: &str,
    ) -> Self {
        let advice = if verdict == Verdict::Ok { "" } else { advice };
        Self {
            name: name.into(),
            verdict,
            found: found.into(),
            advice: advice.to_owned(),
        }
    }

    fn judge(name: &str, good: bool, found: impl Into<String>, advice: &str) -> Self {
        let verdict = if good { Verdict::Ok } else { Verdict::Missing };
        Self::new(name, verdict, found, advice)
    }
}

/// All answers, in the order of asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One for each question.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Nothing is missing.
    pub fn is_good(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.verdict != Verdict::Missing)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .findings
            .iter()
            .map(|finding| finding.name.len())
            .max()
            .unwrap_or(0);
        for finding in &self.findings {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "WARNING",
                Verdict::Missing => "MISSING",
            };
            writeln!(f, "{:width$}  {verdict:7}  {}", finding.name, finding.found)?;
            if !finding.advice.is_empty() {
                writeln!(f, "{:width$}           -> {}", "", finding.advice)?;
            }
        }
        let end = if self.is_good() {
            "This node can run the agent."
        } else {
            "Something is missing."
        };
        writeln!(f, "\n{end}")
    }
}

/// Asks everything.
pub fn check(places: &Places) -> Report {
    let mut findings = vec![kernel()];
    findings.extend(cgroups(places));
    findings.push(namespace("cgroup", 0xEFFF_FFFB, "run the agent with the host's cgroup namespace (a privileged pod has a private one: mount the host's /sys/fs/cgroup)"));
    findings.push(namespace(
        "pid",
        0xEFFF_FFFC,
        "run the agent with hostPID: it judges peers by their process",
    ));
    findings.push(Finding::judge(
        "BTF",
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        "/sys/kernel/btf/vmlinux",
        "a kernel built with CONFIG_DEBUG_INFO_BTF",
    ));
    findings.push(bpffs(&places.bpffs));
    findings.push(capabilities());
    findings.push(fwmark_accept());
    findings.push(netns_cookie());
    findings.push(sock_diag());
    findings.extend(programs::check(&places.pods_cgroup));
    findings.push(kubelet(places.kubelet_cgroup.as_deref()));
    Report { findings }
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    Finding::judge(
        "kernel",
        version(release).is_some_and(|version| version >= (5, 15)),
        release,
        "Linux 5.15 or newer: older ones don't tell network namespaces apart in every program",
    )
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Mount points of cgroup v2, and whether v1 controllers are mounted beside it.
fn cgroup2_mounts(mounts: &str) -> (Vec<PathBuf>, bool) {
    let mut v2 = Vec::new();
    let mut v1 = false;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(point), Some(kind)) = (fields.next(), fields.next()) else {
            continue;
        };
        match kind {
            "cgroup2" => v2.push(PathBuf::from(point.replace("\\040", " "))),
            "cgroup" => v1 = true,
            _ => {}
        }
    }
    (v2, v1)
}

fn cgroups(places: &Places) -> Vec<Finding> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let (v2, v1) = cgroup2_mounts(&mounts);
    let listed: Vec<_> = v2.iter().map(|path| path.display().to_string()).collect();
    let verdict = match (v2.is_empty(), v1) {
        (true, _) => Verdict::Missing,
        (false, true) => Verdict::Warning,
        (false, false) => Verdict::Ok,
    };
    let mount = Finding::new(
        "cgroup v2",
        verdict,
        if listed.is_empty() {
            "not mounted".to_owned()
        } else {
            listed.join(", ")
        },
        if v2.is_empty() {
            "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2"
        } else {
            "hybrid: pods, kubelet and ztunnel must each have a cgroup below this mount"
        },
    );
    let below = v2.iter().any(|mount| places.pods_cgroup.starts_with(mount));
    let there = places.pods_cgroup.join("cgroup.procs").exists();
    let pods = Finding::judge(
        "pods' cgroup",
        below && there,
        places.pods_cgroup.display().to_string(),
        if there {
            "give --pods-cgroup as a path below the cgroup v2 mount"
        } else {
            "it does not exist: /sys/fs/cgroup/kubepods.slice with systemd's driver, .../kubepods with cgroupfs"
        },
    );
    vec![mount, pods]
}

/// In a namespace of its own the agent would attach to, or look for, something else than it says.
fn namespace(kind: &str, initial: u64, advice: &str) -> Finding {
    let link = fs::read_link(format!("/proc/self/ns/{kind}"))
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    let own = format!("{kind}:[{initial}]");
    Finding::judge(&format!("{kind} namespace"), link == own, link, advice)
}

fn bpffs(path: &Path) -> Finding {
    const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);
    // The folder is made by the agent: its mount is found at the nearest one that is there.
    let nearest = path
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    if !statfs(nearest).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Finding::new(
            "bpffs",
            Verdict::Missing,
            format!("{} is on none", path.display()),
            "mount -t bpf bpf /sys/fs/bpf, and mount it into the agent's container with propagation",
        );
    }
    let probe = nearest.join(format!("seine-check-{}", std::process::id()));
    match fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)) {
        Ok(()) => Finding::new("bpffs", Verdict::Ok, path.display().to_string(), ""),
        Err(error) => Finding::new(
            "bpffs",
            Verdict::Missing,
            format!("make a folder in {}: {error}", nearest.display()),
            "mount it writable into the agent's container",
        ),
    }
}

fn netns_cookie() -> Finding {
    let cookie = fs::File::open("/proc/self/ns/net")
        .map_err(|error| error.to_string())
        .and_then(|netns| redirect::netns_cookie(netns.as_fd()).map_err(|error| error.to_string()));
    Finding::judge(
        "netns cookie",
        cookie.is_ok(),
        cookie.map_or_else(|error| error, |cookie| format!("{cookie} is the host's")),
        "Linux 5.14 or newer, and CAP_SYS_ADMIN",
    )
}

fn sock_diag() -> Finding {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    );
    match socket {
        Ok(_) => Finding::new("sock_diag", Verdict::Ok, "opens", ""),
        Err(error) => Finding::new(
            "sock_diag",
            Verdict::Warning,
            error.to_string(),
            "a kernel with CONFIG_INET_DIAG and INET_DIAG_DESTROY, or connections older than an \
             enrolment are neither counted nor reset",
        ),
    }
}

fn capabilities() -> Finding {
    // SYS_ADMIN, without which no namespace can be entered, includes BPF and PERFMON.
    const NEEDED: [(&str, u32); 3] = [("NET_ADMIN", 12), ("SYS_PTRACE", 19), ("SYS_ADMIN", 21)];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(_, bit)| effective & (1 << bit) == 0)
        .map(|(name, _)| *name)
        .collect();
    let found = if missing.is_empty() {
        "all".to_owned()
    } else {
        format!("without {}", missing.join(", "))
    };
    Finding::judge(
        "capabilities",
        missing.is_empty(),
        found,
        "run the agent as root with these capabilities",
    )
}

fn fwmark_accept() -> Finding {
    let path = "/proc/sys/net/ipv4/tcp_fwmark_accept";
    Finding::judge(
        "tcp_fwmark_accept",
        Path::new(path).exists(),
        path,
        "a kernel with IPv4 TCP sysctls",
    )
}

fn kubelet(cgroup: Option<&Path>) -> Finding {
    let name = "kubelet's cgroup";
    let Some(cgroup) = cgroup else {
        return Finding::new(
            name,
            Verdict::Warning,
            "not given",
            "give --kubelet-cgroup, or probes of pods with strict mTLS fail",
        );
    };
    if !cgroup.join("cgroup.procs").exists() {
        return Finding::new(
            name,
            Verdict::Missing,
            format!("{} does not exist", cgroup.display()),
            "systemctl show kubelet -p ControlGroup tells it",
        );
    }
    let others: BTreeSet<_> = door::processes(cgroup)
        .iter()
        // A kernel thread has no program, and makes no connections.
        .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok())
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.contains("kubelet"))
        .collect();
    let named: Vec<_> = others.iter().take(5).map(String::as_str).collect();
    let more = if others.len() > named.len() {
        " and others"
    } else {
        ""
    };
    if others.is_empty() {
        Finding::new(name, Verdict::Ok, cgroup.display().to_string(), "")
    } else {
        Finding::new(
            name,
            Verdict::Warning,
            format!("{} also holds {}{more}", cgroup.display(), named.join(", ")),
            "these processes reach probed ports in plaintext too: give the kubelet a cgroup of its own",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15-rc1"), Some((5, 15)));
        assert_eq!(version("nonsense"), None);
        assert!(version("5.9.3").unwrap() < (5, 15));
    }

    #[test]
    fn a_hybrid_node_is_told_from_a_unified_one() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            cgroup2_mounts(hybrid),
            (vec!["/sys/fs/cgroup/unified".into()], true)
        );
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(
            cgroup2_mounts(unified),
            (vec!["/sys/fs/cgroup".into()], false)
        );
        assert_eq!(cgroup2_mounts("garbage\n\n"), (vec![], false));
    }

    #[test]
    fn a_missing_part_makes_the_report_bad_and_says_what_to_do() {
        let nowhere = Path::new("/nonexistent/agent-check");
        let report = check(&Places {
            pods_cgroup: nowhere.into(),
            kubelet_cgroup: Some(nowhere.into()),
            bpffs: nowhere.into(),
        });
        assert!(!report.is_good());
        let text = report.to_string();
        for expected in [
            "kernel ",
            "pods' cgroup",
            "MISSING",
            "->",
            "Something is missing",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
    }
}
