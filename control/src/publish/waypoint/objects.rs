//! The objects of a Gateway of ours, as they should be: of a waypoint, or of one that takes connections from outside. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seine_objects::ObjectKey;
use seine_objects::gateway::{GATEWAY_NAME_LABEL, Gateway, Infrastructure, WAYPOINT_PORT};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::publish::{FIELD_MANAGER, MANAGED_BY};
use crate::translate::ingress;

/// The label with the class of the Gateway that an object belongs to.
const CLASS_LABEL: &str = "gateway.networking.k8s.io/gateway-class-name";

/// Annotations of `spec.infrastructure` that say how big a waypoint is, beside those of `RESOURCES`.
const MIN_REPLICAS: &str = "seine.dev/min-replicas";
const MAX_REPLICAS: &str = "seine.dev/max-replicas";
/// Another version of the template's image: so that one waypoint can be tried before all follow.
const IMAGE_TAG: &str = "seine.dev/image-tag";
/// Annotations of `spec.infrastructure`, and where in the container's resources they belong.
const RESOURCES: [(&str, [&str; 2]); 4] = [
    ("seine.dev/cpu-request", ["requests", "cpu"]),
    ("seine.dev/memory-request", ["requests", "memory"]),
    ("seine.dev/cpu-limit", ["limits", "cpu"]),
    ("seine.dev/memory-limit", ["limits", "memory"]),
];

/// What all waypoints of this installation have in common: the chart writes it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Template {
    /// Pods at least.
    pub min_replicas: u32,
    /// Pods at most.
    pub max_replicas: u32,
    /// Of the CPU that is requested, in percent: more pods are started above it.
    pub target_cpu: u32,
    /// The pod: metadata and spec. Its first container is the waypoint.
    pub pod: Value,
}

/// The template is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It can't be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is none.
    #[error("{}: {source}", path.display())]
    Malformed {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// There is nothing to run in its pod.
    #[error("{}: pod.spec.containers is empty", path.display())]
    Empty {
        /// Its file.
        path: PathBuf,
    },
}

/// A setting of a Gateway that can't be obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct BadParameter {
    /// Where it is.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl Template {
    /// Reads a JSON file.
    ///
    /// # Errors
    ///
    /// When it can't be used.
    pub fn read(path: &Path) -> Result<Self, TemplateError> {
        let path = path.to_owned();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(source) => return Err(TemplateError::Unreadable { path, source }),
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(template) if template.pod["spec"]["containers"][0].is_object() => Ok(template),
            Ok(_) => Err(TemplateError::Empty { path }),
            Err(source) => Err(TemplateError::Malformed { path, source }),
        }
    }
}

/// The objects of a Gateway, in the order in which they need each other.
///
/// # Errors
///
/// When its parameters can't be obeyed.
pub fn objects(
    key: &ObjectKey,
    gateway: &Gateway,
    template: &Template,
) -> Result<Vec<Value>, BadParameter> {
    let none = Infrastructure::default();
    let infrastructure = gateway.spec.infrastructure.as_ref().unwrap_or(&none);
    if let Some(reference) = &infrastructure.parameters_ref {
        return Err(BadParameter {
            field: "spec.infrastructure.parametersRef".into(),
            message: format!(
                "{} {} is not read: a waypoint is set by annotations, see docs/WAYPOINT.md",
                reference.kind, reference.name
            ),
        });
    }
    let (min, max) = replicas(&infrastructure.annotations, template)?;
    let service = service(gateway)?;
    let selector = json!({GATEWAY_NAME_LABEL: key.name});
    let mut labels: BTreeMap<_, _> = infrastructure.labels.clone();
    // After the user's: by these the objects are found.
    labels.insert(GATEWAY_NAME_LABEL.into(), key.name.clone());
    let class = &gateway.spec.gateway_class_name;
    labels.insert(CLASS_LABEL.into(), class.clone());
    labels.insert(MANAGED_BY.into(), FIELD_MANAGER.into());
    let metadata = json!({
        "name": key.name,
        "namespace": key.namespace,
        "labels": labels,
        "annotations": infrastructure.annotations,
        "ownerReferences": [{
            "apiVersion": gateway.api_version, "kind": gateway.kind, "name": key.name,
            "uid": gateway.metadata.uid, "controller": true,
        }],
    });
    let mut pod = pod(key, &labels, infrastructure, &template.pod)?;
    if gateway.is_ingress() {
        take_from_outside(&mut pod);
    }
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service,
    });
    service["spec"]["selector"] = selector.clone();
    Ok(vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata,
            // The pod has a token for the control plane, and calls no API server.
            "automountServiceAccountToken": false}),
        service,
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            // No replicas: they are the autoscaler's.
            "spec": {
                "revisionHistoryLimit": 3,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "selector": {"matchLabels": selector},
                "template": pod,
            },
        }),
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata,
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": key.name},
                "minReplicas": min,
                "maxReplicas": max,
                "metrics": [{"type": "Resource", "resource": {
                    "name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": template.target_cpu},
                }}],
            },
        }),
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata,
            "spec": {
                // Also with one replica: a node's drain must not wait for ever.
                "maxUnavailable": 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": selector},
            },
        }),
    ])
}

