//! The delta protocol, without I/O and without a clock (WIRE.md section 1).
//!
//! One [`Protocol`] lives as long as the client. The driver asks it for the requests that open a
//! stream, gives it each response after applying it, and sends what it returns.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Any, Struct, Value};
use seine_proto::core::Node;
use seine_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use seine_proto::extensions::RefusedResources;
use seine_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, REFUSED_RESOURCES_TYPE, rpc};

use crate::handler::Refused;

/// `INVALID_ARGUMENT` of gRPC.
const INVALID_ARGUMENT: i32 = 3;
/// Bytes of an `error_detail` at most, so that a push of many bad resources has a short answer.
const MAX_DETAIL: usize = 4096;
/// Refused resources that are kept for people to read.
const MAX_REFUSED: usize = 100;

/// The state of every type that the client asks for.
#[derive(Debug)]
pub struct Protocol {
    node: Node,
    types: Vec<TypeState>,
    refused: BTreeMap<String, String>,
}

#[derive(Debug)]
struct TypeState {
    type_url: &'static str,
    /// The control plane has answered once, on this stream or an earlier one.
    answered: bool,
}

/// A response of a type that wasn't asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control plane sent resources of type {0}, which nobody asked for")]
pub struct UnknownType(pub String);

/// Who asks for configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Address of the proxy's pod.
    pub address: IpAddr,
    /// Name of the proxy's pod.
    pub pod: String,
    /// Namespace of the proxy's pod.
    pub namespace: String,
    /// The Kubernetes node.
    pub node: String,
    /// Other metadata, as strings.
    pub metadata: BTreeMap<String, String>,
}

impl NodeInfo {
    /// The message, with the id of a node proxy.
    pub fn to_node(&self) -> Node {
        let Self {
            address,
            pod,
            namespace,
            node,
            metadata,
        } = self;
        let text = |text: &str| Value {
            kind: Some(Kind::StringValue(text.to_owned())),
        };
        let mut fields: BTreeMap<String, Value> = metadata
            .iter()
            .map(|(name, value)| (name.clone(), text(value)))
            .collect();
        fields.insert("NAME".to_owned(), text(pod));
        fields.insert("NAMESPACE".to_owned(), text(namespace));
        fields.insert("INSTANCE_IPS".to_owned(), text(&address.to_string()));
        fields.insert("NODE_NAME".to_owned(), text(node));
        Node {
            id: format!("ztunnel~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
            cluster: String::new(),
            metadata: Some(Struct { fields }),
        }
    }
}

impl Protocol {
    /// A client of the ambient types: addresses and authorization policies, all of them.
    pub fn new(node: &NodeInfo) -> Self {
        // Policies first: when both are sent in order, a workload never arrives before them.
        Self::of_types(node, &[AUTHORIZATION_TYPE, ADDRESS_TYPE])
    }

    /// A client of these types, all resources of each.
    pub fn of_types(node: &NodeInfo, types: &[&'static str]) -> Self {
        let state = |&type_url: &&'static str| TypeState {
            type_url,
            answered: false,
        };
        Self {
            node: node.to_node(),
            types: types.iter().map(state).collect(),
            refused: BTreeMap::new(),
        }
    }

    /// The requests that open a stream, one for each type: everything, but what is held.
    pub fn open(
        &self,
        mut held: impl FnMut(&str) -> HashMap<String, String>,
    ) -> Vec<DeltaDiscoveryRequest> {
        let request = |state: &TypeState| DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: state.type_url.to_owned(),
            initial_resource_versions: held(state.type_url),
            ..Default::default()
        };
        self.types.iter().map(request).collect()
    }

    /// Whether a response is of a type that was asked for. To be checked before it is applied.
    ///
    /// # Errors
    ///
    /// It is not, and is to be ignored.
    pub fn check(&self, response: &DeltaDiscoveryResponse) -> Result<(), UnknownType> {
        if self
            .types
            .iter()
            .any(|state| state.type_url == response.type_url)
        {
            return Ok(());
        }
        Err(UnknownType(response.type_url.clone()))
    }

