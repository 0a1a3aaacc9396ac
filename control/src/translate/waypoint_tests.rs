use prost::Message as _;
use seine_objects::{Kind, ObjectKey};
use seine_proto::extensions::{
    AuthorizationExtension, BoundPort, RequestMatch, ServiceExtension, TokenMatch,
    WorkloadExtension,
};
use seine_proto::security::{Action, Authorization};
use seine_proto::waypoint::{RouteRule, filter, r#match, path_change};
use seine_proto::workload::GatewayAddress;
use seine_proto::workload::gateway_address::Destination;

use super::Resources;
use super::tests::{pod, translated};

fn service(name: &str, labels: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\nspec: {{clusterIP: 10.1.0.1, {spec}}}\n"
    )
}

fn bound(name: &str) -> String {
    let spec = "selector: {app: a}, ports: [{name: http, port: 80, targetPort: web}]";
    service(name, "seine.dev/use-waypoint: wp", spec)
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.seine.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

fn bound_ports(resources: &Resources, pod: &str) -> Vec<BoundPort> {
    let workload = &resources.workloads[&format!("Kubernetes//Pod/shop/{pod}")];
    let extension = workload.extensions.first();
    let value = extension.map_or(&[][..], |e| &e.config.as_ref().unwrap().value);
    WorkloadExtension::decode(value).unwrap().bound_ports
}

fn policies_of(resources: &Resources, service: &str) -> Vec<String> {
    let service = &resources.services[&format!("shop/{service}.shop.svc.cluster.local")];
    let value = &service.extensions[0].config.as_ref().unwrap().value;
    ServiceExtension::decode(value.as_slice()).unwrap().policies
}

#[test]
fn a_bound_service_names_its_waypoint_and_its_pods_admit_nobody_else_on_its_ports() {
    let two = service(
        "two",
        "seine.dev/use-waypoint: other",
        "selector: {app: a}, ports: [{port: 81, targetPort: 8080}]",
    );
    let free = service(
        "free",
        "",
        "selector: {app: a}, ports: [{port: 82, targetPort: 9090}]",
    );
    let yaml = [
        bound("web"),
        two,
        free,
        pod("shop", "a", "10.0.0.1", "labels: {app: a}", ""),
    ]
    .concat();
    let resources = translated(&yaml);
    let waypoint = resources.services["shop/web.shop.svc.cluster.local"]
        .waypoint
        .clone()
        .unwrap();
    let Some(Destination::Hostname(name)) = waypoint.destination else {
        panic!("no name");
    };
    assert_eq!(
        (name.namespace.as_str(), name.hostname.as_str()),
        ("shop", "wp.shop.svc.cluster.local")
    );
    assert_eq!(waypoint.hbone_mtls_port, 15008);
    // Whoever else the pod serves on a bound port: its waypoints alone reach it. Other ports are free.
    assert_eq!(
        bound_ports(&resources, "a"),
        [BoundPort {
            target_port: 8080,
            waypoint_identities: vec![
                "spiffe://cluster.local/ns/shop/sa/other".into(),
                "spiffe://cluster.local/ns/shop/sa/wp".into(),
            ],
        }]
    );
    let free = &resources.services["shop/free.shop.svc.cluster.local"];
    assert!(free.waypoint.is_none());
}

fn gateway(name: &str, labels: &str, class: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\nspec: {{gatewayClassName: {class}, listeners: []}}\n"
    )
}

