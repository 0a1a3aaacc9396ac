//! What Istio's policies say of requests at a waypoint of ours: translated, encoded, and judged as the waypoint judges them.

use seine_identity::Identity;
use seine_policy::{Applicable, Claim, Connection, Request, Token, verdict};
use seine_workload::{ServiceKey, Store};

use super::{tests::pod, *};
use crate::xds::Snapshot;

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {seine.dev/mesh: enabled}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: seine-waypoint, listeners: []}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {seine.dev/use-waypoint: wp}}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: more, port: 81, targetPort: 9090}]}
";

fn settings() -> Settings {
    Settings {
        istio_root_namespace: Some("istio-system".into()),
        ..Settings::default()
    }
}

fn object(kind: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

/// One about the service with these rules.
fn policy(action: &str, rules: &str) -> String {
    object(
        "AuthorizationPolicy",
        &format!(
            "{{targetRefs: [{{kind: Service, name: web}}], action: {action}, rules: {rules}}}"
        ),
    )
}

fn translated(yaml: &str) -> Resources {
    let web = pod("shop", "web", "10.0.0.1", "labels: {app: web}", "");
    let (objects, problems) = ObjectSet::from_yaml(&format!("{MESH}{web}{yaml}"));
    assert_eq!(problems, []);
    translate(&objects, &settings())
}

fn finding(resources: &Resources) -> &PolicyFinding {
    let key = ObjectKey::new("shop", "p");
    &resources.findings.istio_authorization_policies[&key]
}

/// `METHOD PATH[ header=value]…[ @principal]`, to port 80 of the service by `shop/client`.
fn allows(resources: &Resources, asked: &str, port: u16) -> bool {
    let snapshot = Snapshot::default().next(resources, &settings()).unwrap();
    let store = Store::new("");
    let wire = |resources: &crate::xds::TypeResources| {
        let resources = resources.iter().map(|resource| resource.to_wire());
        resources.collect::<Vec<_>>()
    };
    assert_eq!(store.apply_addresses(&wire(&snapshot.addresses), &[]), []);
    let policies = wire(&snapshot.authorizations);
    assert_eq!(store.apply_policies(&policies, &[]), []);
    let service = store
        .service(&ServiceKey {
            namespace: "shop".into(),
            hostname: "web.shop.svc.cluster.local".into(),
        })
        .unwrap();
    let Applicable::Ready(policies) = store.policies_at_waypoint(&service) else {
        panic!("policies are missing");
    };
    let mut words = asked.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let (mut headers, mut principal, mut claims) = (Vec::new(), None, Vec::new());
    for word in words {
        match (word.strip_prefix('@'), word.strip_prefix('!')) {
            (Some(text), _) => principal = Some(text),
            (_, Some(claim)) => {
                let (name, value) = claim.split_once('=').unwrap();
                claims.push(Claim {
                    path: name.split('.').map(Box::from).collect(),
                    value: value.into(),
                });
            }
            _ => headers.push(word.split_once('=').unwrap()),
        }
    }
    let has_token = principal.is_some() || !claims.is_empty();
    let client = Identity::new("cluster.local".parse().unwrap(), "shop", "client").unwrap();
    let connection = Connection {
        source: "10.9.0.1:40000".parse().unwrap(),
        destination: format!("10.1.0.1:{port}").parse().unwrap(),
        identity: Some(&client),
        request: Some(Request {
            method,
            path,
            host: "web",
            headers: &headers,
            token: has_token.then_some(Token {
                principal,
                claims: &claims,
            }),
        }),
    };
    verdict(&policies, &connection).allowed
}

/// Each is asked of port 80, after a `+` what is allowed and after a `-` what is not.
fn check(action: &str, rules: &str, asked: &[&str]) {
    let resources = translated(&policy(action, rules));
    assert_eq!(finding(&resources).unenforced, [""; 0], "{rules}");
    for asked in asked {
        let (sign, asked) = asked.split_at(1);
        assert_eq!(
            allows(&resources, asked, 80),
            sign == "+",
            "{action} {rules}: {asked}"
        );
    }
}

#[test]
fn requests_and_tokens_are_judged_at_a_waypoint() {
    check(
        "ALLOW",
        "[{to: [{operation: {methods: [GET], paths: [/a*], notPaths: [/a/x]}}]}]",
        &["+GET /a/b", "-POST /a/b", "-GET /b", "-GET /a/x"],
    );
    check(
        "ALLOW",
        "[{from: [{source: {requestPrincipals: ['https://a/*'], namespaces: [shop]}}]}]",
        &["+GET / @https://a/bob", "-GET / @https://b/bob", "-GET /"],
    );
    check(
        "DENY",
        "[{from: [{source: {notRequestPrincipals: ['*']}}]}]",
        &["+GET / @https://a/bob", "-GET /"],
    );
    let when = |key: &str, more: &str| format!("[{{when: [{{key: '{key}', {more}}}]}}]");
    check(
        "ALLOW",
        &when("request.auth.claims[realm][role]", "values: [admin]"),
        &[
            "+GET / !realm.role=admin",
            "-GET / !realm.role=x",
            "-GET / !role=admin",
        ],
    );
    check(
        "ALLOW",
        &when("request.auth.claims[group]", "notValues: [guest]"),
        &["+GET / !group=a", "-GET / !group=guest"],
    );
    check(
        "ALLOW",
        &when("request.auth.audiences", "values: [web]"),
        &["+GET / !aud=web", "-GET / !aud=x"],
    );
    check(
        "ALLOW",
        &when("request.auth.presenter", "values: [app]"),
        &["+GET / !azp=app", "-GET / !azp=x"],
    );
    check(
        "ALLOW",
        &when("request.auth.principal", "values: ['https://a/bob']"),
        &["+GET / @https://a/bob", "-GET / @https://a/eve"],
    );
    check(
        "DENY",
        &when("request.headers[X-Old]", "values: ['*']"),
        &["-GET / x-old=1", "+GET / x-new=1"],
    );
    check(
        "ALLOW",
        &when("source.ip", "values: [10.9.0.0/16]"),
        &["+GET /"],
    );
    // The port that the pod listens on, by which of the service's ports leads there.
    for rules in [
        "[{to: [{operation: {ports: ['8080']}}]}]",
        &when("destination.port", "values: ['8080']"),
    ] {
        let resources = translated(&policy("ALLOW", rules));
        assert!(
            allows(&resources, "GET /", 80) && !allows(&resources, "GET /", 81),
            "{rules}"
        );
    }
    let custom = translated(&policy("CUSTOM", "[{to: [{operation: {paths: [/a]}}]}]"));
    assert!(!allows(&custom, "GET /a", 80) && allows(&custom, "GET /b", 80));
}

#[test]
fn what_a_waypoint_cannot_judge_is_denied_and_named() {
    for (rules, field) in [
        (
            "[{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}]",
            "spec.rules[0].from[0].source.remoteIpBlocks",
        ),
        (
            "[{to: [{operation: {paths: ['/a/{*}']}}]}]",
            "spec.rules[0].to[0].operation.paths",
        ),
        (
            "[{to: [{operation: {hosts: ['a:80']}}]}]",
            "spec.rules[0].to[0].operation.hosts",
        ),
        (
            "[{when: [{key: destination.ip, values: [10.0.0.1]}]}]",
            "spec.rules[0].when[0] (destination.ip)",
        ),
        (
            "[{when: [{key: 'request.headers[a]', notValues: [b]}]}]",
            "spec.rules[0].when[0] (request.headers[a])",
        ),
        (
            "[{when: [{key: connection.sni, values: [b]}]}]",
            "spec.rules[0].when[0] (connection.sni)",
        ),
    ] {
        for action in ["ALLOW", "DENY"] {
            let resources = translated(&policy(action, rules));
            assert_eq!(finding(&resources).unenforced, [field], "{action}");
            assert!(!allows(&resources, "GET /a/b", 80), "{action} {rules}");
        }
    }
}

#[test]
fn the_rules_on_tokens_of_a_bound_service_are_its_waypoints() {
    const RULE: &str = "{issuer: 'https://a', jwksUri: 'https://a/keys', outputClaimToHeaders: [{header: X-User, claim: sub}]}";
    let of = |spec: &str| {
        let resources = translated(&object("RequestAuthentication", spec));
        let key = ObjectKey::new("shop", "p");
        let finding = resources.findings.istio_request_authentications[&key].clone();
        (
            resources.authentications.get("shop/istio_p").cloned(),
            finding,
        )
    };
    let target = "targetRefs: [{kind: Service, name: web}]";
    let (rules, finding) = of(&format!("{{{target}, jwtRules: [{RULE}]}}"));
    let rules = rules.unwrap();
    assert_eq!(rules.refused, "");
    assert_eq!(rules.rules[0].jwks_uri, "https://a/keys");
    assert_eq!(rules.rules[0].from_params, ["access_token"]);
    assert_eq!(rules.rules[0].from_headers[0].name, "authorization");
    assert_eq!(rules.rules[0].claim_headers[0].header, "x-user");
    assert!(finding.authentications.contains("shop/istio_p"));

    // What is not obeyed is not left out.
    let (rules, finding) = of(&format!(
        "{{{target}, jwtRules: [{RULE}, {{issuer: b, jwksUri: 'https://b', fromCookies: [c]}}]}}"
    ));
    assert!(
        rules
            .unwrap()
            .refused
            .contains("spec.jwtRules[1].fromCookies")
    );
    assert_eq!(finding.refused, ["spec.jwtRules[1].fromCookies"]);

    // Without a rule it says nothing, and of pods nobody here checks tokens.
    let (rules, finding) = of(&format!("{{{target}}}"));
    assert!(rules.is_none() && finding.elsewhere.is_empty());
    for elsewhere in [
        "selector: {matchLabels: {app: web}}",
        "targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: wp}",
    ] {
        let (rules, finding) = of(&format!("{{{elsewhere}, jwtRules: [{RULE}]}}"));
        assert!(rules.is_none(), "{elsewhere}");
        assert_eq!(finding.elsewhere.len(), 1, "{elsewhere}");
    }
}
