//! A control plane of its own for each test, from a folder of objects.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use seine_kubernetes_tests::{program, within};
use seine_lab::token::{Issuer, LIFETIME, Subject};
use x509_parser::extensions::GeneralName;

use crate::grpcurl::Grpcurl;

/// It is killed when this is dropped.
pub(crate) struct Control {
    child: Child,
    folder: tempfile::TempDir,
    listen: SocketAddr,
    issuer: Issuer,
}

impl Control {
    /// When this returns it serves.
    pub(crate) fn start(objects: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("objects")).unwrap();
        for (name, text) in objects {
            fs::write(at("objects").join(name), text).unwrap();
        }
        let issuer = Issuer::create(folder.path()).unwrap();
        let (listen, admin) = (free(), free());
        let child = Command::new(program("seine-control").unwrap())
            .arg("--directory")
            .arg(at("objects"))
            .arg("--ca-dir")
            .arg(at("ca"))
            .arg("--token-public-key")
            .arg(issuer.public_key())
            .arg(format!("--listen={listen}"))
            .arg(format!("--admin-address={admin}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(at("control.log")).unwrap())
            .spawn()
            .unwrap();
        let control = Self {
            child,
            folder,
            listen,
            issuer,
        };
        let ready = || Ok(is_ready(admin).then_some(()));
        if let Err(error) = within(60, "the control plane is ready", ready) {
            let log = fs::read_to_string(control.folder.path().join("control.log"));
            panic!("{error:#}\n{}", log.unwrap_or_default());
        }
        control
    }

    /// Whole or not at all: it is read when it changes.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.folder.path().join("objects").join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.folder.path().join("objects").join(name)).unwrap();
    }

    /// Of the node proxy of node1.
    pub(crate) fn token(&self) -> String {
        self.issuer.issue(&proxy(), LIFETIME).unwrap()
    }

    /// The same, signed by another key.
    pub(crate) fn forged_token(&self) -> String {
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Issuer::create(elsewhere.path()).unwrap();
        other.issue(&proxy(), LIFETIME).unwrap()
    }

    /// PEM.
    pub(crate) fn roots(&self) -> String {
        fs::read_to_string(self.folder.path().join("ca/root-cert.pem")).unwrap()
    }

    pub(crate) fn grpcurl(&self, token: &str) -> Grpcurl {
        let roots = self.folder.path().join("ca/root-cert.pem");
        Grpcurl::new(self.listen, &roots, token)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn proxy() -> Subject {
    Subject {
        namespace: "seine-system".into(),
        service_account: "seine-ztunnel".into(),
        pod: "seine-ztunnel-1".into(),
        pod_uid: "z1".into(),
        node: "node1".into(),
    }
}

/// A request for a certificate, PEM: empty subject, one SPIFFE ID.
pub(crate) fn csr(identity: &str) -> String {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    let name = SanType::URI(identity.try_into().unwrap());
    parameters.subject_alt_names = vec![name];
    let key = KeyPair::generate().unwrap();
    let request = parameters.serialize_request(&key).unwrap();
    request.pem().unwrap()
}

/// The URIs that a certificate (PEM) is for.
pub(crate) fn names(certificate: &str) -> Vec<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let names = names.value.general_names.iter();
    names
        .map(|name| match name {
            GeneralName::URI(uri) => uri.to_string(),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// Nobody else of this machine takes it in the next moment, or the start fails.
fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn is_ready(admin: SocketAddr) -> bool {
    use std::io::{Read, Write};
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(admin)?;
        stream.write_all(b"GET /healthz/ready HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.split(' ').nth(1) == Some("200"))
}
