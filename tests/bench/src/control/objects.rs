//! A mesh as manifests.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::Plan;

/// A thousand pods each.
pub(super) fn namespaces(workloads: usize) -> usize {
    workloads.div_ceil(1000)
}

/// A thousand pods and twenty Services to a namespace; a policy for each.
pub(super) fn write(plan: &Plan, folder: &Path) -> Result<()> {
    for namespace in 0..namespaces(plan.workloads) {
        let mut text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns-{namespace}, labels: {{seine.dev/mesh: enabled}}}}\n\
             ---\napiVersion: policy.seine.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: own, namespace: ns-{namespace}}}\n\
             spec: {{rules: [{{from: [{{namespaces: [ns-{namespace}]}}]}}]}}\n"
        );
        for service in 0..20 {
            write!(
                text,
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{service}, namespace: ns-{namespace}}}\n\
                 spec: {{clusterIP: 172.16.{namespace}.{}, selector: {{app: s{service}}}, ports: [{{port: 80, targetPort: 8080}}]}}\n",
                service + 1
            )?;
        }
        let first = namespace * 1000;
        for index in first..plan.workloads.min(first + 1000) {
            let ip = format!("10.{}.{}.{}", index >> 16, index >> 8 & 255, index & 255);
            let service = index % 20;
            text += &pod(
                &format!("ns-{namespace}"),
                &format!("s{service}-{index}"),
                &format!("s{service}"),
                &format!("node-{}", index % plan.proxies),
                &ip,
            );
        }
        fs::write(folder.join(format!("ns-{namespace}.yaml")), text)?;
    }
    Ok(())
}

/// The pod that changes, for the time of this number.
pub(super) fn changed(number: usize) -> String {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: changes, labels: {seine.dev/mesh: enabled}}\n";
    let ip = format!("10.254.0.{}", number % 250 + 1);
    format!(
        "{namespace}{}",
        pod("changes", "changed", "changed", "node-0", &ip)
    )
}

fn pod(namespace: &str, name: &str, app: &str, node: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, uid: {name}, labels: {{app: {app}}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {app}, containers: [{{name: c, image: none}}]}}\n\
         status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n"
    )
}
