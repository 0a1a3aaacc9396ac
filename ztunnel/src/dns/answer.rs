//! The answer to one query, from the store alone: no I/O, no clock, no panic on any bytes.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use seine_workload::Service;

use super::message;
use super::names::{Owned, View, endpoint_label};

/// How long a client may keep an answer, in seconds.
const TTL: u32 = 30;
/// What every client takes over UDP (RFC 1035 section 4.2.1).
const MIN_UDP: u16 = 512;
/// What we send over UDP at most, and say that we take.
const MAX_UDP: u16 = 4096;
/// Bytes of the smallest record: a compressed name, type, class, TTL, length and an IPv4 address.
const MIN_RECORD: usize = 16;
/// More workloads than that are not given out, so that an answer fits into a message.
const MAX_RECORDS: usize = 1500;

/// What to do with a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send this.
    Reply(Vec<u8>),
    /// Ask the upstream resolver.
    Forward,
    /// Nothing: it is no query.
    Ignore,
}

/// How a query came, which bounds the size of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// With its length before it.
    Tcp,
}

/// Answers a query if it asks for what the mesh owns.
pub fn answer(view: &View<'_>, transport: Transport, query: &[u8]) -> Answer {
    match message::is_response(query) {
        Some(false) => {}
        Some(true) | None => return Answer::Ignore,
    }
    // Not understood is not ours.
    let Ok(request) = Message::from_vec(query) else {
        return Answer::Forward;
    };
    let [question] = request.queries.as_slice() else {
        return Answer::Forward;
    };
    let edns_version = request.edns.as_ref().map_or(0, Edns::version);
    if request.metadata.op_code != OpCode::Query
        || question.query_class() != DNSClass::IN
        || edns_version != 0
    {
        return Answer::Forward;
    }
    let Some(records) = records(view, question) else {
        return Answer::Forward;
    };
    match encode(&request, question, records, transport) {
        Some(reply) => Answer::Reply(reply),
        None => Answer::Forward,
    }
}

/// The sections of an answer.
#[derive(Default)]
struct Records {
    code: ResponseCode,
    answers: Vec<Record>,
    additionals: Vec<Record>,
    /// The name that is said not to be there, or not to have such records.
    negative: Option<Name>,
}

/// None: not ours to answer.
fn records(view: &View<'_>, question: &Query) -> Option<Records> {
    let name = question.name().to_lowercase().to_ascii();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let owned = view.find(name)?;
    let asked = question.query_type();
    let found = match owned {
        Owned::Service(service) => {
            return address_records(question, asked, &view.addresses(&service));
        }
        Owned::Endpoint(endpoint) => {
            return address_records(question, asked, &endpoint.addresses);
        }
        Owned::Port(service, port) => match asked {
            RecordType::SRV | RecordType::ANY => service_records(view, question, &service, port)?,
            _ => no_records(question, ResponseCode::NoError),
        },
        Owned::NoSuchPort => no_records(question, ResponseCode::NXDomain),
    };
    Some(found)
}

