//! What connections Istio's policies allow: translated, encoded, and judged as a proxy judges them.

use seine_identity::Identity;
use seine_policy::{Applicable, Connection, verdict};
use seine_workload::Store;

use super::{tests::pod, *};
use crate::xds::Snapshot;

const NAMESPACES: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {seine.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {seine.dev/mesh: enabled}}
";

fn settings() -> Settings {
    Settings {
        istio_root_namespace: Some("istio-system".into()),
        ..Settings::default()
    }
}

fn object(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "
---
apiVersion: security.istio.io/v1
kind: {kind}
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
"
    )
}

fn policy(spec: &str) -> String {
    object("AuthorizationPolicy", "shop", "p", spec)
}

fn tls(spec: &str) -> String {
    object("PeerAuthentication", "shop", "p", spec)
}

/// A mesh with `shop/db` (label `app: db`) and `istio-system/x`.
struct Mesh {
    store: Store,
    resources: Resources,
}

impl Mesh {
    fn new(yaml: &str) -> Self {
        Self::with(yaml, &settings())
    }

    fn with(yaml: &str, settings: &Settings) -> Self {
        let db = pod("shop", "db", "10.0.0.1", "labels: {app: db}", "");
        let other = pod("istio-system", "x", "10.0.0.2", "labels: {app: db}", "");
        let (objects, problems) = ObjectSet::from_yaml(&format!("{NAMESPACES}{db}{other}{yaml}"));
        assert_eq!(problems, []);
        let resources = translate(&objects, settings);
        let snapshot = Snapshot::default().next(&resources, settings).unwrap();
        let store = Store::new("");
        let wire = |resources: &crate::xds::TypeResources| {
            let resources = resources.iter().map(|resource| resource.to_wire());
            resources.collect::<Vec<_>>()
        };
        assert_eq!(store.apply_addresses(&wire(&snapshot.addresses), &[]), []);
        let policies = wire(&snapshot.authorizations);
        assert_eq!(store.apply_policies(&policies, &[]), []);
        Self { store, resources }
    }

    /// `client`: `none` or `[domain:]namespace/account`, and `@address`; to a pod's port.
    fn allows(&self, client: &str, pod: &str, port: u16) -> bool {
        let (identity, address) = client.split_once('@').unwrap_or((client, "10.9.0.1"));
        let identity: Option<Identity> = (identity != "none").then(|| {
            let (domain, path) = identity
                .split_once(':')
                .unwrap_or(("cluster.local", identity));
            let (namespace, account) = path.split_once('/').unwrap();
            let id = format!("spiffe://{domain}/ns/{namespace}/sa/{account}");
            id.parse().unwrap()
        });
        let (uid, ip) = match pod {
            "db" => ("Kubernetes//Pod/shop/db", "10.0.0.1"),
            _ => ("Kubernetes//Pod/istio-system/x", "10.0.0.2"),
        };
        let Applicable::Ready(policies) = self.store.policies_for(uid) else {
            panic!("policies are missing");
        };
        let connection = Connection {
            source: (address.parse::<std::net::IpAddr>().unwrap(), 40000).into(),
            destination: (ip.parse::<std::net::IpAddr>().unwrap(), port).into(),
            identity: identity.as_ref(),
            request: None,
        };
        verdict(&policies, &connection).allowed
    }

    fn unenforced(&self) -> Vec<String> {
        let key = ObjectKey::new("shop", "p");
        let findings = &self.resources.findings.istio_authorization_policies;
        findings[&key].unenforced.clone()
    }
}

/// Each `+client:port` is allowed and each `-client:port` is not.
fn check(yaml: &str, expected: &str) {
    let mesh = Mesh::new(yaml);
    for one in expected.split_whitespace() {
        let (client, port) = one[1..].rsplit_once(':').unwrap();
        let allowed = mesh.allows(client, "db", port.parse().unwrap());
        assert_eq!(allowed, one.starts_with('+'), "{one}: {yaml}");
    }
}

