//! A pod's volumes and the files that Kubernetes puts into its `/etc`.
//!
//! ConfigMaps, Secrets and emptyDirs are directories in the lab's state, hostPaths the
//! machine's own; all are bound into the pod's mount namespace.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{ConfigMap, KeyToPath, PodSpec, Secret, Volume};
use serde_json::Value;

use crate::expand::typed;
use crate::manifest::Key;
use crate::names::Layout;
use crate::pause::Bind;
use crate::pod::PodView;

/// The contents of the ConfigMaps or Secrets of one namespace, by name.
pub type Contents = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

/// What a pod's volumes and environment are taken from, as it was when the pod was made.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// ConfigMaps of the pod's namespace.
    pub config_maps: Contents,
    /// Secrets of the pod's namespace.
    pub secrets: Contents,
    /// A token of the pod's own service account, for volumes that ask for one.
    pub token: Option<String>,
}

impl Sources {
    /// Those of `namespace` among `objects`.
    pub fn of<'a>(
        objects: impl Iterator<Item = (&'a Key, &'a Value)>,
        namespace: &str,
    ) -> Result<Self> {
        let mut sources = Self::default();
        for (key, object) in objects.filter(|(key, _)| key.namespace == namespace) {
            match key.kind.as_str() {
                "ConfigMap" => {
                    let map: ConfigMap = typed(key, object)?;
                    let text = map
                        .data
                        .into_iter()
                        .flatten()
                        .map(|(k, v)| (k, v.into_bytes()));
                    let binary = map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0));
                    sources
                        .config_maps
                        .insert(key.name.clone(), text.chain(binary).collect());
                }
                "Secret" => {
                    let secret: Secret = typed(key, object)?;
                    let data = secret.data.into_iter().flatten().map(|(k, v)| (k, v.0));
                    let text = secret
                        .string_data
                        .into_iter()
                        .flatten()
                        .map(|(k, v)| (k, v.into_bytes()));
                    sources
                        .secrets
                        .insert(key.name.clone(), data.chain(text).collect());
                }
                _ => {}
            }
        }
        Ok(sources)
    }

    /// What `spec` needs and isn't there.
    pub fn missing(&self, spec: &PodSpec) -> Option<String> {
        for volume in spec.volumes.iter().flatten() {
            if let Some(map) = &volume.config_map
                && map.optional != Some(true)
                && !self.config_maps.contains_key(&map.name)
            {
                return Some(format!("ConfigMap {} does not exist", map.name));
            }
            if let Some(secret) = &volume.secret
                && secret.optional != Some(true)
                && let Some(name) = &secret.secret_name
                && !self.secrets.contains_key(name)
            {
                return Some(format!("Secret {name} does not exist"));
            }
        }
        None
    }
}

/// Makes a pod's volumes; what is to be bound where. Of several containers' mounts all are
/// made, since the lab's containers of a pod share its file system.
pub fn prepare(layout: &Layout, pod: &PodView, dns: &str, sources: &Sources) -> Result<Vec<Bind>> {
    let spec = &pod.desired.spec;
    let directory = layout.pod(&pod.uid);
    let mut binds = etc_files(&directory, pod, dns)?;
    let mut made: BTreeMap<&str, PathBuf> = BTreeMap::new();
    for volume in spec.volumes.iter().flatten() {
        made.insert(&volume.name, make(&directory, volume, spec, sources)?);
    }
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    for mount in containers.flat_map(|container| container.volume_mounts.iter().flatten()) {
        let Some(source) = made.get(mount.name.as_str()) else {
            bail!("volumeMounts: there is no volume '{}'", mount.name);
        };
        let source = match &mount.sub_path {
            Some(path) => source.join(inside(path)?),
            None => source.clone(),
        };
        let bind = Bind {
            source,
            target: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only == Some(true),
        };
        if !binds.contains(&bind) {
            binds.push(bind);
        }
    }
    Ok(binds)
}

