//! Stand-ins for unit tests.

use futures::future::BoxFuture;
use seine_identity::{CertificateSource, Identity, SourceError, Svid};

/// Where nobody needs a certificate.
pub(crate) struct NoSource;

impl CertificateSource for NoSource {
    fn fetch<'a>(&'a self, _: &'a Identity) -> BoxFuture<'a, Result<Svid, SourceError>> {
        Box::pin(std::future::pending())
    }
}
