use seine_objects::gateway::ParentRef;
use seine_objects::k8s_openapi::ByteString;
use seine_objects::{Kind, ObjectKey, ObjectSet};
use seine_proto::waypoint::listener::Protocol;
use serde_json::{Value, json};

use super::ingress::{Because, Candidate, attach, listeners, refused};
use super::{Resources, Settings, translate};

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"of": name}}})
}

fn gateway(spec: Value) -> Value {
    let mut spec = spec;
    spec["gatewayClassName"] = json!("seine");
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "gw", "namespace": "shop"}, "spec": spec,
    })
}

fn secret(namespace: &str, name: &str, certificate: &str, key: &str) -> Value {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/tls", "data": {"tls.crt": bytes(certificate), "tls.key": bytes(key)},
    })
}

fn made() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn set(objects: &[Value]) -> ObjectSet {
    let all = [&[namespace("shop"), namespace("team")], objects].concat();
    let texts: Vec<_> = all.iter().map(Value::to_string).collect();
    let (set, problems) = ObjectSet::from_yaml(&texts.join("\n---\n"));
    assert_eq!(problems, []);
    set
}

fn resources(objects: &[Value]) -> Resources {
    translate(&set(objects), &Settings::default())
}

/// Of each listener what is wrong with it: `accepted conflicted resolved`.
fn states(objects: &[Value]) -> Vec<String> {
    let set = set(objects);
    let key = ObjectKey::new("shop", "gw");
    let reason = |because: &Option<Because>| because.as_ref().map_or("-", |why| why.reason);
    let states = listeners(&set, &key, &set.gateways[&key]);
    let states = states.iter();
    let texts = states.map(|state| {
        let parts = [&state.refused, &state.conflict, &state.unresolved];
        parts.map(reason).join(" ")
    });
    texts.collect()
}

#[test]
fn a_gateway_s_listeners_are_for_its_own_account_with_their_certificates() {
    let (certificate, key) = made();
    let spec = json!({
        "infrastructure": {"annotations": {"seine.dev/trusted-proxies": "2"}},
        "listeners": [
            {"name": "web", "port": 80, "protocol": "HTTP", "hostname": "*.example"},
            {"name": "tls", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "c"}]}},
            {"name": "bad", "port": 444, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "gone"}]}},
        ],
    });
    let all = [gateway(spec), secret("shop", "c", &certificate, &key)];
    let found = resources(&all);
    let names: Vec<_> = found.listeners.keys().collect();
    assert_eq!(names, ["shop/gw"]);
    let found = &found.listeners["shop/gw"];
    let names: Vec<_> = found.keys().collect();
    assert_eq!(names, ["shop/gw/tls", "shop/gw/web"]);
    let (tls, web) = (&found["shop/gw/tls"], &found["shop/gw/web"]);
    assert_eq!(
        (
            web.port,
            web.protocol(),
            &*web.hostname,
            web.trusted_proxies
        ),
        (80, Protocol::Http, "*.example", 2)
    );
    assert_eq!(tls.service, "gw.shop.svc.cluster.local");
    assert_eq!(tls.certificates.len(), 1);
    assert!(!tls.certificates[0].key.is_empty());
    // A key is in nothing that is printed.
    let shown = format!("{tls:?}");
    assert!(
        shown.contains("certificates") && !shown.contains("key"),
        "{shown}"
    );
}

#[test]
fn what_cannot_be_obeyed_is_refused_and_nothing_of_it_is_served() {
    let one = |listener: Value| states(&[gateway(json!({"listeners": [listener]}))]);
    let with = |field: &str, value: Value| {
        let mut listener = json!({"name": "a", "port": 80, "protocol": "HTTP"});
        listener[field] = value;
        listener
    };
    for (listener, expected) in [
        (with("port", json!(81)), "- - -"),
        (with("port", json!(15008)), "PortUnavailable - -"),
        (with("protocol", json!("UDP")), "UnsupportedProtocol - -"),
        (with("protocol", json!("TLS")), "- - InvalidCertificateRef"),
        (with("unknown", json!(1)), "UnsupportedValue - -"),
        (
            with("tls", json!({"mode": "Passthrough"})),
            "UnsupportedValue - -",
        ),
        (
            with("tls", json!({"options": {"a": "b"}})),
            "UnsupportedValue - -",
        ),
        (
            with(
                "allowedRoutes",
                json!({"kinds": [{"kind": "HTTPRoute"}, {"kind": "Odd"}]}),
            ),
            "- - InvalidRouteKinds",
        ),
        (
            with(
                "allowedRoutes",
                json!({"kinds": [{"group": "odd", "kind": "HTTPRoute"}]}),
            ),
            "- - InvalidRouteKinds",
        ),
    ] {
        assert_eq!(one(listener.clone()), [expected], "{listener}");
    }
    for spec in [
        json!({"listeners": [with("port", json!(80))], "tls": {"frontend": {"default": {}}, "x": 1}}),
        json!({"listeners": [with("port", json!(80))], "infrastructure": {"annotations": {"seine.dev/trusted-proxies": "some"}}}),
    ] {
        let objects = [gateway(spec)];
        let set = set(&objects);
        assert!(refused(&set.gateways[&ObjectKey::new("shop", "gw")]).is_some());
        assert!(resources(&objects).listeners.is_empty());
    }
}