#[test]
fn actions_and_empty_policies() {
    for (spec, expected) in [
        ("{}", "-shop/web:80 -none:80"),
        ("{rules: [{}]}", "+shop/web:80 +none:80"),
        ("{action: DENY}", "+shop/web:80"),
        ("{action: DENY, rules: [{}]}", "-shop/web:80 -none:80"),
        ("{action: AUDIT, rules: [{}]}", "+shop/web:80"),
        // What an external service would be asked is denied.
        (
            "{action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {ports: ['80']}}]}]}",
            "-shop/web:80 +shop/web:81",
        ),
    ] {
        check(&policy(spec), expected);
    }
}

#[test]
fn a_dry_run_enforces_nothing() {
    let dry = policy("{action: DENY, rules: [{}]}").replace(
        "name: p,",
        "name: p, annotations: {istio.io/dry-run: 'true'},",
    );
    check(&dry, "+shop/web:80");
}

#[test]
fn every_field_of_a_source() {
    let from = |source: &str| policy(&format!("{{rules: [{{from: [{{source: {source}}}]}}]}}"));
    for (source, expected) in [
        (
            "{principals: [cluster.local/ns/shop/sa/web]}",
            "+shop/web:1 -shop/web2:1 -none:1 -partner:shop/web:1",
        ),
        (
            "{principals: ['*']}",
            "+shop/web:1 +partner:shop/web:1 -none:1",
        ),
        (
            "{principals: ['*/sa/web']}",
            "+shop/web:1 +other/web:1 -shop/x:1 -none:1",
        ),
        (
            "{principals: ['cluster.local/ns/shop/*']}",
            "+shop/x:1 -other/x:1",
        ),
        // Only at the ends is an asterisk one.
        ("{principals: ['cluster.local/*/sa/web']}", "-shop/web:1"),
        ("{notPrincipals: ['*']}", "+none:1 -shop/web:1"),
        (
            "{notPrincipals: [cluster.local/ns/shop/sa/web]}",
            "+none:1 -shop/web:1 +shop/x:1",
        ),
        (
            "{namespaces: [shop]}",
            "+shop/web:1 -other/web:1 -none:1 -partner:shop/web:1",
        ),
        (
            "{namespaces: ['sh*', '*er']}",
            "+shop/web:1 +other/web:1 -x/web:1",
        ),
        ("{namespaces: ['*']}", "+x/web:1 -none:1"),
        (
            "{notNamespaces: ['*op']}",
            "-shop/web:1 +other/web:1 +none:1 +partner:shop/web:1",
        ),
        (
            "{serviceAccounts: [web, other/api]}",
            "+shop/web:1 +other/api:1 -other/web:1 -partner:shop/web:1",
        ),
        (
            "{notServiceAccounts: [web]}",
            "-shop/web:1 +other/web:1 +none:1",
        ),
        (
            "{ipBlocks: [10.9.0.0/24], notIpBlocks: [10.9.0.7]}",
            "+shop/web:1 +none:1 -shop/web@10.9.0.7:1 -none@10.9.1.1:1",
        ),
        // All of the fields of one source.
        (
            "{namespaces: [shop], ipBlocks: [10.9.0.1], notPrincipals: ['*/sa/x']}",
            "+shop/web:1 -shop/x:1 -shop/web@10.9.0.2:1 -other/web:1",
        ),
    ] {
        check(&from(source), expected);
    }
    let blocks = from("{ipBlocks: ['fd00::/8']}");
    let mesh = Mesh::new(&blocks);
    assert!(mesh.allows("none@fd00::1", "db", 1));
    assert!(!mesh.allows("none@fe80::1", "db", 1));
}

#[test]
fn sources_operations_and_conditions_combine() {
    let spec = "{rules: [
  {from: [{source: {namespaces: [a]}}, {source: {namespaces: [b]}}],
   to: [{operation: {ports: ['80', '81'], notPorts: ['81']}}, {operation: {ports: ['90']}}],
   when: [{key: source.ip, notValues: [10.9.9.9]}]},
  {to: [{operation: {ports: ['7']}}]}]}";
    check(
        &policy(spec),
        "+a/x:80 +b/x:90 -a/x:81 -c/x:80 -a/x@10.9.9.9:80 +c/x:7 +none:7 -none:80",
    );
}

