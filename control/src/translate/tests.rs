use prost::Message as _;
use seine_objects::ObjectSet;
use seine_proto::{
    extensions::{ServiceExtension, WorkloadExtension},
    workload::{
        AppProtocol, IpFamilies, NetworkMode, Port, TunnelProtocol, Workload, WorkloadStatus,
        WorkloadType,
        load_balancing::{HealthPolicy, Mode, Scope},
    },
};

use super::*;

const NAMESPACES: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {seine.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: Node
metadata:
  name: node1
  labels: {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1}
";

pub(super) fn translated(yaml: &str) -> Resources {
    let (objects, problems) = ObjectSet::from_yaml(&format!("{NAMESPACES}---\n{yaml}"));
    assert_eq!(problems, []);
    translate(&objects, &Settings::default())
}

/// A ready pod; `more` goes into the metadata, `spec` into the spec.
pub(super) fn pod(namespace: &str, name: &str, ip: &str, more: &str, spec: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, {more}}}
spec: {{nodeName: node1, containers: [{{name: app, ports: [{{name: web, containerPort: 8080}}]}}], {spec}}}
status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}
"
    )
}

fn workload(resources: &Resources, namespace: &str, name: &str) -> Workload {
    resources.workloads[&format!("Kubernetes//Pod/{namespace}/{name}")].clone()
}

fn port(service_port: u32, target_port: u32, app_protocol: AppProtocol) -> Port {
    Port {
        service_port,
        target_port,
        app_protocol: app_protocol.into(),
    }
}

#[test]
fn a_pod_becomes_a_workload_with_everything_that_is_known_of_it() {
    let yaml = pod(
        "shop",
        "api-5d5f-x",
        "10.0.0.1",
        "labels: {app: api, version: v2, pod-template-hash: 5d5f},
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: api-5d5f, uid: u, controller: true}]",
        "serviceAccountName: api, hostname: h, subdomain: s",
    )
    .replace("podIP: 10.0.0.1", "podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]");
    let found = workload(&translated(&yaml), "shop", "api-5d5f-x");
    let extension = found.extensions[0].config.clone().unwrap();
    assert_eq!(
        WorkloadExtension::decode(extension.value.as_slice()).unwrap(),
        WorkloadExtension {
            pod_hostname: "h".into(),
            pod_subdomain: "s".into(),
            ..Default::default()
        }
    );
    assert_eq!(
        Workload {
            extensions: vec![],
            ..found
        },
        Workload {
            uid: "Kubernetes//Pod/shop/api-5d5f-x".into(),
            name: "api-5d5f-x".into(),
            namespace: "shop".into(),
            addresses: vec![
                vec![10, 0, 0, 1],
                vec![0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
            ],
            tunnel_protocol: TunnelProtocol::Hbone.into(),
            service_account: "api".into(),
            node: "node1".into(),
            canonical_name: "api".into(),
            canonical_revision: "v2".into(),
            workload_type: WorkloadType::Deployment.into(),
            workload_name: "api".into(),
            status: WorkloadStatus::Healthy.into(),
            cluster_id: "Kubernetes".into(),
            locality: Some(seine_proto::workload::Locality {
                region: "r1".into(),
                zone: "z1".into(),
                subzone: String::new()
            }),
            ..Default::default()
        }
    );
}

#[test]
fn owners_are_named_as_far_as_the_wire_can() {
    let cases = [
        ("kind: Job, name: once", WorkloadType::Job, "once"),
        (
            "kind: Job, name: nightly-28391040",
            WorkloadType::Cronjob,
            "nightly",
        ),
        ("kind: StatefulSet, name: db", WorkloadType::Pod, "p"),
        ("kind: ReplicaSet, name: bare", WorkloadType::Pod, "p"),
    ];
    for (owner, workload_type, name) in cases {
        let more =
            format!("ownerReferences: [{{apiVersion: v1, uid: u, controller: true, {owner}}}]");
        let found = workload(
            &translated(&pod("shop", "p", "10.0.0.1", &more, "")),
            "shop",
            "p",
        );
        assert_eq!(found.workload_type(), workload_type, "{owner}");
        assert_eq!(found.workload_name, name, "{owner}");
        assert_eq!(found.canonical_name, name, "{owner}");
        assert_eq!(found.canonical_revision, "latest");
    }
}