#[test]
fn a_waypoint_of_another_namespace_that_does_not_admit_the_service_is_named_to_nobody() {
    let labels = "seine.dev/use-waypoint: wp, seine.dev/use-waypoint-namespace: infra";
    let web = service(
        "web",
        labels,
        "selector: {app: a}, ports: [{port: 80, targetPort: 8080}]",
    );
    for (from, hostname, admitted) in [
        ("All", "wp.infra.svc.cluster.local", true),
        ("Same", "wp.infra.not-allowed.invalid", false),
    ] {
        let gateway = format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: infra}}\nspec: {{gatewayClassName: seine-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {{from: {from}}}}}}}]}}\n"
        );
        let yaml = [
            web.clone(),
            gateway,
            pod("shop", "a", "10.0.0.1", "labels: {app: a}", ""),
        ]
        .concat();
        let resources = translated(&yaml);
        let service = &resources.services["shop/web.shop.svc.cluster.local"];
        assert_eq!(
            named(service.waypoint.as_ref()),
            format!("infra/{hostname}")
        );
        let identities = match admitted {
            true => vec!["spiffe://cluster.local/ns/infra/sa/wp".to_owned()],
            false => Vec::new(),
        };
        let bound = bound_ports(&resources, "a");
        assert_eq!(bound[0].target_port, 8080);
        assert_eq!(bound[0].waypoint_identities, identities, "{from}");
    }
}

fn named(gateway: Option<&GatewayAddress>) -> String {
    let destination = gateway.unwrap().destination.clone();
    let Some(Destination::Hostname(name)) = destination else {
        panic!("no name");
    };
    format!("{}/{}", name.namespace, name.hostname)
}

#[test]
fn of_two_waypoints_each_gets_its_share_and_one_that_is_not_there_nothing() {
    let labels = |percent: &str| {
        format!(
            "seine.dev/use-waypoint: old, seine.dev/canary-waypoint: new, seine.dev/canary-percent: '{percent}'"
        )
    };
    for (percent, gateways, weights) in [
        ("10", &["old", "new"][..], [90, 10]),
        ("0", &["old", "new"], [100, 0]),
        ("100", &["old", "new"], [0, 100]),
        ("101", &["old", "new"], [100, 0]),
        ("x", &["old", "new"], [100, 0]),
        ("10", &["old"], [100, 0]),
        ("10", &["new"], [0, 100]),
        ("10", &[], [100, 0]),
    ] {
        let ports = "selector: {app: a}, ports: [{port: 80, targetPort: 8080}]";
        let gateways = gateways
            .iter()
            .map(|name| gateway(name, "", "seine-waypoint"));
        let yaml = [service("web", &labels(percent), ports)]
            .into_iter()
            .chain(gateways)
            .chain([pod("shop", "a", "10.0.0.1", "labels: {app: a}", "")])
            .collect::<String>();
        let resources = translated(&yaml);
        let service = &resources.services["shop/web.shop.svc.cluster.local"];
        let found = service.weighted_waypoints.iter();
        let found = found.map(|one| (named(one.destination.as_ref()), one.weight));
        let name = |name: &str| format!("shop/{name}.shop.svc.cluster.local");
        let [old, new] = weights;
        let expected = [(name("old"), old), (name("new"), new)];
        assert_eq!(found.collect::<Vec<_>>(), expected, "{percent}");
        // Both may reach the pods at any time, so that a change of weights cuts nobody off.
        assert_eq!(
            bound_ports(&resources, "a")[0].waypoint_identities,
            [
                "spiffe://cluster.local/ns/shop/sa/new",
                "spiffe://cluster.local/ns/shop/sa/old"
            ]
        );
    }
}

#[test]
fn a_pod_names_a_waypoint_that_takes_pods_if_it_is_the_only_one_bound_there() {
    let all = "seine.dev/waypoint-for: all";
    let other = || {
        let ports = "selector: {app: a}, ports: [{port: 81, targetPort: 9090}]";
        service("two", "seine.dev/use-waypoint: other", ports)
    };
    for (gateway, other, named) in [
        (gateway("wp", all, "seine-waypoint"), String::new(), true),
        (gateway("wp", "", "seine-waypoint"), String::new(), false),
        (
            gateway("wp", "seine.dev/waypoint-for: service", "seine-waypoint"),
            String::new(),
            false,
        ),
        (gateway("wp", all, "another"), String::new(), false),
        (gateway("wp", all, "seine-waypoint"), other(), false),
        (String::new(), String::new(), false),
    ] {
        let pod = pod("shop", "a", "10.0.0.1", "labels: {app: a}", "");
        let resources = translated(&[gateway.clone(), bound("web"), other, pod].concat());
        let workload = &resources.workloads["Kubernetes//Pod/shop/a"];
        let of_service = &resources.services["shop/web.shop.svc.cluster.local"].waypoint;
        assert_eq!(workload.waypoint.is_some(), named, "{gateway}");
        assert!(!named || workload.waypoint == *of_service);
    }
}

