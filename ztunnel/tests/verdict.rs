//! What a running proxy enforces, beside the oracle and the explanation of `seine-policy`: policies
//! at random, encoded as the control plane sends them, and connections through the mesh and past it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../mesh/policy/tests/oracle/generate.rs"]
mod generate;
#[path = "../../mesh/policy/tests/oracle/judge.rs"]
mod judge;
mod support;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use generate::Values;
use ipnet::IpNet;
use judge::Facts;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use prost::Message;
use seine_identity::Identity;
use seine_policy::{Action, Connection, Match, Policy, ServiceAccountMatch, StringMatch, explain};
use seine_proto::discovery::Resource;
use seine_proto::extensions::AuthorizationExtension;
use seine_proto::{AUTHORIZATION_TYPE, security};
use support::*;
use tokio::net::TcpStream;

const SETS: usize = 300;

fn encode(policy: &Policy) -> Resource {
    let clause = |matches: &[Match]| security::Clause {
        matches: matches.iter().map(a_match).collect(),
    };
    let message = security::Authorization {
        name: policy.key.name.to_string(),
        namespace: policy.key.namespace.to_string(),
        scope: security::Scope::Namespace.into(),
        action: match policy.action {
            Action::Allow => security::Action::Allow,
            Action::Deny => security::Action::Deny,
        }
        .into(),
        rules: (policy.rules.iter())
            .map(|rule| security::Rule {
                clauses: rule.clauses.iter().map(|c| clause(&c.matches)).collect(),
            })
            .collect(),
        dry_run: policy.dry_run,
        extensions: policy
            .enforced_only
            .then(enforced_only)
            .into_iter()
            .collect(),
    };
    resource(
        &policy.key.to_string(),
        AUTHORIZATION_TYPE,
        message.encode_to_vec(),
    )
}

fn enforced_only() -> security::Extension {
    let ours = AuthorizationExtension {
        enforced_only: true,
        ..Default::default()
    };
    security::Extension {
        name: "seine.dev/authorization".into(),
        config: Some(prost_types::Any {
            type_url: "type.googleapis.com/seine.workload.v1.AuthorizationExtension".into(),
            value: ours.encode_to_vec(),
        }),
    }
}

fn a_match(from: &Match) -> security::Match {
    let strings = |from: &[StringMatch]| {
        let kind = |one: &StringMatch| {
            use security::string_match::MatchType;
            string(match one {
                StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
                StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
                StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
                StringMatch::Presence => MatchType::Presence(()),
            })
        };
        from.iter().map(kind).collect()
    };
    let blocks = |from: &[IpNet]| {
        let block = |one: &IpNet| security::Address {
            address: match one.addr() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            },
            length: one.prefix_len().into(),
        };
        from.iter().map(block).collect()
    };
    let ports = |from: &[u16]| from.iter().map(|port| u32::from(*port)).collect();
    let accounts = |from: &[ServiceAccountMatch]| {
        let account = |one: &ServiceAccountMatch| security::ServiceAccountMatch {
            namespace: one.namespace.to_string(),
            service_account: one.name.to_string(),
        };
        from.iter().map(account).collect()
    };
    security::Match {
        namespaces: strings(&from.namespaces),
        not_namespaces: strings(&from.not_namespaces),
        principals: strings(&from.principals),
        not_principals: strings(&from.not_principals),
        source_ips: blocks(&from.source_ips),
        not_source_ips: blocks(&from.not_source_ips),
        destination_ips: blocks(&from.destination_ips),
        not_destination_ips: blocks(&from.not_destination_ips),
        destination_ports: ports(&from.destination_ports),
        not_destination_ports: ports(&from.not_destination_ports),
        service_accounts: accounts(&from.service_accounts),
        not_service_accounts: accounts(&from.not_service_accounts),
        extensions: Vec::new(),
    }
}

/// Whether the server answered; a refusal must be a reset, anything else is an error of the test.
async fn answered(connected: std::io::Result<TcpStream>) -> bool {
    match connected {
        Ok(mut stream) => match exchange(&mut stream, b"word").await {
            Ok(()) => true,
            Err(error) => refusal(&error),
        },
        Err(error) => refusal(&error),
    }
}

/// "Principals are matched without `spiffe://`": on the wire they may have it.
fn as_matched(policy: &mut Policy) {
    let clauses = policy.rules.iter_mut().flat_map(|rule| &mut rule.clauses);
    for found in clauses.flat_map(|clause| &mut clause.matches) {
        let principals = found.principals.iter_mut();
        for principal in principals.chain(&mut found.not_principals) {
            let text = match principal {
                StringMatch::Exact(text) | StringMatch::Prefix(text) => text,
                StringMatch::Suffix(_) | StringMatch::Presence => continue,
            };
            if let Some(bare) = text.strip_prefix("spiffe://") {
                *text = bare.into();
            }
        }
    }
}