#[test]
fn the_attributes_of_a_connection_are_conditions_and_others_are_denied() {
    for (key, values, expected) in [
        (
            "source.ip",
            "values: [10.9.0.0/24]",
            "+none:80 -none@10.8.0.1:80",
        ),
        ("source.namespace", "values: [shop]", "+shop/a:80 -x/a:80"),
        (
            "source.principal",
            "values: ['*/sa/web']",
            "+shop/web:80 -none:80",
        ),
        (
            "source.principal",
            "notValues: ['*']",
            "-shop/web:80 +none:80",
        ),
        (
            "source.serviceAccount",
            "values: [web]",
            "+shop/web:80 -x/web:80",
        ),
        ("destination.ip", "values: [10.0.0.1]", "+none:80"),
        ("destination.ip", "notValues: [10.0.0.0/24]", "-none:80"),
        (
            "destination.port",
            "values: ['80'], notValues: ['81']",
            "+none:80 -none:82",
        ),
        ("request.headers[x]", "values: [y]", "-shop/web:80"),
        ("connection.sni", "notValues: [y]", "-shop/web:80"),
        ("remote.ip", "values: [10.9.0.1]", "-shop/web:80"),
        ("something.new", "values: [y]", "-shop/web:80"),
    ] {
        let when = format!("when: [{{key: '{key}', {values}}}]");
        check(&policy(&format!("{{rules: [{{{when}}}]}}")), expected);
        let denies = policy(&format!("{{action: DENY, rules: [{{{when}}}]}}"));
        // A Deny is the other way round, but for what can't be judged: that is denied by either.
        let judged = !key.starts_with(['r', 'c']) && key != "something.new";
        let turned: String = expected
            .chars()
            .map(|c| match c {
                '+' if judged => '-',
                '-' if judged => '+',
                c => c,
            })
            .collect();
        check(&denies, &turned);
    }
}

#[test]
fn what_needs_http_is_never_allowed_by_it_and_denied_without_it() {
    let cases = [
        (
            "to: [{operation: {methods: [GET]}}]",
            "spec.rules[0].to[0].operation.methods",
        ),
        (
            "to: [{operation: {notPaths: [/x]}}]",
            "spec.rules[0].to[0].operation.notPaths",
        ),
        (
            "to: [{operation: {hosts: [x]}}]",
            "spec.rules[0].to[0].operation.hosts",
        ),
        (
            "from: [{source: {requestPrincipals: ['*']}}]",
            "spec.rules[0].from[0].source.requestPrincipals",
        ),
        (
            "from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]",
            "spec.rules[0].from[0].source.remoteIpBlocks",
        ),
        (
            "when: [{key: 'request.auth.claims[x]', values: [y]}]",
            "spec.rules[0].when[0] (request.auth.claims[x])",
        ),
    ];
    for (rule, field) in cases {
        for action in ["ALLOW", "DENY"] {
            let yaml = policy(&format!("{{action: {action}, rules: [{{{rule}}}]}}"));
            check(&yaml, "-shop/web:80 -none:80");
            assert_eq!(Mesh::new(&yaml).unenforced(), [field]);
        }
    }
    // Only that operation, and only that source, is lost to an ALLOW.
    let spec =
        "{rules: [{from: [{source: {requestPrincipals: ['*']}}, {source: {namespaces: [a]}}],
        to: [{operation: {paths: [/x]}}, {operation: {ports: ['80']}}]}]}";
    check(&policy(spec), "+a/x:80 -a/x:81 -b/x:80");
    // A DENY loses the field alone.
    let spec = "{action: DENY, rules: [{to: [{operation: {ports: ['80'], paths: [/x]}}]}]}";
    check(&policy(spec), "-a/x:80 +a/x:81");
}