fn etc_files(directory: &Path, pod: &PodView, dns: &str) -> Result<Vec<Bind>> {
    let desired = &pod.desired;
    let etc = directory.join("etc");
    fs::create_dir_all(&etc).with_context(|| format!("making {}", etc.display()))?;
    let hostname = desired.spec.hostname.as_deref().unwrap_or(&desired.name);
    let full = match &desired.spec.subdomain {
        Some(subdomain) => {
            format!(
                "{hostname}.{subdomain}.{}.svc.cluster.local\t",
                desired.namespace
            )
        }
        None => String::new(),
    };
    let files = [
        (
            "resolv.conf",
            format!(
                "search {0}.svc.cluster.local svc.cluster.local cluster.local\n\
                 {dns}options ndots:5\n",
                desired.namespace
            ),
        ),
        (
            "hosts",
            format!(
                "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 {0}\t{full}{hostname}\n{1}\t{full}{hostname}\n",
                pod.v4, pod.v6
            ),
        ),
        ("hostname", format!("{hostname}\n")),
    ];
    let mut binds = Vec::new();
    for (name, text) in files {
        let source = etc.join(name);
        fs::write(&source, text).with_context(|| format!("writing {}", source.display()))?;
        binds.push(Bind {
            source,
            target: Path::new("/etc").join(name),
            read_only: false,
        });
    }
    Ok(binds)
}

fn make(directory: &Path, volume: &Volume, spec: &PodSpec, sources: &Sources) -> Result<PathBuf> {
    let path = directory.join("volumes").join(inside(&volume.name)?);
    let empty = BTreeMap::new();
    if let Some(map) = &volume.config_map {
        let data = sources.config_maps.get(&map.name).unwrap_or(&empty);
        write_files(
            &path,
            data,
            map.items.as_deref(),
            map.default_mode.unwrap_or(0o644),
        )?;
    } else if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let data = sources.secrets.get(name).unwrap_or(&empty);
        write_files(
            &path,
            data,
            secret.items.as_deref(),
            secret.default_mode.unwrap_or(0o644),
        )?;
    } else if volume.empty_dir.is_some() {
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
    } else if let Some(host) = &volume.host_path {
        let path = PathBuf::from(&host.path);
        if host
            .type_
            .as_deref()
            .is_some_and(|kind| kind == "DirectoryOrCreate")
        {
            fs::create_dir_all(&path)?;
        }
        fs::metadata(&path).with_context(|| format!("hostPath {}", path.display()))?;
        return Ok(path);
    } else if let Some(projected) = &volume.projected {
        for source in projected.sources.iter().flatten() {
            let (Some(token), Some(wanted)) = (&sources.token, &source.service_account_token)
            else {
                bail!(
                    "volume '{}': of projected sources the lab has tokens only, and where it has a mesh",
                    volume.name
                );
            };
            let data = BTreeMap::from([(wanted.path.clone(), token.clone().into_bytes())]);
            write_files(&path, &data, None, 0o600)?;
        }
    } else {
        bail!(
            "volume '{}': the lab has configMap, secret, emptyDir, hostPath and projected tokens only",
            volume.name
        );
    }
    let group = spec
        .security_context
        .as_ref()
        .and_then(|context| context.fs_group);
    if let Some(group) = group.and_then(|group| u32::try_from(group).ok()) {
        chown(&path, None, Some(group)).with_context(|| format!("chown {}", path.display()))?;
    }
    Ok(path)
}

fn write_files(
    directory: &Path,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: i32,
) -> Result<()> {
    fs::create_dir_all(directory)?;
    let write = |path: &str, bytes: &[u8], mode: i32| -> Result<()> {
        let path = directory.join(inside(path)?);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        let mode = u32::try_from(mode).context("a file's mode is not negative")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(())
    };
    match items {
        None => data
            .iter()
            .try_for_each(|(key, bytes)| write(key, bytes, mode)),
        Some(items) => items.iter().try_for_each(|item| {
            let bytes = data
                .get(&item.key)
                .with_context(|| format!("no key '{}'", item.key))?;
            write(&item.path, bytes, item.mode.unwrap_or(mode))
        }),
    }
}

/// A relative path that stays below where it starts.
fn inside(path: &str) -> Result<&Path> {
    let path = Path::new(path);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    if !plain || path.as_os_str().is_empty() {
        bail!("path '{}' must be relative, without '..'", path.display());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volumes_path_stays_in_the_volume() {
        assert!(inside("a/b.conf").is_ok());
        for bad in ["../x", "/etc", "a/../../b", ""] {
            assert!(inside(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_items_name_is_written_and_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let data = BTreeMap::from([
            ("a".to_owned(), b"1".to_vec()),
            ("b".to_owned(), b"2".to_vec()),
        ]);
        let items = [KeyToPath {
            key: "b".into(),
            path: "x/c".into(),
            mode: Some(0o600),
        }];
        write_files(directory.path(), &data, Some(&items), 0o644).unwrap();
        let file = directory.path().join("x/c");
        assert_eq!(fs::read(&file).unwrap(), b"2");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(!directory.path().join("a").exists());
    }
}