/// The text of a policy's first rule: its ports and what must hold of the request.
fn first(authorization: &Authorization) -> (Vec<u32>, RequestMatch) {
    let found = &authorization.rules[0].clauses.last().unwrap().matches[0];
    let request = found
        .extensions
        .first()
        .map_or_else(RequestMatch::default, |extension| {
            RequestMatch::decode(extension.config.as_ref().unwrap().value.as_slice()).unwrap()
        });
    (found.destination_ports.clone(), request)
}

#[test]
fn a_policy_of_a_bound_service_is_judged_at_its_waypoint_by_the_service_s_ports_and_nowhere_else() {
    let yaml = [
        bound("web"),
        pod("shop", "a", "10.0.0.1", "labels: {app: a}", ""),
        policy(
            "p",
            "{action: Deny, targetRefs: [{kind: Service, name: web}], rules: [{to: [{ports: [8080], methods: [GET], paths: ['/admin*'], hosts: [Web.Shop], headers: [{name: X-A, values: [b]}]}]}]}",
        ),
    ]
    .concat();
    let resources = translated(&yaml);
    assert_eq!(policies_of(&resources, "web"), ["shop/p_at_web"]);
    assert_eq!(resources.authorizations.len(), 1);
    let workload = &resources.workloads["Kubernetes//Pod/shop/a"];
    assert_eq!(workload.authorization_policies, [""; 0]);
    let found = &resources.authorizations["shop/p_at_web"];
    assert_eq!(found.action(), Action::Deny);
    let (ports, request) = first(found);
    // The pod's port 8080 is the service's 80.
    assert_eq!(ports, [80]);
    assert_eq!(request.methods, ["GET"]);
    assert_eq!(request.headers[0].name, "x-a");
    assert_eq!(request.hosts.len(), 1);
    let finding = &resources.findings.authorization_policies[&ObjectKey::new("shop", "p")];
    assert!(finding.unenforced.is_empty() && finding.unresolved.is_empty());
}

fn request_authentication(spec: &str) -> String {
    policy("users", spec).replace("AuthorizationPolicy", "RequestAuthentication")
}

const KEYS: &str = r#"'{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}'"#;

#[test]
fn rules_on_tokens_are_one_resource_that_bound_services_list_and_others_are_told_of() {
    let spec = format!(
        "{{targetRefs: [{{kind: Service, name: web}}, {{kind: Service, name: free}}, {{kind: Service, name: gone}}], jwtRules: [{{issuer: 'https://a', audiences: [b], jwks: {KEYS}, fromHeaders: [{{name: X-T, prefix: 'JWT '}}], fromParams: [t], outputClaimToHeaders: [{{header: X-User, path: [sub]}}]}}]}}"
    );
    let free = bound("free").replace("seine.dev/use-waypoint: wp", "");
    let yaml = [bound("web"), free, request_authentication(&spec)].concat();
    let resources = translated(&yaml);
    let listed = |service: &str| {
        let service = &resources.services[&format!("shop/{service}.shop.svc.cluster.local")];
        let value = &service.extensions[0].config.as_ref().unwrap().value;
        let extension = ServiceExtension::decode(value.as_slice()).unwrap();
        extension.authentications
    };
    assert_eq!(listed("web"), ["shop/users"]);
    assert_eq!(listed("free"), [""; 0]);
    let found = &resources.authentications["shop/users"];
    let rule = &found.rules[0];
    assert_eq!((rule.issuer.as_str(), rule.forward), ("https://a", false));
    assert_eq!(rule.from_headers[0].name, "x-t");
    assert_eq!(rule.claim_headers[0].header, "x-user");
    assert_eq!(found.refused, "");
    let finding = &resources.findings.request_authentications[&ObjectKey::new("shop", "users")];
    assert_eq!(finding.unresolved.len(), 1);
    assert_eq!(
        finding.unenforced,
        ["the tokens of requests to Service shop/free"]
    );
    // The order in which they are sent: what a service names is there before it.
    let order = crate::xds::ResourceType::ALL.map(|kind| kind.url());
    let place = |url: &str| order.iter().position(|known| *known == url).unwrap();
    assert!(place(seine_proto::AUTHENTICATION_TYPE) < place(seine_proto::ADDRESS_TYPE));
}

