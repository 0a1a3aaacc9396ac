//! [`MeshCa`]: certificates from a CA that speaks `IstioCertificateService` (WIRE.md section 2),
//! ours or a peer's.
//!
//! Keys are P-256, made here for each request and never written anywhere. Token and roots files are
//! read for each request, because both are replaced under us; the connection is kept while the
//! roots stay the same. Used by the certificate manager's task alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use seine_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use seine_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use spiffe::X509Bundle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use zeroize::Zeroizing;

use crate::identity::{Identity, shorten};
use crate::source::{CertificateSource, SourceError, chain_of};
use crate::svid::Svid;

/// How to reach a CA.
#[derive(Debug, Clone)]
pub struct MeshCaOptions {
    /// `https://HOST:PORT`.
    pub address: String,
    /// PEM file of the roots that its server certificate is checked against.
    pub roots_file: PathBuf,
    /// The DNS name in its server certificate.
    pub server_name: String,
    /// File of the service account token that is sent as bearer.
    pub token_file: PathBuf,
    /// Sent as `clusterid`.
    pub cluster_id: String,
    /// Lifetime asked for; the CA may give less.
    pub lifetime: Duration,
    /// Whether the CA is asked for other identities than the token's own, as a node proxy does.
    pub impersonate: bool,
}

/// A client of the CA; connects when first used.
#[derive(Debug)]
pub struct MeshCa {
    options: MeshCaOptions,
    connection: Mutex<Option<(Vec<u8>, Channel)>>,
}

impl MeshCa {
    /// Does no I/O.
    pub fn new(options: MeshCaOptions) -> Self {
        Self {
            options,
            connection: Mutex::default(),
        }
    }

    /// Settings.
    pub fn options(&self) -> &MeshCaOptions {
        &self.options
    }

    async fn request(&self, identity: &Identity) -> Result<Svid, SourceError> {
        let channel = self.channel().await?;
        let token = self.token().await?;
        let (key, csr) = key_and_csr(identity)?;
        let lifetime = i64::try_from(self.options.lifetime.as_secs()).unwrap_or(i64::MAX);
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: lifetime,
            metadata: self.options.impersonate.then(|| impersonation(identity)),
        });
        request.metadata_mut().insert("authorization", token);
        if let Ok(cluster) = self.options.cluster_id.parse() {
            request.metadata_mut().insert("clusterid", cluster);
        }
        let answer = IstioCertificateServiceClient::new(channel)
            .create_certificate(request)
            .await
            .map_err(|status| self.failure(&status))?;
        self.svid(identity, key, answer.into_inner())
    }

    async fn channel(&self) -> Result<Channel, SourceError> {
        let MeshCaOptions {
            roots_file,
            address,
            server_name,
            ..
        } = &self.options;
        let roots = tokio::fs::read(roots_file)
            .await
            .map_err(|error| SourceError::Local {
                reason: format!("roots file {}: {error}", roots_file.display()),
            })?;
        let mut connection = self.connection.lock();
        if let Some((same, channel)) = &*connection
            && *same == roots
        {
            return Ok(channel.clone());
        }
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&roots))
            .domain_name(server_name)
            .timeout(Duration::from_secs(5));
        let endpoint = Endpoint::from_shared(address.clone())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|error| SourceError::Local {
                reason: format!(
                    "CA address {address} with the roots in {}: {}",
                    roots_file.display(),
                    chain_of(&error)
                ),
            })?;
        let channel = endpoint
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .connect_lazy();
        *connection = Some((roots, channel.clone()));
        Ok(channel)
    }

    async fn token(&self) -> Result<MetadataValue<Ascii>, SourceError> {
        let file = &self.options.token_file;
        let local = |reason: String| SourceError::Local {
            reason: format!("token file {}: {reason}", file.display()),
        };
        let text = tokio::fs::read_to_string(file)
            .await
            .map_err(|e| local(e.to_string()))?;
        let text = Zeroizing::new(text);
        if text.trim().is_empty() {
            return Err(local("is empty".into()));
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", text.trim())
            .parse()
            .map_err(|_| local("has characters that no token has".into()))?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn svid(
        &self,
        identity: &Identity,
        key: Zeroizing<Vec<u8>>,
        answer: IstioCertificateResponse,
    ) -> Result<Svid, SourceError> {
        let name = self.name();
        let bad = |reason: String| SourceError::BadAnswer {
            source_name: name.clone(),
            reason,
        };
        let Some((roots, chain)) = answer
            .cert_chain
            .split_last()
            .filter(|(_, c)| !c.is_empty())
        else {
            return Err(bad(format!(
                "{} certificates in the answer, a leaf and a root are wanted",
                answer.cert_chain.len()
            )));
        };
        let parse = |pem: &str| {
            CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| bad(format!("a certificate can't be parsed: {error}")))
        };
        let mut certificates = Vec::new();
        for part in chain {
            certificates.extend(parse(part)?);
        }
        let roots = parse(roots)?;
        let authorities: Vec<&[u8]> = roots.iter().map(AsRef::as_ref).collect();
        let bundle =
            X509Bundle::from_x509_authorities(identity.trust_domain().clone(), &authorities)
                .map_err(|error| bad(format!("a root can't be parsed: {error}")))?;
        if roots.is_empty() {
            return Err(bad("no root".into()));
        }
        Svid::new(certificates, key, bundle)
            .and_then(|svid| svid.expect(identity))
            .map_err(|error| SourceError::bad_answer(&name, &error))
    }

    fn failure(&self, status: &Status) -> SourceError {
        let message = shorten(status.message());
        let reason = match std::error::Error::source(status) {
            Some(cause) => format!("{:?}: {message}: {}", status.code(), chain_of(cause)),
            None => format!("{:?}: {message}", status.code()),
        };
        let source_name = self.name();
        match status.code() {
            Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Unimplemented => SourceError::Refused {
                source_name,
                reason,
            },
            _ => SourceError::Unavailable {
                source_name,
                reason,
            },
        }
    }

    fn name(&self) -> String {
        format!("CA {}", self.options.address)
    }
}

impl CertificateSource for MeshCa {
    fn fetch<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Svid, SourceError>> {
        Box::pin(self.request(identity))
    }
}

/// A new key (PKCS#8) and a request for `identity`: empty subject, one critical URI SAN.
fn key_and_csr(identity: &Identity) -> Result<(Zeroizing<Vec<u8>>, String), SourceError> {
    let local = |error: rcgen::Error| SourceError::Local {
        reason: format!("key and CSR for {identity}: {error}"),
    };
    let key = KeyPair::generate().map_err(local)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().map_err(local)?)];
    let csr = params
        .serialize_request(&key)
        .and_then(|csr| csr.pem())
        .map_err(local)?;
    Ok((Zeroizing::new(key.serialize_der()), csr))
}

fn impersonation(identity: &Identity) -> prost_types::Struct {
    let value = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(identity.to_string())),
    };
    prost_types::Struct {
        fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), value)]),
    }
}