#[test]
fn only_enrolled_pods_are_reached_by_hbone_and_refusals_are_told() {
    let yaml = pod("shop", "in", "10.0.0.1", "", "")
        + &pod("plain", "out", "10.0.0.2", "", "")
        + &pod("shop", "host", "192.168.0.1", "", "hostNetwork: true");
    let resources = translated(&yaml);
    assert_eq!(
        workload(&resources, "shop", "in").tunnel_protocol(),
        TunnelProtocol::Hbone
    );
    assert_eq!(
        workload(&resources, "plain", "out").tunnel_protocol(),
        TunnelProtocol::None
    );
    let host = workload(&resources, "shop", "host");
    assert_eq!(host.tunnel_protocol(), TunnelProtocol::None);
    assert_eq!(host.network_mode(), NetworkMode::HostNetwork);
    assert_eq!(
        resources
            .findings
            .refused_pods
            .into_iter()
            .collect::<Vec<_>>(),
        [(ObjectKey::new("shop", "host"), Refusal::HostNetwork)]
    );
}

#[test]
fn finished_pods_and_pods_without_address_are_left_out_and_unready_ones_are_unhealthy() {
    let yaml = pod("shop", "done", "10.0.0.1", "", "").replace("Running", "Succeeded")
        + &pod("shop", "young", "''", "", "")
        + &pod("shop", "slow", "10.0.0.3", "", "").replace("'True'", "'False'")
        + &pod(
            "shop",
            "going",
            "10.0.0.4",
            "deletionTimestamp: '2026-01-01T00:00:00Z'",
            "",
        );
    let resources = translated(&yaml);
    let found: Vec<_> = resources
        .workloads
        .values()
        .map(|found| (found.name.as_str(), found.status()))
        .collect();
    assert_eq!(
        found,
        [
            ("going", WorkloadStatus::Unhealthy),
            ("slow", WorkloadStatus::Unhealthy)
        ]
    );
}

#[test]
fn another_trust_domain_is_named() {
    let (objects, _) = ObjectSet::from_yaml(&format!(
        "{NAMESPACES}{}",
        pod("shop", "a", "10.0.0.1", "", "")
    ));
    let settings = Settings {
        trust_domain: "example.org".into(),
        ..Settings::default()
    };
    let resources = translate(&objects, &settings);
    assert_eq!(
        workload(&resources, "shop", "a").trust_domain,
        "example.org"
    );
}

fn service(spec: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec: {{selector: {{app: web}}, {spec}}}
"
    )
}

#[test]
fn a_service_has_its_addresses_ports_and_names() {
    let yaml = service(
        "clusterIP: 10.9.0.1, clusterIPs: [10.9.0.1, 'fd00:9::1'], ipFamilies: [IPv4, IPv6],
  ports: [{name: http-a, port: 80, targetPort: web}, {name: db, port: 5432, appProtocol: tcp},
          {name: other, port: 90, targetPort: 9090}, {name: dns, port: 53, protocol: UDP}]",
    ) + &pod("shop", "a", "10.0.0.1", "labels: {app: web}", "")
        + &pod("plain", "b", "10.0.0.2", "labels: {app: web}", "");
    let resources = translated(&yaml);
    let found = &resources.services["shop/web.shop.svc.cluster.local"];
    assert_eq!(found.hostname, "web.shop.svc.cluster.local");
    assert_eq!(found.addresses.len(), 2);
    assert_eq!(found.addresses[0].address, [10, 9, 0, 1]);
    assert_eq!(found.addresses[1].address.len(), 16);
    assert_eq!(found.ip_families(), IpFamilies::Dual);
    assert_eq!(
        found.ports,
        [
            port(80, 0, AppProtocol::Http11),
            port(5432, 5432, AppProtocol::Tcp),
            port(90, 9090, AppProtocol::Unknown)
        ]
    );
    let extension = found.extensions[0].config.clone().unwrap();
    let names = ServiceExtension::decode(extension.value.as_slice())
        .unwrap()
        .port_names;
    assert_eq!(names.len(), 3);
    assert_eq!(names[&80], "http-a");
    assert_eq!(found.load_balancing, None);

    // The pod of the same namespace is behind it, with its own port of that name.
    let inside = workload(&resources, "shop", "a");
    assert_eq!(
        inside.services["shop/web.shop.svc.cluster.local"].ports,
        [
            port(80, 8080, AppProtocol::Http11),
            port(5432, 5432, AppProtocol::Tcp),
            port(90, 9090, AppProtocol::Unknown)
        ]
    );
    assert!(workload(&resources, "plain", "b").services.is_empty());
}

#[test]
fn headless_services_have_no_address_and_external_names_are_skipped() {
    let resources = translated(&service(
        "clusterIP: None, clusterIPs: [None], ports: [{port: 80}]",
    ));
    assert!(
        resources.services["shop/web.shop.svc.cluster.local"]
            .addresses
            .is_empty()
    );
    let resources = translated(&service("type: ExternalName, externalName: example.org"));
    assert!(resources.services.is_empty());
}