#[test]
fn what_stands_in_for_rules_on_tokens_that_are_not_valid_refuses_every_request() {
    let object = serde_json::json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": "RequestAuthentication",
        "metadata": {"name": "users", "namespace": "shop"}, "spec": {"targetRefs": 1},
    });
    let invalid = seine_objects::parse_object(Kind::RequestAuthentication, object).unwrap_err();
    let (mut objects, _) = seine_objects::ObjectSet::from_yaml(&bound("web"));
    objects.insert(invalid.key.unwrap(), invalid.stand_in.unwrap());
    let resources = super::translate(&objects, &super::Settings::default());
    let found = &resources.authentications["shop/users"];
    assert!(found.refused.contains("shop/users, which is not valid"));
    let service = &resources.services["shop/web.shop.svc.cluster.local"];
    let value = &service.extensions[0].config.as_ref().unwrap().value;
    let extension = ServiceExtension::decode(value.as_slice()).unwrap();
    assert_eq!(extension.authentications, ["shop/users"]);
}

/// What must hold of the token, of each rule that says something of it.
fn tokens(authorization: &Authorization) -> Vec<TokenMatch> {
    let clauses = authorization.rules.iter().flat_map(|rule| &rule.clauses);
    let matches = clauses.flat_map(|clause| &clause.matches);
    let extensions = matches.flat_map(|found| &found.extensions);
    let tokens = extensions.filter(|extension| extension.name == super::TOKEN_EXTENSION);
    let decode = |extension: &seine_proto::security::Extension| {
        TokenMatch::decode(&*extension.config.as_ref().unwrap().value).unwrap()
    };
    tokens.map(decode).collect()
}

#[test]
fn who_asks_by_a_token_is_judged_at_the_waypoint_and_denied_where_there_is_none() {
    let rules = |action: &str| {
        format!(
            "{{action: {action}, targetRefs: [{{kind: Service, name: web}}], rules: [{{from: [{{requestPrincipals: ['https://a/*'], claims: [{{path: [g, h], values: [x], notValues: [y]}}], namespaces: [shop]}}, {{namespaces: [other]}}]}}]}}"
        )
    };
    let pod = pod("shop", "a", "10.0.0.1", "labels: {app: a}", "");
    let yaml = [bound("web"), pod.clone(), policy("p", &rules("Allow"))].concat();
    let resources = translated(&yaml);
    let found = &resources.authorizations["shop/p_at_web"];
    assert_eq!(found.rules.len(), 2);
    let token = &tokens(found)[..];
    assert_eq!((token.len(), token[0].principals.len()), (1, 1));
    let claim = &token[0].claims[0];
    assert_eq!(
        (
            claim.path.join("."),
            claim.values.len(),
            claim.not_values.len()
        ),
        ("g.h".into(), 1, 1)
    );
    assert!(
        resources
            .findings
            .policies()
            .all(|finding| finding.unenforced.is_empty())
    );

    let unbound = bound("web").replace("seine.dev/use-waypoint: wp", "");
    let of = |action: &str| {
        let yaml = [unbound.clone(), pod.clone(), policy("p", &rules(action))].concat();
        let resources = translated(&yaml);
        let finding = &resources.findings.authorization_policies[&ObjectKey::new("shop", "p")];
        let expected = [
            "spec.rules[0].from[0].requestPrincipals",
            "spec.rules[0].from[0].claims",
        ];
        assert_eq!(finding.unenforced, expected);
        let found = resources.authorizations["shop/p"].clone();
        assert!(tokens(&found).is_empty());
        found.rules.len()
    };
    // An Allow loses the source, a Deny the fields alone.
    assert_eq!(of("Allow"), 1);
    assert_eq!(of("Deny"), 2);
    // An Allow of such sources alone is about nobody, and not about everybody.
    let only =
        "{targetRefs: [{kind: Service, name: web}], rules: [{from: [{requestPrincipals: ['*']}]}]}";
    let yaml = [unbound, pod, policy("p", only)].concat();
    assert!(translated(&yaml).authorizations["shop/p"].rules.is_empty());
}

