use prost::Message as _;
use seine_proto::{
    extensions::AuthorizationExtension,
    security::{Action, Address, Authorization, Match, Rule, Scope, string_match::MatchType},
};

use super::{
    tests::{pod, translated},
    *,
};

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "
---
apiVersion: policy.seine.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
"
    )
}

fn tls(namespace: &str, name: &str, spec: &str) -> String {
    policy(namespace, name, spec).replace("AuthorizationPolicy", "MeshTLS")
}

fn policies_of(resources: &Resources, namespace: &str, name: &str) -> Vec<String> {
    resources.workloads[&format!("Kubernetes//Pod/{namespace}/{name}")]
        .authorization_policies
        .clone()
}

fn compiled(spec: &str) -> Authorization {
    let yaml = policy("shop", "p", spec) + &pod("shop", "a", "10.0.0.1", "labels: {app: a}", "");
    translated(&yaml).authorizations["shop/p"].clone()
}

/// Every clause as text, rules divided by `or`, clauses by `and`.
fn text(authorization: &Authorization) -> String {
    let rule = |rule: &Rule| {
        let clauses = rule.clauses.iter().map(|clause| {
            clause
                .matches
                .iter()
                .map(match_text)
                .collect::<Vec<_>>()
                .join(" | ")
        });
        clauses.collect::<Vec<_>>().join(" and ")
    };
    authorization
        .rules
        .iter()
        .map(rule)
        .collect::<Vec<_>>()
        .join(" or ")
}

fn match_text(found: &Match) -> String {
    let strings = |found: &[seine_proto::security::StringMatch]| {
        let text = |found: &seine_proto::security::StringMatch| match &found.match_type {
            Some(MatchType::Exact(text)) => format!("={text}"),
            Some(MatchType::Prefix(text)) => format!("{text}*"),
            Some(MatchType::Suffix(text)) => format!("*{text}"),
            Some(MatchType::Presence(())) => "*".into(),
            None => "?".into(),
        };
        found.iter().map(text).collect::<Vec<_>>()
    };
    let ips = |found: &[Address]| {
        found
            .iter()
            .map(|ip| format!("{:?}/{}", ip.address, ip.length))
            .collect::<Vec<_>>()
    };
    let ports = |found: &[u32]| found.iter().map(u32::to_string).collect::<Vec<_>>();
    [
        ("principal", strings(&found.principals)),
        ("not principal", strings(&found.not_principals)),
        ("ip", ips(&found.source_ips)),
        ("not ip", ips(&found.not_source_ips)),
        ("port", ports(&found.destination_ports)),
        ("not port", ports(&found.not_destination_ports)),
    ]
    .into_iter()
    .filter(|(_, values)| !values.is_empty())
    .map(|(name, values)| format!("{name} {}", values.join(",")))
    .collect::<Vec<_>>()
    .join(" ")
}

#[test]
fn every_field_of_a_rule_has_its_clause() {
    let cases = [
        ("{rules: [{}]}", ""),
        (
            "{rules: [{from: [{principals: ['spiffe://cluster.local/ns/a/sa/b', '*', 'x*', '*/y']}]}]}",
            "principal =cluster.local/ns/a/sa/b,*,x*,*/y",
        ),
        (
            "{rules: [{from: [{serviceAccounts: [api, other/api]}]}]}",
            "principal =cluster.local/ns/shop/sa/api,=cluster.local/ns/other/sa/api",
        ),
        (
            "{rules: [{from: [{namespaces: [a, 'b*', '*'], notNamespaces: [c]}]}]}",
            "principal cluster.local/ns/a/sa/*,cluster.local/ns/b*,cluster.local/ns/* not principal cluster.local/ns/c/sa/*",
        ),
        (
            "{rules: [{from: [{principals: ['*'], notServiceAccounts: [x], ipBlocks: [10.1.2.3/8], notIpBlocks: [10.0.0.1]}]}]}",
            "principal * and not principal =cluster.local/ns/shop/sa/x and ip [10, 0, 0, 0]/8 not ip [10, 0, 0, 1]/32",
        ),
        (
            "{rules: [{from: [{namespaces: [a]}, {ipBlocks: [10.0.0.1]}], to: [{ports: [80]}, {notPorts: [81]}]}]}",
            "principal cluster.local/ns/a/sa/* and port 80 | not port 81 or ip [10, 0, 0, 1]/32 and port 80 | not port 81",
        ),
    ];
    for (spec, expected) in cases {
        let found = compiled(spec);
        assert_eq!(text(&found), expected, "{spec}");
        assert_eq!(found.action(), Action::Allow);
        assert_eq!(found.scope(), Scope::Namespace);
        assert!(!found.dry_run);
    }
    assert_eq!(compiled("{rules: [{}]}").rules, [Rule::default()]);
    assert!(compiled("{}").rules.is_empty());
}

