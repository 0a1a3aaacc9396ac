//! Policies as they are judged. Parsed at the border (`seine_workload::parse`), immutable after.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use seine_identity::Identity;

/// Names a policy: `namespace/name` on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    /// Namespace that holds the policy; for a global one the mesh's root namespace.
    pub namespace: Arc<str>,
    /// Name, unique within the namespace.
    pub name: Arc<str>,
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One authorization policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub key: PolicyKey,
    /// Which workloads it applies to.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Judged and reported, never enforced.
    pub dry_run: bool,
    /// Enforced, and not counted in what the dry-run policies would have done: one of them stands for it there.
    pub enforced_only: bool,
    /// The policy matches when any of its rules does; without rules it never matches.
    pub rules: Vec<Rule>,
    /// Whom to ask about a request that it matches, in the place of denying it.
    pub provider: Option<Arc<Provider>>,
    /// Fields of the user's policy that need L7 and that no waypoint enforces yet; the control
    /// plane translated them to a refusal. For explanations alone.
    pub unenforced_fields: Vec<String>,
}

/// A service that says whether a request may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// The service's namespace.
    pub namespace: Box<str>,
    /// Its hostname.
    pub hostname: Box<str>,
    /// Its port.
    pub port: u16,
    /// What it speaks.
    pub protocol: ProviderProtocol,
    /// How long it may take.
    pub timeout: Duration,
    /// What gets no answer goes on.
    pub fail_open: bool,
    /// Of HTTP: before the path.
    pub path_prefix: Box<str>,
    /// Of HTTP: headers that it is sent.
    pub request_headers: Vec<Box<str>>,
    /// Of HTTP: headers of its answer that the backend is sent.
    pub to_backend: Vec<Box<str>>,
    /// Of HTTP: headers of its answer that the client is sent.
    pub to_client: Vec<Box<str>>,
}

/// What a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderProtocol {
    /// Envoy's `ext_authz`.
    Grpc,
    /// A request without a body.
    Http,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.hostname, self.port)
    }
}

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every workload of the mesh.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads that list it.
    Workload,
}

/// What it means that a policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The connection is allowed, unless another policy denies it.
    Allow,
    /// The connection is denied.
    Deny,
}

/// Matches when every clause does; without clauses, always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// All must match.
    pub clauses: Vec<Clause>,
}

/// Matches when any of its matches does; without matches, always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    /// One must match.
    pub matches: Vec<Match>,
}

/// Every kind that has values must match; of its values any one. None of the values of a `not_`
/// kind may. A match without any kind never matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The client's namespace.
    pub namespaces: Vec<StringMatch>,
    /// Not the client's namespace.
    pub not_namespaces: Vec<StringMatch>,
    /// The client's SPIFFE ID without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// Not the client's SPIFFE ID; `Presence` here means "plaintext".
    pub not_principals: Vec<StringMatch>,
    /// Blocks of the client's address.
    pub source_ips: Vec<IpNet>,
    /// Not these blocks of the client's address.
    pub not_source_ips: Vec<IpNet>,
    /// Blocks of the original destination's address.
    pub destination_ips: Vec<IpNet>,
    /// Not these blocks of the original destination's address.
    pub not_destination_ips: Vec<IpNet>,
    /// The original destination port.
    pub destination_ports: Vec<u16>,
    /// Not the original destination port.
    pub not_destination_ports: Vec<u16>,
    /// The client's service account, in any trust domain.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Not the client's service account.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// What must hold of the request. Where there is none to look at, as on a connection that nobody parses, the
    /// match never matches in an ALLOW policy, and in a DENY policy as if the condition held.
    pub request: Option<Box<RequestMatch>>,
    /// What must hold of the request's token, likewise.
    pub token: Option<Box<TokenMatch>>,
    /// The match came with a condition that this proxy doesn't know. It then never matches in an
    /// ALLOW policy, and in a DENY policy as if the condition held.
    pub unknown_condition: bool,
}

/// What must hold of an HTTP request. Every kind that has values must match; of its values any one. None of the
/// values of a `not_` kind may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestMatch {
    /// The method.
    pub methods: Vec<Box<str>>,
    /// Not the method.
    pub not_methods: Vec<Box<str>>,
    /// The normalised path.
    pub paths: Vec<StringMatch>,
    /// Not the normalised path.
    pub not_paths: Vec<StringMatch>,
    /// The host, in lower case and without a port.
    pub hosts: Vec<StringMatch>,
    /// Not the host.
    pub not_hosts: Vec<StringMatch>,
    /// Each must match.
    pub headers: Vec<HeaderMatch>,
}

/// What must hold of a request's token. A request without one matches no positive kind, and every `not_` kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMatch {
    /// `issuer/subject`.
    pub principals: Vec<StringMatch>,
    /// Not that; `Presence` here means "without a subject, or a token".
    pub not_principals: Vec<StringMatch>,
    /// Each must match.
    pub claims: Vec<ClaimMatch>,
}

/// A header one of whose values must match one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: Box<str>,
    /// Any of these.
    pub values: Vec<StringMatch>,
}

/// A claim: one of its values must match one of these, and none one of those excluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimMatch {
    /// The names that lead to it.
    pub path: Box<[Box<str>]>,
    /// Any of these.
    pub values: Vec<StringMatch>,
    /// None of these.
    pub not_values: Vec<StringMatch>,
}

/// A service account by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

/// How a string is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// The same bytes.
    Exact(Box<str>),
    /// Begins with.
    Prefix(Box<str>),
    /// Ends with.
    Suffix(Box<str>),
    /// Is there and not empty.
    Presence,
}

/// What a verdict is about.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// The client's own address.
    pub source: SocketAddr,
    /// Where the client wanted to go: the pod's address and the original port.
    pub destination: SocketAddr,
    /// The client's verified identity; none for plaintext.
    pub identity: Option<&'a Identity>,
    /// What the client asks for on it, where that is known.
    pub request: Option<Request<'a>>,
}

/// An HTTP request, as far as policies look at it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a str,
    /// The normalised path, without the query.
    pub path: &'a str,
    /// The host, in lower case and without a port.
    pub host: &'a str,
    /// Names in lower case, with their values; a header that occurs twice is there twice.
    pub headers: &'a [(&'a str, &'a str)],
    /// What a token that was verified says of who asks; none where there is none.
    pub token: Option<Token<'a>>,
}

/// A verified token.
#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    /// `issuer/subject`; none where it names no subject.
    pub principal: Option<&'a str>,
    /// Every value in it.
    pub claims: &'a [Claim],
}

/// One value of a token. Of a list each element is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The names that lead to it.
    pub path: Box<[Box<str>]>,
    /// A text, or a number or truth value as JSON writes it.
    pub value: Box<str>,
}