#[test]
fn whom_to_ask_is_named_beside_a_denial_by_those_who_can_not() {
    let external = "{action: External, targetRefs: [{kind: Service, name: web}], provider: {service: authz, port: 80, protocol: Http, timeout: 250ms, headersToBackend: [X-User]}, rules: [{to: [{paths: ['/a*']}]}]}";
    let pod = pod("shop", "a", "10.0.0.1", "labels: {app: a}", "");
    let authz = service("authz", "", "selector: {app: a}, ports: [{port: 80}]");
    let yaml = [bound("web"), authz, pod.clone(), policy("p", external)].concat();
    let resources = translated(&yaml);
    let asked = |found: &Authorization| {
        let extension = found.extensions.first()?.config.as_ref()?;
        AuthorizationExtension::decode(&*extension.value)
            .unwrap()
            .external
    };
    let found = &resources.authorizations["shop/p_at_web"];
    assert_eq!(found.action(), Action::Deny);
    let provider = asked(found).unwrap();
    assert_eq!(
        (
            provider.hostname.as_str(),
            provider.port,
            provider.timeout_ms
        ),
        ("authz.shop.svc.cluster.local", 80, 250)
    );
    assert_eq!(
        (provider.to_backend, provider.fail_open),
        (vec!["x-user".to_owned()], false)
    );
    let finding = |resources: &Resources| {
        let findings = &resources.findings.authorization_policies;
        let finding = &findings[&ObjectKey::new("shop", "p")];
        (finding.unresolved.clone(), finding.unenforced.clone())
    };
    assert_eq!(finding(&resources), (vec![], vec![]));

    // Without a provider, or its port, the policy is there all the same, and nobody says yes.
    let alone = [bound("web"), pod.clone(), policy("p", external)].concat();
    let resources = translated(&alone);
    assert!(asked(&resources.authorizations["shop/p_at_web"]).is_some());
    assert_eq!(finding(&resources).0.len(), 1);
    let elsewhere = yaml.replace("ports: [{port: 80}]", "ports: [{port: 81}]");
    assert!(finding(&translated(&elsewhere)).0[0].contains("no port 80"));

    let unbound = yaml.replace("seine.dev/use-waypoint: wp", "");
    let resources = translated(&unbound);
    let found = &resources.authorizations["shop/p"];
    assert_eq!((found.action(), asked(found)), (Action::Deny, None));
    assert_eq!(found.rules.len(), 1);
    let expected = ["spec.action External", "spec.rules[0].to[0].paths"];
    assert_eq!(finding(&resources).1, expected);
}

#[test]
fn without_a_waypoint_what_needs_one_is_denied_as_before() {
    let yaml = [
        bound("web").replace("seine.dev/use-waypoint: wp", ""),
        pod("shop", "a", "10.0.0.1", "labels: {app: a}", ""),
        policy(
            "p",
            "{targetRefs: [{kind: Service, name: web}], rules: [{to: [{methods: [GET]}]}]}",
        ),
    ]
    .concat();
    let resources = translated(&yaml);
    assert!(resources.authorizations["shop/p"].rules.is_empty());
    let finding = &resources.findings.authorization_policies[&ObjectKey::new("shop", "p")];
    assert_eq!(finding.unenforced, ["spec.rules[0].to[0].methods"]);
}

