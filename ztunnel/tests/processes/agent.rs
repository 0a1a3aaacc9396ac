//! An agent of the test's own: it names one pod, keeps that pod's listening sockets, and introduces proxies.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use prost::Message;
use seine_proto::handover::{Hello, Introduction, Peer, Role};
use seine_proto::listeners::{Family, Kind, Listener, ListenersResponse};
use seine_proto::zds::workload_request::Payload;
use seine_proto::zds::{AddWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest};
use seine_ztunnel::netns::Netns;
use seine_ztunnel::seqpacket::{SeqPacket, SeqPacketListener};
use seine_ztunnel::sockets::listen;

/// Serves the agent's sockets in `folder` for pod `shop/b` in the namespace at `netns_path`.
pub(crate) fn start(folder: &Path, netns: &Netns, netns_path: PathBuf, hbone: SocketAddr) {
    let pods = SeqPacketListener::replace(&folder.join("zds")).unwrap();
    tokio::spawn(async move {
        loop {
            let proxy = pods.accept().await.unwrap();
            let netns_path = netns_path.clone();
            // A proxy that goes away is no concern of the agent's.
            tokio::spawn(async move { name_pods(&proxy, &netns_path).await });
        }
    });
    tokio::spawn(introduce(
        SeqPacketListener::replace(&folder.join("handover")).unwrap(),
    ));
    let listener = listen(netns, hbone, false).unwrap().into_std().unwrap();
    let listeners = SeqPacketListener::replace(&folder.join("listeners")).unwrap();
    tokio::spawn(async move {
        loop {
            let proxy = listeners.accept().await.unwrap();
            let mut request = [0; 1024];
            if !matches!(proxy.recv(&mut request).await, Ok(Some(_))) {
                continue;
            }
            let answer = ListenersResponse {
                error: String::new(),
                listeners: vec![Listener {
                    kind: Kind::InboundHbone as i32,
                    family: Family::Ipv4 as i32,
                }],
            };
            let given: OwnedFd = listener.try_clone().unwrap().into();
            let _ = proxy.send(&answer.encode_to_vec(), &[given]).await;
        }
    });
}

/// Leads who starts to the last one that said that it runs, if that one is there still.
async fn introduce(listener: SeqPacketListener) {
    let message = |peer: Peer| Introduction { peer: peer.into() }.encode_to_vec();
    let mut running: Option<SeqPacket> = None;
    loop {
        let proxy = listener.accept().await.unwrap();
        let mut buffer = [0; 1024];
        let Ok(Some((length, _))) = proxy.recv(&mut buffer).await else {
            continue;
        };
        if Hello::decode(&buffer[..length]).unwrap().role() == Role::Running {
            running = Some(proxy);
            continue;
        }
        let (here, there) = SeqPacket::pair().unwrap();
        let connected = message(Peer::Connected);
        let told = match &running {
            Some(running) => running.send(&connected, &[here]).await.is_ok(),
            None => false,
        };
        let _ = if told {
            proxy.send(&connected, &[there]).await
        } else {
            proxy.send_bytes(&message(Peer::Nobody)).await
        };
    }
}

async fn name_pods(proxy: &SeqPacket, netns: &Path) -> std::io::Result<()> {
    let mut answer = [0; 1024];
    // Its hello.
    proxy.recv(&mut answer).await?;
    let add = Payload::Add(AddWorkload {
        uid: "b".into(),
        workload_info: Some(WorkloadInfo {
            name: "b".into(),
            namespace: "shop".into(),
            service_account: "b".into(),
        }),
    });
    let encode = |payload| {
        WorkloadRequest {
            payload: Some(payload),
        }
        .encode_to_vec()
    };
    proxy.send(&encode(add), &[File::open(netns)?]).await?;
    proxy.recv(&mut answer).await?;
    let end = Payload::SnapshotSent(SnapshotSent {});
    proxy.send_bytes(&encode(end)).await?;
    // Its acknowledgement, and then until it goes.
    while proxy.recv(&mut answer).await?.is_some() {}
    Ok(())
}
