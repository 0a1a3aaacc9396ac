//! Many objects in a short time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use seine_e2e::manifests::authorization;
use seine_kubernetes_tests::{step, within};
use serde_json::json;

use crate::bed::{Bed, namespace, pod};

const PODS: usize = 10_000;
const NAMESPACES: usize = 20;
/// Requests at a time: more is of no use to one API server.
const BESIDE: usize = 64;

pub(crate) fn ten_thousand_pods_come_and_go(bed: &Bed) -> Result<()> {
    let replica = bed.ready_replica("storm-0")?;
    let names: Vec<_> = (0..NAMESPACES)
        .map(|index| format!("storm-{index}"))
        .collect();
    let mut objects = Vec::new();
    for name in &names {
        objects.push(namespace(name, json!({"seine.dev/mesh": "enabled"})));
        objects.push(authorization(
            name,
            "counted",
            "storm",
            "Allow",
            json!([{}]),
        ));
    }
    bed.cluster.apply(&objects)?;
    // How many pods the policies select, as the model that proxies are told from has it.
    let selected = || -> Result<usize> {
        let page: serde_json::Value = serde_json::from_str(&replica.status()?)?;
        let text = page.to_string();
        let counts = text.split("node proxies for ").skip(1);
        let counts = counts.filter_map(|rest| rest.split(' ').next()?.parse::<usize>().ok());
        let outside = text.split("proxies for 0 pods; ").skip(1);
        let outside = outside.filter_map(|rest| rest.split(' ').next()?.parse::<usize>().ok());
        Ok(counts.sum::<usize>() + outside.sum::<usize>())
    };
    within(60, "the policies are known", || {
        Ok((selected()? == 0).then_some(()))
    })?;
    let before = replica.memory("VmRSS")?;

    let begun = Instant::now();
    bed.runtime.block_on(async {
        let names = &names;
        futures::stream::iter(0..PODS)
            .map(|index| async move {
                let name = &names[index % NAMESPACES];
                let labels = json!({"app": "storm"});
                let one = pod(name, &format!("pod-{index}"), "default", None, labels);
                let api = Api::<Pod>::namespaced(bed.client.clone(), name);
                let mut object: Pod = serde_json::from_value(one)?;
                object.spec.get_or_insert_default().node_name =
                    Some(format!("node-{}", index % 100));
                let made = api.create(&PostParams::default(), &object).await?;
                // As a kubelet would: with an address it is a workload.
                let address = format!(
                    "10.{}.{}.{}",
                    100 + index / 65_000,
                    index / 250 % 256,
                    index % 250 + 1
                );
                let status = json!({"status": {
                    "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                    "conditions": [{"type": "Ready", "status": "True"}],
                }});
                let name = made.metadata.name.context("a pod without a name")?;
                let patch = kube::api::Patch::Merge(status);
                api.patch_status(&name, &kube::api::PatchParams::default(), &patch)
                    .await?;
                anyhow::Ok(())
            })
            .buffer_unordered(BESIDE)
            .try_collect::<()>()
            .await
    })?;
    let made = begun.elapsed();
    let came = converge(&selected, PODS)?;
    step(format!(
        "{PODS} pods came in {:.1} s, the model followed {:.1} s later; memory {before} MiB before, {} now, {} at most",
        made.as_secs_f64(),
        came.as_secs_f64(),
        replica.memory("VmRSS")?,
        replica.memory("VmHWM")?,
    ));

    let begun = Instant::now();
    bed.runtime.block_on(async {
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        for name in &names {
            let api = Api::<Pod>::namespaced(bed.client.clone(), name);
            api.delete_collection(&now, &ListParams::default()).await?;
        }
        anyhow::Ok(())
    })?;
    let deleted = begun.elapsed();
    let went = converge(&selected, 0)?;
    step(format!(
        "they went in {:.1} s, the model followed {:.1} s later; memory {} MiB now, {} at most",
        deleted.as_secs_f64(),
        went.as_secs_f64(),
        replica.memory("VmRSS")?,
        replica.memory("VmHWM")?,
    ));
    // The limit of the chart.
    ensure!(
        replica.memory("VmHWM")? < 1024,
        "more memory than the chart allows"
    );
    Ok(())
}

/// How long it takes until the model has so many.
fn converge(selected: &dyn Fn() -> Result<usize>, wanted: usize) -> Result<Duration> {
    let begun = Instant::now();
    within(180, &format!("the model has {wanted} pods"), || {
        let now = selected()?;
        ensure!(now == wanted, "it has {now}");
        Ok(Some(()))
    })?;
    Ok(begun.elapsed())
}
