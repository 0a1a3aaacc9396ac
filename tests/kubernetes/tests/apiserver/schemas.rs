//! What the API server itself says of policies, by the CRDs in `deploy/crds`.

use anyhow::{Result, ensure};
use seine_kubernetes_tests::step;
use serde_json::{Value, json};

use crate::bed::{Bed, namespace};

fn policy(spec: Value) -> Value {
    json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "tried", "namespace": "schemas"}, "spec": spec,
    })
}

fn mesh_tls(spec: Value) -> Value {
    json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": "MeshTLS",
        "metadata": {"name": "tried", "namespace": "schemas"}, "spec": spec,
    })
}

fn traffic(mut spec: Value) -> Value {
    spec["targetRefs"] = json!([{"kind": "Service", "name": "web"}]);
    json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "tried", "namespace": "schemas"}, "spec": spec,
    })
}

fn tokens(spec: Value) -> Value {
    json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": "RequestAuthentication",
        "metadata": {"name": "tried", "namespace": "schemas"}, "spec": spec,
    })
}

fn tokens_by(rule: Value) -> Value {
    let mut full = json!({"issuer": "https://a", "jwks": "{\"keys\": []}"});
    let fields = rule.as_object().cloned().unwrap_or_default();
    if let Some(full) = full.as_object_mut() {
        full.extend(fields);
        full.retain(|_, value| !value.is_null());
    }
    tokens(json!({"targetRefs": [{"kind": "Service", "name": "db"}], "jwtRules": [full]}))
}

pub(crate) fn what_is_right_is_accepted(bed: &Bed) -> Result<()> {
    bed.cluster.apply(&[namespace("schemas", json!({}))])?;
    let right = [
        policy(json!({})),
        policy(
            json!({"action": "Deny", "dryRun": true, "selector": {"matchLabels": {"app": "db"}}, "rules": [{}]}),
        ),
        policy(json!({"targetRefs": [{"kind": "Service", "name": "db"}]})),
        policy(json!({"rules": [{
            "from": [
                {"principals": ["spiffe://cluster.local/ns/a/sa/b", "*/sa/x", "cluster.local/ns/a*", "*"]},
                {"serviceAccounts": ["api", "other/api"], "notNamespaces": ["team-*"]},
                {"ipBlocks": ["10.0.0.0/8", "fd00::1"]},
            ],
            "to": [{"ports": [1, 65535]}, {"methods": ["GET"], "headers": [{"name": "x", "values": ["*"]}]}],
        }]})),
        policy(json!({"selector": {"matchExpressions": [
            {"key": "app", "operator": "In", "values": ["a"]}, {"key": "b", "operator": "Exists"},
        ]}})),
        policy(json!({"rules": [{"from": [
            {"requestPrincipals": ["https://a/b", "*"], "claims": [{"path": ["a", "b"], "values": ["c"], "notValues": ["d"]}]},
        ]}]})),
        tokens_by(json!({"jwks": null, "jwksUri": "https://a.example:8443/keys"})),
        policy(json!({
            "action": "External", "targetRefs": [{"kind": "Service", "name": "db"}],
            "provider": {"service": "authz", "port": 9000, "protocol": "Grpc", "timeout": "200ms"},
        })),
        policy(json!({
            "action": "External", "targetRefs": [{"kind": "Service", "name": "db"}],
            "provider": {"service": "authz", "port": 80, "protocol": "Http", "pathPrefix": "/a", "headersToClient": ["x"], "failOpen": true},
        })),
        tokens_by(json!({
            "audiences": ["a"], "fromHeaders": [{"name": "x", "prefix": "JWT "}], "fromParams": ["t"],
            "forwardOriginalToken": true, "outputClaimToHeaders": [{"header": "X-User", "path": ["sub"]}],
        })),
        mesh_tls(json!({"mode": "Strict"})),
        mesh_tls(json!({"mode": "Permissive", "selector": {"matchLabels": {"app": "db"}}})),
        mesh_tls(json!({"ports": [{"port": 9090, "mode": "Permissive"}]})),
        traffic(json!({"retryBudget": {"percent": 0}})),
        traffic(json!({
            "loadBalancer": {"algorithm": "RingHash", "hashOn": {"type": "Cookie", "name": "a"}},
            "outlierDetection": {"consecutiveFailures": 1, "ejectionTime": "1m30s", "maxEjectedPercent": 0},
            "circuitBreaker": {"maxRequests": 1, "maxPending": 0},
            "retryBudget": {"percent": 100, "minPerSecond": 0, "interval": "1m"},
            "rateLimit": {"requests": 1, "unit": "Hour", "burst": 1, "per": {"type": "Header", "name": "x-a"}},
        })),
        traffic(json!({
            "loadBalancer": {"zoneAware": {"minHealthyPercent": 100}, "slowStart": {"window": "1m", "aggressionPercent": 50, "minPercent": 1}},
            "circuitBreaker": {"maxConnections": 1},
            "adaptiveConcurrency": {"minRequests": 1, "maxRequests": 1, "tolerancePercent": 100},
        })),
    ];
    for object in right {
        let output = bed.cluster.try_apply(std::slice::from_ref(&object))?;
        ensure!(
            output.code == 0,
            "refused: {}: {}",
            object["spec"],
            output.stderr
        );
    }
    let names = bed.cluster.kubectl(&["-n", "schemas", "get", "seine"])?;
    ensure!(
        names.contains("tried"),
        "the category lists all kinds: {names}"
    );
    Ok(())
}