#[test]
fn listeners_that_cannot_be_told_apart_are_all_conflicted() {
    let listener = |name: &str, port: u16, protocol: &str, host: &str| json!({"name": name, "port": port, "protocol": protocol, "hostname": host});
    let spec = json!({"listeners": [
        listener("a", 80, "HTTP", "a.example"),
        listener("b", 80, "HTTP", "b.example"),
        listener("c", 80, "HTTP", "A.example"),
        listener("d", 81, "HTTP", ""),
        listener("e", 81, "HTTPS", "e.example"),
        listener("f", 81, "UDP", ""),
        listener("g", 81, "TCP", ""),
        listener("h", 82, "TCP", ""),
        listener("i", 82, "TCP", ""),
        {"name": "j", "port": 83, "protocol": "TLS", "hostname": "j.example", "tls": {"mode": "Passthrough"}},
        listener("k", 83, "TLS", "k.example"),
        listener("l", 83, "HTTPS", "k.example"),
    ]});
    assert_eq!(
        states(&[gateway(spec)]),
        [
            "- HostnameConflict -",
            "- - -",
            "- HostnameConflict -",
            "- ProtocolConflict -",
            "- ProtocolConflict InvalidCertificateRef",
            "UnsupportedProtocol - -",
            "- ProtocolConflict -",
            "- HostnameConflict -",
            "- HostnameConflict -",
            "- - -",
            "- HostnameConflict InvalidCertificateRef",
            "- HostnameConflict InvalidCertificateRef",
        ]
    );
}

#[test]
fn what_a_protocol_has_no_place_for_makes_no_listener_of_it() {
    let listener = |protocol: &str, tls: Value, host: &str| json!({"name": "a", "port": 443, "protocol": protocol, "tls": tls, "hostname": host});
    let passed = || json!({"mode": "Passthrough"});
    for (listener, expected) in [
        (listener("TLS", passed(), ""), "- - -"),
        (listener("HTTPS", passed(), ""), "UnsupportedValue"),
        (
            listener("TLS", json!({"mode": "Other"}), ""),
            "UnsupportedValue",
        ),
        (listener("HTTP", passed(), ""), "UnsupportedValue"),
        (listener("TCP", json!({}), ""), "UnsupportedValue"),
        (
            listener("TCP", Value::Null, "a.example"),
            "UnsupportedValue",
        ),
        (listener("TCP", Value::Null, ""), "- - -"),
    ] {
        let state = states(&[gateway(json!({"listeners": [listener]}))]).remove(0);
        assert!(state.starts_with(expected), "{listener}: {state}");
    }
}

#[test]
fn a_certificate_is_of_a_secret_that_may_be_referred_to_and_that_is_one() {
    let ((certificate, key), (_, other_key)) = (made(), made());
    let grant = |name: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
            "metadata": {"name": "g", "namespace": "team"},
            "spec": {
                "from": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "shop"}],
                "to": [{"group": "", "kind": "Secret", "name": name}],
            },
        })
    };
    let state = |reference: Value, more: &[Value]| {
        let spec = json!({"listeners": [
            {"name": "a", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [reference]}},
        ]});
        let mut opaque = secret("shop", "opaque", &certificate, &key);
        opaque["type"] = json!("Opaque");
        let fixed = [
            gateway(spec),
            opaque,
            secret("shop", "good", &certificate, &key),
            secret("shop", "odd", "x", &key),
            secret("shop", "keyless", &certificate, ""),
            secret("shop", "other", &certificate, &other_key),
            secret("team", "good", &certificate, &key),
        ];
        states(&[&fixed, more].concat()).remove(0)
    };
    let invalid = "- - InvalidCertificateRef";
    let forbidden = "- - RefNotPermitted";
    let team = || json!({"name": "good", "namespace": "team"});
    for (reference, more, expected) in [
        (json!({"name": "good"}), vec![], "- - -"),
        (json!({"name": "gone"}), vec![], invalid),
        (json!({"name": "opaque"}), vec![], invalid),
        (json!({"name": "odd"}), vec![], invalid),
        (json!({"name": "keyless"}), vec![], invalid),
        (json!({"name": "other"}), vec![], invalid),
        (
            json!({"name": "good", "kind": "ConfigMap"}),
            vec![],
            invalid,
        ),
        (team(), vec![], forbidden),
        (team(), vec![grant("other")], forbidden),
        (team(), vec![grant("good")], "- - -"),
        (team(), vec![grant("")], "- - -"),
    ] {
        assert_eq!(state(reference.clone(), &more), expected, "{reference}");
    }
}