fn address_records(question: &Query, asked: RecordType, addresses: &[IpAddr]) -> Option<Records> {
    // No address at all: the cluster's DNS may know more, such as of a name outside.
    if addresses.is_empty() {
        return None;
    }
    let wanted = |address: &&IpAddr| match asked {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    match asked {
        RecordType::A | RecordType::AAAA | RecordType::ANY => {}
        // These could lead around the addresses that are given out here.
        RecordType::HTTPS | RecordType::SVCB | RecordType::CNAME => {
            return Some(no_records(question, ResponseCode::NoError));
        }
        _ => return None,
    }
    let answers: Vec<_> = addresses
        .iter()
        .filter(wanted)
        .take(MAX_RECORDS)
        .map(|address| address_record(question.name(), *address))
        .collect();
    if answers.is_empty() {
        return Some(no_records(question, ResponseCode::NoError));
    }
    Some(Records {
        answers,
        ..Records::default()
    })
}

fn service_records(
    view: &View<'_>,
    question: &Query,
    service: &Service,
    port: u16,
) -> Option<Records> {
    let owner = question.name();
    let host = Name::from_ascii(format!("{}.", service.key.hostname)).ok()?;
    let mut found = Records::default();
    if !service.is_headless() {
        let data = RData::SRV(SRV::new(0, 100, port, host.clone()));
        found
            .answers
            .push(Record::from_rdata(owner.clone(), TTL, data));
        let addresses = view.addresses(service).into_iter();
        found.additionals = addresses
            .map(|address| address_record(&host, address))
            .collect();
        return Some(found);
    }
    let endpoints = view.endpoints(service);
    // As the cluster's DNS does: the same share for each.
    let weight = u16::try_from(100 / endpoints.len().max(1))
        .unwrap_or(1)
        .max(1);
    for endpoint in endpoints.iter().take(MAX_RECORDS / 2) {
        let Some(port) = endpoint.target_port(&service.key, port) else {
            continue;
        };
        let Some(label) = endpoint_label(service, endpoint) else {
            continue;
        };
        let Ok(target) = host.prepend_label(label.as_bytes()) else {
            continue;
        };
        let data = RData::SRV(SRV::new(0, weight, port, target.clone()));
        found
            .answers
            .push(Record::from_rdata(owner.clone(), TTL, data));
        let addresses = endpoint.addresses.iter();
        found
            .additionals
            .extend(addresses.map(|address| address_record(&target, *address)));
    }
    if found.answers.is_empty() {
        return None;
    }
    Some(found)
}

fn no_records(question: &Query, code: ResponseCode) -> Records {
    Records {
        code,
        negative: Some(question.name().clone()),
        ..Records::default()
    }
}

fn address_record(name: &Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

/// How long a client may keep that there is nothing: RFC 2308 wants it in an SOA record.
fn start_of_authority(name: Name) -> Record {
    let seconds = i32::try_from(TTL).unwrap_or(i32::MAX);
    let soa = SOA::new(
        name.clone(),
        name.clone(),
        1,
        seconds,
        seconds,
        seconds,
        TTL,
    );
    Record::from_rdata(name, TTL, RData::SOA(soa))
}

/// The reply in bytes; over UDP with as many records as fit, and marked if they aren't all.
fn encode(
    request: &Message,
    question: &Query,
    mut records: Records,
    transport: Transport,
) -> Option<Vec<u8>> {
    let limit = match (transport, &request.edns) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (Transport::Udp, None) => usize::from(MIN_UDP),
        (Transport::Udp, Some(edns)) => usize::from(edns.max_payload().clamp(MIN_UDP, MAX_UDP)),
    };
    // Each client begins with another of several addresses.
    if records.answers.len() > 1 {
        let by = usize::from(request.metadata.id) % records.answers.len();
        records.answers.rotate_left(by);
    }
    // More than that never fit, and the encoder compresses the names of the first ones alone.
    let most = limit / MIN_RECORD;
    let mut truncated = records.answers.len() > most;
    records.answers.truncate(most);
    loop {
        let bytes = message(request, question, &records, truncated)
            .to_vec()
            .ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        // Additional records are a courtesy: without them nothing is missing.
        if !records.additionals.is_empty() {
            records.additionals.clear();
            continue;
        }
        if records.answers.is_empty() {
            return None;
        }
        truncated = true;
        let keep = records.answers.len() * limit / bytes.len();
        records
            .answers
            .truncate(keep.min(records.answers.len() - 1));
    }
}

fn message(request: &Message, question: &Query, records: &Records, truncated: bool) -> Message {
    let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&request.metadata);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_available = true;
    reply.metadata.truncation = truncated;
    reply.metadata.response_code = records.code;
    reply.add_query(question.clone());
    reply.add_answers(records.answers.iter().cloned());
    reply.add_additionals(records.additionals.iter().cloned());
    if let Some(name) = &records.negative {
        reply.add_authority(start_of_authority(name.clone()));
    }
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP).set_version(0);
        reply.set_edns(edns);
    }
    reply
}
