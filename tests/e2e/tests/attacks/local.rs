//! Processes that have no business on the node's local sockets. The attacker is root in a pod that
//! mounts the node's folder, which is more than most attackers have.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use seine_e2e::attack::local::hexadecimal;
use seine_e2e::attack::report::Said;
use seine_e2e::until;
use seine_lab::protocol::Component;
use seine_proto::handover::{Hello, Introduction, Peer, Role};
use seine_proto::listeners::{ListenersRequest, ListenersResponse};
use seine_proto::zds::{Version, WorkloadRequest, ZdsHello};

use super::stage::{ATTACKER, NODE, Stage, program};

/// Says a packet to a socket of node 1 from the attacker's pod.
fn from_a_pod(stage: &Stage, socket: &str, packet: &[u8]) -> Result<Said> {
    let path = format!("{NODE}/{socket}");
    stage.attack(ATTACKER, &["say", &path, &hexadecimal(packet)])
}

/// The pod of a component of node 1.
fn place(stage: &Stage, component: Component, name: &str) -> Result<String> {
    let generation = stage.bed.component(component, Some(1))?.generation;
    Ok(format!("seine-system/seine-{name}-node1-{generation}"))
}

/// The same from where ztunnel runs.
fn from_ztunnels_place(stage: &Stage, socket: &str, packet: &[u8]) -> Result<Said> {
    let path = stage.state()?.join("node1").join(socket);
    stage.attack(
        &place(stage, Component::Ztunnel, "ztunnel")?,
        &["say", &path.display().to_string(), &hexadecimal(packet)],
    )
}

/// The attack is closed without an answer, for a reason that is logged anew.
fn turned_away(
    stage: &Stage,
    component: Component,
    needles: &[&str],
    socket: &str,
    packet: &[u8],
) -> Result<()> {
    let before = stage.log_lines(component, 1, needles)?.len();
    let said = from_a_pod(stage, socket, packet)?;
    ensure!(said == Said::Closed, "{said:?}");
    let after = stage.log_lines(component, 1, needles)?.len();
    ensure!(after == before + 1, "logged {after} times, before {before}");
    Ok(())
}

fn answer(said: Said) -> Result<Vec<u8>> {
    match said {
        Said::Answered(packet) => Ok(packet),
        other => bail!("the twin failed: {other:?}"),
    }
}

pub(crate) fn a_process_that_poses_as_ztunnel_is_told_of_no_pod(stage: &Stage) -> Result<()> {
    let hello = ZdsHello {
        version: Version::V1.into(),
    }
    .encode_to_vec();
    let socket = "run/ztunnel.sock";
    let reason = [
        "refused to tell a process of the node's pods",
        "is not below cgroup",
    ];
    turned_away(stage, Component::Agent, &reason, socket, &hello)?;
    let told = answer(from_ztunnels_place(stage, socket, &hello)?)?;
    let request = WorkloadRequest::decode(told.as_slice())?;
    ensure!(request.payload.is_some(), "{request:?}");
    Ok(())
}

pub(crate) fn a_process_that_poses_as_ztunnel_gets_no_listening_sockets(
    stage: &Stage,
) -> Result<()> {
    let request = ListenersRequest {
        uid: stage.bed.pod("mesh/client")?.uid,
    }
    .encode_to_vec();
    let socket = "run/listeners.sock";
    let reason = [
        "refused to hand listening sockets to a process",
        "is not below cgroup",
    ];
    turned_away(stage, Component::Agent, &reason, socket, &request)?;
    let handed = answer(from_ztunnels_place(stage, socket, &request)?)?;
    let response = ListenersResponse::decode(handed.as_slice())?;
    ensure!(
        response.error.is_empty() && !response.listeners.is_empty(),
        "{response:?}"
    );
    Ok(())
}

pub(crate) fn a_process_that_poses_as_ztunnels_successor_gets_no_keys(stage: &Stage) -> Result<()> {
    let hello = Hello {
        role: Role::Successor.into(),
    }
    .encode_to_vec();
    let socket = "run/handover.sock";
    let process = stage.bed.process(Component::Ztunnel, Some(1))?;
    let reason = [
        "refused to let a process take part in a hand-over",
        "is not below cgroup",
    ];
    turned_away(stage, Component::Agent, &reason, socket, &hello)?;
    let told = answer(from_ztunnels_place(stage, socket, &hello)?)?;
    let introduction = Introduction::decode(told.as_slice())?;
    ensure!(introduction.peer() == Peer::Connected, "{introduction:?}");
    // Who asked and went away has changed nothing.
    stage
        .bed
        .await_ztunnel(1, &["a hand-over was begun and not finished"])?;
    let host = stage.server(8080)?.ip().to_string();
    stage.bed.echoes("mesh/client", &host, 8080)?;
    ensure!(
        stage.bed.process(Component::Ztunnel, Some(1))? == process,
        "another ztunnel runs"
    );
    Ok(())
}