pub(crate) fn each_mistake_is_refused_at_its_field(bed: &Bed) -> Result<()> {
    bed.cluster.apply(&[namespace("schemas", json!({}))])?;
    let from = |source: Value| policy(json!({"rules": [{"from": [source]}]}));
    let to = |operation: Value| policy(json!({"rules": [{"to": [operation]}]}));
    // What is wrong, and how the refusal names the field.
    let mut wrong = vec![
        (policy(json!({"action": "Forbid"})), "spec.action"),
        (policy(json!({"rule": []})), "spec.rule"),
        (
            policy(json!({"selector": {"matchLabel": {"a": "b"}}})),
            "spec.selector.matchLabel",
        ),
        (
            policy(json!({"selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}})),
            "spec.selector.matchExpressions[0].operator",
        ),
        (
            policy(json!({"targetRefs": [{"kind": "Service"}]})),
            "spec.targetRefs[0].name",
        ),
        (
            from(json!({"principal": ["*"]})),
            "spec.rules[0].from[0].principal",
        ),
        (
            to(json!({"ports": [65536]})),
            "spec.rules[0].to[0].ports[0]",
        ),
        (
            to(json!({"ports": ["http"]})),
            "spec.rules[0].to[0].ports[0]",
        ),
        (
            to(json!({"headers": [{"name": "x"}]})),
            "spec.rules[0].to[0].headers[0].values",
        ),
        (policy(json!({"action": "External"})), "spec"),
        (
            policy(json!({"provider": {"service": "authz", "port": 1, "protocol": "Grpc"}})),
            "spec",
        ),
        (
            policy(json!({
                "action": "External", "targetRefs": [{"kind": "Service", "name": "db"}],
                "provider": {"service": "authz", "port": 1, "protocol": "Grpc", "pathPrefix": "/a"},
            })),
            "spec.provider",
        ),
        (
            from(json!({"claims": [{"path": ["a"]}]})),
            "spec.rules[0].from[0].claims[0]",
        ),
        (
            tokens(json!({"targetRefs": [], "jwtRules": []})),
            "spec.targetRefs",
        ),
        (
            tokens_by(json!({"jwksUri": "https://a/b"})),
            "spec.jwtRules[0]",
        ),
        (
            tokens_by(json!({"jwks": null, "jwksUri": "ftp://a/b"})),
            "spec.jwtRules[0].jwksUri",
        ),
        (tokens_by(json!({"jwk": "a"})), "spec.jwtRules[0].jwk"),
        (tokens_by(json!({"issuer": ""})), "spec.jwtRules[0].issuer"),
        (
            tokens_by(json!({"outputClaimToHeaders": [{"header": "Host", "path": ["sub"]}]})),
            "spec.jwtRules[0].outputClaimToHeaders[0]",
        ),
        (mesh_tls(json!({"mode": "Off"})), "spec.mode"),
        (
            mesh_tls(json!({"ports": [{"port": 80}]})),
            "spec.ports[0].mode",
        ),
        (traffic(json!({"rateLimits": {}})), "spec.rateLimits"),
        (
            traffic(json!({"loadBalancer": {"algorithm": "Random"}})),
            "spec.loadBalancer.algorithm",
        ),
        (
            traffic(json!({"circuitBreaker": {"maxPending": 1}})),
            "spec.circuitBreaker",
        ),
    ];
    wrong.extend(rules(&from, &to));
    step(format!("{} mistakes", wrong.len()));
    let mut missed = Vec::new();
    for (mut object, field) in wrong {
        object["metadata"]["name"] = "wrong".into();
        let output = bed.cluster.judged(&object)?;
        if output.code == 0 {
            missed.push(format!("accepted: {}", object["spec"]));
        } else if !output.stderr.contains(field) {
            missed.push(format!("not refused at {field}: {}", output.stderr));
        }
    }
    ensure!(missed.is_empty(), "{}", missed.join("\n"));
    Ok(())
}

/// What patterns, bounds and CEL rules refuse.
fn rules(from: &dyn Fn(Value) -> Value, to: &dyn Fn(Value) -> Value) -> Vec<(Value, &'static str)> {
    vec![
        (policy(json!({"selector": {}})), "spec.selector"),
        (
            policy(
                json!({"selector": {"matchLabels": {"a": "b"}}, "targetRefs": [{"kind": "Service", "name": "x"}]}),
            ),
            "spec",
        ),
        (
            policy(json!({"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}})),
            "spec.selector.matchExpressions[0]",
        ),
        (
            policy(
                json!({"selector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}),
            ),
            "spec.selector.matchExpressions[0]",
        ),
        (
            policy(json!({"selector": {"matchExpressions": [{"key": "", "operator": "Exists"}]}})),
            "spec.selector.matchExpressions[0].key",
        ),
        (
            policy(json!({"targetRefs": [{"kind": "", "name": "x"}]})),
            "spec.targetRefs[0].kind",
        ),
        (
            policy(json!({"targetRefs": [{"kind": "Service", "name": ""}]})),
            "spec.targetRefs[0].name",
        ),
        (from(json!({})), "spec.rules[0].from[0]"),
        (
            from(json!({"principals": ["a*b"]})),
            "spec.rules[0].from[0].principals[0]",
        ),
        (
            from(json!({"principals": ["nonsense"]})),
            "spec.rules[0].from[0].principals[0]",
        ),
        (
            from(json!({"notPrincipals": ["nonsense"]})),
            "spec.rules[0].from[0].notPrincipals[0]",
        ),
        (
            from(json!({"serviceAccounts": ["a/b/c"]})),
            "spec.rules[0].from[0].serviceAccounts[0]",
        ),
        (
            from(json!({"notServiceAccounts": [""]})),
            "spec.rules[0].from[0].notServiceAccounts[0]",
        ),
        (
            from(json!({"namespaces": ["Big"]})),
            "spec.rules[0].from[0].namespaces[0]",
        ),
        (
            from(json!({"notNamespaces": ["*x"]})),
            "spec.rules[0].from[0].notNamespaces[0]",
        ),
        (
            from(json!({"ipBlocks": ["10.0.0.0/1000"]})),
            "spec.rules[0].from[0].ipBlocks[0]",
        ),
        (
            from(json!({"notIpBlocks": ["localhost"]})),
            "spec.rules[0].from[0].notIpBlocks[0]",
        ),
        (to(json!({})), "spec.rules[0].to[0]"),
        (to(json!({"ports": [0]})), "spec.rules[0].to[0].ports[0]"),
        (
            to(json!({"notPorts": [0]})),
            "spec.rules[0].to[0].notPorts[0]",
        ),
        (
            to(json!({"headers": [{"name": "", "values": ["a"]}]})),
            "spec.rules[0].to[0].headers[0].name",
        ),
        (
            to(json!({"headers": [{"name": "x", "values": []}]})),
            "spec.rules[0].to[0].headers[0].values",
        ),
        (mesh_tls(json!({})), "spec"),
        (
            mesh_tls(json!({"selector": {}, "mode": "Strict"})),
            "spec.selector",
        ),
        (
            mesh_tls(json!({"ports": [{"port": 0, "mode": "Strict"}]})),
            "spec.ports[0].port",
        ),
        (
            mesh_tls(
                json!({"ports": [{"port": 80, "mode": "Strict"}, {"port": 80, "mode": "Permissive"}]}),
            ),
            "spec.ports",
        ),
        (traffic(json!({})), "spec"),
        (
            traffic(json!({"loadBalancer": {"algorithm": "RingHash"}})),
            "spec.loadBalancer",
        ),
        (
            traffic(
                json!({"loadBalancer": {"algorithm": "RingHash", "hashOn": {"type": "Header"}}}),
            ),
            "spec.loadBalancer.hashOn",
        ),
        (
            traffic(json!({"outlierDetection": {"ejectionTime": "soon"}})),
            "spec.outlierDetection.ejectionTime",
        ),
        (
            traffic(json!({"outlierDetection": {"maxEjectedPercent": 101}})),
            "spec.outlierDetection.maxEjectedPercent",
        ),
        (
            traffic(json!({"loadBalancer": {
                "algorithm": "RingHash", "hashOn": {"type": "SourceAddress"}, "zoneAware": {},
            }})),
            "spec.loadBalancer",
        ),
        (
            traffic(json!({"loadBalancer": {"slowStart": {"minPercent": 1}}})),
            "spec.loadBalancer.slowStart.window",
        ),
        (
            traffic(json!({"adaptiveConcurrency": {"minRequests": 2, "maxRequests": 1}})),
            "spec.adaptiveConcurrency",
        ),
        (
            traffic(json!({"rateLimit": {"requests": 0, "unit": "Second"}})),
            "spec.rateLimit.requests",
        ),
        (
            traffic(
                json!({"rateLimit": {"requests": 1, "unit": "Second", "per": {"type": "Header"}}}),
            ),
            "spec.rateLimit.per",
        ),
    ]
}
