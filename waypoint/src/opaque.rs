//! A connection whose bytes nobody parses, under the policies that don't need to know them.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use seine_hbone::{Incoming, Io};
use tokio::io::copy_bidirectional;
use tracing::debug;

use crate::bind::Bound;
use crate::endpoint::{self, Wanted};
use crate::failure::Failure;
use crate::judge::judge;
use crate::limit;
use crate::shared::Shared;
use crate::telemetry::Entry;
use crate::upload::Upload;
use crate::upstream;

/// Carries it, if policy allows it and there is an endpoint.
pub(crate) async fn carry(shared: &Shared, bound: &Arc<Bound>, incoming: Incoming) {
    let mut entry = Entry::of_connection(bound);
    match open(shared, bound, &mut entry).await {
        Err(failure) => {
            let denied = matches!(failure, Failure::Denied(_));
            incoming.reject(match denied {
                true => StatusCode::UNAUTHORIZED,
                false => StatusCode::SERVICE_UNAVAILABLE,
            });
            entry.failure = Some(failure);
        }
        Ok(mut upstream) => match incoming.accept(None) {
            Ok(mut stream) => match copy_bidirectional(&mut stream, &mut upstream).await {
                Ok((_, back)) => entry.bytes = back,
                Err(error) => debug!(peer = %bound.first.address, %error, "a connection broke"),
            },
            Err(error) => debug!(peer = %bound.first.address, %error, "a client gave up"),
        },
    }
    shared.telemetry.write(&entry);
}

async fn open(shared: &Shared, bound: &Bound, entry: &mut Entry) -> Result<Io, Failure> {
    let decision = judge(shared, bound, None).await;
    entry.decision = Some(decision.clone());
    if !decision.allowed {
        return Err(Failure::Denied(decision.because));
    }
    // A connection counts as a request without headers.
    let headers = HeaderMap::new();
    limit::admit(shared, bound, &headers)?;
    let service = (&bound.service, bound.port);
    let wanted = Wanted {
        pod: bound.pod.as_ref(),
        ..Wanted::new(shared, service, &bound.first, &headers)
    };
    let mut slot = wanted.backend.slot().await?;
    slot.connection = shared.upstreams.room(&wanted.backend).await?;
    let endpoint = endpoint::choose(shared, &wanted, &[])?;
    let load = wanted
        .backend
        .loads
        .begin(endpoint.address, &Upload::default(), slot);
    entry.load = Some(Arc::new(load));
    entry.endpoint = Some(endpoint.clone());
    let generation = upstream::generation(shared).await?;
    shared
        .upstreams
        .open(shared, &endpoint, &bound.first, (generation, None))
        .await
}
