//! The last good configuration as bytes, so that a proxy serves the same traffic after a restart
//! with the control plane away.
//!
//! They are a magic line and then, each with its length before it, one `DeltaDiscoveryResponse` for
//! addresses and one for policies, those that were refused among them. There are no secrets in it.

use prost::Message;
use seine_proto::discovery::{DeltaDiscoveryResponse, Resource};
use seine_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, workload as proto};

use crate::encode;
use crate::store::{Rejected, Store};

const MAGIC: &[u8] = b"seine configuration 1\n";

/// The bytes are not what this version made.
#[derive(Debug, thiserror::Error)]
#[error("not a saved configuration: {0}")]
pub struct SnapshotError(String);

impl Store {
    /// Everything held, with its versions.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for response in [self.address_snapshot(), self.policy_snapshot()] {
            bytes.reserve(response.encoded_len() + 10);
            response
                .encode_length_delimited(&mut bytes)
                .expect("a Vec grows as needed");
        }
        bytes
    }

    /// Applies what [`Store::snapshot`] made, to an empty store. Returns what is refused, again or by
    /// this version.
    ///
    /// # Errors
    ///
    /// Nothing was applied then.
    pub fn restore(&self, bytes: &[u8]) -> Result<Vec<Rejected>, SnapshotError> {
        let bad = |what: &str| SnapshotError(what.to_owned());
        let mut rest = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| bad("it begins otherwise"))?;
        let mut next = |type_url: &str| {
            let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest)
                .map_err(|error| bad(&error.to_string()))?;
            if response.type_url == type_url {
                Ok(response)
            } else {
                Err(bad("its parts are in another order"))
            }
        };
        let addresses = next(ADDRESS_TYPE)?;
        let policies = next(AUTHORIZATION_TYPE)?;
        // Policies first: a workload is never there without what restricts it.
        let mut rejected = self.apply_policies(&policies.resources, &[]);
        rejected.extend(self.apply_addresses(&addresses.resources, &[]));
        Ok(rejected)
    }

    fn address_snapshot(&self) -> DeltaDiscoveryResponse {
        let state = self.read();
        let workloads = state.addresses.workloads().map(|held| {
            let message = proto::address::Type::Workload(encode::workload(&held.value));
            address_resource(&held.value.uid, &held.version, message)
        });
        let services = state.addresses.services().map(|held| {
            let message = proto::address::Type::Service(encode::service(&held.value));
            address_resource(&held.value.key.to_string(), &held.version, message)
        });
        response(ADDRESS_TYPE, workloads.chain(services).collect())
    }

    fn policy_snapshot(&self) -> DeltaDiscoveryResponse {
        let state = self.read();
        let policies = state.policies.all().map(|held| {
            let value = encode::policy(&held.value).encode_to_vec();
            resource(
                AUTHORIZATION_TYPE,
                &held.value.key.to_string(),
                &held.version,
                value,
            )
        });
        // What was refused restricts still, after a restart too.
        let refused = state.policies.refused().cloned();
        response(AUTHORIZATION_TYPE, policies.chain(refused).collect())
    }
}

fn address_resource(name: &str, version: &str, message: proto::address::Type) -> Resource {
    let value = proto::Address {
        r#type: Some(message),
    }
    .encode_to_vec();
    resource(ADDRESS_TYPE, name, version, value)
}

fn resource(type_url: &str, name: &str, version: &str, value: Vec<u8>) -> Resource {
    Resource {
        version: version.to_owned(),
        resource: Some(prost_types::Any {
            type_url: type_url.to_owned(),
            value,
        }),
        name: name.to_owned(),
        aliases: Vec::new(),
    }
}

fn response(type_url: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    let type_url = type_url.to_owned();
    DeltaDiscoveryResponse {
        type_url,
        resources,
        ..Default::default()
    }
}
