//! Requests to the certificate authority with a token that the test made.

use std::path::PathBuf;
use std::time::Duration;

use seine_identity::{CertificateSource, Identity, MeshCa, MeshCaOptions};

use super::report::Certified;

/// Asks once for a certificate, naming the identity as a node proxy does.
pub async fn ask(
    address: String,
    roots_file: PathBuf,
    server_name: String,
    token_file: PathBuf,
    identity: &Identity,
) -> Certified {
    let ca = MeshCa::new(MeshCaOptions {
        address,
        roots_file,
        server_name,
        token_file,
        cluster_id: "Kubernetes".to_owned(),
        lifetime: Duration::from_secs(3600),
        impersonate: true,
    });
    match ca.fetch(identity).await {
        Ok(svid) => Certified {
            serial: Some(svid.serial().to_owned()),
            failure: None,
        },
        Err(error) => Certified {
            serial: None,
            failure: Some(error.to_string()),
        },
    }
}
