//! Gateways that take connections from outside the mesh: what becomes of their listeners, and which routes are attached to
//! them.
//!
//! Translation and status both ask [`listeners`] and [`attach`], so that what is told to users is what is done.

use std::collections::BTreeSet;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use seine_objects::gateway::{self, AnyRoute, CoreRef, Gateway, Listener, ParentRef};
use seine_objects::{Kind, ObjectKey, ObjectSet};
use seine_proto::waypoint as wire;
use seine_proto::waypoint::listener::Protocol;

use super::claims::Claims;
use super::clients::{self, Clients};
use super::{Resources, Settings, service};

/// Annotation of `spec.infrastructure`: how many proxies before the Gateway are believed what they say of clients.
pub(crate) const TRUSTED_PROXIES: &str = "seine.dev/trusted-proxies";
/// More proxies than anybody has.
const MAX_TRUSTED: u32 = 16;
/// Ports of the pod that are its own.
const OWN_PORTS: [u16; 4] = [15000, 15008, 15020, 15021];

/// Why something is not as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Because {
    /// By the Gateway API's names of reasons.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

impl Because {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// What becomes of a listener.
#[derive(Debug)]
pub(crate) struct State<'a> {
    pub(crate) listener: &'a Listener,
    /// Kinds of routes that may be attached to it.
    pub(crate) kinds: Vec<Kind>,
    /// Why it is none.
    pub(crate) refused: Option<Because>,
    /// Why it can't stand beside another one.
    pub(crate) conflict: Option<Because>,
    /// Which reference leads nowhere.
    pub(crate) unresolved: Option<Because>,
    /// What is asked of its clients in TLS.
    pub(super) clients: Option<wire::ClientCertificates>,
    protocol: Protocol,
    certificates: Vec<wire::Certificate>,
}

impl State<'_> {
    /// Connections are taken.
    pub(crate) fn is_served(&self) -> bool {
        let wrong = [&self.refused, &self.conflict, &self.unresolved];
        wrong.into_iter().all(Option::is_none)
    }
}

/// The ports of a Gateway's Service: of its listeners that could be served, whatever their certificates.
pub(crate) fn ports(gateway: &Gateway) -> BTreeSet<u16> {
    let listeners = gateway.spec.listeners.iter();
    let known = listeners.filter(|listener| protocol(listener) != Protocol::Unknown);
    let ports = known.map(|listener| listener.port);
    ports
        .filter(|port| !OWN_PORTS.contains(port) && *port > 0)
        .collect()
}

/// What of a Gateway can't be obeyed; then none of it is.
pub(crate) fn refused(gateway: &Gateway) -> Option<Because> {
    let unread = gateway.unread();
    let own = unread.iter().find(|path| !is_of_listener(path));
    if let Some(path) = own {
        let message = format!("{path} is not supported");
        return Some(Because::new("Invalid", message));
    }
    trusted_proxies(gateway).err()
}

fn is_of_listener(path: &str) -> bool {
    path.starts_with("spec.listeners[")
}

fn trusted_proxies(gateway: &Gateway) -> Result<u32, Because> {
    let infrastructure = gateway.spec.infrastructure.as_ref();
    let Some(text) = infrastructure.and_then(|found| found.annotations.get(TRUSTED_PROXIES)) else {
        return Ok(0);
    };
    let number = text.parse().ok().filter(|number| *number <= MAX_TRUSTED);
    number.ok_or_else(|| {
        let message = format!(
            "spec.infrastructure.annotations[{TRUSTED_PROXIES}]: {text:?} is no number from 0 to {MAX_TRUSTED}"
        );
        Because::new("InvalidParameters", message)
    })
}

/// What becomes of each listener of a Gateway.
pub(crate) fn listeners<'a>(
    objects: &ObjectSet,
    key: &ObjectKey,
    gateway: &'a Gateway,
) -> Vec<State<'a>> {
    let unread = gateway.unread();
    let given = gateway.spec.listeners.iter().enumerate();
    let mut states: Vec<_> = given
        .map(|(index, listener)| {
            let of_it = format!("spec.listeners[{index}].");
            let unread = unread.iter().find(|path| path.starts_with(&of_it));
            state(objects, (key, gateway), listener, unread)
        })
        .collect();
    for index in 0..states.len() {
        let others = states.iter().enumerate().filter(|(other, state)| {
            *other != index && state.refused.is_none() && states[index].refused.is_none()
        });
        let conflicts = others.filter_map(|(_, other)| conflict(&states[index], other));
        let conflict = { conflicts }.next();
        states[index].conflict = conflict;
    }
    states
}

