//! The lab of the attacks: who attacks, who is attacked, and the keys that the tests hold.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use seine_e2e::bed::peer_program;
use seine_e2e::manifests::{Pod, meshed_namespace, plain_namespace, service};
use seine_e2e::trial::Shared;
use seine_e2e::{Bed, Family};
use seine_lab::Options;
use seine_lab::protocol::Component;
use seine_lab::token::KEY_VARIABLE;
use serde::de::DeserializeOwned;
use serde_json::json;
use tempfile::TempDir;

/// The lab's name.
const NAME: &str = "e2e-attacks";
/// Where an attacker sees the state of its node, as a pod with a `hostPath` would.
pub(crate) const NODE: &str = "/attacked-node";
/// The attacker outside of the mesh, on node 1.
pub(crate) const ATTACKER: &str = "plain/attacker";
/// The attacked pod, on node 2: `echo` on 8080, and `http` on 8082, which is probed.
pub(crate) const SERVER: &str = "mesh/server";

/// A trust domain that the mesh federates with.
pub(crate) const PARTNER: &str = "partner.example";

/// A root with a key of its own.
pub(crate) fn new_ca() -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// A lab and what the tests know of it that an attacker would not.
pub(crate) struct Stage {
    pub(crate) bed: Bed,
    /// Files that pods see under the same path.
    pub(crate) files: TempDir,
    /// The key of the tokens' issuer.
    pub(crate) token_key: KeyPair,
    /// The CA of [`PARTNER`].
    pub(crate) partner: CertifiedIssuer<'static, KeyPair>,
}

impl Stage {
    pub(crate) fn up() -> Result<Self> {
        let files = tempfile::Builder::new()
            .prefix("seine-e2e-")
            .tempdir()
            .context("a folder for the attackers' files")?;
        let token_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let key_file = files.path().join("issuer-key.pem");
        fs::write(&key_file, token_key.serialize_pem())?;
        let partner = new_ca()?;
        let partner_roots = files.path().join("partner.pem");
        fs::write(&partner_roots, partner.pem())?;
        let mut options = Options::new(NAME);
        // What anybody can provoke as often as they like is logged for those who look for it.
        let quiet = "seine_telemetry::http=debug,seine_control::ca::server_tls=debug,seine_ztunnel::dns=debug";
        options.environment.extend([
            ("SEINE_LOG".to_owned(), format!("info,{quiet}")),
            ("SEINE_LOG_LEVEL".to_owned(), format!("info,{quiet}")),
            (KEY_VARIABLE.to_owned(), key_file.display().to_string()),
            (
                "SEINE_FEDERATED_BUNDLES".to_owned(),
                format!("{PARTNER}={}", partner_roots.display()),
            ),
        ]);
        let state = Path::new(seine_lab::names::ROOT).join(NAME);
        let mut attacker = Pod::new("plain", "attacker", 1).object();
        attacker["spec"]["volumes"] = json!([
            {"name": "files", "hostPath": {"path": files.path()}},
            {"name": "node", "hostPath": {"path": state.join("node1")}},
        ]);
        attacker["spec"]["containers"][0]["volumeMounts"] = json!([
            {"name": "files", "mountPath": files.path()},
            {"name": "node", "mountPath": NODE},
        ]);
        let bed = Bed::with(
            options,
            &[
                meshed_namespace("mesh"),
                plain_namespace("plain"),
                Pod::new("mesh", "client", 1).object(),
                Pod::new("mesh", "other", 1).object(),
                Pod::new("mesh", "server", 2)
                    .serves(&["echo:8080", "http:8082"])
                    .container(json!({"readinessProbe": {
                        "httpGet": {"path": "/", "port": 8082}, "periodSeconds": 1,
                    }}))
                    .object(),
                service("mesh", "server", "server", &[("echo", 8080, 8080)]),
                attacker,
            ],
        )?;
        Ok(Self {
            bed,
            files,
            token_key,
            partner,
        })
    }

    /// Runs the attackers' program in a pod and reads its report.
    pub(crate) fn attack<T: DeserializeOwned>(&self, pod: &str, arguments: &[&str]) -> Result<T> {
        let (namespace, name) = pod.split_once('/').context("NAMESPACE/NAME")?;
        let program = program();
        let program = program.display().to_string();
        let mut command = vec![program.as_str()];
        command.extend(arguments);
        let output = self.bed.lab().exec(namespace, name, &command)?;
        ensure!(
            output.code == 0,
            "{arguments:?} in {pod}: exit status {}: {}",
            output.code,
            output.stderr
        );
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("{arguments:?} in {pod} said {:?}", output.stdout))
    }

    /// Runs the attackers' program in the network of a process and reads its report.
    pub(crate) fn attack_within<T: DeserializeOwned>(
        &self,
        process: i32,
        arguments: &[&str],
    ) -> Result<T> {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{process}/ns/net"))
            .arg(program())
            .args(arguments)
            .output()
            .context("running nsenter")?;
        ensure!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?}: {output:?}"))
    }

    /// The attacked pod's IPv4 address with a port.
    pub(crate) fn server(&self, port: u16) -> Result<SocketAddr> {
        self.server_by(Family::V4, port)
    }

    /// The attacked pod's address of a family with a port.
    pub(crate) fn server_by(&self, family: Family, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(family.of(self.bed.pod_ips(SERVER)?), port))
    }

    /// The lab's own folder.
    pub(crate) fn state(&self) -> Result<PathBuf> {
        Ok(self.bed.lab().status()?.state.into())
    }

    /// Where the control plane serves.
    pub(crate) fn control(&self) -> Result<IpAddr> {
        let control = self.bed.component(Component::Control, None)?;
        let address = control.addresses.first();
        address.copied().context("the control plane has no address")
    }

    /// The lines of a program's log with all of these.
    pub(crate) fn log_lines(
        &self,
        component: Component,
        node: u8,
        needles: &[&str],
    ) -> Result<Vec<String>> {
        let log = self.bed.lab().logs(component, node)?;
        Ok(log
            .lines()
            .filter(|line| needles.iter().all(|needle| line.contains(needle)))
            .map(str::to_owned)
            .collect())
    }
}

impl Shared for Stage {
    fn last_words(&self) -> String {
        self.bed.last_words()
    }
}

/// `seine-e2e-attacker` of the same build.
pub(crate) fn program() -> PathBuf {
    peer_program().with_file_name("seine-e2e-attacker")
}
