use super::*;
use serde_json::{Value, json};

/// `shop/web`, `shop/db` and `ops/prometheus` are in the mesh.
struct Cluster {
    namespaces: BTreeMap<String, Namespace>,
    pods: Vec<(ObjectKey, Pod)>,
}

impl Cluster {
    fn new() -> Self {
        let namespace = |name: &str| {
            let object = json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
            (name.to_owned(), serde_json::from_value(object).unwrap())
        };
        let pod = |namespace: &str, name: &str, ip: &str| {
            let object = json!({
                "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "ports": [
                    {"name": "http", "containerPort": 8080}, {"name": "tunnel", "containerPort": 15008}]}]},
                "status": {"podIPs": [{"ip": ip}]},
            });
            (
                ObjectKey::new(namespace, name),
                serde_json::from_value(object).unwrap(),
            )
        };
        Self {
            namespaces: ["shop", "ops"].map(namespace).into(),
            pods: vec![
                pod("shop", "web", "10.0.0.1"),
                pod("shop", "db", "10.0.0.2"),
                pod("ops", "prometheus", "10.1.0.1"),
            ],
        }
    }

    fn blocked(&self, specs: &[Value]) -> BTreeMap<ObjectKey, Blocked> {
        let policies = specs.iter().enumerate().map(|(index, spec)| {
            let name = format!("p{index}");
            let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
            let policy: NetworkPolicy = serde_json::from_value(object).unwrap();
            (ObjectKey::new("shop", name), Arc::new(policy))
        });
        let mesh: Vec<_> = self
            .pods
            .iter()
            .map(|(key, pod)| MeshPod {
                key,
                pod,
                namespace: self.namespaces.get(&key.namespace),
            })
            .collect();
        blocked(&policies.collect(), &mesh)
    }

    /// `policy direction: pods <> peers` of each finding.
    fn found(&self, specs: &[Value]) -> Vec<String> {
        let mut lines = Vec::new();
        for (key, blocked) in self.blocked(specs) {
            for (name, cut) in [("ingress", &blocked.ingress), ("egress", &blocked.egress)] {
                if let Some(Cut { pods, peers }) = cut {
                    lines.push(format!("{} {name}: {pods} <> {peers}", key.name));
                }
            }
        }
        lines
    }
}

fn db(ingress: Value) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": ingress})
}

#[test]
fn each_policy_alone() {
    let web = json!({"podSelector": {"matchLabels": {"app": "web"}}});
    let anybody = json!({"namespaceSelector": {}});
    let all = "p0 ingress: shop/db <> ops/prometheus, shop/web";
    let only_web = "p0 ingress: shop/db <> shop/web";
    let cases: Vec<(&str, Value, Vec<&str>)> = vec![
        (
            "the application's port from everybody",
            db(json!([{"ports": [{"port": 5432}]}])),
            vec![all],
        ),
        (
            "by selector of namespaces",
            db(json!([{"from": [anybody], "ports": [{"port": 5432}]}])),
            vec![all],
        ),
        (
            "from one peer",
            db(json!([{"from": [web], "ports": [{"port": 5432}]}])),
            vec![only_web],
        ),
        (
            "a named port",
            db(json!([{"from": [web], "ports": [{"port": "http"}]}])),
            vec![only_web],
        ),
        (
            "an unknown named port",
            db(json!([{"from": [web], "ports": [{"port": "nothing"}]}])),
            vec![only_web],
        ),
        (
            "a range that ends before",
            db(json!([{"from": [web], "ports": [{"port": 8000, "endPort": 15007}]}])),
            vec![only_web],
        ),
        (
            "15008 as UDP",
            db(
                json!([{"from": [web], "ports": [{"port": 5432}, {"port": 15008, "protocol": "UDP"}]}]),
            ),
            vec![only_web],
        ),
        (
            "another's 15008",
            db(json!([{"from": [web], "ports": [{"port": 5432}]},
            {"from": [{"podSelector": {"matchLabels": {"app": "other"}}}], "ports": [{"port": 15008}]}])),
            vec![only_web],
        ),
        (
            "an address block that holds a pod",
            db(
                json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/24"}}], "ports": [{"port": 5432}]}]),
            ),
            vec![only_web],
        ),
        (
            "15008 beside it",
            db(json!([{"from": [web], "ports": [{"port": 5432}, {"port": 15008}]}])),
            vec![],
        ),
        (
            "15008 from more than those",
            db(json!([{"from": [web], "ports": [{"port": 5432}]}, {"ports": [{"port": 15008}]}])),
            vec![],
        ),
        (
            "15008 by name",
            db(json!([{"ports": [{"port": 5432}, {"port": "tunnel"}]}])),
            vec![],
        ),
        (
            "15008 in a range",
            db(json!([{"ports": [{"port": 1024, "endPort": 65535}]}])),
            vec![],
        ),
        (
            "every TCP port",
            db(json!([{"ports": [{"port": 5432}, {"protocol": "TCP"}]}])),
            vec![],
        ),
        ("every port", db(json!([{"from": [web]}])), vec![]),
        (
            "an empty list of ports",
            db(json!([{"from": [web], "ports": []}])),
            vec![],
        ),
        (
            "UDP alone",
            db(json!([{"ports": [{"port": 53, "protocol": "UDP"}]}])),
            vec![],
        ),
        (
            "nobody at all, with the mesh or without",
            db(json!([])),
            vec![],
        ),
        ("no rules", json!({"podSelector": {}}), vec![]),
        (
            "only peers that are not in the mesh",
            db(
                json!([{"from": [{"podSelector": {"matchLabels": {"app": "cron"}}}], "ports": [{"port": 5432}]}]),
            ),
            vec![],
        ),
        (
            "peers of a namespace without labels known",
            db(
                json!([{"from": [{"namespaceSelector": {"matchLabels": {"team": "x"}}}], "ports": [{"port": 5432}]}]),
            ),
            vec![],
        ),
        (
            "an address block outside",
            db(
                json!([{"from": [{"ipBlock": {"cidr": "192.168.0.0/16"}}], "ports": [{"port": 5432}]}]),
            ),
            vec![],
        ),
        (
            "an address block with the pods left out",
            db(
                json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/24", "10.1.0.0/16"]}}], "ports": [{"port": 5432}]}]),
            ),
            vec![],
        ),
        (
            "no pod selected",
            json!({"podSelector": {"matchLabels": {"app": "none"}}, "ingress": [{"ports": [{"port": 1}]}]}),
            vec![],
        ),
        (
            "rules of a type that does not hold",
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}], "ingress": [{"ports": [{"port": 1}]}]}),
            vec![],
        ),
    ];
    let cluster = Cluster::new();
    for (what, spec, wanted) in cases {
        assert_eq!(cluster.found(&[spec]), wanted, "{what}");
    }
}

