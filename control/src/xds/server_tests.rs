//! The server with a real client on loopback.

mod listeners;
mod pages;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::FutureExt as _;
use seine_identity::TrustDomain;
use seine_objects::ObjectSet;
use seine_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    rpc,
};
use seine_telemetry::Readiness;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use super::{
    ResourceType,
    server::{Clients, ServerOptions, XdsServer},
};
use crate::{
    admin::Admin,
    authn::tests::TestIssuer,
    ca::{Authority, CaOptions, DirectoryStore, External},
    model::Model,
    publish::{Held, Totals},
    status,
    translate::Settings,
};

const ACCOUNT: &str = "seine-system/seine-ztunnel";

struct Server {
    models: watch::Sender<Arc<Model>>,
    clients: Clients,
    stop: watch::Sender<bool>,
    issuer: TestIssuer,
    address: std::net::SocketAddr,
}

impl Server {
    async fn start(yaml: &str) -> Self {
        Self::start_with_age(yaml, Duration::from_secs(60)).await
    }

    async fn start_with_age(yaml: &str, max_stream_age: Duration) -> Self {
        let issuer = TestIssuer::new();
        let (models, receiver) = watch::channel(Arc::<Model>::default());
        let (stop, stopped) = watch::channel(false);
        let clients = Clients::default();
        let service = XdsServer::new(
            receiver,
            Arc::new(issuer.authenticator()),
            clients.clone(),
            ServerOptions {
                trusted_accounts: vec![ACCOUNT.into()],
                max_stream_age,
            },
            stopped,
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service.into_service())
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let server = Self {
            models,
            clients,
            stop,
            issuer,
            address,
        };
        server.apply(yaml);
        server
    }

    fn apply(&self, yaml: &str) {
        let (objects, problems) = ObjectSet::from_yaml(yaml);
        assert_eq!(problems, []);
        let next = self
            .models
            .borrow()
            .next(Arc::new(objects), &Settings::default());
        self.models.send_replace(Arc::new(next));
    }

    /// The admin pages, with a CA that nobody asks.
    async fn pages(&self) -> Admin {
        let ca = tempfile::tempdir().unwrap();
        let store = Box::new(DirectoryStore::open(ca.path()).unwrap());
        let options = CaOptions::new(TrustDomain::new("cluster.local").unwrap());
        let (_, external) = watch::channel(External::Absent);
        Admin {
            models: self.models.subscribe(),
            problems: watch::channel(Arc::default()).1,
            clients: self.clients.clone(),
            authority: Authority::open(options, store, external).await.unwrap(),
            readiness: Readiness::default(),
        }
    }

    async fn open(&self, token: Option<&str>) -> Result<Stream, Status> {
        let channel = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        // A small window, so that a client that doesn't read is soon one that can't be written to.
        let channel = channel.initial_stream_window_size(1 << 16);
        let channel = channel.connect().await.unwrap();
        let (requests, receiver) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client
            .delta_aggregated_resources(request)
            .await?
            .into_inner();
        Ok(Stream {
            requests,
            responses,
        })
    }

    async fn connect(&self) -> Stream {
        let token = self.issuer.token(ACCOUNT, Some("node1"));
        self.open(Some(&token)).await.unwrap()
    }
}

struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    async fn subscribe(&self, kind: &str, held: &HashMap<String, String>) {
        self.send(DeltaDiscoveryRequest {
            type_url: kind.into(),
            initial_resource_versions: held.clone(),
            ..Default::default()
        })
        .await;
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = timeout(Duration::from_secs(5), self.responses.message());
        response
            .await
            .expect("a response in time")
            .unwrap()
            .unwrap()
    }

    async fn nothing(&mut self) {
        let response = timeout(Duration::from_millis(150), self.responses.message()).await;
        assert!(response.is_err(), "{response:?}");
    }

    async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.answer(response, None).await;
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, error_detail: Option<rpc::Status>) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..Default::default()
        })
        .await;
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect()
}

