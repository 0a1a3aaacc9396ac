//! Answers, from a store that was fed as the control plane feeds it.

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use seine_workload::Store;

use super::testing::{self, endpoint, headless, names, service, store};
use super::{Answer, Transport, View, answer};

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query
}

fn ask(store: &Store, message: &Message, transport: Transport) -> Option<Message> {
    let view = View {
        store,
        namespace: "shop",
    };
    match answer(&view, transport, &message.to_vec().unwrap()) {
        Answer::Reply(bytes) => {
            let reply = Message::from_vec(&bytes).unwrap();
            assert_eq!(reply.metadata.id, message.metadata.id);
            assert_eq!(reply.queries, message.queries);
            assert!(reply.metadata.recursion_desired && reply.metadata.authoritative);
            Some(reply)
        }
        Answer::Forward => None,
        Answer::Ignore => panic!("a query was ignored"),
    }
}

fn records(reply: &Message) -> Vec<String> {
    let data = reply.answers.iter().map(|record| {
        assert_eq!(record.ttl, 30);
        record.data.to_string()
    });
    let mut data: Vec<_> = data.collect();
    data.sort();
    data
}

/// The data of the answers over UDP; an error is the code of an empty one, none is forwarded.
fn lookup(
    store: &Store,
    name: &str,
    kind: RecordType,
) -> Option<Result<Vec<String>, ResponseCode>> {
    let reply = ask(store, &query(name, kind), Transport::Udp)?;
    if reply.answers.is_empty() {
        assert!(
            matches!(reply.authorities[0].data, RData::SOA(_)),
            "a client may keep that"
        );
        return Some(Err(reply.metadata.response_code));
    }
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    Some(Ok(records(&reply)))
}

fn data(expected: &[&str]) -> Option<Result<Vec<String>, ResponseCode>> {
    Some(Ok(expected.iter().map(|text| (*text).to_owned()).collect()))
}

const NO_DATA: Option<Result<Vec<String>, ResponseCode>> = Some(Err(ResponseCode::NoError));
const NO_NAME: Option<Result<Vec<String>, ResponseCode>> = Some(Err(ResponseCode::NXDomain));

