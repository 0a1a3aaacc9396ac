//! The driver with a clock that stands still, and over gRPC and TLS in one process.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use prost::Message;
use seine_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use seine_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, security, workload};
use seine_workload::Store;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    Client, Connect, ConnectError, Connection, Handler, NodeInfo, Protocol, Refused, Responses,
};

/// A server at the other end of each stream that the client opens.
#[derive(Clone, Default)]
struct FakeServer(Arc<Mutex<FakeState>>);

#[derive(Default)]
struct FakeState {
    /// What happens to the next attempts; beyond them they succeed.
    plan: VecDeque<ConnectError>,
    attempts: Vec<Instant>,
    streams: VecDeque<FakeStream>,
}

struct FakeStream {
    requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    responses: mpsc::UnboundedSender<Result<DeltaDiscoveryResponse, ConnectError>>,
}

impl Connect for FakeServer {
    fn connect(
        &self,
        requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    ) -> BoxFuture<'_, Result<Responses, ConnectError>> {
        let mut state = self.0.lock().unwrap();
        state.attempts.push(Instant::now());
        if let Some(error) = state.plan.pop_front() {
            return futures::future::ready(Err(error)).boxed();
        }
        let (responses, receiver) = mpsc::unbounded_channel();
        state.streams.push_back(FakeStream {
            requests,
            responses,
        });
        let stream: Responses = UnboundedReceiverStream::new(receiver).boxed();
        futures::future::ready(Ok(stream)).boxed()
    }
}