fn versions(response: &DeltaDiscoveryResponse) -> HashMap<String, String> {
    let version = |resource: &seine_proto::discovery::Resource| {
        (resource.name.clone(), resource.version.clone())
    };
    response.resources.iter().map(version).collect()
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: {ip}, selector: {{app: {name}}}, ports: [{{port: 80}}]}}\n"
    )
}

fn key(service: &str) -> String {
    format!("shop/{service}.shop.svc.cluster.local")
}

fn pod(name: &str, ip: &str, node: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\nspec: {{nodeName: {node}, containers: [{{name: c}}]}}\nstatus: {{phase: Running, podIP: {ip}}}\n"
    )
}

fn uid(pod: &str) -> String {
    format!("Kubernetes//Pod/shop/{pod}")
}

fn policy(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: policy.seine.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: a}}}}, rules: [{{to: [{{ports: [{port}]}}]}}]}}\n"
    )
}

const NAMESPACE: &str = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {seine.dev/mesh: enabled}}\n";

#[tokio::test]
async fn a_wildcard_client_gets_everything_once_and_then_what_changes() {
    let server = Server::start(&(service("a", "10.9.0.1") + &service("b", "10.9.0.2"))).await;
    let mut stream = server.connect().await;
    stream.subscribe(ADDRESS_TYPE, &HashMap::new()).await;
    let first = stream.next().await;
    assert_eq!(names(&first), [key("a"), key("b")]);
    stream.ack(&first).await;
    stream.nothing().await;

    server.apply(&(service("a", "10.9.0.1") + &service("c", "10.9.0.3")));
    let second = stream.next().await;
    assert_eq!(names(&second), [key("c")]);
    assert_eq!(second.removed_resources, [key("b")]);
    stream.ack(&second).await;

    server.apply(&(service("a", "10.9.0.9") + &service("c", "10.9.0.3")));
    let third = stream.next().await;
    assert_eq!(names(&third), [key("a")]);
    assert_ne!(versions(&third)[&key("a")], versions(&first)[&key("a")]);
}

#[tokio::test]
async fn a_type_without_resources_is_answered_too() {
    let server = Server::start("").await;
    let mut stream = server.connect().await;
    stream.subscribe(AUTHORIZATION_TYPE, &HashMap::new()).await;
    let first = stream.next().await;
    assert_eq!(
        (first.type_url.as_str(), first.resources.len()),
        (AUTHORIZATION_TYPE, 0)
    );
}

#[tokio::test]
async fn a_client_that_comes_back_is_sent_what_changed_and_told_what_is_gone() {
    let server = Server::start(&(service("a", "10.9.0.1") + &service("b", "10.9.0.2"))).await;
    let mut stream = server.connect().await;
    stream.subscribe(ADDRESS_TYPE, &HashMap::new()).await;
    let held = versions(&stream.next().await);
    drop(stream);

    let mut stream = server.connect().await;
    stream.subscribe(ADDRESS_TYPE, &held).await;
    let unchanged = stream.next().await;
    assert!(unchanged.resources.is_empty() && unchanged.removed_resources.is_empty());
    drop(stream);

    server.apply(&(service("b", "10.9.0.7") + &service("c", "10.9.0.3")));
    let mut stream = server.connect().await;
    stream.subscribe(ADDRESS_TYPE, &held).await;
    let changed = stream.next().await;
    assert_eq!(names(&changed), [key("b"), key("c")]);
    assert_eq!(changed.removed_resources, [key("a")]);
}