#[test]
fn names_are_answered_for_what_the_mesh_owns_and_forwarded_otherwise() {
    use RecordType::{A, AAAA, HTTPS, MX, SRV, TXT};
    let store = store([
        names(
            service(
                "api",
                "api.shop.svc.cluster.local",
                &["10.96.0.1", "fd00:96::1"],
            ),
            &[(80, "http")],
        ),
        service("v4", "v4.shop.svc.cluster.local", &["10.96.0.2"]).into(),
        names(headless("db", "db.shop.svc.cluster.local"), &[(80, "pg")]),
        headless("none", "none.shop.svc.cluster.local").into(),
        service("wild", "*.example.com", &["240.0.0.1"]).into(),
        service("deep", "*.eu.example.com", &["240.0.0.2"]).into(),
        service("one", "one.example.com", &["240.0.0.3"]).into(),
        endpoint("db-0", "10.0.0.1", "db.shop.svc.cluster.local")
            .stateful("db-0", "db")
            .into(),
        endpoint("db-1", "10.0.0.2", "db.shop.svc.cluster.local")
            .stateful("db-1", "db")
            .into(),
        endpoint("db-2", "10.0.0.3", "db.shop.svc.cluster.local")
            .stateful("db-2", "db")
            .unhealthy()
            .into(),
        endpoint("plain", "fd00::4", "db.shop.svc.cluster.local").into(),
    ]);
    #[rustfmt::skip]
    let table = [
        ("api.shop.svc.cluster.local.", A, data(&["10.96.0.1"])),
        ("api.shop.svc.cluster.local.", AAAA, data(&["fd00:96::1"])),
        ("API.Shop.svc.Cluster.local.", A, data(&["10.96.0.1"])),
        ("v4.shop.svc.cluster.local.", AAAA, NO_DATA),
        ("v4.shop.svc.cluster.local.", HTTPS, NO_DATA),
        ("v4.shop.svc.cluster.local.", TXT, None),
        ("v4.shop.svc.cluster.local.", MX, None),
        // What a client's search list makes of short and of foreign names.
        ("api.", A, None),
        ("api.shop.", A, None),
        ("api.shop.svc.cluster.local.shop.svc.cluster.local.", A, None),
        ("www.google.com.shop.svc.cluster.local.", A, None),
        ("www.google.com.", A, None),
        ("unknown.shop.svc.cluster.local.", A, None),
        (".", A, None),
        // Headless: the ready workloads.
        ("db.shop.svc.cluster.local.", A, data(&["10.0.0.1", "10.0.0.2"])),
        ("db.shop.svc.cluster.local.", AAAA, data(&["fd00::4"])),
        ("none.shop.svc.cluster.local.", A, None),
        // Pods of a StatefulSet, and workloads by their address.
        ("db-0.db.shop.svc.cluster.local.", A, data(&["10.0.0.1"])),
        ("DB-1.db.shop.svc.cluster.local.", A, data(&["10.0.0.2"])),
        ("db-0.db.shop.svc.cluster.local.", AAAA, NO_DATA),
        ("db-2.db.shop.svc.cluster.local.", A, None),
        ("db-9.db.shop.svc.cluster.local.", A, None),
        ("10-0-0-2.db.shop.svc.cluster.local.", A, data(&["10.0.0.2"])),
        ("10-0-0-9.db.shop.svc.cluster.local.", A, None),
        ("db-0.api.shop.svc.cluster.local.", A, None),
        // Wildcards: the nearest.
        ("www.example.com.", A, data(&["240.0.0.1"])),
        ("a.b.example.com.", A, data(&["240.0.0.1"])),
        ("www.eu.example.com.", A, data(&["240.0.0.2"])),
        ("one.example.com.", A, data(&["240.0.0.3"])),
        ("www.example.com.", AAAA, NO_DATA),
        ("example.com.", A, None),
        // SRV.
        ("_http._tcp.api.shop.svc.cluster.local.", SRV, data(&["0 100 80 api.shop.svc.cluster.local."])),
        ("_other._tcp.api.shop.svc.cluster.local.", SRV, NO_NAME),
        ("_http._udp.api.shop.svc.cluster.local.", SRV, None),
        ("_http._tcp.v4.shop.svc.cluster.local.", SRV, None),
        ("_http._tcp.api.shop.svc.cluster.local.", A, NO_DATA),
        ("_pg._tcp.db.shop.svc.cluster.local.", SRV, data(&[
            "0 33 8080 db-0.db.shop.svc.cluster.local.",
            "0 33 8080 db-1.db.shop.svc.cluster.local.",
            "0 33 8080 fd00-0-0-0-0-0-0-4.db.shop.svc.cluster.local.",
        ])),
        ("fd00-0-0-0-0-0-0-4.db.shop.svc.cluster.local.", AAAA, data(&["fd00::4"])),
    ];
    for (name, kind, expected) in table {
        assert_eq!(lookup(&store, name, kind), expected, "{kind} {name}");
    }
}

#[test]
fn srv_answers_bring_the_addresses_of_their_targets() {
    let store = store([names(
        service("api", "api.shop.svc.cluster.local", &["10.96.0.1"]),
        &[(80, "http")],
    )]);
    let message = query("_http._tcp.api.shop.svc.cluster.local.", RecordType::SRV);
    let reply = ask(&store, &message, Transport::Udp).unwrap();
    assert_eq!(reply.additionals[0].data.to_string(), "10.96.0.1");
}

#[test]
fn a_service_that_is_private_to_a_namespace_is_answered_there_only() {
    let mut private = service("x", "x.example.com", &["240.0.0.1"]);
    private.visibility = seine_proto::workload::Visibility::Namespace.into();
    let mut foreign = private.clone();
    foreign.namespace = "other".to_owned();
    assert!(lookup(&store([private.into()]), "x.example.com.", RecordType::A).is_some());
    assert!(lookup(&store([foreign.into()]), "x.example.com.", RecordType::A).is_none());
}