fn route(rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: web, sectionName: http}}, {{name: gateway}}, {{group: '', kind: Service, name: nowhere}}]\n  rules: {rules}\n"
    )
}

fn rules(rules: &str) -> (Vec<RouteRule>, Vec<String>) {
    let resources = translated(&(bound("web") + &route(rules)));
    let notes = resources
        .findings
        .routes
        .get(&(Kind::HttpRoute, ObjectKey::new("shop", "r")));
    let notes = notes.cloned().unwrap_or_default();
    (resources.routes.into_values().collect(), notes.said)
}

#[test]
fn each_rule_of_a_route_is_one_resource_that_names_its_parents() {
    let (found, notes) = rules(
        "[{matches: [{path: {type: Exact, value: /a}, method: GET, headers: [{name: X-A, value: b}, {name: x-a, value: c}]}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}], backendRefs: [{name: web, port: 80, weight: 9}], timeouts: {request: 1s}}, {}]",
    );
    assert_eq!(notes, ["there is no Service shop/nowhere"]);
    assert_eq!(found.len(), 2);
    let rule = &found[0];
    assert_eq!(
        (rule.name.as_str(), rule.rule, rule.request_timeout_ms),
        ("r", 0, 1000)
    );
    assert!(rule.created > 0 && rule.refused.is_empty());
    assert_eq!(rule.parents.len(), 1);
    assert_eq!(rule.parents[0].port, 80);
    assert_eq!(
        rule.matches[0].path,
        Some(r#match::Path::Exact("/a".into()))
    );
    // Of two of one name the first counts.
    assert_eq!(rule.matches[0].headers.len(), 1);
    assert_eq!(rule.matches[0].headers[0].value, "b");
    let Some(filter::Filter::Rewrite(rewrite)) = &rule.filters[0].filter else {
        panic!("no rewrite");
    };
    let change = rewrite.path.as_ref().unwrap().change.clone();
    assert_eq!(change, Some(path_change::Change::Prefix("/".into())));
    assert_eq!(
        (rule.backends[0].weight, rule.backends[0].refused.as_str()),
        (9, "")
    );
}

#[test]
fn what_is_not_supported_is_refused_and_said_and_never_left_out() {
    let (found, notes) = rules(
        "[{sessionPersistence: {sessionName: a, idleTimeout: 1m}, backendRefs: [{name: web, port: 80}]}, {filters: [{type: ExtensionRef, extensionRef: {name: a, kind: b, group: c}}]}, {matches: [{path: {type: RegularExpression, value: '('}}]}, {backendRefs: [{name: gone, port: 80}, {name: web, port: 81}, {name: x, namespace: other, port: 1}]}, {filters: [{type: RequestHeaderModifier, requestMirror: {backendRef: {name: web, port: 80}}}]}]",
    );
    let refused: Vec<_> = found.iter().map(|rule| !rule.refused.is_empty()).collect();
    assert_eq!(refused, [true, true, true, false, true]);
    assert!(
        found[3]
            .backends
            .iter()
            .all(|backend| !backend.refused.is_empty())
    );
    assert_eq!(notes.len(), 8, "{notes:?}");
    assert!(
        notes[1].contains("spec.rules[0].sessionPersistence.idleTimeout is not supported yet"),
        "{notes:?}"
    );
    assert!(notes[3].contains("regular expression"), "{notes:?}");
}

#[test]
fn a_rule_s_mirrors_cors_retries_and_patterns_are_handed_on() {
    let (found, notes) = rules(
        "[{name: n, matches: [{path: {type: RegularExpression, value: '/v[0-9]'}, headers: [{name: A, type: RegularExpression, value: b+}]}], retry: {codes: [503], backoff: 1s}, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web, port: 80}, fraction: {numerator: 1, denominator: 3}}}, {type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}, {type: CORS, cors: {allowOrigins: ['https://A.example']}}], backendRefs: [{name: web, port: 80}]}]",
    );
    // The mirror whose backend isn't there is left out and said, and the rule is obeyed.
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[1].contains("a mirror is left out"), "{notes:?}");
    let rule = &found[0];
    assert_eq!((rule.refused.as_str(), rule.rule_name.as_str()), ("", "n"));
    assert_eq!(
        rule.matches[0].path,
        Some(r#match::Path::Regex("/v[0-9]".into()))
    );
    assert_eq!(rule.matches[0].header_patterns[0].name, "a");
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!(
        (retry.codes.as_slice(), retry.attempts, retry.backoff_ms),
        (&[503][..], 2, 1000)
    );
    let [
        Some(filter::Filter::Mirror(mirror)),
        Some(filter::Filter::Cors(cors)),
    ] = [&rule.filters[0].filter, &rule.filters[1].filter]
    else {
        panic!("{:?}", rule.filters);
    };
    assert_eq!((mirror.numerator, mirror.denominator), (1, 3));
    assert_eq!(
        (cors.origins.as_slice(), cors.max_age_s),
        (&["https://a.example".to_owned()][..], 5)
    );
}

#[test]
fn a_backend_of_another_namespace_needs_its_grant() {
    let other = bound("db").replace("namespace: shop", "namespace: data");
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: data}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}\n";
    let rule = "[{backendRefs: [{name: db, namespace: data, port: 80}]}]";
    let refused = |grant: &str| {
        let yaml = [&bound("web"), &other, &route(rule), grant].concat();
        let found = translated(&yaml).routes.into_values().next().unwrap();
        let backend = &found.backends[0];
        assert_eq!(backend.hostname, "db.data.svc.cluster.local");
        backend.refused.clone()
    };
    assert_eq!(refused(grant), "");
    assert!(refused("").contains("no ReferenceGrant"));
}