pub(crate) fn a_process_that_poses_as_the_agent_is_not_spoken_to(stage: &Stage) -> Result<()> {
    let lab = stage.bed.lab();
    lab.kill(Component::Agent, 1)?;
    // An attacker who got hold of the path, which only root can write.
    let taken = format!("{NODE}/run/ztunnel.sock");
    let own = stage.state()?.join("node1/run/ztunnel.sock");
    let own = own.display().to_string();
    let place = place(stage, Component::Agent, "agent")?;
    let listen = |pod: &str, arguments: &[&str]| -> Result<Said> {
        stage.attack(pod, &[&["listen"], arguments].concat())
    };
    let outcome = || -> Result<[Said; 3]> {
        Ok([
            listen(ATTACKER, &[&taken, "--user", "65534"])?,
            listen(ATTACKER, &[&taken])?,
            listen(&place, &[&own])?,
        ])
    };
    let outcome = outcome();
    lab.restart(Component::Agent, 1)?;
    let [of_another_user, of_root, twin] = outcome?;
    ensure!(of_another_user == Said::Closed, "{of_another_user:?}");
    ensure!(of_root == Said::Closed, "{of_root:?}");
    for reason in ["its user id is 65534", "not below"] {
        stage
            .bed
            .await_ztunnel(1, &["is not the agent", reason, "the agent is away"])?;
    }
    let hello = ZdsHello::decode(answer(twin)?.as_slice())?;
    ensure!(hello.version == i32::from(Version::V1), "{hello:?}");
    stage.bed.await_enrolled("mesh/client", true)
}

/// The same from outside of the cgroup of pods, where a container runtime is.
fn from_outside_of_pods(stage: &Stage, socket: &str, packet: &[u8]) -> Result<Said> {
    let inside = stage.bed.process(Component::Agent, Some(1))?;
    let path = stage.state()?.join("node1").join(socket);
    let output = Command::new("nsenter")
        .args(["--target", &inside.to_string(), "--pid", "--mount"])
        .arg(program())
        .arg("say")
        .arg(path)
        .arg(hexadecimal(packet))
        .output()
        .context("running nsenter")?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

pub(crate) fn a_process_that_poses_as_the_cni_plugin_is_not_answered(stage: &Stage) -> Result<()> {
    let request = br#"{"command":"STATUS"}"#;
    let socket = "run/cni.sock";
    let reason = [
        "refused a process that came as a CNI plugin",
        "which holds pods",
    ];
    turned_away(stage, Component::Agent, &reason, socket, request)?;
    let said = from_outside_of_pods(stage, socket, request)?;
    let text = String::from_utf8(answer(said)?)?;
    ensure!(text.contains("done"), "{text}");
    Ok(())
}

/// Of processes that may use the sockets: each says garbage there, and then what the protocol has.
pub(crate) fn garbage_on_the_agents_sockets_harms_nobody(stage: &Stage) -> Result<()> {
    type From = fn(&Stage, &str, &[u8]) -> Result<Said>;
    let process = stage.bed.process(Component::Agent, Some(1))?;
    let proxy = from_ztunnels_place as From;
    let hello = ZdsHello {
        version: Version::V1.into(),
    };
    let request = ListenersRequest {
        uid: stage.bed.pod("mesh/client")?.uid,
    };
    let successor = Hello {
        role: Role::Successor.into(),
    };
    for (socket, from, reason, good) in [
        (
            "run/ztunnel.sock",
            proxy,
            "the proxy sent what the protocol does not have here",
            hello.encode_to_vec(),
        ),
        (
            "run/listeners.sock",
            proxy,
            "hand over listening sockets",
            request.encode_to_vec(),
        ),
        (
            "run/handover.sock",
            proxy,
            "a hand-over between node proxies",
            successor.encode_to_vec(),
        ),
        (
            "run/cni.sock",
            from_outside_of_pods,
            "the request can't be read",
            br#"{"command":"STATUS"}"#.to_vec(),
        ),
    ] {
        let logged = || stage.log_lines(Component::Agent, 1, &[reason]);
        let before = logged()?.len();
        match from(stage, socket, &[0xff; 100])? {
            Said::Closed => {}
            // The plugin hears why, so that the pod's event says it.
            Said::Answered(text) => ensure!(
                String::from_utf8_lossy(&text).contains("the request can't be read"),
                "{socket}: {text:?}"
            ),
            other => bail!("{socket}: {other:?}"),
        }
        until(&format!("the reason on {socket} is logged"), || {
            Ok((logged()?.len() > before).then_some(()))
        })?;
        answer(from(stage, socket, &good)?).with_context(|| socket.to_owned())?;
    }
    ensure!(
        stage.bed.process(Component::Agent, Some(1))? == process,
        "the agent did not survive"
    );
    Ok(())
}
