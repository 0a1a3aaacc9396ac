//! What all tasks share.

use std::sync::Arc;

use seine_hbone::Settings;
use seine_identity::{CertificateManager, Identity};
use seine_telemetry::Readiness;
use seine_workload::{GatewayAddress, GatewayDestination, Service, Store, Workload};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::authentication::Authentications;
use crate::config::Config;
use crate::ingress::listeners::Listeners;
use crate::routes::Routes;
use crate::telemetry::Telemetry;
use crate::traffic::Traffic;
use crate::upstream::Upstreams;

/// The threads that move bytes, each with connections to backends of its own.
pub(crate) type Workers = seine_workers::Workers<Arc<Shared>>;
/// One of them.
pub(crate) type Worker = seine_workers::Worker<Arc<Shared>>;
/// The place of a tunnel, a stream or a connection on one.
pub(crate) type Place = seine_workers::Place<Arc<Shared>>;

/// What all tasks share.
#[derive(Clone)]
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// Who this waypoint is.
    pub identity: Identity,
    /// Workloads, services and policies.
    pub store: Arc<Store>,
    /// Rules of routes.
    pub routes: Arc<Routes>,
    /// Rules on tokens.
    pub authentications: Arc<Authentications>,
    /// Where connections come in from outside; of a waypoint none.
    pub listeners: Arc<Listeners>,
    /// Certificates.
    pub certificates: CertificateManager,
    /// Sizes and times of tunnels.
    pub hbone: Arc<Settings>,
    /// Connections to backends, of this thread.
    pub upstreams: Arc<Upstreams>,
    /// How requests to services are treated.
    pub traffic: Arc<Traffic>,
    /// How many copies of requests may be under way.
    pub(crate) mirrors: Arc<Semaphore>,
    /// What is waited for at the end.
    pub(crate) tasks: TaskTracker,
    /// Access log and metrics.
    pub telemetry: Telemetry,
    /// Whether requests can be taken.
    pub readiness: Readiness,
}

impl Shared {
    /// For a thread of its own. Called within its runtime.
    pub(crate) fn of_worker(&self) -> Self {
        Self {
            upstreams: self.upstreams.beside(),
            ..self.clone()
        }
    }

    /// The workload that this waypoint is.
    pub(crate) fn own_workload(&self) -> Option<Arc<Workload>> {
        let config = &self.config;
        self.store
            .pod(&config.cluster_id, &config.pod_namespace, &config.pod_name)
    }

    /// Whether a service is bound to this waypoint. For any other it is no relay.
    pub(crate) fn serves(&self, service: &Service) -> bool {
        let weighted = service.weighted_waypoints.iter();
        let weighted = weighted.map(|waypoint| &waypoint.destination);
        self.is_any_of(service.waypoint.as_deref().into_iter().chain(weighted))
    }

    /// The same for a pod, when it is addressed itself.
    pub(crate) fn serves_pod(&self, workload: &Workload) -> bool {
        self.is_any_of(workload.waypoint.as_deref())
    }

    fn is_any_of<'a>(&self, gateways: impl IntoIterator<Item = &'a GatewayAddress>) -> bool {
        let Some(own) = self.own_workload() else {
            return false;
        };
        gateways
            .into_iter()
            .any(|gateway| match &gateway.destination {
                GatewayDestination::Service(key) => {
                    own.services.iter().any(|(service, _)| service == key)
                }
                GatewayDestination::Address(address) => own.addresses.contains(&address.address),
            })
    }
}