fn state<'a>(
    objects: &ObjectSet,
    (key, gateway): (&ObjectKey, &Gateway),
    listener: &'a Listener,
    unread: Option<&String>,
) -> State<'a> {
    let name = &listener.name;
    let protocol = protocol(listener);
    let refused = if protocol == Protocol::Unknown {
        let message = format!(
            "listener {name}: protocol {} is not supported: use HTTP, HTTPS, TLS or TCP",
            listener.protocol
        );
        Some(Because::new("UnsupportedProtocol", message))
    } else if OWN_PORTS.contains(&listener.port) || listener.port == 0 {
        let message = format!("listener {name}: port {} is not free", listener.port);
        Some(Because::new("PortUnavailable", message))
    } else if let Some(path) = unread {
        let message = format!("listener {name}: {path} is not supported");
        Some(Because::new("UnsupportedValue", message))
    } else {
        misplaced(listener, protocol).map(|why| {
            let message = format!("listener {name}: {why}");
            Because::new("UnsupportedValue", message)
        })
    };
    let (kinds, bad_kind) = kinds(listener);
    let mut unresolved = bad_kind.map(|kind| {
        let message = format!("listener {name}: routes of kind {kind} can't be attached to it");
        Because::new("InvalidRouteKinds", message)
    });
    let (mut certificates, mut asked) = (Vec::new(), Clients::default());
    if matches!(protocol, Protocol::Https | Protocol::Tls) {
        match self::certificates(objects, key, listener) {
            Ok(found) => certificates = found,
            Err(why) => unresolved = unresolved.or(Some(why)),
        }
        asked = clients::of(objects, key, gateway, listener);
    }
    let refused = refused.or(asked.refused);
    State {
        listener,
        kinds: match refused {
            Some(_) => Vec::new(),
            None => kinds,
        },
        refused,
        conflict: None,
        unresolved: unresolved.or(asked.unresolved),
        clients: asked.message,
        protocol,
        certificates,
    }
}

fn protocol(listener: &Listener) -> Protocol {
    match &*listener.protocol {
        "HTTP" => Protocol::Http,
        "HTTPS" => Protocol::Https,
        "TLS" if mode(listener) == Some("Passthrough") => Protocol::TlsPassthrough,
        "TLS" => Protocol::Tls,
        "TCP" => Protocol::Tcp,
        _ => Protocol::Unknown,
    }
}

fn mode(listener: &Listener) -> Option<&str> {
    listener.tls.as_ref().and_then(|tls| tls.mode.as_deref())
}

/// What of a listener its protocol has no place for.
fn misplaced(listener: &Listener, protocol: Protocol) -> Option<&'static str> {
    let has_tls = listener.tls.is_some();
    match (protocol, mode(listener)) {
        (Protocol::Https, Some("Passthrough")) => {
            Some("TLS is ended (Terminate) with protocol HTTPS: pass it on with protocol TLS")
        }
        (_, Some(mode)) if !matches!(mode, "Terminate" | "Passthrough") => {
            Some("tls.mode is neither Terminate nor Passthrough")
        }
        (Protocol::Http | Protocol::Tcp, _) if has_tls => {
            Some("tls is for the protocols HTTPS and TLS")
        }
        (Protocol::Tcp, _)
            if listener
                .hostname
                .as_ref()
                .is_some_and(|host| !host.is_empty()) =>
        {
            Some("nobody says in TCP which hostname is meant")
        }
        _ => None,
    }
}

/// The kinds of routes that may be attached, and one that is asked for and can't be.
fn kinds(listener: &Listener) -> (Vec<Kind>, Option<String>) {
    let known: &[Kind] = match protocol(listener) {
        Protocol::Http | Protocol::Https => &[Kind::HttpRoute, Kind::GrpcRoute],
        Protocol::Tls | Protocol::TlsPassthrough => &[Kind::TlsRoute],
        Protocol::Tcp => &[Kind::TcpRoute],
        _ => &[],
    };
    let wanted = listener.allowed_routes.as_ref();
    let wanted = wanted.map_or(&[][..], |routes| &routes.kinds);
    if wanted.is_empty() {
        return (known.to_vec(), None);
    }
    let (mut found, mut bad) = (Vec::new(), None);
    for wanted in wanted {
        let group = wanted.group.as_deref().unwrap_or(gateway::GROUP);
        let is = |kind: &&Kind| group == gateway::GROUP && kind.to_string() == wanted.kind;
        match known.iter().find(is) {
            Some(kind) if found.contains(kind) => {}
            Some(kind) => found.push(*kind),
            None => bad = Some(wanted.kind.clone()),
        }
    }
    (found, bad)
}

