//! The last good configuration as bytes, so that a proxy serves the same traffic after a restart
//! with the control plane away.
//!
//! They are a magic line and then, each with its length before it, the resources as the control plane sends
//! them: policies first, those that were refused among them. There are no secrets in it.

use std::io::{self, Write};

use prost::Message;
use seine_policy::Policy;
use seine_proto::discovery::Resource;
use seine_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, workload as proto};

use crate::encode;
use crate::index::Held;
use crate::model::{Service, Workload};
use crate::store::{Rejected, Store};

const MAGIC: &[u8] = b"seine configuration 2\n";

/// The bytes are not what this version made.
#[derive(Debug, thiserror::Error)]
#[error("not a saved configuration: {0}")]
pub struct SnapshotError(String);

impl Store {
    /// Writes everything held, with its versions. One resource is encoded at a time, with no lock held: neither
    /// readers nor memory notice how much there is.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn snapshot(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(MAGIC)?;
        let mut encoded = Vec::new();
        let mut write = |resource: &Resource| {
            encoded.clear();
            resource
                .encode_length_delimited(&mut encoded)
                .expect("a Vec grows as needed");
            out.write_all(&encoded)
        };
        // Addresses are gathered first and written last: the policies that they name are among those gathered after.
        let (workloads, services) = self.addresses_held();
        let (policies, refused) = self.policies_held();
        for Held { version, value } in policies {
            let message = encode::policy(&value).encode_to_vec();
            let name = value.key.to_string();
            write(&resource(AUTHORIZATION_TYPE, &name, &version, message))?;
        }
        // What was refused restricts still, after a restart too.
        for Resource {
            name,
            version,
            resource: message,
            ..
        } in refused
        {
            // One without a message, or with one of another type, is refused again.
            let message = message.unwrap_or_default().value;
            write(&resource(AUTHORIZATION_TYPE, &name, &version, message))?;
        }
        for Held { version, value } in workloads {
            let message = proto::address::Type::Workload(encode::workload(&value));
            write(&address_resource(&value.uid, &version, message))?;
        }
        for Held { version, value } in services {
            let message = proto::address::Type::Service(encode::service(&value));
            write(&address_resource(&value.key.to_string(), &version, message))?;
        }
        Ok(())
    }

    /// Applies what [`Store::snapshot`] wrote, to an empty store. Returns what is refused, again or by
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
        let (mut policies, mut addresses) = (Vec::new(), Vec::new());
        while !rest.is_empty() {
            let resource = Resource::decode_length_delimited(&mut rest)
                .map_err(|error| bad(&error.to_string()))?;
            let type_url = resource.resource.as_ref().map(|any| &*any.type_url);
            match type_url {
                Some(AUTHORIZATION_TYPE) => policies.push(resource),
                Some(ADDRESS_TYPE) => addresses.push(resource),
                _ => return Err(bad(&format!("{} is of an unknown type", resource.name))),
            }
        }
        // Policies first: a workload is never there without what restricts it.
        let mut rejected = self.apply_policies(&policies, &[]);
        rejected.extend(self.apply_addresses(&addresses, &[]));
        Ok(rejected)
    }

    fn addresses_held(&self) -> (Vec<Held<Workload>>, Vec<Held<Service>>) {
        let state = self.read();
        let workloads = state.addresses.workloads().cloned().collect();
        let services = state.addresses.services().cloned().collect();
        (workloads, services)
    }

    fn policies_held(&self) -> (Vec<Held<Policy>>, Vec<Resource>) {
        let state = self.read();
        let policies = state.policies.all().cloned().collect();
        let refused = state.policies.refused().cloned().collect();
        (policies, refused)
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
