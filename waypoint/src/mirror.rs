//! Copies of requests to other backends. Nobody waits for them, and nobody sees what becomes of them but the log at
//! level debug.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, request};
use http_body_util::BodyExt;
use rand::RngExt;
use tokio::time::timeout;
use tracing::debug;

use crate::bind::Bound;
use crate::body::Outgoing;
use crate::endpoint::Wanted;
use crate::forward::Call;
use crate::head::Head;
use crate::rule::Mirror;
use crate::shared::Shared;

/// Copies under way at a time; of more requests none is made.
pub(crate) const MAX_MIRRORS: usize = 256;
/// How long a copy may take with its answer, which is read so that the connection can be used again.
const LIMIT: Duration = Duration::from_secs(15);

/// Whether the next request is one that is copied.
pub(crate) fn drawn(mirror: &Mirror) -> bool {
    rand::rng().random_range(0..mirror.denominator) < mirror.numerator
}

/// Sends a copy of a request.
pub(crate) fn start(
    shared: &Arc<Shared>,
    bound: &Arc<Bound>,
    mirror: &Mirror,
    (parts, head, grpc): (&request::Parts, &Head, bool),
    copy: Outgoing,
) {
    let Ok(permit) = shared.mirrors.clone().try_acquire_owned() else {
        return debug!("a mirror gets no copy: there are too many under way");
    };
    let call = match Call::to(shared, &mirror.backend) {
        Ok(call) => call,
        Err(error) => return debug!(%error, "a mirror gets no copy"),
    };
    let two = call.speaks_two(grpc);
    let Some(parts) = call.parts(parts.clone(), head, two) else {
        return;
    };
    let (shared, bound) = (shared.clone(), bound.clone());
    tokio::spawn(async move {
        let service = (&call.service, call.port);
        let to = Wanted {
            tls: call.tls.as_ref(),
            ..Wanted::new(&shared, service, &bound.first, &parts.headers)
        };
        let request = Request::from_parts(parts, copy);
        let exchange = async {
            let (response, _load) = shared
                .upstreams
                .send(&shared, &to, request, &[], &mut None)
                .await?;
            let mut answer = response.into_body();
            while let Some(Ok(_)) = answer.frame().await {}
            Ok::<_, crate::failure::Failure>(())
        };
        match timeout(LIMIT, exchange).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a copy failed"),
            Err(_) => debug!("a copy took too long"),
        }
        drop(permit);
    });
}