#[test]
fn audit_and_dry_run_are_judged_and_not_enforced() {
    let audit = compiled("{action: Audit, rules: [{}]}");
    assert_eq!((audit.action(), audit.dry_run), (Action::Deny, true));
    let dry = compiled("{action: Allow, dryRun: true, rules: [{}]}");
    assert_eq!((dry.action(), dry.dry_run), (Action::Allow, true));
}

#[test]
fn what_needs_l7_denies_and_is_said() {
    // An Allow loses the operation, and the rule with its last one.
    let allow = compiled(
        "{rules: [{to: [{ports: [80], methods: [GET]}, {ports: [81]}]}, {to: [{paths: [/a], hosts: [b]}]}]}",
    );
    assert_eq!(text(&allow), "port 81");
    let extension = allow.extensions[0].config.clone().unwrap();
    let expected = [
        "spec.rules[0].to[0].methods",
        "spec.rules[1].to[0].paths",
        "spec.rules[1].to[0].hosts",
    ];
    assert_eq!(
        AuthorizationExtension::decode(extension.value.as_slice())
            .unwrap()
            .unenforced_fields,
        expected
    );
    // A Deny loses the field alone.
    let deny = compiled("{action: Deny, rules: [{to: [{ports: [80], methods: [GET]}]}]}");
    assert_eq!(text(&deny), "port 80");
    let deny = compiled("{action: Deny, rules: [{to: [{ports: [80]}, {methods: [GET]}]}]}");
    assert_eq!(deny.rules, [Rule::default()]);

    let resources = translated(&policy("shop", "p", "{rules: [{to: [{methods: [GET]}]}]}"));
    let finding = &resources.findings.authorization_policies[&ObjectKey::new("shop", "p")];
    assert_eq!(finding.unenforced, ["spec.rules[0].to[0].methods"]);
}

#[test]
fn scope_follows_from_selector_target_and_namespace() {
    let yaml = [
        policy("shop", "all", "{rules: [{}]}"),
        policy(
            "shop",
            "some",
            "{selector: {matchLabels: {app: a}}, rules: [{}]}",
        ),
        policy("seine-system", "mesh", "{rules: [{}]}"),
        policy(
            "seine-system",
            "apps",
            "{selector: {matchLabels: {app: a}}, rules: [{}]}",
        ),
        pod("shop", "a", "10.0.0.1", "labels: {app: a}", ""),
        pod("shop", "b", "10.0.0.2", "labels: {app: b}", ""),
        pod("plain", "c", "10.0.0.3", "labels: {app: a}", ""),
    ]
    .concat();
    let resources = translated(&yaml);
    let scope = |name: &str| resources.authorizations[name].scope();
    assert_eq!(scope("shop/all"), Scope::Namespace);
    assert_eq!(scope("shop/some"), Scope::WorkloadSelector);
    assert_eq!(scope("seine-system/mesh"), Scope::Global);
    assert_eq!(scope("seine-system/apps"), Scope::WorkloadSelector);
    assert_eq!(
        policies_of(&resources, "shop", "a"),
        ["seine-system/apps", "shop/some"]
    );
    assert!(policies_of(&resources, "shop", "b").is_empty());
    // Nothing would enforce it there, and its user is told.
    assert!(policies_of(&resources, "plain", "c").is_empty());
    let finding =
        &resources.findings.authorization_policies[&ObjectKey::new("seine-system", "apps")];
    assert_eq!((finding.enrolled, finding.not_enrolled), (1, 1));
}