/// Why two listeners can't be at one port: neither is served then.
fn conflict(one: &State<'_>, other: &State<'_>) -> Option<Because> {
    if one.listener.port != other.listener.port {
        return None;
    }
    let (port, name) = (one.listener.port, &other.listener.name);
    // With TLS the host is known before it is decided how to go on.
    let begins = |state: &State<'_>| match state.protocol {
        Protocol::Https | Protocol::Tls | Protocol::TlsPassthrough => Protocol::Tls,
        other => other,
    };
    if begins(one) != begins(other) {
        let message = format!("port {port} is also listener {name}'s, of another protocol");
        return Some(Because::new("ProtocolConflict", message));
    }
    let host = |state: &State<'_>| {
        let host = state.listener.hostname.as_deref();
        host.unwrap_or_default().to_ascii_lowercase()
    };
    (host(one) == host(other)).then(|| {
        let message = format!("port {port} and its host are also listener {name}'s");
        Because::new("HostnameConflict", message)
    })
}

fn certificates(
    objects: &ObjectSet,
    key: &ObjectKey,
    listener: &Listener,
) -> Result<Vec<wire::Certificate>, Because> {
    let references = listener.tls.as_ref();
    let references = references.map_or(&[][..], |tls| &tls.certificate_refs);
    if references.is_empty() {
        let message = format!(
            "listener {}: TLS ends there without a certificate",
            listener.name
        );
        return Err(Because::new("InvalidCertificateRef", message));
    }
    let one = |reference| certificate(objects, key, reference);
    references.iter().map(one).collect()
}

fn certificate(
    objects: &ObjectSet,
    gateway: &ObjectKey,
    reference: &CoreRef,
) -> Result<wire::Certificate, Because> {
    let invalid = |message: String| Because::new("InvalidCertificateRef", message);
    let key = reference.secret(&gateway.namespace);
    let key = key.ok_or_else(|| invalid(format!("{} is no Secret", reference.name)))?;
    // Whether it is there is for those to know who may refer to it.
    if !objects.is_granted("Gateway", &gateway.namespace, "Secret", &key) {
        let message = format!(
            "Secret {key} is of another namespace, and no ReferenceGrant there admits a Gateway of {}",
            gateway.namespace
        );
        return Err(Because::new("RefNotPermitted", message));
    }
    let secret = objects.secrets.get(&key);
    let secret = secret.ok_or_else(|| {
        let message = format!(
            "Secret {key} is not there, or the control plane may not read it: see docs/INGRESS.md"
        );
        invalid(message)
    })?;
    let not_tls = || invalid(format!("Secret {key} is not of type kubernetes.io/tls"));
    let (chain, private) = secret.pair().ok_or_else(not_tls)?;
    let bad_chain = |_| invalid(format!("Secret {key}: tls.crt is no certificate in PEM"));
    let chain = CertificateDer::pem_slice_iter(chain);
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(bad_chain)?;
    // Of a key nothing is said.
    let bad_key = |_| invalid(format!("Secret {key}: tls.key is no private key in PEM"));
    let private = PrivateKeyDer::from_pem_slice(private).map_err(bad_key)?;
    let message = wire::Certificate {
        chain: chain.iter().map(|one| one.to_vec()).collect(),
        key: private.secret_der().to_vec(),
    };
    CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider()).map_err(|_| {
        let message = format!("Secret {key}: tls.crt and tls.key don't belong together");
        invalid(message)
    })?;
    Ok(message)
}

/// A route that wants to be attached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) kind: Kind,
    pub(crate) key: &'a ObjectKey,
    pub(crate) hostnames: &'a [String],
    /// What other routes have already.
    pub(crate) claims: &'a Claims,
}

impl<'a> Candidate<'a> {
    pub(crate) fn new(route: &AnyRoute<'a>, claims: &'a Claims) -> Self {
        Self {
            kind: route.kind,
            key: route.key,
            hostnames: route.hostnames,
            claims,
        }
    }
}

/// The listeners that a route is attached to by one of its parents, by their index; `None`: the parent is no Gateway that we
/// look after.
pub(crate) fn attach(
    objects: &ObjectSet,
    route: &Candidate<'_>,
    parent: &ParentRef,
) -> Option<(ObjectKey, Result<Vec<usize>, Because>)> {
    let key = parent.gateway(&route.key.namespace)?;
    let gateway = objects.gateways.get(&key)?;
    gateway.is_ingress().then(|| {
        (
            key.clone(),
            attach_to(objects, route, parent, &key, gateway),
        )
    })
}