fn refusal(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    let kinds = [ConnectionReset, BrokenPipe];
    assert!(
        kinds.contains(&error.kind()),
        "neither an answer nor a refusal: {error}"
    );
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_enforces_what_the_oracle_and_the_explanation_say() {
    let mesh = Mesh::new();
    let names = ["a", "ab", "b"];
    let resources: Vec<_> = (1..)
        .zip(names)
        .map(|(host, name)| workload_of(name, mesh.ip(host), true, |_| ()))
        .collect();
    let a = mesh.pod("a", 1, &resources, |_| ()).await;
    let ab = mesh.pod("ab", 2, &resources, |_| ()).await;
    let b = mesh.pod("b", 3, &resources, |_| ()).await;
    let servers = [echo(b.ip).await, echo(b.ip).await];
    let outsiders = [mesh.ip(1), mesh.ip(200)];

    let net = |host: u8, length: u8| IpNet::new(mesh.ip(host).into(), length).unwrap().trunc();
    let values = Values {
        names: [&names[..], &["shop"]].concat(),
        principals: vec![
            "cluster.local/ns/shop/sa/a",
            "cluster.local/ns/shop/sa/ab",
            "cluster.local/ns/other/sa/a",
            "other.example/ns/shop/sa/a",
            "spiffe://cluster.local/ns/shop/sa/a",
        ],
        blocks: vec![
            net(1, 32),
            net(2, 32),
            net(3, 32),
            net(0, 24),
            net(200, 25),
            net(0, 8),
        ],
        ports: servers.map(|server| server.port()).to_vec(),
        requests: None,
    };
    // An extension that this proxy does not know is for the parser's tests.
    let policies = prop::collection::vec(values.policy("shop"), 0..4);
    let mut runner = TestRunner::deterministic();
    let (mut allowed, mut denied) = (0, 0);
    // What dry-run policies would have changed: to allowed, to denied.
    let mut changes = [0, 0];
    let mut applied: Vec<String> = Vec::new();
    for _ in 0..SETS {
        let mut policies = policies.new_tree(&mut runner).unwrap().current();
        for (index, policy) in policies.iter_mut().enumerate() {
            policy.key.name = format!("p{index}").into();
            let matches = policy.rules.iter_mut().flat_map(|rule| &mut rule.clauses);
            for found in matches.flat_map(|clause| &mut clause.matches) {
                found.unknown_condition = false;
            }
        }
        let removed: Vec<&str> = applied.iter().map(String::as_str).collect();
        b.apply(&[], &removed);
        let encoded: Vec<Resource> = policies.iter().map(encode).collect();
        b.apply(&encoded, &[]);
        applied = encoded.into_iter().map(|resource| resource.name).collect();

        policies.iter_mut().for_each(as_matched);
        let enforced: Vec<&Policy> = policies.iter().filter(|p| !p.dry_run).collect();
        let in_force: Vec<&Policy> = policies.iter().filter(|p| !p.enforced_only).collect();
        let shared: Vec<Arc<Policy>> = policies.iter().cloned().map(Arc::new).collect();
        for server in servers {
            let mut judged = |source: std::net::Ipv4Addr, name: Option<&str>, got: bool| {
                let peer = name.map(|name| ("cluster.local", "shop", name));
                let facts = Facts {
                    source: source.into(),
                    destination: b.ip.into(),
                    port: server.port(),
                    peer: peer.map(|(td, ns, sa)| (td.into(), ns.into(), sa.into())),
                    asked: None,
                };
                let identity: Option<Identity> = peer
                    .map(|(td, ns, sa)| format!("spiffe://{td}/ns/{ns}/sa/{sa}").parse().unwrap());
                let explanation = explain(
                    &shared,
                    &Connection {
                        source: SocketAddr::new(facts.source, 40000),
                        destination: server,
                        identity: identity.as_ref(),
                        request: None,
                    },
                );
                assert_eq!(
                    got,
                    judge::allowed(&enforced, &facts),
                    "{facts:?} {policies:#?}"
                );
                assert_eq!(got, explanation.decision.allowed, "{facts:?} {policies:#?}");
                let would = judge::allowed(&in_force, &facts);
                let explained = explanation.decision.audit.as_ref();
                if let Some(audit) = explained {
                    assert_eq!(audit.allowed, would, "{facts:?} {policies:#?}");
                }
                if explained.is_some() && would != got {
                    changes[usize::from(!would)] += 1;
                }
                assert_eq!(audited(&b.shared), changes, "{facts:?} {policies:#?}");
                got
            };
            for (client, name) in [(&a, "a"), (&ab, "ab")] {
                let got = answered(client.try_connect(server).await).await;
                match judged(client.ip, Some(name), got) {
                    true => allowed += 1,
                    false => denied += 1,
                }
            }
            for source in outsiders {
                let got = answered(b.connect_plaintext(source, server).await).await;
                match judged(source, None, got) {
                    true => allowed += 1,
                    false => denied += 1,
                }
            }
        }
    }
    println!(
        "{SETS} sets of policies: {allowed} connections allowed, {denied} denied; in dry-run {changes:?}"
    );
    assert!(changes.iter().all(|count| *count > 0));
    assert!(
        allowed > SETS && denied > SETS,
        "{allowed} allowed, {denied} denied: too one-sided"
    );
}