#[test]
fn a_route_is_attached_where_listener_namespace_kind_and_host_admit_it() {
    let selected = json!({"from": "Selector", "selector": {"matchLabels": {"of": "team"}}});
    let allowing =
        |namespaces: Value, kinds: Value| json!({"namespaces": namespaces, "kinds": kinds});
    let listener = |name: &str, port: u16, host: &str, allowed: Value| json!({"name": name, "port": port, "protocol": "HTTP", "hostname": host, "allowedRoutes": allowed});
    let set = set(&[gateway(json!({"listeners": [
        listener("same", 80, "", json!({})),
        listener("all", 81, "*.example", allowing(json!({"from": "All"}), json!([]))),
        listener("some", 82, "", allowing(selected, json!([]))),
        {"name": "tls", "port": 85, "protocol": "TLS", "tls": {"mode": "Passthrough"}},
        listener("grpc", 83, "", allowing(json!({"from": "All"}), json!([{"kind": "GRPCRoute"}]))),
        listener("none", 84, "", allowing(json!({"from": "None"}), json!([]))),
    ]}))]);
    let attached = |namespace: &str, kind: Kind, hosts: &[&str], parent: Value| {
        let hostnames: Vec<_> = hosts.iter().map(ToString::to_string).collect();
        let key = ObjectKey::new(namespace, "r");
        let mut parent = parent;
        parent["name"] = json!("gw");
        parent["namespace"] = json!("shop");
        let parent: ParentRef = serde_json::from_value(parent).unwrap();
        let candidate = Candidate {
            kind,
            key: &key,
            hostnames: &hostnames,
            claims: &crate::translate::Claims::default(),
        };
        match attach(&set, &candidate, &parent).unwrap().1 {
            Ok(found) => format!("{found:?}"),
            Err(why) => why.reason.to_owned(),
        }
    };
    let http = Kind::HttpRoute;
    let section = |name: &str| json!({"sectionName": name});
    for (namespace, kind, hosts, parent, expected) in [
        ("shop", http, &[][..], json!({}), "[0, 1]"),
        ("team", http, &[], json!({}), "[1, 2]"),
        ("team", Kind::GrpcRoute, &[], json!({}), "[1, 2, 4]"),
        ("shop", Kind::TlsRoute, &["a.example"], json!({}), "[3]"),
        (
            "shop",
            Kind::TlsRoute,
            &[],
            section("same"),
            "NotAllowedByListeners",
        ),
        ("team", http, &["a.other"], json!({}), "[2]"),
        ("team", http, &[], json!({"port": 81}), "[1]"),
        ("team", http, &[], section("all"), "[1]"),
        ("team", http, &[], json!({"port": 90}), "NoMatchingParent"),
        ("team", http, &[], section("gone"), "NoMatchingParent"),
        (
            "team",
            http,
            &[],
            json!({"port": 82, "sectionName": "all"}),
            "NoMatchingParent",
        ),
        ("team", http, &[], section("same"), "NotAllowedByListeners"),
        ("shop", http, &[], section("some"), "NotAllowedByListeners"),
        ("shop", http, &[], section("grpc"), "NotAllowedByListeners"),
        ("shop", http, &[], section("none"), "NotAllowedByListeners"),
        (
            "team",
            http,
            &["a.other"],
            section("all"),
            "NoMatchingListenerHostname",
        ),
    ] {
        let found = attached(namespace, kind, hosts, parent.clone());
        assert_eq!(found, expected, "{namespace} {kind} {hosts:?} {parent}");
    }
}

