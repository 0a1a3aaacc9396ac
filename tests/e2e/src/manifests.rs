//! Kubernetes objects for tests, as short as what matters about them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The label by which a namespace or pod opts in or out.
pub const MESH_LABEL: &str = "seine.dev/mesh";

/// Many objects as one text that the lab takes, with the service accounts of the pods among them.
pub fn text(objects: &[Value]) -> String {
    let accounts = objects.iter().filter_map(|object| {
        let spec = match object["kind"].as_str()? {
            "Pod" => &object["spec"],
            _ => &object["spec"]["template"]["spec"],
        };
        let namespace = object["metadata"]["namespace"].as_str()?;
        Some(account(namespace, spec["serviceAccountName"].as_str()?))
    });
    accounts
        .chain(objects.iter().cloned())
        .map(|object| format!("---\n{object}\n"))
        .collect()
}

/// A namespace whose pods are in the mesh.
pub fn meshed_namespace(name: &str) -> Value {
    namespace(name, json!({MESH_LABEL: "enabled"}))
}

/// A namespace whose pods are not in the mesh.
pub fn plain_namespace(name: &str) -> Value {
    namespace(name, json!({}))
}

fn namespace(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    })
}

/// A service account.
pub fn account(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace},
    })
}

/// A pod that runs `seine-e2e-peer`.
#[derive(Clone, Debug)]
pub struct Pod {
    namespace: String,
    name: String,
    node: u8,
    account: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    services: Vec<String>,
    probes: Value,
    grace: u16,
}

impl Pod {
    /// A pod on `node` with label `app` and service account of its own name, that serves nothing.
    pub fn new(namespace: &str, name: &str, node: u8) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node,
            account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            annotations: BTreeMap::new(),
            services: Vec::new(),
            probes: json!({}),
            grace: 1,
        }
    }

    /// With another service account.
    pub fn account(mut self, account: &str) -> Self {
        self.account = account.to_owned();
        self
    }

    /// With another or one more label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Runs these servers, as `echo:8080`: see [`crate::peer::serve`].
    pub fn serves(mut self, services: &[&str]) -> Self {
        self.services = services.iter().map(|&s| s.to_owned()).collect();
        self
    }

    /// Fields of its container such as `readinessProbe`; by default it is ready when its first
    /// server listens, which a program in the pod finds out.
    pub fn container(mut self, fields: Value) -> Self {
        self.probes = fields;
        self
    }

    /// Goes on after SIGTERM, until it is killed or these seconds are over.
    pub fn stays(mut self, seconds: u16) -> Self {
        self.grace = seconds;
        self
    }

    fn spec(&self) -> Value {
        let peer = crate::bed::peer_program();
        let peer = peer.display().to_string();
        let mut command = vec![peer.clone(), "serve".to_owned()];
        command.extend(self.services.iter().cloned());
        if self.grace > 1 {
            let deaf = ["sh", "-c", "trap '' TERM; exec \"$0\" \"$@\""];
            command.splice(0..0, deaf.map(str::to_owned));
        }
        let mut container = json!({"name": "peer", "command": command});
        if let Some(port) = self.services.first().and_then(|s| s.split(':').nth(1)) {
            container["readinessProbe"] = json!({"exec": {
                "command": [peer, "ask", "127.0.0.1", port, "--connect-only"],
            }, "timeoutSeconds": 10});
        }
        if let (Some(container), Some(fields)) =
            (container.as_object_mut(), self.probes.as_object())
        {
            container.extend(fields.clone());
        }
        json!({
            "nodeName": format!("node{}", self.node),
            "serviceAccountName": self.account,
            "terminationGracePeriodSeconds": self.grace,
            "containers": [container],
        })
    }

    /// The object.
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.name, "namespace": self.namespace,
                "labels": self.labels, "annotations": self.annotations,
            },
            "spec": self.spec(),
        })
    }

    /// A StatefulSet of `replicas` such pods, of the headless service with its name.
    pub fn stateful_set(&self, replicas: u8) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "serviceName": self.name,
                "replicas": replicas,
                "selector": {"matchLabels": self.labels},
                "template": {
                    "metadata": {"labels": self.labels, "annotations": self.annotations},
                    "spec": self.spec(),
                },
            },
        })
    }
}

/// A dual-stack service for the pods with `app: <app>`; ports are (name, port, target port).
pub fn service(namespace: &str, name: &str, app: &str, ports: &[(&str, u16, u16)]) -> Value {
    let ports: Vec<_> = ports
        .iter()
        .map(|(name, port, target)| json!({"name": name, "port": port, "targetPort": target}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"app": app},
            "ipFamilyPolicy": "PreferDualStack",
            "ports": ports,
        },
    })
}

/// As [`service`], without an address of its own.
pub fn headless(namespace: &str, name: &str, app: &str, ports: &[(&str, u16, u16)]) -> Value {
    let mut service = service(namespace, name, app, ports);
    service["spec"]["clusterIP"] = "None".into();
    service
}

/// An AuthorizationPolicy for the pods with `app: <app>`.
pub fn authorization(namespace: &str, name: &str, app: &str, action: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": app}},
            "action": action,
            "rules": rules,
        },
    })
}

/// A MeshTLS for the pods with `app: <app>`; mode is `Strict` or `Permissive`.
pub fn mesh_tls(namespace: &str, name: &str, app: &str, mode: &str) -> Value {
    json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": "MeshTLS",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": app}}, "mode": mode},
    })
}