impl FakeServer {
    async fn stream(&self) -> FakeStream {
        loop {
            if let Some(stream) = self.0.lock().unwrap().streams.pop_front() {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl FakeStream {
    /// The requests that open the stream, by type.
    async fn opening(&mut self) -> HashMap<String, DeltaDiscoveryRequest> {
        let mut opening = HashMap::new();
        for _ in 0..2 {
            let request = self.requests.recv().await.unwrap();
            opening.insert(request.type_url.clone(), request);
        }
        opening
    }

    fn send(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).unwrap();
    }
}

fn down() -> ConnectError {
    ConnectError::Transport {
        address: "test".to_owned(),
        problem: "down".to_owned(),
    }
}

fn node() -> NodeInfo {
    NodeInfo {
        address: [10, 0, 0, 1].into(),
        pod: "ztunnel-x".to_owned(),
        namespace: "seine-system".to_owned(),
        node: "node1".to_owned(),
        metadata: Default::default(),
    }
}

fn client(server: &FakeServer, handler: Arc<dyn Handler>) -> Client<FakeServer> {
    Client::new(server.clone(), Protocol::new(&node()), handler)
}

fn pod(name: &str, address: [u8; 4]) -> workload::Workload {
    workload::Workload {
        uid: name.to_owned(),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![address.to_vec()],
        ..Default::default()
    }
}

fn resource(workload: workload::Workload, version: &str) -> Resource {
    let name = workload.uid.clone();
    let message = workload::Address {
        r#type: Some(workload::address::Type::Workload(workload)),
    };
    let value = message.encode_to_vec();
    let any = prost_types::Any {
        type_url: ADDRESS_TYPE.to_owned(),
        value,
    };
    Resource {
        version: version.to_owned(),
        resource: Some(any),
        name,
        aliases: Vec::new(),
    }
}

fn policy(name: &str) -> Resource {
    let message = security::Authorization {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        scope: security::Scope::Namespace.into(),
        ..Default::default()
    };
    let value = message.encode_to_vec();
    let any = prost_types::Any {
        type_url: AUTHORIZATION_TYPE.to_owned(),
        value,
    };
    Resource {
        version: "1".to_owned(),
        resource: Some(any),
        name: format!("shop/{name}"),
        aliases: Vec::new(),
    }
}

fn push(type_url: &str, nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        resources,
        ..Default::default()
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_back_off_up_to_15_s_and_a_response_begins_anew() {
    let server = FakeServer::default();
    server.0.lock().unwrap().plan = (0..20).map(|_| down()).collect();
    let client = client(&server, Arc::new(Store::new("")));
    let mut status = client.status();
    let running = tokio::spawn(client.run());
    let waiting =
        |c: &Connection| matches!(c, Connection::Waiting { because } if because.contains("down"));
    status
        .wait_for(|status| waiting(&status.connection))
        .await
        .unwrap();

    let mut stream = server.stream().await;
    let attempts = server.0.lock().unwrap().attempts.clone();
    assert_eq!(attempts.len(), 21);
    let waits: Vec<_> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits[0] <= Duration::from_millis(11), "{waits:?}");
    assert!(
        waits
            .iter()
            .all(|wait| *wait <= Duration::from_millis(15_001)),
        "{waits:?}"
    );
    assert!(waits[19] >= Duration::from_millis(7_500), "{waits:?}");

    // The stream opens and ends without a word: that is no success.
    stream.opening().await;
    drop(stream);
    let began = Instant::now();
    let mut stream = server.stream().await;
    assert!(began.elapsed() >= Duration::from_millis(7_500));

    stream.opening().await;
    stream.send(push(ADDRESS_TYPE, "n", vec![]));
    stream.requests.recv().await.unwrap();
    drop(stream);
    let began = Instant::now();
    server.stream().await;
    assert!(
        began.elapsed() <= Duration::from_millis(12),
        "{:?}",
        began.elapsed()
    );
    running.abort();
}

#[tokio::test]
async fn a_reconnect_names_what_is_held_and_what_was_refused_is_not_among_it() {
    let server = FakeServer::default();
    let store = Arc::new(Store::new(""));
    let client = client(&server, store.clone());
    let status = client.status();
    let running = tokio::spawn(client.run());

    let mut stream = server.stream().await;
    for request in stream.opening().await.values() {
        assert!(request.initial_resource_versions.is_empty());
        assert!(request.node.is_some());
    }
    assert!(!status.borrow().ready);
    stream.send(push(
        ADDRESS_TYPE,
        "n1",
        vec![
            resource(pod("a", [10, 0, 0, 1]), "v1"),
            resource(
                workload::Workload {
                    addresses: vec![vec![1]],
                    ..pod("bad", [0; 4])
                },
                "v1",
            ),
            resource(pod("b", [10, 0, 0, 2]), "v1"),
        ],
    ));
    let answer = stream.requests.recv().await.unwrap();
    assert_eq!(answer.response_nonce, "n1");
    let error = answer.error_detail.unwrap().message;
    assert!(error.contains("bad: addresses[0].address"), "{error}");
    assert_eq!(store.counts().workloads, 2, "the good ones are applied");

    // A newer version of what is held is refused: the older stays.
    stream.send(push(
        ADDRESS_TYPE,
        "n2",
        vec![resource(
            workload::Workload {
                addresses: vec![vec![1]],
                ..pod("a", [0; 4])
            },
            "v2",
        )],
    ));
    assert!(stream.requests.recv().await.unwrap().error_detail.is_some());
    assert!(store.workload_at([10, 0, 0, 1].into()).is_some());

    assert!(!status.borrow().ready);
    assert_eq!(status.borrow().waiting_for, [AUTHORIZATION_TYPE]);
    stream.send(push(AUTHORIZATION_TYPE, "n3", vec![policy("p")]));
    let answer = stream.requests.recv().await.unwrap();
    assert_eq!(
        (answer.response_nonce.as_str(), answer.error_detail),
        ("n3", None)
    );
    assert!(status.borrow().ready);
    assert_eq!(status.borrow().refused.len(), 2);

    let removal = DeltaDiscoveryResponse {
        removed_resources: vec!["b".to_owned()],
        ..push(ADDRESS_TYPE, "n4", vec![])
    };
    stream.send(removal);
    assert_eq!(stream.requests.recv().await.unwrap().response_nonce, "n4");
    assert_eq!(store.counts().workloads, 1);

    drop(stream);
    let mut stream = server.stream().await;
    let opening = stream.opening().await;
    let held = |type_url: &str| opening[type_url].initial_resource_versions.clone();
    assert_eq!(
        held(ADDRESS_TYPE),
        [("a".to_owned(), "v1".to_owned())].into()
    );
    assert_eq!(
        held(AUTHORIZATION_TYPE),
        [("shop/p".to_owned(), "1".to_owned())].into()
    );
    assert!(status.borrow().ready, "what is held stays in force");
    running.abort();
}

#[tokio::test]
async fn resources_of_a_type_that_nobody_asked_for_are_ignored() {
    struct Nothing;
    impl Handler for Nothing {
        fn held(&self, _: &str) -> HashMap<String, String> {
            HashMap::new()
        }
        fn apply(&self, type_url: &str, _: &[Resource], _: &[String]) -> Vec<Refused> {
            assert_eq!(type_url, ADDRESS_TYPE);
            Vec::new()
        }
    }
    let server = FakeServer::default();
    let running = tokio::spawn(client(&server, Arc::new(Nothing)).run());
    let mut stream = server.stream().await;
    stream.opening().await;
    stream.send(push("type.googleapis.com/other", "n1", vec![]));
    stream.send(push(ADDRESS_TYPE, "n2", vec![]));
    assert_eq!(stream.requests.recv().await.unwrap().response_nonce, "n2");
    running.abort();
}
