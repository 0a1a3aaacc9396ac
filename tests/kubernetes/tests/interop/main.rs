//! Our programs with software that we didn't write: a plain gRPC client reads the control plane back.
//!
//! `make test-interop` builds that client and says where it is. The schemas that it reads by are `mesh/proto`'s.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod control;
mod grpcurl;

use serde_json::{Value, json};

use control::Control;

const XDS: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CA: &str = "istio.v1.auth.IstioCertificateService/CreateCertificate";
const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {seine.dev/mesh: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.7.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: policy.seine.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: only-api, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{serviceAccounts: [api]}], to: [{ports: [8080]}]}]}
";

fn pod(address: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: web-1, namespace: shop, uid: u1, labels: {{app: web}}}}
spec: {{nodeName: node1, serviceAccountName: web, containers: [{{name: c, image: none}}]}}
status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}], conditions: [{{type: Ready, status: 'True'}}]}}
"
    )
}

/// The resource of a response, by its name.
fn resource<'a>(response: &'a Value, name: &str) -> &'a Value {
    let resources = response["resources"].as_array().unwrap();
    let found = resources.iter().find(|one| one["name"] == name);
    &found.unwrap_or_else(|| panic!("no {name} in {response:#}"))["resource"]
}

fn request(kind: &str, more: Value) -> Value {
    let mut request = json!({
        "node": {"id": "ztunnel~10.0.0.9~z.seine-system~seine-system.svc.cluster.local",
            "metadata": {"NODE_NAME": "node1"}},
        "typeUrl": kind,
    });
    let fields = request.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    request
}

#[test]
fn a_plain_grpc_client_reads_configuration_back_and_what_changes_of_it() {
    let control = Control::start(&[("mesh.yaml", OBJECTS), ("pod.yaml", &pod("10.0.0.7"))]);
    let mut stream = control.grpcurl(&control.token()).stream(XDS);

    stream.send(&request(AUTHORIZATION, json!({})));
    let policies = stream.receive();
    assert_eq!(policies["typeUrl"], AUTHORIZATION);
    let policy = resource(&policies, "shop/only-api");
    assert_eq!(policy["@type"], AUTHORIZATION);
    assert_eq!(policy["scope"], "WORKLOAD_SELECTOR");
    // What is the default is left out; it is an ALLOW.
    assert_eq!(policy["action"], Value::Null);
    let clauses = &policy["rules"][0]["clauses"];
    assert_eq!(
        clauses[0]["matches"][0]["principals"][0]["exact"],
        "cluster.local/ns/shop/sa/api"
    );
    assert_eq!(clauses[1]["matches"][0]["destinationPorts"], json!([8080]));
    stream.send(&request(
        AUTHORIZATION,
        json!({"responseNonce": policies["nonce"]}),
    ));

    stream.send(&request(ADDRESS, json!({})));
    let addresses = stream.receive();
    let workload = &resource(&addresses, "Kubernetes//Pod/shop/web-1")["workload"];
    let expected = json!({
        "name": "web-1", "namespace": "shop", "serviceAccount": "web", "node": "node1",
        // 10.0.0.7
        "addresses": ["CgAABw=="], "tunnelProtocol": "HBONE",
        "authorizationPolicies": ["shop/only-api"],
        "services": {"shop/web.shop.svc.cluster.local": {"ports": [{"servicePort": 80, "targetPort": 8080, "appProtocol": "HTTP11"}]}},
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(workload[field], *value, "{field} of {workload:#}");
    }
    let service = &resource(&addresses, "shop/web.shop.svc.cluster.local")["service"];
    assert_eq!(service["hostname"], "web.shop.svc.cluster.local");
    // 10.7.0.1
    assert_eq!(service["addresses"], json!([{"address": "CgcAAQ=="}]));
    assert_eq!(service["ports"][0]["servicePort"], 80);
    stream.send(&request(
        ADDRESS,
        json!({"responseNonce": addresses["nonce"]}),
    ));

    control.write("pod.yaml", &pod("10.0.0.8"));
    let changed = stream.receive();
    assert_eq!(
        changed["resources"].as_array().unwrap().len(),
        1,
        "{changed:#}"
    );
    let workload = &resource(&changed, "Kubernetes//Pod/shop/web-1")["workload"];
    assert_eq!(workload["addresses"], json!(["CgAACA=="]));
    stream.send(&request(
        ADDRESS,
        json!({"responseNonce": changed["nonce"]}),
    ));

    control.remove("pod.yaml");
    let gone = stream.receive();
    assert_eq!(gone["resources"], Value::Null, "{gone:#}");
    assert_eq!(
        gone["removedResources"],
        json!(["Kubernetes//Pod/shop/web-1"])
    );
}

#[test]
fn a_stream_that_opens_with_what_it_holds_is_sent_the_rest_alone() {
    let control = Control::start(&[("mesh.yaml", OBJECTS), ("pod.yaml", &pod("10.0.0.7"))]);
    let mut first = control.grpcurl(&control.token()).stream(XDS);
    first.send(&request(ADDRESS, json!({})));
    let all = first.receive();
    let resources = all["resources"].as_array().unwrap();
    let versions = resources.iter().map(|one| {
        (
            one["name"].as_str().unwrap().to_owned(),
            one["version"].clone(),
        )
    });
    let mut held: serde_json::Map<String, Value> = versions.collect();
    held.remove("shop/web.shop.svc.cluster.local").unwrap();
    held.insert("shop/gone".into(), json!("1"));

    let mut second = control.grpcurl(&control.token()).stream(XDS);
    second.send(&request(ADDRESS, json!({"initialResourceVersions": held})));
    let rest = second.receive();
    resource(&rest, "shop/web.shop.svc.cluster.local");
    assert_eq!(rest["resources"].as_array().unwrap().len(), 1, "{rest:#}");
    assert_eq!(rest["removedResources"], json!(["shop/gone"]));
}

#[test]
fn a_plain_grpc_client_gets_certificates_with_a_good_token_and_none_with_a_forged_one() {
    let control = Control::start(&[("mesh.yaml", OBJECTS), ("pod.yaml", &pod("10.0.0.7"))]);
    let identity = "spiffe://cluster.local/ns/shop/sa/web";
    let request = json!({
        "csr": control::csr(identity), "validityDuration": "3600",
        "metadata": {"ImpersonatedIdentity": identity},
    });
    let answer = control.grpcurl(&control.token()).call(CA, &request);
    let answer = answer.unwrap();
    let chain = answer["certChain"].as_array().unwrap();
    assert!(chain.len() >= 2, "{answer:#}");
    let last = chain.last().unwrap().as_str().unwrap();
    assert_eq!(last.trim(), control.roots().trim());
    let names = control::names(chain[0].as_str().unwrap());
    assert_eq!(names, [identity]);

    let forged = control.grpcurl(&control.forged_token());
    let refusal = forged.call(CA, &request).unwrap_err();
    assert!(refusal.contains("Unauthenticated"), "{refusal}");
    let refusal = forged.call(XDS, &json!({"typeUrl": ADDRESS})).unwrap_err();
    assert!(refusal.contains("Unauthenticated"), "{refusal}");
    // Another identity than a pod's of that node.
    let mut other = request.clone();
    let elsewhere = "spiffe://cluster.local/ns/shop/sa/elsewhere";
    other["csr"] = json!(control::csr(elsewhere));
    other["metadata"]["ImpersonatedIdentity"] = json!(elsewhere);
    let refusal = control.grpcurl(&control.token()).call(CA, &other);
    let refusal = refusal.unwrap_err();
    assert!(refusal.contains("PermissionDenied"), "{refusal}");
}