/// What its Service is, but for whom it selects.
fn service(gateway: &Gateway) -> Result<Value, BadParameter> {
    if !gateway.is_ingress() {
        return Ok(json!({
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{
                "name": "hbone", "port": WAYPOINT_PORT, "targetPort": WAYPOINT_PORT,
                "protocol": "TCP", "appProtocol": "kubernetes.io/hbone",
            }],
        }));
    }
    let ports = ingress::ports(gateway);
    if ports.is_empty() {
        return Err(BadParameter {
            field: "spec.listeners".into(),
            message: "none of them can be served".into(),
        });
    }
    let ports = ports.into_iter().map(|port| {
        json!({"name": format!("port-{port}"), "port": port, "targetPort": port, "protocol": "TCP"})
    });
    Ok(json!({
        "type": "LoadBalancer",
        "ipFamilyPolicy": "PreferDualStack",
        "ports": ports.collect::<Vec<_>>(),
    }))
}

/// The listeners' ports are no part of the pod, so that it isn't made anew when one comes. It may open low ones without being
/// root, in its own network namespace (a sysctl that Kubernetes holds to be safe).
fn take_from_outside(pod: &mut Value) {
    let spec = &mut pod["spec"];
    let low_ports = json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]);
    spec["securityContext"]["sysctls"] = low_ports;
    let container = &mut spec["containers"][0];
    if let Some(ports) = container["ports"].as_array_mut() {
        ports.retain(|port| port["containerPort"] != WAYPOINT_PORT);
    }
    let ingress = json!({"name": "SEINE_INGRESS", "value": "true"});
    match container["env"].as_array_mut() {
        Some(env) => env.push(ingress),
        None => container["env"] = json!([ingress]),
    }
}

fn replicas(
    annotations: &BTreeMap<String, String>,
    template: &Template,
) -> Result<(u32, u32), BadParameter> {
    let number = |name: &str| {
        let text = annotations.get(name)?;
        let parsed = text
            .parse()
            .ok()
            .filter(|number| (1..=1000).contains(number));
        Some(parsed.ok_or_else(|| bad(name, format!("{text:?} is no number from 1 to 1000"))))
    };
    let min: Option<u32> = number(MIN_REPLICAS).transpose()?;
    let max: Option<u32> = number(MAX_REPLICAS).transpose()?;
    match (min, max) {
        (Some(min), Some(max)) if min > max => Err(bad(
            MIN_REPLICAS,
            format!("{min} is more than {MAX_REPLICAS}, {max}"),
        )),
        // The one that is not set gives way.
        (Some(min), None) => Ok((min, min.max(template.max_replicas))),
        (None, Some(max)) => Ok((max.min(template.min_replicas), max)),
        (Some(min), Some(max)) => Ok((min, max)),
        (None, None) => Ok((template.min_replicas, template.max_replicas)),
    }
}

fn pod(
    key: &ObjectKey,
    labels: &BTreeMap<String, String>,
    infrastructure: &Infrastructure,
    template: &Value,
) -> Result<Value, BadParameter> {
    let mut pod = template.clone();
    add(
        &mut pod["metadata"]["annotations"],
        &infrastructure.annotations,
    );
    add(&mut pod["metadata"]["labels"], labels);
    let spec = &mut pod["spec"];
    spec["serviceAccountName"] = json!(key.name);
    let selector = json!({"matchLabels": {GATEWAY_NAME_LABEL: key.name}});
    // Its own pods are what it spreads and keeps apart; the template can't name them.
    for spread in items(&mut spec["topologySpreadConstraints"]) {
        spread["labelSelector"] = selector.clone();
    }
    if let Some(tag) = infrastructure.annotations.get(IMAGE_TAG) {
        let image = &mut spec["containers"][0]["image"];
        *image = json!(tagged(image.as_str().unwrap_or_default(), tag)?);
    }
    let resources = &mut spec["containers"][0]["resources"];
    for (name, [what, of]) in RESOURCES {
        if let Some(text) = infrastructure.annotations.get(name) {
            if !is_quantity(text) {
                return Err(bad(
                    name,
                    format!("{text:?} is no quantity, such as 500m or 128Mi"),
                ));
            }
            resources[what][of] = json!(text);
        }
    }
    Ok(pod)
}