#[test]
fn a_policy_for_a_service_covers_the_pods_and_ports_behind_it() {
    let yaml = [
        "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: a}, ports: [{port: 80, targetPort: web}]}
"
        .into(),
        policy(
            "shop",
            "p",
            "{targetRefs: [{kind: Service, name: web}, {kind: Service, name: none}, {group: g, kind: Gateway, name: x}], rules: [{from: [{namespaces: [shop]}]}]}",
        ),
        pod("shop", "a", "10.0.0.1", "labels: {app: a}", ""),
        pod("shop", "b", "10.0.0.2", "labels: {app: b}", ""),
    ]
    .concat();
    let resources = translated(&yaml);
    assert_eq!(
        policies_of(&resources, "shop", "a"),
        ["seine-system/allow_except_8080", "shop/p"]
    );
    assert!(policies_of(&resources, "shop", "b").is_empty());
    assert_eq!(
        text(&resources.authorizations["shop/p"]),
        "principal cluster.local/ns/shop/sa/* and port 8080"
    );
    let finding = &resources.findings.authorization_policies[&ObjectKey::new("shop", "p")];
    assert_eq!(finding.unresolved.len(), 2);
    assert!(finding.unresolved[0].contains("none") && finding.unresolved[1].contains("Gateway"));
}

#[test]
fn the_most_specific_mesh_tls_decides_on_each_port() {
    let strict_mesh = tls("seine-system", "default", "{mode: Strict}");
    let permissive_shop = tls("shop", "ns", "{mode: Permissive}");
    let for_app = |spec: &str| {
        tls(
            "shop",
            "app",
            &format!("{{selector: {{matchLabels: {{app: a}}}}, {spec}}}"),
        )
    };
    let cases: [(Vec<String>, Option<&str>); 9] = [
        (vec![], None),
        (vec![strict_mesh.clone()], Some("meshtls_strict")),
        (vec![strict_mesh.clone(), permissive_shop.clone()], None),
        (
            vec![permissive_shop.clone(), for_app("mode: Strict")],
            Some("meshtls_strict"),
        ),
        (
            vec![
                strict_mesh.clone(),
                for_app("ports: [{port: 9090, mode: Permissive}]"),
            ],
            Some("meshtls_strict_except_9090"),
        ),
        (
            vec![for_app(
                "mode: Strict, ports: [{port: 9, mode: Permissive}, {port: 8, mode: Strict}]",
            )],
            Some("meshtls_strict_except_9"),
        ),
        (
            vec![for_app(
                "mode: Permissive, ports: [{port: 443, mode: Strict}]",
            )],
            Some("meshtls_strict_on_443"),
        ),
        (
            vec![for_app("ports: [{port: 443, mode: Strict}]")],
            Some("meshtls_strict_on_443"),
        ),
        // A mode covers every port that nothing more specific names.
        (
            vec![
                tls(
                    "seine-system",
                    "default",
                    "{ports: [{port: 1, mode: Permissive}]}",
                ),
                tls("shop", "ns", "{mode: Strict}"),
            ],
            Some("meshtls_strict"),
        ),
    ];
    for (policies, expected) in cases {
        let yaml = policies.concat()
            + &pod("shop", "a", "10.0.0.1", "labels: {app: a}", "")
            + &pod("plain", "c", "10.0.0.3", "labels: {app: a}", "");
        let resources = translated(&yaml);
        let expected: Vec<String> = expected
            .iter()
            .map(|name| format!("seine-system/{name}"))
            .collect();
        assert_eq!(
            policies_of(&resources, "shop", "a"),
            expected,
            "{policies:?}"
        );
        assert!(policies_of(&resources, "plain", "c").is_empty());
        assert_eq!(
            resources.authorizations.keys().cloned().collect::<Vec<_>>(),
            expected
        );
    }
}