#[test]
fn policies_that_select_the_same_pod_add_up() {
    let cluster = Cluster::new();
    let application = db(json!([{"ports": [{"port": 5432}]}]));
    let deny = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    let hbone = json!({"podSelector": {}, "ingress": [{"ports": [{"port": 15008}]}]});
    assert_eq!(
        cluster.found(&[application.clone(), deny.clone()]),
        ["p0 ingress: shop/db <> ops/prometheus, shop/web"],
        "named is the one that lets them in, not the one that denies"
    );
    assert_eq!(
        cluster.found(&[application, deny, hbone]),
        Vec::<String>::new()
    );
}

#[test]
fn egress_of_the_first_pod_has_to_admit_it_too() {
    let cluster = Cluster::new();
    let to_db = json!({"podSelector": {"matchLabels": {"app": "db"}}});
    let web = |egress: Value| json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"], "egress": egress});
    let dns = json!({"ports": [{"port": 53, "protocol": "UDP"}]});
    assert_eq!(
        cluster.found(&[web(
            json!([dns, {"to": [to_db], "ports": [{"port": 5432}]}])
        )]),
        ["p0 egress: shop/web <> shop/db"]
    );
    assert_eq!(
        cluster.found(&[web(
            json!([dns, {"to": [to_db], "ports": [{"port": 5432}, {"port": 15008}]}])
        )]),
        Vec::<String>::new()
    );
    // The name is the destination's.
    assert_eq!(
        cluster.found(&[web(json!([{"to": [to_db], "ports": [{"port": "tunnel"}]}]))]),
        Vec::<String>::new()
    );
    // With rules and without a type named, both directions hold.
    let both = json!({"podSelector": {"matchLabels": {"app": "web"}}, "egress": [{"ports": [{"port": 5432}]}], "ingress": [{"ports": [{"port": 80}]}]});
    assert_eq!(cluster.found(&[both]).len(), 2);
}

#[test]
fn a_finding_says_who_loses_whom_and_what_to_do() {
    let mut cluster = Cluster::new();
    for number in 0..5 {
        let (_, mut pod) = cluster.pods[1].clone();
        pod.metadata.name = Some(format!("db-{number}"));
        cluster
            .pods
            .push((ObjectKey::new("shop", format!("db-{number}")), pod));
    }
    let blocked = cluster.blocked(&[db(
        json!([{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 5432}]}]),
    )]);
    let blocked = &blocked[&ObjectKey::new("shop", "p0")];
    assert_eq!(blocked.ingress.as_ref().unwrap().pods.count(), 6);
    assert_eq!(
        blocked.to_string(),
        "connections to shop/db, shop/db-0, shop/db-1 and 3 more from shop/web are admitted on other ports \
         and not on TCP 15008, on which the mesh carries them: admit TCP 15008 from the same peers"
    );
}

#[test]
fn selectors_judge_every_operator_and_an_unknown_one_selects_nothing() {
    let labels = BTreeMap::from([("app".to_owned(), "db".to_owned())]);
    let cases = [
        (json!({}), true, true),
        (json!({"matchLabels": {"app": "db"}}), true, false),
        (
            json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["db"]}]}),
            true,
            false,
        ),
        (
            json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]}),
            false,
            true,
        ),
        (
            json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}),
            true,
            false,
        ),
        (
            json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}),
            false,
            true,
        ),
        (
            json!({"matchExpressions": [{"key": "app", "operator": "Like"}]}),
            false,
            false,
        ),
    ];
    for (selector, with, without) in cases {
        let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
        assert_eq!(selects(&parsed, Some(&labels)), with, "{selector}");
        assert_eq!(selects(&parsed, None), without, "{selector}");
    }
}