fn attach_to(
    objects: &ObjectSet,
    route: &Candidate<'_>,
    parent: &ParentRef,
    key: &ObjectKey,
    gateway: &Gateway,
) -> Result<Vec<usize>, Because> {
    let listeners = gateway.spec.listeners.iter();
    let meant = listeners.enumerate().filter(|(_, listener)| {
        let section = parent.section_name.as_ref();
        section.is_none_or(|section| *section == listener.name)
            && parent.port.is_none_or(|port| port == listener.port)
    });
    let meant: Vec<_> = meant.collect();
    if meant.is_empty() {
        let message = format!("Gateway {key} has no such listener");
        return Err(Because::new("NoMatchingParent", message));
    }
    let allowed = meant.into_iter().filter(|(_, listener)| {
        kinds(listener).0.contains(&route.kind)
            && objects.admits(listener, &key.namespace, &route.key.namespace)
    });
    let allowed: Vec<_> = allowed.collect();
    if allowed.is_empty() {
        let message = format!(
            "no listener of Gateway {key} takes a {} of namespace {}",
            route.kind, route.key.namespace
        );
        return Err(Because::new("NotAllowedByListeners", message));
    }
    let attached = allowed.into_iter();
    let attached = attached.filter(|(_, listener)| listener.takes_any_of(route.hostnames));
    let attached: Vec<_> = attached.map(|(index, _)| index).collect();
    if attached.is_empty() {
        let message = format!("no listener of Gateway {key} is for the route's hostnames");
        return Err(Because::new("NoMatchingListenerHostname", message));
    }
    let own = (route.kind, route.key.clone());
    let before = |index: &usize| route.claims.before(&(key.clone(), *index), &own);
    let left: Vec<_> = attached
        .iter()
        .copied()
        .filter(|index| before(index).is_none())
        .collect();
    match attached.iter().find_map(before) {
        Some((kind, older)) if left.is_empty() => {
            let message = format!(
                "{kind} {older} is older and about a host of this route's: at one listener a host is of HTTPRoutes or of GRPCRoutes"
            );
            Err(Because::new("HostnameConflict", message))
        }
        _ => Ok(left),
    }
}

/// The name of a listener's resource.
pub(super) fn resource_name(gateway: &ObjectKey, listener: &Listener) -> String {
    format!("{gateway}/{}", listener.name)
}

/// What a rule is attached to.
pub(super) fn attachments(
    objects: &ObjectSet,
    route: &Candidate<'_>,
    parents: &[ParentRef],
    notes: &mut Vec<String>,
) -> Vec<wire::Attachment> {
    let mut found: Vec<wire::Attachment> = Vec::new();
    for parent in parents {
        let Some((key, attached)) = attach(objects, route, parent) else {
            continue;
        };
        let listeners = &objects.gateways[&key].spec.listeners;
        for index in attached.unwrap_or_else(|why| {
            notes.push(why.message);
            Vec::new()
        }) {
            let listener = &listeners[index];
            let name = resource_name(&key, listener);
            if found.iter().any(|one| one.listener == name) {
                continue;
            }
            // As the route has them: the more specific of two routes' wins, also where the listener's own is more specific still.
            let hostnames = route.hostnames.iter();
            let hostnames = hostnames.filter(|host| listener.takes(host)).cloned();
            found.push(wire::Attachment {
                listener: name,
                hostnames: hostnames.collect(),
            });
        }
    }
    found
}

/// The listeners of each Gateway, by its service account.
pub(super) fn translate(objects: &ObjectSet, settings: &Settings, resources: &mut Resources) {
    let ours = objects
        .gateways
        .iter()
        .filter(|(_, gateway)| gateway.is_ingress());
    for (key, gateway) in ours {
        let Ok(trusted) = trusted_proxies(gateway) else {
            continue;
        };
        if refused(gateway).is_some() {
            continue;
        }
        let states = listeners(objects, key, gateway).into_iter();
        let served = states.filter(State::is_served).map(|state| {
            let message = wire::Listener {
                namespace: key.namespace.clone(),
                service: service::hostname(key, settings),
                port: state.listener.port.into(),
                protocol: state.protocol.into(),
                hostname: state.listener.hostname.clone().unwrap_or_default(),
                certificates: state.certificates,
                clients: state.clients,
                trusted_proxies: trusted,
            };
            (resource_name(key, state.listener), message)
        });
        let served = served.collect();
        resources.listeners.insert(key.to_string(), served);
    }
}