#[tokio::test]
async fn what_a_client_rejects_is_shown_and_sent_again_only_once_it_changed() {
    let yaml = |port| NAMESPACE.to_owned() + &pod("a", "10.0.0.1", "node1") + &policy("p", port);
    let server = Server::start(&yaml(80)).await;
    let mut stream = server.connect().await;
    stream.subscribe(AUTHORIZATION_TYPE, &HashMap::new()).await;
    let first = stream.next().await;
    assert_eq!(names(&first), ["shop/p"]);
    let error = rpc::Status {
        code: 3,
        message: "p is bad".into(),
        ..Default::default()
    };
    stream.answer(&first, Some(error)).await;
    stream.nothing().await;

    let entry = server.clients.list()[0].clone();
    {
        let client = entry.client.lock();
        let state = client.stream(ResourceType::Authorization).unwrap();
        assert_eq!(state.rejected().collect::<Vec<_>>(), ["shop/p"]);
        assert_eq!(state.counts, (0, 1));
        assert_eq!(state.last_rejection.as_deref(), Some("p is bad (code 3)"));
        assert_eq!(state.accepted(), 0);
    }
    let programmed = |server: &Server| {
        let model = server.models.borrow();
        let totals = Totals::of([Held::of(&model, &server.clients.list())]);
        let report = status::report(&model, &totals, &[]);
        report[0]
            .conditions
            .iter()
            .find(|found| found.kind == "Programmed")
            .unwrap()
            .status
    };
    assert_eq!(programmed(&server), "False");

    server.apply(&yaml(81));
    let second = stream.next().await;
    assert_eq!(names(&second), ["shop/p"]);
    stream.ack(&second).await;
    stream.nothing().await;
    let client = entry.client.lock();
    let state = client.stream(ResourceType::Authorization).unwrap();
    assert_eq!((state.accepted(), state.last_rejection.clone()), (1, None));
    drop(client);
    assert_eq!(programmed(&server), "True");
}

#[tokio::test]
async fn a_slow_client_has_one_response_waiting_and_then_gets_the_latest() {
    let server = Server::start(&service("a", "10.9.0.1")).await;
    let mut stream = server.connect().await;
    stream.subscribe(ADDRESS_TYPE, &HashMap::new()).await;
    let first = stream.next().await;
    for number in 2..200 {
        server.apply(&(service("a", &format!("10.9.0.{number}")) + &service("b", "10.9.1.1")));
    }
    server.apply(&service("a", "10.9.0.250"));
    // It hasn't answered: nothing is sent, and an answer to something else doesn't count.
    stream.nothing().await;
    let other = DeltaDiscoveryResponse {
        nonce: "other".into(),
        ..first.clone()
    };
    stream.ack(&other).await;
    stream.nothing().await;

    stream.ack(&first).await;
    let second = stream.next().await;
    assert_eq!(names(&second), [key("a")]);
    assert!(second.removed_resources.is_empty());
    assert_eq!(second.system_version_info, "200");
    stream.ack(&second).await;
    stream.nothing().await;
}