/// A headless service with so many ready workloads.
fn crowd(count: u8) -> Store {
    let mut all = vec![headless("db", "db.shop.svc.cluster.local").into()];
    for n in 0..count {
        let name = format!("db-{n}");
        let address = format!("10.0.1.{n}");
        all.push(endpoint(&name, &address, "db.shop.svc.cluster.local").into());
    }
    testing::store_of(all)
}

#[test]
fn an_answer_is_cut_to_what_the_client_takes_and_says_so() {
    let store = crowd(250);
    let mut message = query("db.shop.svc.cluster.local.", RecordType::A);
    let plain = ask(&store, &message, Transport::Udp).unwrap();
    assert!(plain.metadata.truncation);
    assert!(plain.edns.is_none());
    assert!(
        (20..40).contains(&plain.answers.len()),
        "{}",
        plain.answers.len()
    );
    assert!(plain.to_vec().unwrap().len() <= 512);

    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns.clone());
    let larger = ask(&store, &message, Transport::Udp).unwrap();
    assert!(larger.metadata.truncation && larger.edns.is_some());
    let size = larger.to_vec().unwrap().len();
    assert!(size <= 1232 && size > 1000, "{size}");

    edns.set_max_payload(65535);
    message.set_edns(edns);
    let bounded = ask(&store, &message, Transport::Udp).unwrap();
    assert!(bounded.to_vec().unwrap().len() <= 4096);

    let whole = ask(&store, &message, Transport::Tcp).unwrap();
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 250);
}

#[test]
fn clients_begin_with_different_addresses_of_several() {
    let store = crowd(5);
    let mut firsts = std::collections::HashSet::new();
    for id in 0..5 {
        let mut message = query("db.shop.svc.cluster.local.", RecordType::A);
        message.metadata.id = id;
        let reply = ask(&store, &message, Transport::Udp).unwrap();
        firsts.insert(reply.answers[0].data.to_string());
    }
    assert_eq!(firsts.len(), 5);
}

#[test]
fn what_is_no_plain_query_is_forwarded_or_ignored() {
    let store = store([service("api", "api.shop.svc.cluster.local", &["10.96.0.1"]).into()]);
    let view = View {
        store: &store,
        namespace: "shop",
    };
    let judge = |message: &Message| answer(&view, Transport::Udp, &message.to_vec().unwrap());
    let ours = || query("api.shop.svc.cluster.local.", RecordType::A);
    assert!(matches!(judge(&ours()), Answer::Reply(_)));

    let mut two = ours();
    two.add_query(ours().queries[0].clone());
    assert_eq!(judge(&two), Answer::Forward);
    let mut update = ours();
    update.metadata.op_code = OpCode::Update;
    assert_eq!(judge(&update), Answer::Forward);
    let mut chaos = ours();
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(judge(&chaos), Answer::Forward);
    let response = ours().into_response();
    assert_eq!(judge(&response), Answer::Ignore);
    assert_eq!(answer(&view, Transport::Udp, b"short"), Answer::Ignore);
    let mut cut = ours().to_vec().unwrap();
    cut.truncate(20);
    assert_eq!(answer(&view, Transport::Udp, &cut), Answer::Forward);
}

#[test]
fn no_bytes_make_the_answer_panic() {
    let store = store([service("api", "*.example.com", &["10.96.0.1"]).into()]);
    let view = View {
        store: &store,
        namespace: "shop",
    };
    let good = query("a.b.c.example.com.", RecordType::SRV)
        .to_vec()
        .unwrap();
    // Each byte replaced, and each length.
    for at in 0..good.len() {
        for value in [0, 1, 0x3f, 0x40, 0x7f, 0xc0, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            answer(&view, Transport::Udp, &bytes);
            answer(&view, Transport::Tcp, &bytes[..at]);
        }
    }
}

#[test]
fn addresses_of_other_networks_are_not_given_out() {
    let mut far = endpoint("db-0", "10.0.0.1", "db.shop.svc.cluster.local");
    far.network("n2");
    let store = store([
        headless("db", "db.shop.svc.cluster.local").into(),
        far.into(),
    ]);
    assert_eq!(
        lookup(&store, "db.shop.svc.cluster.local.", RecordType::A),
        None
    );
}
