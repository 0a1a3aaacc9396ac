//! Listeners have keys in them: who is sent which.

use super::*;
use seine_proto::LISTENER_TYPE;

const GATEWAYS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: one, namespace: shop}
spec: {gatewayClassName: seine, listeners: [{name: web, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: two, namespace: shop}
spec: {gatewayClassName: seine, listeners: [{name: web, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: seine-waypoint, listeners: []}
";

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let resources = response.resources.iter();
    resources.map(|resource| &*resource.name).collect()
}

#[tokio::test]
async fn a_gateway_is_sent_its_own_listeners_and_nobody_else_any() {
    let server = Server::start(GATEWAYS).await;
    let none = HashMap::new();
    for (account, expected) in [
        ("shop/one", &["shop/one/web"][..]),
        ("shop/two", &["shop/two/web"]),
        ("shop/wp", &[]),
        (ACCOUNT, &[]),
    ] {
        let token = server.issuer.token(account, Some("node1"));
        // All of them, and by name.
        for subscribe in [
            vec![],
            vec!["shop/one/web".to_owned(), "shop/two/web".to_owned()],
        ] {
            let mut stream = server.open(Some(&token)).await.unwrap();
            stream
                .send(DeltaDiscoveryRequest {
                    type_url: LISTENER_TYPE.into(),
                    resource_names_subscribe: subscribe,
                    initial_resource_versions: none.clone(),
                    ..Default::default()
                })
                .await;
            assert_eq!(names(&stream.next().await), expected, "{account}");
        }
    }
}

#[tokio::test]
async fn the_listeners_of_a_gateway_that_is_gone_are_taken_away() {
    let server = Server::start(GATEWAYS).await;
    let token = server.issuer.token("shop/one", Some("node1"));
    let mut stream = server.open(Some(&token)).await.unwrap();
    stream.subscribe(LISTENER_TYPE, &HashMap::new()).await;
    let first = stream.next().await;
    stream.ack(&first).await;
    // Of another class it is not ours.
    server.apply(&GATEWAYS.replace(
        "name: one, namespace: shop}\nspec: {gatewayClassName: seine,",
        "name: one, namespace: shop}\nspec: {gatewayClassName: other,",
    ));
    assert_eq!(stream.next().await.removed_resources, ["shop/one/web"]);
}
