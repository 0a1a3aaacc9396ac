//! The node-wide attachments: which program at which cgroup.

use super::{
    Attachment, RedirectConfig, RedirectError, Result,
    cgroup::Cgroup,
    links::{self, Done, Journal, Wanted},
    object::{Loaded, Pins},
    sys::{self, AttachType},
};
use seine_bpf_common::{PROXY_SLOTS, Proxies, ProxyCgroup};

/// Programs at the pods' cgroup. `mark_proxy` comes first, since the others trust its mark; the
/// connect hooks come last, when everything behind them works.
const AT_PODS: &[(&str, AttachType)] = &[
    ("mark_proxy", AttachType::SockCreate),
    ("watch_pods", AttachType::SockOps),
    ("tell_original", AttachType::Getsockopt),
    ("name_peer4", AttachType::Getpeername4),
    ("name_peer6", AttachType::Getpeername6),
    ("name_resolver4", AttachType::Recvmsg4),
    ("name_resolver6", AttachType::Recvmsg6),
    ("catch_send4", AttachType::Sendmsg4),
    ("catch_send6", AttachType::Sendmsg6),
    ("catch_connect4", AttachType::Connect4),
    ("catch_connect6", AttachType::Connect6),
];

/// The program at the kubelet's cgroup.
const AT_KUBELET: (&str, AttachType) = ("watch_kubelet", AttachType::SockOps);

/// The cgroups that redirection is about.
#[derive(Debug)]
pub(super) struct Node {
    pods: Cgroup,
    kubelet: Option<Cgroup>,
}

impl Node {
    pub(super) fn open(config: &RedirectConfig) -> Result<Self> {
        let pods = Cgroup::open(&config.pods_cgroup)?;
        let kubelet = config
            .kubelet_cgroup
            .as_deref()
            .map(Cgroup::open)
            .transpose()?;
        if let Some(kubelet) = &kubelet
            && (pods.is_within(kubelet) || kubelet.is_within(&pods))
        {
            return Err(RedirectError::Cgroup {
                path: kubelet.path.clone(),
                reason: "holds the pods too, or is held by them: a pod could pose as the kubelet; \
                         give the kubelet a cgroup of its own"
                    .into(),
            });
        }
        Ok(Self { pods, kubelet })
    }

    /// Path of the pods' cgroup.
    pub(super) fn pods_path(&self) -> &std::path::Path {
        &self.pods.path
    }

    /// Makes every attachment right, and says what had to be done.
    pub(super) fn attach(
        &self,
        loaded: &Loaded,
        pins: &Pins,
        journal: &mut Journal,
    ) -> Result<Vec<(String, Done)>> {
        let wanted = self.wanted(loaded, pins)?;
        let mut done = Vec::new();
        for (name, link) in &wanted {
            done.push(((*name).to_owned(), links::ensure(link, journal)?));
        }
        Ok(done)
    }

    /// Removes attachments that nobody wants any more: of a kubelet that is not configured now, of an agent of
    /// another version.
    pub(super) fn remove_unwanted(
        &self,
        loaded: &Loaded,
        pins: &Pins,
    ) -> Result<Vec<(String, Done)>> {
        let wanted = self.wanted(loaded, pins)?;
        let mut done = Vec::new();
        for entry in std::fs::read_dir(pins.link(""))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !wanted.iter().any(|(wanted, _)| *wanted == name) {
                links::remove(&entry.path())?;
                done.push((name, Done::Removed));
            }
        }
        Ok(done)
    }

    /// Every attachment as it really is.
    pub(super) fn status(&self, loaded: &Loaded, pins: &Pins) -> Result<Vec<Attachment>> {
        let mut attachments = Vec::new();
        for (name, wanted) in self.wanted(loaded, pins)? {
            let found = links::look(&wanted.pin)?;
            let program = sys::program_id(wanted.program)
                .map_err(|error| RedirectError::call("BPF_OBJ_GET_INFO_BY_FD", name, error))?;
            attachments.push(Attachment {
                program: name.to_owned(),
                cgroup_id: found.map_or(0, |link| link.target),
                program_id: found.map_or(0, |link| link.program_id),
                right: found.is_some_and(|link| {
                    link.target == wanted.target_id && link.program_id == program
                }),
            });
        }
        Ok(attachments)
    }

    fn wanted<'a>(
        &self,
        loaded: &'a Loaded,
        pins: &Pins,
    ) -> Result<Vec<(&'static str, Wanted<'a>)>> {
        let at_pods = AT_PODS.iter().map(|at| (at, &self.pods));
        let at_kubelet = self.kubelet.iter().map(|kubelet| (&AT_KUBELET, kubelet));
        at_pods
            .chain(at_kubelet)
            .map(|((name, attach_type), cgroup)| {
                let wanted = Wanted {
                    pin: pins.link(name),
                    program: loaded.program(name)?,
                    attach_type: *attach_type,
                    target: cgroup.descriptor(),
                    target_id: cgroup.id,
                    flags: 0,
                };
                Ok((*name, wanted))
            })
            .collect()
    }

    /// Tells the programs which cgroups hold node proxies.
    pub(super) fn set_proxies(
        &self,
        loaded: &mut Loaded,
        paths: &[std::path::PathBuf],
    ) -> Result<()> {
        if paths.len() > PROXY_SLOTS {
            return Err(RedirectError::Invalid(format!(
                "{} proxy cgroups, at most {PROXY_SLOTS} are possible",
                paths.len()
            )));
        }
        let mut proxies = Proxies::default();
        for (slot, path) in proxies.slots.iter_mut().zip(paths) {
            let cgroup = Cgroup::open(path)?;
            if !cgroup.is_within(&self.pods) || cgroup.id == self.pods.id {
                return Err(RedirectError::Cgroup {
                    path: path.clone(),
                    reason: format!(
                        "a node proxy's cgroup must be one below the pods' ({}), \
                         where the programs see its sockets",
                        self.pods.path.display()
                    ),
                });
            }
            *slot = ProxyCgroup {
                id: cgroup.id,
                level: cgroup.level,
                reserved: 0,
            };
        }
        loaded
            .proxies
            .set(0, proxies, 0)
            .map_err(|error| RedirectError::program("writing map PROXIES", error))
    }
}