#[test]
fn which_pods_a_policy_is_for() {
    let selector = "{selector: {matchLabels: {app: db}}}";
    let nobody = "{selector: {matchLabels: {app: web}}}";
    let all = "{selector: {}}";
    // Namespace, specification, whether db and x are closed.
    for (namespace, spec, db, x) in [
        ("shop", "{}", true, false),
        ("shop", selector, true, false),
        ("shop", nobody, false, false),
        ("shop", all, true, false),
        ("istio-system", "{}", true, true),
        ("istio-system", selector, true, true),
        ("istio-system", nobody, false, false),
        ("seine-system", "{}", false, false),
        ("elsewhere", "{}", false, false),
    ] {
        let mesh = Mesh::new(&object("AuthorizationPolicy", namespace, "p", spec));
        let closed = |pod| !mesh.allows("shop/web", pod, 80);
        assert_eq!((closed("db"), closed("x")), (db, x), "{namespace} {spec}");
    }
    let other_root = Settings {
        istio_root_namespace: Some("shop".into()),
        ..Settings::default()
    };
    let mesh = Mesh::with(&policy("{}"), &other_root);
    assert!(!mesh.allows("shop/web", "x", 80));
    // Without the setting they are not read.
    let mesh = Mesh::with(&policy("{}"), &Settings::default());
    assert!(mesh.allows("shop/web", "db", 80));
    assert!(
        mesh.resources
            .findings
            .istio_authorization_policies
            .is_empty()
    );
}

#[test]
fn a_service_as_the_target_is_its_ports_and_a_gateway_is_enforced_elsewhere() {
    let service = "
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {selector: {app: db}, ports: [{port: 1, targetPort: 80}]}
";
    for field in [
        "targetRefs: [{kind: Service, name: db}]",
        "targetRef: {kind: Service, name: db}",
    ] {
        let allow = format!("{{{field}, rules: [{{from: [{{source: {{namespaces: [a]}}}}]}}]}}");
        check(
            &(policy(&allow) + service),
            "+a/x:80 -b/x:80 +b/x:81 +none:81",
        );
    }
    // A policy of ours about the same pods: an Allow of either kind is one of all.
    let own = policy("{selector: {matchLabels: {app: db}}, rules: [{to: [{ports: [9]}]}]}")
        .replace("security.istio.io/v1", "policy.seine.dev/v1alpha1");
    let attached = policy("{targetRefs: [{kind: Service, name: db}], rules: [{}]}");
    check(&(own + &attached + service), "+b/x:80 +b/x:9 -b/x:81");

    let mesh = Mesh::new(&policy(
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}, {kind: Service, name: no}]}",
    ));
    assert!(mesh.allows("b/x", "db", 80));
    let key = ObjectKey::new("shop", "p");
    let finding = &mesh.resources.findings.istio_authorization_policies[&key];
    assert_eq!(
        finding.elsewhere,
        ["spec.targetRefs[0]: what is for Gateway g is enforced by its own proxy or by none"]
    );
    assert_eq!(finding.unresolved.len(), 1);
}

#[test]
fn cluster_local_is_the_own_trust_domain_whatever_it_is_called() {
    let own = Settings {
        trust_domain: "prod.example".into(),
        ..settings()
    };
    let spec = "{rules: [{from: [{source: {principals: ['cluster.local/ns/shop/*']}}]}]}";
    let mesh = Mesh::with(&policy(spec), &own);
    assert!(mesh.allows("prod.example:shop/web", "db", 80));
    assert!(!mesh.allows("prod.example:x/web", "db", 80));
    let spec = "{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}";
    let mesh = Mesh::with(&policy(spec), &own);
    assert!(!mesh.allows("prod.example:shop/web", "db", 80));
    assert!(mesh.allows("x.example:shop/web", "db", 80));
}