/// The same image by another tag. Not another image: whoever may write a Gateway need not be somebody who may run anything.
fn tagged(image: &str, tag: &str) -> Result<String, BadParameter> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let begins_well = tag.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_');
    if !begins_well || tag.len() > 128 || !tag.bytes().all(plain) {
        return Err(bad(IMAGE_TAG, format!("{tag:?} is no tag of an image")));
    }
    let name = image.split('@').next().unwrap_or_default();
    // A colon before the last slash is a registry's port.
    let name = match name.rsplit_once(':') {
        Some((name, old)) if !old.contains('/') => name,
        _ => name,
    };
    Ok(format!("{name}:{tag}"))
}

fn bad(annotation: &str, message: String) -> BadParameter {
    BadParameter {
        field: format!("spec.infrastructure.annotations[{annotation}]"),
        message,
    }
}

/// Puts in what is not there: what the template says holds, above all that these are no pods of the mesh.
fn add(into: &mut Value, more: &BTreeMap<String, String>) {
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (name, value) in more {
        if into.get(name).is_none() {
            into[name] = json!(value);
        }
    }
}

fn items(list: &mut Value) -> &mut [Value] {
    list.as_array_mut().map_or(&mut [], Vec::as_mut_slice)
}

/// As far as is needed for an error here rather than at the API server: digits, and a suffix.
fn is_quantity(text: &str) -> bool {
    let suffix = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let digits = &text[..text.len() - suffix.len()];
    digits.parse::<f64>().is_ok() && ["", "m", "k", "M", "G", "Ki", "Mi", "Gi"].contains(&suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn template() -> Template {
        serde_json::from_value(json!({
            "minReplicas": 1, "maxReplicas": 3, "targetCpu": 80,
            "pod": {
                "metadata": {"labels": {"seine.dev/mesh": "disabled"}},
                "spec": {
                    "containers": [{"name": "waypoint", "image": "w:1", "resources": {"requests": {"cpu": "100m"}}}],
                    "topologySpreadConstraints": [{"topologyKey": "kubernetes.io/hostname"}],
                },
            },
        }))
        .unwrap()
    }

    fn gateway(infrastructure: Value) -> Gateway {
        serde_json::from_value(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "wp", "namespace": "shop", "uid": "u"},
            "spec": {"gatewayClassName": "seine-waypoint", "infrastructure": infrastructure},
        }))
        .unwrap()
    }

    fn made(infrastructure: Value) -> Result<Vec<Value>, BadParameter> {
        objects(
            &ObjectKey::new("shop", "wp"),
            &gateway(infrastructure),
            &template(),
        )
    }

    #[test]
    fn all_belong_to_the_gateway_and_find_each_other_whatever_the_user_labels_them() {
        let made = made(json!({
            "labels": {
                "team": "shop", "gateway.networking.k8s.io/gateway-name": "other", "seine.dev/mesh": "enabled",
            },
            "annotations": {"note": "x"},
        }))
        .unwrap();
        let kinds: Vec<_> = made
            .iter()
            .map(|one| one["kind"].as_str().unwrap())
            .collect();
        let expected = [
            "ServiceAccount",
            "Service",
            "Deployment",
            "HorizontalPodAutoscaler",
            "PodDisruptionBudget",
        ];
        assert_eq!(kinds, expected);
        for object in &made {
            let metadata = &object["metadata"];
            assert_eq!(
                (&metadata["name"], &metadata["namespace"]),
                (&json!("wp"), &json!("shop"))
            );
            assert_eq!(metadata["ownerReferences"][0]["uid"], "u");
            assert_eq!(metadata["ownerReferences"][0]["controller"], true);
            assert_eq!(metadata["labels"]["team"], "shop");
            assert_eq!(
                metadata["labels"]["gateway.networking.k8s.io/gateway-name"],
                "wp"
            );
            assert_eq!(metadata["annotations"]["note"], "x");
        }
        let pod = &made[2]["spec"]["template"];
        let own = json!({"gateway.networking.k8s.io/gateway-name": "wp"});
        for selector in [
            &made[1]["spec"]["selector"],
            &made[2]["spec"]["selector"]["matchLabels"],
            &made[4]["spec"]["selector"]["matchLabels"],
            &pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        ] {
            assert_eq!(*selector, own);
        }
        assert_eq!(
            pod["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"],
            "wp"
        );
        assert_eq!(pod["metadata"]["labels"]["seine.dev/mesh"], "disabled");
        assert_eq!(pod["spec"]["serviceAccountName"], "wp");
        assert!(made[2]["spec"].get("replicas").is_none());
    }

    #[test]
    fn a_way_into_the_mesh_has_a_load_balancer_with_its_listeners_ports_and_may_open_low_ones() {
        let ingress = |listeners: Value| {
            let mut gateway = gateway(json!({}));
            gateway.spec.gateway_class_name = "seine".into();
            gateway.spec.listeners = serde_json::from_value(listeners).unwrap();
            let mut template = template();
            template.pod["spec"]["containers"][0]["ports"] = json!([{"name": "hbone", "containerPort": 15008}, {"name": "metrics", "containerPort": 15020}]);
            objects(&ObjectKey::new("shop", "wp"), &gateway, &template)
        };
        let listener = |port: u16, protocol: &str| json!({"name": format!("{protocol}{port}"), "port": port, "protocol": protocol});
        let all = json!([
            listener(443, "HTTPS"),
            listener(80, "HTTP"),
            listener(81, "UDP")
        ]);
        let made = ingress(all).unwrap();
        let service = &made[1]["spec"];
        assert_eq!(service["type"], "LoadBalancer");
        let ports = service["ports"].as_array().unwrap().iter();
        let ports: Vec<_> = ports
            .map(|port| (&port["port"], &port["targetPort"]))
            .collect();
        assert_eq!(
            ports,
            [(&json!(80), &json!(80)), (&json!(443), &json!(443))]
        );
        assert_eq!(
            service["selector"],
            made[2]["spec"]["selector"]["matchLabels"]
        );
        assert_eq!(made[0]["metadata"]["labels"][CLASS_LABEL], "seine");
        let pod = &made[2]["spec"]["template"]["spec"];
        assert_eq!(
            pod["securityContext"]["sysctls"][0]["name"],
            "net.ipv4.ip_unprivileged_port_start"
        );
        assert_eq!(
            pod["containers"][0]["env"],
            json!([{"name": "SEINE_INGRESS", "value": "true"}])
        );
        assert_eq!(
            pod["containers"][0]["ports"],
            json!([{"name": "metrics", "containerPort": 15020}])
        );
        let none = ingress(json!([listener(81, "UDP")])).unwrap_err();
        assert_eq!(none.field, "spec.listeners");
    }

    #[test]
    fn a_waypoint_may_have_another_version_of_the_image_and_no_other_image() {
        for (image, expected) in [
            ("seine-waypoint:1.0", "seine-waypoint:1.1"),
            ("reg:5000/a/seine-waypoint", "reg:5000/a/seine-waypoint:1.1"),
            ("reg:5000/seine-waypoint:1.0", "reg:5000/seine-waypoint:1.1"),
            ("reg/seine-waypoint@sha256:00", "reg/seine-waypoint:1.1"),
        ] {
            assert_eq!(tagged(image, "1.1").unwrap(), expected);
        }
        let made = made(json!({"annotations": {"seine.dev/image-tag": "1.1"}})).unwrap();
        let image = &made[2]["spec"]["template"]["spec"]["containers"][0]["image"];
        assert!(image.as_str().unwrap().ends_with(":1.1"), "{image}");
    }

    #[test]
    fn annotations_say_how_big_it_is_and_what_is_no_size_is_refused() {
        let annotated = |annotations: Value| made(json!({"annotations": annotations}));
        let big = annotated(json!({
            "seine.dev/min-replicas": "5", "seine.dev/cpu-request": "2", "seine.dev/memory-limit": "1.5Gi",
        }));
        let big = big.unwrap();
        let autoscaler = &big[3]["spec"];
        // The template's three give way.
        assert_eq!(
            (&autoscaler["minReplicas"], &autoscaler["maxReplicas"]),
            (&json!(5), &json!(5))
        );
        let resources = &big[2]["spec"]["template"]["spec"]["containers"][0]["resources"];
        assert_eq!(
            *resources,
            json!({"requests": {"cpu": "2"}, "limits": {"memory": "1.5Gi"}})
        );

        for (annotations, field) in [
            (json!({"seine.dev/min-replicas": "0"}), "min-replicas"),
            (json!({"seine.dev/max-replicas": "many"}), "max-replicas"),
            (
                json!({"seine.dev/min-replicas": "3", "seine.dev/max-replicas": "2"}),
                "min-replicas",
            ),
            (json!({"seine.dev/cpu-request": "much"}), "cpu-request"),
            (json!({"seine.dev/image-tag": "evil/image:1"}), "image-tag"),
            (json!({"seine.dev/image-tag": "1@sha256:0"}), "image-tag"),
            (json!({"seine.dev/memory-request": ""}), "memory-request"),
        ] {
            let refused = annotated(annotations).unwrap_err();
            assert!(refused.field.contains(field), "{refused}");
        }
        let reference = json!({"parametersRef": {"group": "", "kind": "ConfigMap", "name": "c"}});
        assert!(
            made(reference)
                .unwrap_err()
                .field
                .ends_with("parametersRef")
        );
    }
}
