//! Certificates of clients at a Gateway: who is let in, and what backends are told of them.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use seine_e2e::manifests::{Pod, meshed_namespace, plain_namespace, service};
use seine_e2e::{Bed, trials, until};
use serde_json::{Value, json};

type Authority = CertifiedIssuer<'static, KeyPair>;

/// That of the clients, and one that nobody knows.
static OURS: LazyLock<Authority> = LazyLock::new(authority);
static STRANGE: LazyLock<Authority> = LazyLock::new(authority);

/// Where clients without a good certificate are let in all the same.
const LENIENT: u16 = 8443;
const HEADER: &str = "x-forwarded-client-cert";

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            a_client_with_a_good_certificate_alone_is_let_in,
            where_others_are_let_in_too_nothing_is_said_of_them,
            a_gateway_whose_authorities_are_gone_lets_nobody_in,
        ],
    )
}

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "clients");
    let key = KeyPair::generate().expect("a key can be made");
    CertifiedIssuer::self_signed(params, key).expect("it signs itself")
}

fn up() -> Result<Bed> {
    let own = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()])?;
    let https = |name: &str, port: u16| json!({"name": name, "port": port, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "own"}]}});
    let validation = |mode: &str| {
        let authorities = json!([{"group": "", "kind": "ConfigMap", "name": "authorities"}]);
        json!({"validation": {"caCertificateRefs": authorities, "mode": mode}})
    };
    Bed::up(
        "e2e-clients",
        &[
            meshed_namespace("mesh"),
            plain_namespace("plain"),
            Pod::new("plain", "client", 1).object(),
            Pod::new("mesh", "web", 2).serves(&["mirror:8080"]).object(),
            service("mesh", "web", "web", &[("http", 80, 8080)]),
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "own", "namespace": "mesh"},
                "type": "kubernetes.io/tls",
                "stringData": {"tls.crt": own.cert.pem(), "tls.key": own.signing_key.serialize_pem()},
            }),
            authorities(&OURS.pem()),
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {"name": "gw", "namespace": "mesh"},
                "spec": {
                    "gatewayClassName": "seine",
                    "listeners": [https("strict", 443), https("lenient", LENIENT)],
                    "tls": {"frontend": {
                        "default": validation("AllowValidOnly"),
                        "perPort": [{"port": LENIENT, "tls": validation("AllowInsecureFallback")}],
                    }},
                },
            }),
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": "web", "namespace": "mesh"},
                "spec": {
                    "parentRefs": [{"name": "gw"}],
                    "rules": [{"backendRefs": [{"name": "web", "port": 80}]}],
                },
            }),
        ],
    )
}

fn authorities(pem: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "authorities", "namespace": "mesh"}, "data": {"ca.crt": pem},
    })
}

/// A client's certificate with its key, in one file.
struct Shown(tempfile::NamedTempFile);

impl Shown {
    fn new(change: impl FnOnce(&mut CertificateParams), of: Option<&Authority>) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "joe");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate()?;
        let made = match of {
            Some(authority) => params.signed_by(&key, authority)?,
            None => params.self_signed(&key)?,
        };
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), made.pem() + &key.serialize_pem())?;
        Ok(Self(file))
    }

    fn good() -> Result<Self> {
        Self::new(|_| {}, Some(&OURS))
    }

    /// Certificates that are not good, and why.
    fn bad() -> Result<Vec<(&'static str, Self)>> {
        let ago = |days: u64| SystemTime::now() - Duration::from_secs(days * 86400);
        let expired = |params: &mut CertificateParams| {
            params.not_before = ago(3).into();
            params.not_after = ago(1).into();
        };
        let of_server = |params: &mut CertificateParams| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        };
        Ok(vec![
            ("self-signed", Self::new(|_| {}, None)?),
            (
                "of an authority that nobody knows",
                Self::new(|_| {}, Some(&STRANGE))?,
            ),
            ("expired", Self::new(expired, Some(&OURS))?),
            ("for servers", Self::new(of_server, Some(&OURS))?),
        ])
    }
}

/// Status and answer of a request; it says of itself whose it is.
fn ask(bed: &Bed, port: u16, shown: Option<&Shown>) -> Result<String> {
    let address = bed.service_ips("mesh/gw")?.0;
    let (resolve, url) = (
        format!("a.example:{port}:{address}"),
        format!("https://a.example:{port}/x"),
    );
    let (spoofed, hop) = (
        format!("{HEADER}: Subject=\"CN=spoofed\""),
        format!("connection: {HEADER}"),
    );
    let mut command = vec!["curl", "-sS", "-k", "--http1.1", "--max-time", "20"];
    command.extend([
        "--resolve",
        &resolve,
        "-w",
        "\n%{http_code}",
        "-H",
        &spoofed,
        "-H",
        &hop,
    ]);
    let path = shown.map(|shown| shown.0.path().to_str().context("a path"));
    if let Some(path) = path.transpose()? {
        command.extend(["--cert", path, "--key", path]);
    }
    command.push(&url);
    let output = bed.lab().exec("plain", "client", &command)?;
    let answer = output.stdout + &output.stderr;
    ensure!(!answer.contains("spoofed"), "{answer}");
    Ok(answer)
}

fn a_client_with_a_good_certificate_alone_is_let_in(bed: &Bed) -> Result<()> {
    let good = ask(bed, 443, Some(&Shown::good()?))?;
    ensure!(good.contains("pod web") && good.contains("\n200"), "{good}");
    ensure!(
        good.contains(&format!("{HEADER}: Hash=")) && good.contains("Subject=\"CN=joe\""),
        "{good}"
    );
    let none = ask(bed, 443, None)?;
    ensure!(none.contains("\n000"), "{none}");
    for (why, shown) in Shown::bad()? {
        let answer = ask(bed, 443, Some(&shown))?;
        ensure!(answer.contains("\n000"), "{why}: {answer}");
    }
    Ok(())
}

fn where_others_are_let_in_too_nothing_is_said_of_them(bed: &Bed) -> Result<()> {
    let good = ask(bed, LENIENT, Some(&Shown::good()?))?;
    ensure!(good.contains("Subject=\"CN=joe\""), "{good}");
    let none = ask(bed, LENIENT, None)?;
    ensure!(none.contains("\n200") && !none.contains(HEADER), "{none}");
    for (why, shown) in Shown::bad()? {
        let answer = ask(bed, LENIENT, Some(&shown))?;
        ensure!(
            answer.contains("\n200") && !answer.contains(HEADER),
            "{why}: {answer}"
        );
    }
    Ok(())
}

fn a_gateway_whose_authorities_are_gone_lets_nobody_in(bed: &Bed) -> Result<()> {
    let good = Shown::good()?;
    bed.delete("mesh", "configmap/authorities")?;
    until("its ports are closed", || {
        let refused = |port| anyhow::Ok(ask(bed, port, Some(&good))?.contains("\n000"));
        Ok((refused(443)? && refused(LENIENT)?).then_some(()))
    })?;
    // Another authority in its place is that of other clients.
    bed.apply(&[authorities(&STRANGE.pem())])?;
    let other = Shown::new(|_| {}, Some(&STRANGE))?;
    until("clients of the other authority are let in", || {
        Ok(ask(bed, 443, Some(&other))?.contains("\n200").then_some(()))
    })?;
    let before = ask(bed, 443, Some(&good))?;
    ensure!(before.contains("\n000"), "{before}");
    Ok(())
}
