//! The DNS listeners of a pod, joined with the DNS proxy ([`crate::dns`]).

use std::net::SocketAddr;
use std::sync::Arc;

use tracing::warn;

use crate::accept::may_accept;
use crate::config::Config;
use crate::dns::{DnsClient, DnsOptions, DnsSockets, DnsStats, PodSockets, nameservers, serve};
use crate::pod::Pod;
use crate::shared::Shared;

/// Serves a pod's queries until it ends.
pub(crate) async fn run(shared: Arc<Shared>, pod: Arc<Pod>, sockets: DnsSockets) {
    if !may_accept(&shared, &pod).await {
        return;
    }
    let info = &pod.info;
    let uid = match pod.workload(&shared) {
        Some(workload) => workload.uid.clone(),
        None => format!(
            "{}//Pod/{}/{}",
            shared.config.cluster_id, info.namespace, info.name
        )
        .into(),
    };
    let client = DnsClient {
        uid,
        namespace: info.namespace.as_str().into(),
    };
    let upstream = PodSockets {
        netns: pod.dialer.netns.clone(),
        mark: pod.dialer.mark_all,
    };
    let store = shared.store.clone();
    serve(
        sockets,
        client,
        store,
        shared.dns.clone(),
        Arc::new(upstream),
        pod.life.stop().clone(),
    )
    .await;
}

/// How queries are served: what the mesh doesn't own goes to the resolvers of the settings, else to this process's own,
/// which in a cluster are the cluster's.
pub(crate) fn options(config: &Config, stats: Arc<DnsStats>) -> DnsOptions {
    let upstreams: Vec<SocketAddr> = if config.dns_upstream.is_empty() {
        let path = "/etc/resolv.conf";
        match std::fs::read_to_string(path) {
            Ok(text) => nameservers(&text),
            Err(error) => {
                warn!(path, %error, "names outside of the mesh can't be resolved; --dns-upstream names a resolver");
                Vec::new()
            }
        }
    } else {
        config.dns_upstream.clone()
    };
    DnsOptions {
        upstreams: upstreams.into(),
        stats,
        ..config.tuning.dns()
    }
}