#[test]
fn a_rule_names_its_listeners_with_the_hosts_that_they_take() {
    let listener = |name: &str, port: u16, host: &str| json!({"name": name, "port": port, "protocol": "HTTP", "hostname": host});
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "r", "namespace": "shop"},
        "spec": {
            "parentRefs": [{"name": "gw"}, {"name": "gw", "sectionName": "one"}],
            "hostnames": ["a.example", "*.example", "b.other"],
            "rules": [{}],
        },
    });
    let spec = json!({"listeners": [
        listener("one", 80, "a.example"), listener("rest", 80, ""), listener("no", 80, "c.org"),
    ]});
    let found = resources(&[gateway(spec), route]);
    let rule = &found.routes["HTTPRoute/shop/r/0"];
    assert!(rule.parents.is_empty());
    let attached = rule.listeners.iter();
    let attached: Vec<_> = attached
        .map(|one| format!("{} {}", one.listener, one.hostnames.join(" ")))
        .collect();
    assert_eq!(
        attached,
        [
            "shop/gw/one a.example *.example",
            "shop/gw/rest a.example *.example b.other"
        ]
    );
}

#[test]
fn sessions_at_a_gateway_are_refused_where_a_waypoint_chooses_the_pod() {
    let service = |name: &str, labels: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": {"clusterIP": "10.1.0.1", "ports": [{"port": 80}]},
        })
    };
    let rule = |backend: &str| json!({"sessionPersistence": {}, "backendRefs": [{"name": backend, "port": 80}]});
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "r", "namespace": "shop"},
        "spec": {"parentRefs": [{"name": "gw"}], "rules": [rule("free"), rule("bound")]},
    });
    let spec = json!({"listeners": [{"name": "one", "port": 80, "protocol": "HTTP"}]});
    let found = resources(&[
        gateway(spec),
        route,
        service("free", json!({})),
        service("bound", json!({"seine.dev/use-waypoint": "wp"})),
    ]);
    let [free, bound] = ["0", "1"].map(|rule| &found.routes[&format!("HTTPRoute/shop/r/{rule}")]);
    assert_eq!(free.refused, "");
    let name = free.session.as_ref().map(|session| session.name.as_str());
    assert_eq!(name, Some("seine-httproute-shop-r-0"));
    assert!(
        bound.refused.contains("Service shop/bound"),
        "{}",
        bound.refused
    );
}

#[test]
fn a_policy_at_a_gateway_is_listed_by_the_gateway_s_own_service() {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "gw", "namespace": "shop", "labels": {"gateway.networking.k8s.io/gateway-name": "gw"}},
        "spec": {"clusterIP": "10.1.0.1", "ports": [{"port": 80}]},
    });
    let policy = json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {
            "action": "Deny",
            "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw"}],
            "rules": [{"to": [{"paths": ["/admin"]}]}],
        },
    });
    let key = ObjectKey::new("shop", "p");
    let found = resources(&[gateway(json!({})), service, policy.clone()]);
    let names: Vec<_> = found.authorizations.keys().collect();
    assert_eq!(names, ["shop/p_at_gw"]);
    assert_eq!(
        found.services["shop/gw.shop.svc.cluster.local"]
            .extensions
            .len(),
        1
    );
    let finding = &found.findings.authorization_policies[&key];
    assert!(finding.unresolved.is_empty() && finding.unenforced.is_empty());
    // Without the Gateway's Service there is nothing to enforce it.
    let found = resources(&[gateway(json!({})), policy]);
    assert_eq!(
        found.findings.authorization_policies[&key].unresolved.len(),
        1
    );
}

#[test]
fn rules_on_tokens_at_a_gateway_are_listed_by_the_gateway_s_own_service() {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "gw", "namespace": "shop", "labels": {"gateway.networking.k8s.io/gateway-name": "gw"}},
        "spec": {"clusterIP": "10.1.0.1", "ports": [{"port": 80}]},
    });
    let users = json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": "RequestAuthentication",
        "metadata": {"name": "users", "namespace": "shop"},
        "spec": {
            "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw"}],
            "jwtRules": [{"issuer": "issuer", "audiences": ["web"], "jwksUri": "https://issuer.example/keys"}],
        },
    });
    let key = ObjectKey::new("shop", "users");
    let found = resources(&[gateway(json!({})), service, users.clone()]);
    let names: Vec<_> = found.authentications.keys().collect();
    assert_eq!(names, ["shop/users"]);
    assert_eq!(
        found.services["shop/gw.shop.svc.cluster.local"]
            .extensions
            .len(),
        1
    );
    let finding = &found.findings.request_authentications[&key];
    assert!(finding.unresolved.is_empty() && finding.unenforced.is_empty());
    // Without the Gateway's Service there is nothing to check them.
    let found = resources(&[gateway(json!({})), users]);
    assert!(found.authentications.is_empty());
    assert_eq!(
        found.findings.request_authentications[&key].unresolved,
        ["there is no Gateway shop/gw of class seine with a Service of its own"]
    );
}