#[tokio::test]
async fn on_demand_a_client_gets_what_it_names_with_endpoints_and_its_own_node() {
    let yaml = NAMESPACE.to_owned()
        + &service("a", "10.9.0.1")
        + &service("b", "10.9.0.2")
        + &pod("a", "10.0.0.1", "node2")
        + &pod("b", "10.0.0.2", "node2")
        + &pod("own", "10.0.0.3", "node1");
    let server = Server::start(&yaml).await;
    let mut stream = server.connect().await;
    let star = || vec!["*".to_owned()];
    let metadata = [(
        "NODE_NAME".to_owned(),
        prost_types::Value {
            kind: Some(prost_types::value::Kind::StringValue("node1".into())),
        },
    )];
    stream
        .send(DeltaDiscoveryRequest {
            node: Some(seine_proto::core::Node {
                metadata: Some(prost_types::Struct {
                    fields: metadata.into_iter().collect(),
                }),
                ..Default::default()
            }),
            type_url: ADDRESS_TYPE.into(),
            resource_names_subscribe: star(),
            resource_names_unsubscribe: star(),
            ..Default::default()
        })
        .await;
    let first = stream.next().await;
    assert_eq!(names(&first), [uid("own")]);
    stream.ack(&first).await;

    let subscribe = |names: &[&str]| DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.into(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    // By address of the service, with its endpoints; by address of nothing.
    stream.send(subscribe(&["/10.9.0.1", "/10.9.9.9"])).await;
    let second = stream.next().await;
    assert_eq!(names(&second), [uid("a"), key("a")]);
    assert_eq!(second.removed_resources, ["/10.9.9.9"]);
    assert_eq!(second.resources[1].aliases, ["/10.9.0.1"]);
    stream.ack(&second).await;

    stream.send(subscribe(&["/10.0.0.2"])).await;
    let third = stream.next().await;
    assert_eq!(names(&third), [uid("b")]);
    stream.ack(&third).await;

    // A name that comes into being later, and one that goes.
    server.apply(
        &(yaml
            .replace("10.9.0.2", "10.9.9.9")
            .replace("10.0.0.2", "10.0.0.8")),
    );
    let fourth = stream.next().await;
    assert_eq!(names(&fourth), [uid("b"), key("b")]);
    stream.ack(&fourth).await;

    stream
        .send(DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.into(),
            resource_names_unsubscribe: vec!["/10.9.0.1".into()],
            ..Default::default()
        })
        .await;
    // `/10.0.0.2` was told to be missing when its pod took another address.
    let fifth = stream.next().await;
    let mut removed = fifth.removed_resources.clone();
    removed.retain(|name| name != "/10.0.0.2");
    assert_eq!(removed, [uid("a"), key("a")]);
}

#[tokio::test]
async fn policies_come_before_the_workloads_that_name_them_and_go_after_them() {
    let bare = NAMESPACE.to_owned() + &pod("a", "10.0.0.1", "node1");
    let server = Server::start(&bare).await;
    let mut stream = server.connect().await;
    for kind in [ADDRESS_TYPE, AUTHORIZATION_TYPE] {
        stream.subscribe(kind, &HashMap::new()).await;
        let first = stream.next().await;
        assert_eq!(first.type_url, kind);
        stream.ack(&first).await;
    }
    stream.nothing().await;

    server.apply(&(bare.clone() + &policy("p", 80)));
    let policies = stream.next().await;
    assert_eq!(
        (policies.type_url.as_str(), names(&policies)),
        (AUTHORIZATION_TYPE, vec!["shop/p"])
    );
    let workloads = stream.next().await;
    assert_eq!(
        (workloads.type_url.as_str(), names(&workloads)),
        (ADDRESS_TYPE, vec![&*uid("a")])
    );

    // The next policy must be first although its type still waits for an answer.
    server.apply(&(bare.clone() + &policy("q", 80)));
    stream.ack(&workloads).await;
    stream.nothing().await;
    stream.ack(&policies).await;
    let added = stream.next().await;
    assert_eq!(names(&added), ["shop/q"]);
    assert!(added.removed_resources.is_empty());
    let workloads = stream.next().await;
    assert_eq!(workloads.type_url, ADDRESS_TYPE);
    stream.ack(&added).await;
    stream.nothing().await;
    stream.ack(&workloads).await;
    let removed = stream.next().await;
    assert_eq!(removed.removed_resources, ["shop/p"]);
}

#[tokio::test]
async fn who_has_no_good_token_is_sent_nothing() {
    let server = Server::start(&service("a", "10.9.0.1")).await;
    let refused = async |token: Option<String>| {
        server
            .open(token.as_deref())
            .await
            .err()
            .map(|status| status.code())
    };
    assert_eq!(refused(None).await, Some(Code::Unauthenticated));
    assert_eq!(
        refused(Some("nonsense".into())).await,
        Some(Code::Unauthenticated)
    );
    let forged = TestIssuer::new().token(ACCOUNT, Some("node1"));
    assert_eq!(refused(Some(forged)).await, Some(Code::Unauthenticated));
    let other = server.issuer.token("shop/web", Some("node1"));
    assert_eq!(refused(Some(other)).await, Some(Code::PermissionDenied));
    let good = server.issuer.token(ACCOUNT, Some("node1"));
    assert_eq!(refused(Some(good)).await, None);
}