    /// The answer to a response that was applied but for `refused`.
    pub fn answer(
        &mut self,
        response: &DeltaDiscoveryResponse,
        refused: &[Refused],
    ) -> DeltaDiscoveryRequest {
        for name in &response.removed_resources {
            self.refused.remove(name);
        }
        for resource in &response.resources {
            self.refused.remove(&resource.name);
        }
        for Refused { name, problem } in refused {
            if self.refused.len() < MAX_REFUSED {
                self.refused.insert(name.clone(), problem.clone());
            }
        }
        for state in self
            .types
            .iter_mut()
            .filter(|state| state.type_url == response.type_url)
        {
            state.answered = true;
        }
        DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: (!refused.is_empty()).then(|| rpc::Status {
                code: INVALID_ARGUMENT,
                message: detail(refused),
                details: vec![names(refused)],
            }),
            ..Default::default()
        }
    }

    /// The types that the control plane hasn't answered for, ever. None: the proxy may be ready. A
    /// response with refused resources counts: what they would restrict fails closed by itself.
    pub fn waiting_for(&self) -> impl Iterator<Item = &'static str> {
        self.types
            .iter()
            .filter(|state| !state.answered)
            .map(|state| state.type_url)
    }

    /// What was refused and not replaced or removed since.
    pub fn refused(&self) -> &BTreeMap<String, String> {
        &self.refused
    }
}

/// For a control plane that wants to know which of the others are applied.
fn names(refused: &[Refused]) -> Any {
    let names = refused.iter().map(|refused| refused.name.clone()).collect();
    Any {
        type_url: REFUSED_RESOURCES_TYPE.to_owned(),
        value: RefusedResources { names }.encode_to_vec(),
    }
}

