//! What a replica does with the API server beside reading objects: its part of the CA, the
//! election, and what [`crate::publish`] writes.

use std::sync::Arc;

use kube::Client;
use seine_objects::EnrolmentSettings;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    ca::{Authority, CaError, CaOptions, SecretStore, follow_external},
    leader::{Election, ElectionOptions, Leadership},
    publish::{
        held_map::{self, Replica},
        trust_bundle::{self, BundleOptions},
        writer::{self, Sources},
    },
    xds::server::Clients,
};

/// The cluster that this replica is part of.
#[derive(Clone)]
pub struct Cluster {
    /// For its API server.
    pub client: Client,
    /// Which replica this is.
    pub replica: Replica,
}

impl Cluster {
    /// The CA of Secret `seine-ca`, and the task that follows Secret `seine-intermediate`.
    ///
    /// # Errors
    ///
    /// When the Secrets can't be read or written, or are no good.
    pub async fn open_authority(
        &self,
        options: CaOptions,
    ) -> Result<(Arc<Authority>, AbortOnDropHandle<()>), CaError> {
        let namespace = &self.replica.namespace;
        let domain = options.trust_domain.clone();
        let (external, follows) = follow_external(self.client.clone(), namespace, domain).await?;
        let store = Box::new(SecretStore::new(self.client.clone(), namespace));
        let authority = Authority::open(options, store, external).await?;
        Ok((authority, follows))
    }

    /// Begins to take part in the election of the leader.
    pub fn elect(&self) -> Election {
        let options = ElectionOptions::new(&self.replica.namespace, &self.replica.pod);
        Election::start(self.client.clone(), options)
    }

    /// Writes what every replica writes, and while it leads what the leader does. Never ends.
    pub async fn write(
        self,
        leadership: Leadership,
        authority: Arc<Authority>,
        sources: Sources,
        clients: Clients,
        enrolment: EnrolmentSettings,
    ) {
        let models = sources.models.clone();
        let held = held_map::write(self.client.clone(), self.replica.clone(), models, clients);
        let lead = self.lead(leadership, authority, sources, enrolment);
        tokio::join!(held, lead);
    }

    async fn lead(
        &self,
        mut leadership: Leadership,
        authority: Arc<Authority>,
        sources: Sources,
        enrolment: EnrolmentSettings,
    ) {
        let (client, replica) = (&self.client, &self.replica);
        loop {
            leadership.acquired().await;
            let bundles = trust_bundle::publish(
                client.clone(),
                BundleOptions {
                    system_namespace: replica.namespace.clone(),
                    enrolment: enrolment.clone(),
                },
                sources.models.clone(),
                authority.subscribe_roots(),
            );
            let statuses = writer::write(
                client.clone(),
                replica.pod.clone(),
                replica.namespace.clone(),
                sources.clone(),
            );
            let work = async { tokio::join!(bundles, statuses) };
            if leadership.lead(work).await.is_some() {
                // The model is gone: the process ends.
                return;
            }
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}
