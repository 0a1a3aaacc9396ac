//! Connections that are passed on as they are: TLS by the host that the client asks for, what was in TLS that ended here, and
//! TCP. Nobody here reads what is said in them.

use std::sync::Arc;

use http::HeaderMap;
use seine_hbone::Io;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tracing::debug;

use super::listener::{Listener, Protocol};
use crate::backend_tls::Within;
use crate::bind::Bound;
use crate::endpoint::{self, Wanted};
use crate::failure::Failure;
use crate::forward::Call;
use crate::judge::judge;
use crate::limit;
use crate::router::{self, Asked, Choice};
use crate::shared::Shared;
use crate::telemetry::Entry;
use crate::upload::Upload;
use crate::upstream;

/// Carries a connection to a host, empty where none is named, if policy allows it and a route leads on.
pub(super) async fn carry(
    shared: &Arc<Shared>,
    bound: &Arc<Bound>,
    listener: &Listener,
    host: &str,
    mut client: impl AsyncRead + AsyncWrite + Unpin,
) {
    let mut entry = Entry::of_connection(bound);
    host.clone_into(&mut entry.host);
    match open(shared, bound, listener, host, &mut entry).await {
        // It is closed without a word: any would be ours and not the host's.
        Err(failure) => entry.failure = Some(failure),
        Ok(mut backend) => match copy_bidirectional(&mut client, &mut backend).await {
            Ok((_, back)) => entry.bytes = back,
            Err(error) => debug!(peer = %bound.first.address, %error, "a connection broke"),
        },
    }
    shared.telemetry.write(&entry);
}

async fn open(
    shared: &Shared,
    bound: &Bound,
    listener: &Listener,
    host: &str,
    entry: &mut Entry,
) -> Result<Io, Failure> {
    let decision = judge(shared, bound, None).await;
    entry.decision = Some(decision.clone());
    if !decision.allowed {
        return Err(Failure::Denied(decision.because));
    }
    // A connection counts as a request without headers.
    let headers = HeaderMap::new();
    limit::admit(shared, bound, &headers)?;
    let rules = shared.routes.at_listener(&listener.name);
    let asked = Asked::nothing();
    let Choice::Rule(rule, _) = router::choose_at(&rules, &listener.name, host, &asked) else {
        return Err(Failure::NoRoute);
    };
    entry.rule = Some(rule.name.clone());
    let because = |reason: &str| Failure::Route {
        rule: rule.name.clone(),
        reason: reason.into(),
    };
    if let Some(reason) = &rule.refused {
        return Err(because(reason));
    }
    let backend = router::pick(&rule.backends, &mut rand::rng());
    let backend = backend.ok_or_else(|| because("no backend takes connections"))?;
    if let Some(reason) = &backend.refused {
        return Err(because(reason));
    }
    let call = Call::to(shared, backend)?;
    entry.backend = Some(format!("{}:{}", call.service.key.hostname, call.port));
    let wanted = Wanted::new(shared, (&call.service, call.port), &bound.first, &headers);
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
    let upstreams = &shared.upstreams;
    let io = upstreams
        .open(shared, &endpoint, &bound.first, (generation, None))
        .await?;
    // What is passed on in TLS is in it already.
    match call
        .tls
        .filter(|_| !matches!(listener.protocol, Protocol::Passthrough))
    {
        None => Ok(io),
        Some(tls) => {
            let to = endpoint.address;
            let over = tls.over(io, Within::Bytes).await;
            over.map_err(|source| Failure::Connect { to, source })
        }
    }
}