fn detail(refused: &[Refused]) -> String {
    let mut text = String::new();
    for (index, Refused { name, problem }) in refused.iter().enumerate() {
        let separator = if index == 0 { "" } else { "; " };
        if text.len() + name.len() + problem.len() > MAX_DETAIL && index > 0 {
            text.push_str(&format!("; and {} more", refused.len() - index));
            break;
        }
        text.push_str(&format!("{separator}{name}: {problem}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use seine_proto::discovery::Resource;

    use super::*;

    fn protocol() -> Protocol {
        Protocol::new(&NodeInfo {
            address: [10, 0, 0, 1].into(),
            pod: "ztunnel-x".to_owned(),
            namespace: "seine-system".to_owned(),
            node: "node1".to_owned(),
            metadata: [("ISTIO_METAJSON_LABELS".to_owned(), "{}".to_owned())].into(),
        })
    }

    fn response(type_url: &str, nonce: &str, names: &[&str]) -> DeltaDiscoveryResponse {
        let resource = |name: &&str| Resource {
            name: (*name).to_owned(),
            ..Default::default()
        };
        DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            resources: names.iter().map(resource).collect(),
            ..Default::default()
        }
    }

    fn refused(name: &str, problem: &str) -> Refused {
        Refused {
            name: name.to_owned(),
            problem: problem.to_owned(),
        }
    }

    #[test]
    fn a_stream_opens_with_everything_but_what_is_held() {
        let held = |type_url: &str| match type_url {
            ADDRESS_TYPE => [("uid".to_owned(), "v1".to_owned())].into(),
            _ => HashMap::new(),
        };
        let requests = protocol().open(held);
        assert_eq!(requests.len(), 2);
        for request in &requests {
            assert!(request.resource_names_subscribe.is_empty());
            assert!(request.response_nonce.is_empty());
            let node = request.node.as_ref().unwrap();
            assert_eq!(
                node.id,
                "ztunnel~10.0.0.1~ztunnel-x.seine-system~seine-system.svc.cluster.local"
            );
            let metadata = &node.metadata.as_ref().unwrap().fields;
            let mut names: Vec<_> = metadata.keys().map(String::as_str).collect();
            names.sort_unstable();
            assert_eq!(
                names,
                [
                    "INSTANCE_IPS",
                    "ISTIO_METAJSON_LABELS",
                    "NAME",
                    "NAMESPACE",
                    "NODE_NAME"
                ]
            );
        }
        assert_eq!(requests[0].type_url, AUTHORIZATION_TYPE);
        assert!(requests[0].initial_resource_versions.is_empty());
        assert_eq!(requests[1].initial_resource_versions["uid"], "v1");
    }

    #[test]
    fn a_response_that_was_applied_is_acknowledged_by_its_nonce() {
        let answer = protocol().answer(&response(ADDRESS_TYPE, "n1", &["a"]), &[]);
        assert_eq!(answer.response_nonce, "n1");
        assert_eq!(answer.type_url, ADDRESS_TYPE);
        assert_eq!(answer.error_detail, None);
        assert!(answer.node.is_none() && answer.initial_resource_versions.is_empty());
    }

    #[test]
    fn refused_resources_are_named_in_the_answer_until_they_are_replaced_or_removed() {
        let mut protocol = protocol();
        let first = response(ADDRESS_TYPE, "n1", &["a", "b", "c"]);
        let answer = protocol.answer(&first, &[refused("b", "bad"), refused("c", "worse")]);
        assert_eq!(answer.response_nonce, "n1");
        let error = answer.error_detail.unwrap();
        assert_eq!((error.code, &*error.message), (3, "b: bad; c: worse"));
        assert_eq!(error.details[0].type_url, REFUSED_RESOURCES_TYPE);
        let named = RefusedResources::decode(&*error.details[0].value).unwrap();
        assert_eq!(named.names, ["b", "c"]);
        assert_eq!(protocol.refused().len(), 2);

        assert_eq!(
            protocol
                .answer(&response(ADDRESS_TYPE, "n2", &["b"]), &[])
                .error_detail,
            None
        );
        assert_eq!(protocol.refused().keys().collect::<Vec<_>>(), ["c"]);
        let mut removal = response(ADDRESS_TYPE, "n3", &[]);
        removal.removed_resources = vec!["c".to_owned()];
        protocol.answer(&removal, &[]);
        assert!(protocol.refused().is_empty());
    }

    #[test]
    fn the_answer_to_many_bad_resources_is_short() {
        let many: Vec<_> = (0..10_000)
            .map(|n| refused(&format!("r{n}"), "bad"))
            .collect();
        let mut protocol = protocol();
        let answer = protocol.answer(&response(ADDRESS_TYPE, "n", &[]), &many);
        let message = answer.error_detail.unwrap().message;
        assert!(
            message.len() < 5000 && message.ends_with(" more"),
            "{message}"
        );
        assert_eq!(protocol.refused().len(), 100);
    }

    #[test]
    fn every_type_must_be_answered_once() {
        let mut protocol = protocol();
        assert_eq!(protocol.waiting_for().count(), 2);
        protocol.answer(&response(ADDRESS_TYPE, "1", &[]), &[]);
        assert_eq!(
            protocol.waiting_for().collect::<Vec<_>>(),
            [AUTHORIZATION_TYPE]
        );
        protocol.answer(&response(AUTHORIZATION_TYPE, "2", &[]), &[]);
        assert_eq!(protocol.waiting_for().count(), 0);
        protocol.open(|_| HashMap::new());
        assert_eq!(
            protocol.waiting_for().count(),
            0,
            "a reconnect doesn't undo it"
        );
    }

    #[test]
    fn a_type_that_nobody_asked_for_is_known_as_such() {
        assert!(
            protocol()
                .check(&response("type.googleapis.com/other", "1", &[]))
                .is_err()
        );
        assert!(protocol().check(&response(ADDRESS_TYPE, "1", &[])).is_ok());
    }
}
