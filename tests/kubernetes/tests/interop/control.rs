//! A control plane of its own for each test, from a folder of objects.

use std::fs;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use seine_kubernetes_tests::program;
use seine_lab::control_alone::ControlAlone;
use seine_lab::token::{Issuer, LIFETIME, Subject};
use x509_parser::extensions::GeneralName;

use crate::grpcurl::Grpcurl;

const PATIENCE: Duration = Duration::from_secs(60);

/// It is killed when this is dropped.
pub(crate) struct Control {
    process: ControlAlone,
    folder: tempfile::TempDir,
}

impl Control {
    /// When this returns it serves.
    pub(crate) fn start(objects: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("objects");
        fs::create_dir(&place).unwrap();
        for (name, text) in objects {
            fs::write(place.join(name), text).unwrap();
        }
        let program = program("seine-control").unwrap();
        let process = ControlAlone::start(&program, folder.path(), &[], PATIENCE);
        Self {
            process: process.unwrap(),
            folder,
        }
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        self.process.write(name, text).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.folder.path().join("objects").join(name)).unwrap();
    }

    /// Of the node proxy of node1.
    pub(crate) fn token(&self) -> String {
        self.process.issuer().issue(&proxy(), LIFETIME).unwrap()
    }

    /// The same, signed by another key.
    pub(crate) fn forged_token(&self) -> String {
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Issuer::create(elsewhere.path()).unwrap();
        other.issue(&proxy(), LIFETIME).unwrap()
    }

    /// PEM.
    pub(crate) fn roots(&self) -> String {
        fs::read_to_string(self.process.roots()).unwrap()
    }

    pub(crate) fn grpcurl(&self, token: &str) -> Grpcurl {
        Grpcurl::new(self.process.listen(), &self.process.roots(), token)
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