#[test]
fn strict_denies_plaintext_but_on_the_ports_left_out() {
    let with = |spec: &str| {
        let yaml = tls("shop", "ns", spec) + &pod("shop", "a", "10.0.0.1", "", "");
        let resources = translated(&yaml);
        let authorization = resources.authorizations.into_values().next().unwrap();
        assert_eq!(authorization.action(), Action::Deny);
        assert_eq!(authorization.scope(), Scope::WorkloadSelector);
        text(&authorization)
    };
    assert_eq!(with("{mode: Strict}"), "not principal *");
    assert_eq!(
        with("{mode: Strict, ports: [{port: 80, mode: Permissive}, {port: 79, mode: Permissive}]}"),
        "not principal * not port 79,80"
    );
    assert_eq!(
        with("{ports: [{port: 80, mode: Strict}]}"),
        "not principal * port 80"
    );
}

#[test]
fn of_two_modes_for_a_namespace_the_older_decides_and_the_other_is_noted() {
    let yaml = [
        tls("shop", "b", "{mode: Strict}").replace(
            "name: b,",
            "name: b, creationTimestamp: '2026-01-01T00:00:00Z',",
        ),
        tls("shop", "a", "{mode: Permissive}").replace(
            "name: a,",
            "name: a, creationTimestamp: '2026-01-02T00:00:00Z',",
        ),
        pod("shop", "p", "10.0.0.1", "", ""),
    ]
    .concat();
    let resources = translated(&yaml);
    assert_eq!(
        policies_of(&resources, "shop", "p"),
        ["seine-system/meshtls_strict"]
    );
    let noted = &resources.findings.mesh_tls[&ObjectKey::new("shop", "a")].notes;
    assert!(noted[0].contains("shop/b"), "{noted:?}");
}

#[test]
fn of_two_modes_that_select_a_pod_the_older_decides_and_the_other_is_noted() {
    let of = |name: &str, year: u32, selector: &str| {
        let spec = format!("{{mode: Strict, selector: {selector}}}");
        let metadata = format!("name: {name}, creationTimestamp: '{year}-01-01T00:00:00Z',");
        tls("shop", name, &spec).replace(&format!("name: {name},"), &metadata)
    };
    let both = "{matchExpressions: [{key: app, operator: Exists}]}";
    let yaml = [
        of("older", 2025, "{matchLabels: {app: a}}"),
        of("newer", 2026, both),
        pod("shop", "a", "10.0.0.1", "labels: {app: a}", ""),
        pod("shop", "b", "10.0.0.2", "labels: {app: b}", ""),
    ]
    .concat();
    let findings = translated(&yaml).findings.mesh_tls;
    let finding = |name: &str| &findings[&ObjectKey::new("shop", name)];
    assert_eq!(finding("older").notes, [""; 0]);
    assert_eq!(
        (finding("newer").enrolled, finding("older").enrolled),
        (1, 1)
    );
    let note =
        "is without effect on 1 of the pods that it selects: older there is MeshTLS shop/older";
    assert_eq!(finding("newer").notes, [note]);
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

#[test]
fn an_attached_policy_is_about_the_ports_of_each_pod_by_itself() {
    let other = pod("shop", "b", "10.0.0.2", "labels: {app: a}", "").replace("8080", "9090");
    let yaml = [
        service(
            "web",
            "{selector: {app: a}, ports: [{port: 80, targetPort: web}]}",
        ),
        policy(
            "shop",
            "p",
            "{action: Deny, targetRefs: [{kind: Service, name: web}], rules: [{}]}",
        ),
        pod("shop", "a", "10.0.0.1", "labels: {app: a}", ""),
        other,
    ]
    .concat();
    let resources = translated(&yaml);
    for (name, port) in [("a", "8080"), ("b", "9090")] {
        let policies = policies_of(&resources, "shop", name);
        assert_eq!(policies, [format!("shop/p_on_{port}")]);
        let found = &resources.authorizations[&policies[0]];
        assert_eq!(text(found), format!("port {port}"));
        assert_eq!(format!("{}/{}", found.namespace, found.name), policies[0]);
    }
    assert_eq!(resources.authorizations.len(), 2);
    let finding = &resources.findings.authorization_policies[&ObjectKey::new("shop", "p")];
    assert_eq!((finding.resources.len(), finding.enrolled), (2, 2));
}

#[test]
fn a_policy_for_a_service_whose_slices_are_by_hand_covers_the_pods_that_they_name() {
    let yaml = [
        service("web", "{ports: [{port: 80}]}"),
        "
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: 7070}]
endpoints: [{addresses: [10.0.0.1]}]
"
        .into(),
        policy(
            "shop",
            "p",
            "{action: Deny, targetRefs: [{kind: Service, name: web}], rules: [{}]}",
        ),
        pod("shop", "a", "10.0.0.1", "", ""),
        pod("shop", "b", "10.0.0.2", "", ""),
    ]
    .concat();
    let resources = translated(&yaml);
    assert_eq!(policies_of(&resources, "shop", "a"), ["shop/p"]);
    assert!(policies_of(&resources, "shop", "b").is_empty());
    assert_eq!(text(&resources.authorizations["shop/p"]), "port 7070");
}