#[test]
fn of_the_modes_the_most_specific_decides() {
    let mesh_wide = |mode: &str| {
        let spec = format!("{{mtls: {{mode: {mode}}}}}");
        object("PeerAuthentication", "istio-system", "m", &spec)
    };
    let namespace = |mode: &str| tls(&format!("{{mtls: {{mode: {mode}}}}}"));
    let pod = |mode: &str, ports: &str| {
        let spec = format!(
            "{{selector: {{matchLabels: {{app: db}}}}, mtls: {{mode: {mode}}}, portLevelMtls: {{{ports}}}}}"
        );
        object("PeerAuthentication", "shop", "w", &spec)
    };
    let own = tls("{mode: Strict}")
        .replace("security.istio.io/v1", "policy.seine.dev/v1alpha1")
        .replace("PeerAuthentication", "MeshTLS");
    for (objects, expected) in [
        (Vec::new(), "+none:80"),
        (vec![mesh_wide("STRICT")], "-none:80 +a/x:80"),
        (vec![mesh_wide("DISABLE")], "+none:80 +a/x:80"),
        (vec![mesh_wide("STRICT"), namespace("UNSET")], "-none:80"),
        (
            vec![mesh_wide("STRICT"), namespace("PERMISSIVE")],
            "+none:80",
        ),
        (
            vec![mesh_wide("PERMISSIVE"), namespace("STRICT")],
            "-none:80",
        ),
        (
            vec![
                namespace("STRICT"),
                pod("UNSET", "'80': {mode: PERMISSIVE}"),
            ],
            "+none:80 -none:81",
        ),
        (
            vec![namespace("STRICT"), pod("DISABLE", "'80': {mode: STRICT}")],
            "-none:80 +none:81",
        ),
        (
            vec![
                namespace("STRICT"),
                pod("PERMISSIVE", "'80': {mode: UNSET}"),
            ],
            "+none:80 +none:81",
        ),
        (
            vec![pod("STRICT", "'80': {mode: DISABLE}")],
            "+none:80 -none:81 +a/x:81",
        ),
        // Ours and Istio's hold both.
        (vec![own.clone(), namespace("PERMISSIVE")], "-none:80"),
        (
            vec![own, pod("STRICT", "'80': {mode: DISABLE}")],
            "-none:80 -none:81 +a/x:80",
        ),
    ] {
        let yaml: String = objects.concat();
        check(&yaml, expected);
    }
}

#[test]
fn of_two_modes_on_one_level_the_older_decides_and_some_are_ignored() {
    let dated = |name: &str, date: &str, mode: &str| {
        object(
            "PeerAuthentication",
            "shop",
            name,
            &format!("{{mtls: {{mode: {mode}}}}}"),
        )
        .replace(
            &format!("name: {name},"),
            &format!("name: {name}, creationTimestamp: '{date}T00:00:00Z',"),
        )
    };
    let two = dated("a", "2026-02-01", "PERMISSIVE") + &dated("b", "2026-01-01", "STRICT");
    check(&two, "-none:80");
    let notes = |yaml: &str, namespace: &str, name: &str| {
        let found = Mesh::new(yaml).resources.findings.peer_authentications;
        found[&ObjectKey::new(namespace, name)].notes.clone()
    };
    assert_eq!(
        notes(&two, "shop", "a"),
        ["is without effect: PeerAuthentication.security.istio.io shop/b is older"]
    );
    // Istio ignores it, for the pods of its root namespace too.
    let root = object(
        "PeerAuthentication",
        "istio-system",
        "r",
        "{selector: {matchLabels: {app: db}}, mtls: {mode: STRICT}}",
    );
    let mesh = Mesh::new(&root);
    assert!(mesh.allows("none", "db", 80) && mesh.allows("none", "x", 80));
    assert!(notes(&root, "istio-system", "r")[0].contains("Istio ignores a selector"));
    assert!(notes(&tls("{mtls: {mode: DISABLE}}"), "shop", "p")[0].contains("DISABLE"));
}

#[test]
fn one_of_ours_with_the_same_name_is_another() {
    let own = policy("{action: Deny, rules: [{to: [{ports: [1]}]}]}")
        .replace("security.istio.io/v1", "policy.seine.dev/v1alpha1");
    let istio = policy("{action: DENY, rules: [{to: [{operation: {ports: ['2']}}]}]}");
    check(&(own + &istio), "-a/x:1 -a/x:2 +a/x:3");
}