#[tokio::test]
async fn a_stream_ends_at_its_maximum_age_and_at_shutdown_and_is_forgotten() {
    let server = Server::start_with_age("", Duration::from_millis(100)).await;
    let mut stream = server.connect().await;
    let end = timeout(Duration::from_secs(5), stream.responses.message())
        .await
        .unwrap();
    assert_eq!(end.unwrap(), None);
    assert!(server.clients.list().is_empty());

    let server = Server::start("").await;
    let mut stream = server.connect().await;
    server.stop.send_replace(true);
    let end = timeout(Duration::from_secs(5), stream.responses.message())
        .await
        .unwrap();
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_type_is_accepted_up_to_a_generation_that_changed_only_the_other() {
    let server = Server::start(&(policy("p", 80) + &service("a", "10.9.0.1"))).await;
    let mut stream = server.connect().await;
    for kind in [AUTHORIZATION_TYPE, ADDRESS_TYPE] {
        stream.subscribe(kind, &HashMap::new()).await;
        let response = stream.next().await;
        stream.ack(&response).await;
    }
    server.apply(&(policy("p", 80) + &service("a", "10.9.0.2")));
    let changed = stream.next().await;
    assert_eq!(changed.type_url, ADDRESS_TYPE);
    stream.nothing().await;
    let entry = server.clients.list()[0].clone();
    let accepted = |kind: ResourceType| {
        let client = entry.client.lock();
        client.stream(kind).unwrap().accepted_generation
    };
    let generation = server.models.borrow().snapshot.generation;
    assert_eq!(accepted(ResourceType::Authorization), generation);
    assert_eq!(
        accepted(ResourceType::Address),
        generation - 1,
        "it has not answered"
    );
    stream.ack(&changed).await;
    stream.nothing().await;
    assert_eq!(accepted(ResourceType::Address), generation);
}

#[tokio::test]
async fn a_transport_that_does_not_read_holds_one_response_and_no_other_client_up() {
    // More than the window of an HTTP/2 stream.
    let many = |number: usize| -> String {
        let services = (0..1000).map(|index| service(&format!("s{index}"), "10.9.0.1"));
        services.collect::<String>() + &service("a", &format!("10.8.0.{number}"))
    };
    let server = Server::start(&many(1)).await;
    let mut stuck = server.connect().await;
    stuck.subscribe(ADDRESS_TYPE, &HashMap::new()).await;
    stuck.subscribe(AUTHORIZATION_TYPE, &HashMap::new()).await;
    let mut other = server.connect().await;
    other.subscribe(ADDRESS_TYPE, &HashMap::new()).await;
    let first = other.next().await;
    assert_eq!(first.resources.len(), 1001);
    other.ack(&first).await;
    for number in 2..6 {
        server.apply(&many(number));
        let change = other.next().await;
        assert_eq!(names(&change), [key("a")]);
        other.ack(&change).await;
    }
    // One to the first client, of which it has taken a part, and five to the second.
    let pushes = || server.clients.counts().0;
    let made = async {
        while pushes() < 6 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(5), made).await.unwrap();
    other.nothing().await;
    assert_eq!(pushes(), 6);

    // It reads what was made for it long ago, and then of each type the latest alone.
    let mut late = Vec::new();
    for _ in 0..2 {
        let response = stuck.next().await;
        stuck.ack(&response).await;
        late.push(response.resources.len());
    }
    late.sort_unstable();
    assert_eq!(late, [0, 1001]);
    let latest = stuck.next().await;
    assert_eq!(names(&latest), [key("a")]);
    let newest = server.models.borrow().snapshot.generation.to_string();
    assert_eq!(latest.system_version_info, newest);
    stuck.ack(&latest).await;
    stuck.nothing().await;
}