#[test]
fn an_attached_allow_leaves_ports_alone_that_no_allow_is_about() {
    let base = [
        service(
            "web",
            "{selector: {app: a}, ports: [{port: 80, targetPort: 8080}]}",
        ),
        service(
            "admin",
            "{selector: {app: a}, ports: [{port: 81, targetPort: 8081}]}",
        ),
        pod("shop", "a", "10.0.0.1", "labels: {app: a}", ""),
        policy(
            "shop",
            "web",
            "{targetRefs: [{kind: Service, name: web}], rules: [{}]}",
        ),
    ]
    .concat();
    let others = |more: &str| {
        let resources = translated(&format!("{base}{more}"));
        let mut found = Vec::new();
        for name in policies_of(&resources, "shop", "a") {
            if name.starts_with("seine-system/allow_except") {
                let one = &resources.authorizations[&name];
                let extension = one.extensions.first().and_then(|e| e.config.as_ref());
                let ours = extension.map(|any| AuthorizationExtension::decode(&*any.value));
                let counts = match (one.dry_run, ours.transpose().unwrap()) {
                    (true, None) => " in dry-run",
                    (false, Some(ours)) if ours.enforced_only => " as enforced",
                    (false, None) => "",
                    other => panic!("{name}: {other:?}"),
                };
                found.push(format!("{}{counts}", text(one)));
            }
        }
        found
    };
    let admin = policy(
        "shop",
        "admin",
        "{targetRefs: [{kind: Service, name: admin}], rules: [{}]}",
    );
    let namespace = policy("shop", "all", "{rules: [{from: [{namespaces: [shop]}]}]}");
    let dry = |policy: &str| policy.replacen("spec: {", "spec: {dryRun: true, ", 1);
    let cases = [
        (String::new(), vec!["not port 8080"]),
        (admin.clone(), vec!["not port 8080,8081"]),
        // What is only tried out changes nothing, and would leave all other ports alone.
        (
            dry(&admin),
            vec!["not port 8080,8081 in dry-run", "not port 8080 as enforced"],
        ),
        // It is about no other port than an enforced one.
        (
            dry(&admin) + &admin.replace("name: admin, namespace", "name: again, namespace"),
            vec!["not port 8080,8081"],
        ),
        // Another Allow is about every port.
        (namespace.clone(), vec![]),
        (dry(&namespace), vec!["not port 8080 as enforced"]),
        (
            namespace.replace("{rules", "{action: Deny, rules"),
            vec!["not port 8080"],
        ),
        (namespace.replace("shop", "seine-system"), vec![]),
        (
            namespace.replace("{rules", "{selector: {matchLabels: {app: a}}, rules"),
            vec![],
        ),
    ];
    for (more, expected) in cases {
        assert_eq!(others(&more), expected, "{more}");
    }
    // Alone, it would restrict one port, and restricts none.
    let alone = base.replace("spec: {targetRefs", "spec: {dryRun: true, targetRefs");
    let resources = translated(&alone);
    let names = policies_of(&resources, "shop", "a");
    let except = "seine-system/allow_except_8080_dry_run";
    assert_eq!(names, [except, "shop/web"]);
    assert!(
        names
            .iter()
            .all(|name| resources.authorizations[name].dry_run)
    );
}