#[test]
fn a_grpc_route_is_translated_and_what_is_not_of_its_kind_refused() {
    let yaml = bound("web")
        + &route(
            "[{matches: [{method: {service: a.B, method: C}}, {method: {type: RegularExpression, service: 'a.*'}}], backendRefs: [{name: web, port: 80}]}, {filters: [{type: RequestRedirect, requestRedirect: {port: 1}}]}, {timeouts: {request: 1s}}]",
        )
        .replace("HTTPRoute", "GRPCRoute");
    let resources = translated(&yaml);
    let names: Vec<_> = resources.routes.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "GRPCRoute/shop/r/0",
            "GRPCRoute/shop/r/1",
            "GRPCRoute/shop/r/2"
        ]
    );
    let refused = resources
        .routes
        .values()
        .map(|rule| !rule.refused.is_empty());
    assert_eq!(refused.collect::<Vec<_>>(), [false, true, true]);
    let first = &resources.routes["GRPCRoute/shop/r/0"];
    let Some(r#match::Path::Grpc(exact)) = &first.matches[0].path else {
        panic!("{:?}", first.matches);
    };
    assert_eq!(
        (exact.service.as_str(), exact.method.as_str(), exact.regex),
        ("a.B", "C", false)
    );
    let notes = &resources.findings.routes[&(Kind::GrpcRoute, ObjectKey::new("shop", "r"))].said;
    assert_eq!(notes.len(), 3, "{notes:?}");
}

#[test]
fn a_route_to_a_service_without_a_waypoint_is_said_to_be_without_effect() {
    let plain = bound("web").replace("seine.dev/use-waypoint: wp", "");
    let resources = translated(&(plain + &route("[{}]")));
    assert!(resources.routes.is_empty());
    let notes = &resources.findings.routes[&(Kind::HttpRoute, ObjectKey::new("shop", "r"))].said;
    assert!(notes[0].contains("uses no waypoint"), "{notes:?}");
}
