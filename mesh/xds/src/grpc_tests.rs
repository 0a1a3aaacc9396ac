//! The real transport against a server of this process: TLS, its roots and name, token, headers.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use seine_proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use seine_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use seine_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use seine_workload::Store;
use tokio::sync::mpsc;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::{Client, Connection, Grpc, GrpcOptions, NodeInfo, Protocol};

/// Answers each opening request with an empty push, and notes what came.
struct FakeControl {
    seen: mpsc::UnboundedSender<(String, String, DeltaDiscoveryRequest)>,
}

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for FakeControl {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let header = |name: &str| {
            let value = request
                .metadata()
                .get(name)
                .and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (token, cluster) = (header("authorization"), header("clusterid"));
        if token != "Bearer secret" {
            return Err(Status::unauthenticated("no such token"));
        }
        let seen = self.seen.clone();
        let answers = request.into_inner().filter_map(move |request| {
            let request = request.unwrap();
            let opening = request.response_nonce.is_empty();
            let type_url = request.type_url.clone();
            let _ = seen.send((token.clone(), cluster.clone(), request));
            let nonce = format!("nonce of {type_url}");
            let push = DeltaDiscoveryResponse {
                type_url,
                nonce,
                ..Default::default()
            };
            futures::future::ready(opening.then_some(Ok(push)))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

struct Lab {
    dir: tempfile::TempDir,
    address: String,
    seen: mpsc::UnboundedReceiver<(String, String, DeltaDiscoveryRequest)>,
    server: tokio::task::JoinHandle<()>,
}

const SERVER_NAME: &str = "seine-control.seine-system.svc";

async fn lab() -> Lab {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &ca).unwrap();

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("roots.pem"), ca.pem()).unwrap();
    std::fs::write(dir.path().join("token"), "secret\n").unwrap();

    let (sender, seen) = mpsc::unbounded_channel();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = incoming.local_addr().unwrap().port();
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(leaf.pem(), key.serialize_pem()));
    let service = AggregatedDiscoveryServiceServer::new(FakeControl { seen: sender });
    let server = Server::builder()
        .tls_config(tls)
        .unwrap()
        .add_service(service);
    let server = tokio::spawn(async move {
        let _ = server.serve_with_incoming(incoming).await;
    });
    Lab {
        dir,
        address: format!("https://127.0.0.1:{port}"),
        seen,
        server,
    }
}

fn client(lab: &Lab, change: impl FnOnce(&mut GrpcOptions, &Path)) -> Client<Grpc> {
    let mut options = GrpcOptions {
        address: lab.address.clone(),
        roots_file: lab.dir.path().join("roots.pem"),
        server_name: SERVER_NAME.to_owned(),
        token_file: lab.dir.path().join("token"),
        cluster_id: "Kubernetes".to_owned(),
    };
    change(&mut options, lab.dir.path());
    let node = NodeInfo {
        address: [127, 0, 0, 1].into(),
        pod: "z".to_owned(),
        namespace: "n".to_owned(),
        node: "node1".to_owned(),
        metadata: Default::default(),
    };
    Client::new(
        Grpc::new(options),
        Protocol::new(&node),
        Arc::new(Store::new("")),
    )
}

/// Why the first stream couldn't be had.
async fn refusal(client: Client<Grpc>) -> String {
    let mut status = client.status();
    let running = tokio::spawn(client.run());
    let waiting = status.wait_for(|s| matches!(s.connection, Connection::Waiting { .. }));
    let waiting = tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap()
        .unwrap();
    let Connection::Waiting { because } = &waiting.connection else {
        unreachable!()
    };
    running.abort();
    because.clone()
}

#[tokio::test]
async fn a_client_with_roots_name_and_token_is_served_and_becomes_ready() {
    let mut lab = lab().await;
    let client = client(&lab, |_, _| ());
    let mut status = client.status();
    let running = tokio::spawn(client.run());
    let ready = tokio::time::timeout(Duration::from_secs(10), status.wait_for(|s| s.ready));
    ready.await.unwrap().unwrap();

    let mut acknowledged = Vec::new();
    for _ in 0..4 {
        let (token, cluster, request) = lab.seen.recv().await.unwrap();
        assert_eq!(
            (token.as_str(), cluster.as_str()),
            ("Bearer secret", "Kubernetes")
        );
        if !request.response_nonce.is_empty() {
            assert_eq!(
                request.response_nonce,
                format!("nonce of {}", request.type_url)
            );
            assert_eq!(request.error_detail, None);
            acknowledged.push(request.type_url);
        }
    }
    acknowledged.sort();
    assert_eq!(acknowledged, [AUTHORIZATION_TYPE, ADDRESS_TYPE]);
    running.abort();
    lab.server.abort();
}

#[tokio::test]
async fn a_server_of_another_root_or_name_is_not_spoken_to() {
    let mut lab = lab().await;
    let other = self::lab().await;
    let because = refusal(client(&lab, |options, _| {
        options.roots_file = other.dir.path().join("roots.pem");
    }));
    let because = because.await;
    assert!(
        because.contains("UnknownIssuer") || because.contains("invalid peer"),
        "{because}"
    );

    let because = refusal(client(&lab, |options, _| {
        options.server_name = "x.example".into()
    }));
    let because = because.await;
    assert!(because.contains("not valid for name"), "{because}");

    let because = refusal(client(&lab, |options, _| {
        options.address = options.address.replace("https", "http");
    }));
    assert!(because.await.contains("is not https"));
    assert!(lab.seen.try_recv().is_err(), "nothing was sent");
}

#[tokio::test]
async fn a_refusal_says_what_the_control_plane_said_and_never_the_token() {
    let lab = lab().await;
    let because = refusal(client(&lab, |options, dir| {
        options.token_file = dir.join("other");
        std::fs::write(&options.token_file, "wrong").unwrap();
    }));
    let because = because.await;
    assert!(
        because.contains("Unauthenticated") && because.contains("no such token"),
        "{because}"
    );
    assert!(!because.contains("wrong"), "{because}");

    let because = refusal(client(&lab, |options, dir| {
        options.token_file = dir.join("none")
    }));
    assert!(because.await.starts_with("token file "));
}

#[tokio::test]
async fn the_token_is_read_anew_for_each_connection() {
    let lab = lab().await;
    std::fs::write(lab.dir.path().join("token"), "old").unwrap();
    let client = client(&lab, |_, _| ());
    let mut status = client.status();
    let running = tokio::spawn(client.run());
    let waiting = status.wait_for(|s| matches!(s.connection, Connection::Waiting { .. }));
    drop(waiting.await.unwrap());
    std::fs::write(lab.dir.path().join("token"), "secret").unwrap();
    let ready = tokio::time::timeout(Duration::from_secs(10), status.wait_for(|s| s.ready));
    ready.await.unwrap().unwrap();
    running.abort();
}