#[test]
fn a_port_whose_name_a_pod_lacks_is_left_out_there() {
    let yaml = service("ports: [{port: 80, targetPort: metrics}, {port: 81, targetPort: 81}]")
        + &pod("shop", "a", "10.0.0.1", "labels: {app: web}", "");
    let found = workload(&translated(&yaml), "shop", "a");
    assert_eq!(
        found.services["shop/web.shop.svc.cluster.local"].ports,
        [port(81, 81, AppProtocol::Unknown)]
    );
}

#[test]
fn traffic_policies_become_scopes() {
    let near = [Scope::Network, Scope::Region, Scope::Zone];
    let cases: [(&str, &[Scope], Mode, HealthPolicy); 5] = [
        (
            "internalTrafficPolicy: Local",
            &[Scope::Node],
            Mode::Strict,
            HealthPolicy::OnlyHealthy,
        ),
        (
            "trafficDistribution: PreferClose",
            &near,
            Mode::Failover,
            HealthPolicy::OnlyHealthy,
        ),
        (
            "trafficDistribution: PreferSameZone",
            &near,
            Mode::Failover,
            HealthPolicy::OnlyHealthy,
        ),
        (
            "trafficDistribution: PreferSameNode",
            &[
                Scope::Network,
                Scope::Region,
                Scope::Zone,
                Scope::Subzone,
                Scope::Node,
            ],
            Mode::Failover,
            HealthPolicy::OnlyHealthy,
        ),
        (
            "publishNotReadyAddresses: true",
            &[],
            Mode::UnspecifiedMode,
            HealthPolicy::AllowAll,
        ),
    ];
    for (spec, scopes, mode, health) in cases {
        let resources = translated(&service(spec));
        let found = resources.services["shop/web.shop.svc.cluster.local"]
            .load_balancing
            .clone();
        let found = found.unwrap();
        assert_eq!(
            found.routing_preference().collect::<Vec<_>>(),
            scopes,
            "{spec}"
        );
        assert_eq!(
            (found.mode(), found.health_policy()),
            (mode, health),
            "{spec}"
        );
    }
}

#[test]
fn slices_add_outside_endpoints_and_pods_of_services_without_selector() {
    let yaml = "
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {ports: [{name: sql, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 15432}]
endpoints:
- {addresses: [172.16.0.1], zone: z9}
- {addresses: [172.16.0.2], conditions: {ready: false}}
- {addresses: [10.0.0.1]}
- {addresses: [10.0.0.7], targetRef: {kind: Pod, name: gone, namespace: shop}}
"
    .to_owned()
        + &pod("shop", "a", "10.0.0.1", "", "");
    let resources = translated(&yaml);
    let names: Vec<_> = resources.workloads.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "Kubernetes//Pod/shop/a",
            "Kubernetes/discovery.k8s.io/EndpointSlice/shop/172.16.0.1",
            "Kubernetes/discovery.k8s.io/EndpointSlice/shop/172.16.0.2",
        ]
    );
    let key = "shop/db.shop.svc.cluster.local";
    let expected = [port(5432, 15432, AppProtocol::Unknown)];
    for workload in resources.workloads.values() {
        assert_eq!(workload.services[key].ports, expected);
    }
    let outside = &resources.workloads[names[1]];
    assert_eq!(outside.tunnel_protocol(), TunnelProtocol::None);
    assert_eq!(outside.status(), WorkloadStatus::Healthy);
    assert_eq!(outside.locality.as_ref().unwrap().zone, "z9");
    assert_eq!(
        resources.workloads[names[2]].status(),
        WorkloadStatus::Unhealthy
    );
}

#[test]
fn a_network_policy_that_stops_the_mesh_between_enrolled_pods_is_found() {
    let policy = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: NAMESPACE}
spec: {podSelector: {}, ingress: [{ports: [{port: 8080}]}]}
---
";
    let two = |namespace: &str| {
        pod(namespace, "a", "10.0.0.1", "", "") + &pod(namespace, "b", "10.0.0.2", "", "")
    };
    let found = |namespace: &str| {
        let yaml = policy.replace("NAMESPACE", namespace) + &two(namespace);
        translated(&yaml).findings.network_policies
    };
    let meshed = found("shop");
    let said = meshed[&ObjectKey::new("shop", "web")].to_string();
    assert!(said.contains("shop/a") && said.contains("15008"), "{said}");
    assert_eq!(
        found("plain"),
        BTreeMap::new(),
        "nobody there is in the mesh"
    );
}

#[test]
fn the_same_objects_give_the_same_resources() {
    let yaml = service("ports: [{name: a, port: 1}, {name: b, port: 2}, {name: c, port: 3}]")
        + &pod("shop", "a", "10.0.0.1", "labels: {app: web}", "");
    assert_eq!(translated(&yaml), translated(&yaml));
}
