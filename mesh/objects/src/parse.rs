//! From the text of a file to valid, typed objects.

use std::{fmt, path::PathBuf, sync::Arc};

use k8s_openapi::{
    Metadata,
    api::{
        core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
        node::v1::RuntimeClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    ObjectKey,
    document::{Document, split},
    gateway::{self, Gateway, GrpcRoute, HttpRoute, ReferenceGrant, TlsRoute},
    istio::{self, PeerAuthentication},
    pods,
    policy::{
        self, AuthorizationPolicy, FieldError, MeshTls, RequestAuthentication, TrafficPolicy,
    },
    tls_secret::TlsSecret,
};

/// The kinds that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(
    missing_docs,
    reason = "each is the Kubernetes kind of that name, Istio's where a name is taken"
)]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    ServiceAccount,
    NetworkPolicy,
    RuntimeClass,
    Secret,
    Gateway,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    ReferenceGrant,
    AuthorizationPolicy,
    MeshTls,
    TrafficPolicy,
    RequestAuthentication,
    IstioAuthorizationPolicy,
    PeerAuthentication,
}

impl Kind {
    /// Objects of this kind are in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::RuntimeClass)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MeshTls => f.write_str("MeshTLS"),
            // As kubectl tells kinds of one name apart.
            Self::IstioAuthorizationPolicy => f.write_str("AuthorizationPolicy.security.istio.io"),
            Self::PeerAuthentication => f.write_str("PeerAuthentication.security.istio.io"),
            Self::HttpRoute => f.write_str("HTTPRoute"),
            Self::GrpcRoute => f.write_str("GRPCRoute"),
            Self::TlsRoute => f.write_str("TLSRoute"),
            other => fmt::Debug::fmt(other, f),
        }
    }
}

/// One object of a kind that is read.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    missing_docs,
    reason = "each is the Kubernetes kind of that name, Istio's where a name is taken"
)]
pub enum Object {
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    ServiceAccount(Arc<ServiceAccount>),
    NetworkPolicy(Arc<NetworkPolicy>),
    RuntimeClass(Arc<RuntimeClass>),
    Secret(Arc<TlsSecret>),
    Gateway(Arc<Gateway>),
    HttpRoute(Arc<HttpRoute>),
    GrpcRoute(Arc<GrpcRoute>),
    TlsRoute(Arc<TlsRoute>),
    ReferenceGrant(Arc<ReferenceGrant>),
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    MeshTls(Arc<MeshTls>),
    TrafficPolicy(Arc<TrafficPolicy>),
    RequestAuthentication(Arc<RequestAuthentication>),
    IstioAuthorizationPolicy(Arc<istio::AuthorizationPolicy>),
    PeerAuthentication(Arc<PeerAuthentication>),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
            Self::NetworkPolicy(_) => Kind::NetworkPolicy,
            Self::RuntimeClass(_) => Kind::RuntimeClass,
            Self::Secret(_) => Kind::Secret,
            Self::Gateway(_) => Kind::Gateway,
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
            Self::TlsRoute(_) => Kind::TlsRoute,
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::MeshTls(_) => Kind::MeshTls,
            Self::TrafficPolicy(_) => Kind::TrafficPolicy,
            Self::RequestAuthentication(_) => Kind::RequestAuthentication,
            Self::IstioAuthorizationPolicy(_) => Kind::IstioAuthorizationPolicy,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
        }
    }

    /// As the API has it, with `apiVersion` and `kind`.
    pub(crate) fn to_value(&self) -> Value {
        let value = match self {
            Self::Namespace(object) => serde_json::to_value(&**object),
            Self::Node(object) => serde_json::to_value(&**object),
            Self::Pod(object) => serde_json::to_value(&**object),
            Self::Service(object) => serde_json::to_value(&**object),
            Self::EndpointSlice(object) => serde_json::to_value(&**object),
            Self::ServiceAccount(object) => serde_json::to_value(&**object),
            Self::NetworkPolicy(object) => serde_json::to_value(&**object),
            Self::RuntimeClass(object) => serde_json::to_value(&**object),
            Self::Secret(object) => Ok(object.to_value()),
            Self::Gateway(object) => Ok(object.given.clone()),
            Self::HttpRoute(object) => Ok(object.given.clone()),
            Self::GrpcRoute(object) => Ok(object.given.clone()),
            Self::TlsRoute(object) => Ok(object.given.clone()),
            Self::ReferenceGrant(object) => serde_json::to_value(&**object),
            Self::AuthorizationPolicy(object) => serde_json::to_value(&**object),
            Self::MeshTls(object) => serde_json::to_value(&**object),
            Self::TrafficPolicy(object) => serde_json::to_value(&**object),
            Self::RequestAuthentication(object) => serde_json::to_value(&**object),
            Self::IstioAuthorizationPolicy(object) => serde_json::to_value(&**object),
            Self::PeerAuthentication(object) => serde_json::to_value(&**object),
        };
        value.expect("objects have text for keys, and serialize")
    }
}

/// Something that is wrong with an object, or with the file that it should come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file; empty for an object of an API server.
    pub file: PathBuf,
    /// Counted from 1.
    pub line: Option<u64>,
    /// `Kind namespace/name`, as far as known.
    pub object: Option<String>,
    /// `metadata.generation` of the version that is wrong, where it has one.
    pub generation: Option<i64>,
    /// Path of the field, such as `spec.rules[0].to`.
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What holds instead.
    pub in_force: InForce,
}

/// What holds in the place of an object that is invalid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InForce {
    /// Nothing of it: no earlier version is known.
    #[default]
    Nothing,
    /// The last good version of the object (or of the file's objects).
    LastGood,
    /// A [stand-in](Invalid::stand_in): whether there was a good version is not known.
    StandIn,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.as_os_str().is_empty() {
            write!(f, "{}", self.file.display())?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        write!(f, "{}", self.message)?;
        match self.in_force {
            InForce::Nothing => Ok(()),
            InForce::LastGood => f.write_str(" (the last good version stays in force)"),
            InForce::StandIn => f.write_str(" (until it is valid, what it selects is denied)"),
        }
    }
}

/// What a file's text holds.
#[derive(Clone, Debug, Default)]
pub struct ParsedFile {
    /// The valid objects with their lines, in order.
    pub objects: Vec<(ObjectKey, Object, u64)>,
    /// What was wrong; `file` is what [`parse_text`] was given.
    pub problems: Vec<Problem>,
    /// Objects that are there and invalid: their last good version should stay.
    pub(crate) invalid: Vec<(Kind, ObjectKey)>,
    /// A part could not be read far enough to say which object it is: it may be any of those that
    /// the file had before.
    pub(crate) unreadable: bool,
}

/// Parses YAML (or JSON, which is YAML): any number of documents, `List`s too. Kinds that Seine
/// doesn't read are left out in silence.
pub fn parse_text(file: impl Into<PathBuf>, text: &str) -> ParsedFile {
    let mut parsing = Parsing {
        file: file.into(),
        parsed: ParsedFile::default(),
    };
    for (before, part) in split(text) {
        match Document::parse(part, before) {
            Ok(None) => {}
            Ok(Some(document)) => parsing.object(&document, document.value(), ""),
            Err(error) => {
                parsing.parsed.unreadable = true;
                parsing.problem(error.line.or(Some(before + 1)), None, None, error.message);
            }
        }
    }
    parsing.parsed
}

/// One object of a known kind, as the API server or a file has it: cut to the fields that are
/// [kept](Kind::kept), typed and validated.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn parse_object(kind: Kind, mut value: Value) -> Result<(ObjectKey, Object), Invalid> {
    kind.kept().prune(&mut value);
    let invalid = |key, field: &str, message: String| Invalid {
        kind,
        key,
        stand_in: None,
        errors: vec![FieldError {
            field: field.into(),
            message,
        }],
    };
    let metadata = &mut value["metadata"];
    let Some(name) = metadata["name"].as_str().filter(|name| !name.is_empty()) else {
        return Err(invalid(None, "metadata.name", "is missing".into()));
    };
    let namespace = match kind.is_namespaced() {
        true => metadata["namespace"]
            .as_str()
            .filter(|name| !name.is_empty())
            .unwrap_or("default"),
        false => "",
    };
    let key = ObjectKey::new(namespace, name);
    // Keys are built into names of resources: a slash in one would make it another's.
    let bad_name = match (policy::is_name(name), namespace) {
        (false, _) => Some(("metadata.name", name)),
        (true, "") => None,
        (true, namespace) if policy::is_name(namespace) => None,
        (true, namespace) => Some(("metadata.namespace", namespace)),
    };
    if let Some((field, text)) = bad_name {
        return Err(invalid(Some(key), field, not_a_name(text)));
    }
    if kind.is_namespaced() {
        metadata["namespace"] = Value::String(key.namespace.clone());
    }
    if let Some(metadata) = metadata.as_object_mut() {
        // It changes with every write, also of what is not kept.
        metadata.remove("resourceVersion");
    }
    match build(kind, &value) {
        Ok(object) => Ok((key, object)),
        Err(errors) => Err(Invalid {
            kind,
            key: Some(key),
            errors,
            stand_in: policy::stand_in(kind, &value),
        }),
    }
}

/// An object that can't be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Invalid {
    /// Its kind.
    pub kind: Kind,
    /// Which one it is, unless even that is wrong.
    pub key: Option<ObjectKey>,
    /// What is wrong; at least one.
    pub errors: Vec<FieldError>,
    /// Of a policy: one that denies what this one selects (a `MeshTLS`: its plaintext), as far as that
    /// can be read. It is for a source that can't know whether a good version was in force.
    pub stand_in: Option<Object>,
}

impl Invalid {
    /// An object that is not even JSON of the expected shape.
    pub fn unreadable(kind: Kind, error: &serde_json::Error) -> Self {
        Self {
            kind,
            key: None,
            stand_in: None,
            errors: vec![FieldError {
                field: String::new(),
                message: error.to_string(),
            }],
        }
    }

    /// What is wrong, of an object that no file has.
    pub fn problems(
        &self,
        generation: Option<i64>,
        in_force: InForce,
    ) -> impl Iterator<Item = Problem> {
        self.errors.iter().map(move |error| Problem {
            file: PathBuf::new(),
            line: None,
            object: Some(self.name()),
            generation,
            field: Some(error.field.clone()).filter(|field| !field.is_empty()),
            message: error.message.clone(),
            in_force,
        })
    }

    /// `Kind namespace/name`, as far as known.
    pub fn name(&self) -> String {
        match &self.key {
            Some(key) => format!("{} {key}", self.kind),
            None => self.kind.to_string(),
        }
    }
}

struct Parsing {
    file: PathBuf,
    parsed: ParsedFile,
}

impl Parsing {
    fn problem(
        &mut self,
        line: Option<u64>,
        object: Option<String>,
        field: Option<String>,
        message: String,
    ) {
        let file = self.file.clone();
        let problem = Problem {
            file,
            line,
            object,
            generation: None,
            field,
            message,
            in_force: InForce::Nothing,
        };
        self.parsed.problems.push(problem);
    }

    /// `at` is the path of `value` in the document: empty but for items of a `List`.
    fn object(&mut self, document: &Document, mut value: Value, at: &str) {
        let text = |value: &Value, field: &str| value[field].as_str().map(str::to_owned);
        let line = document.line_of(at);
        let (Some(api_version), Some(kind)) = (text(&value, "apiVersion"), text(&value, "kind"))
        else {
            self.parsed.unreadable = true;
            let message = "no Kubernetes object: apiVersion or kind is missing".to_owned();
            return self.problem(Some(line), None, None, message);
        };
        if kind == "List" && api_version == "v1" {
            let items = match value.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            };
            for (index, item) in items.into_iter().enumerate() {
                self.object(document, item, &format!("{at}items[{index}]."));
            }
            return;
        }
        let Some(kind) = known_kind(&api_version, &kind) else {
            tracing::debug!(file = %self.file.display(), line, api_version, kind, "kind is not read");
            return;
        };
        let generation = value["metadata"]["generation"].as_i64();
        match parse_object(kind, value) {
            Ok((key, object)) => self.parsed.objects.push((key, object, line)),
            Err(invalid) => {
                let object = invalid.name();
                for FieldError { field, message } in invalid.errors {
                    let line = document.line_of(&format!("{at}{field}"));
                    let field = Some(field);
                    self.problem(Some(line), Some(object.clone()), field, message);
                    if let Some(problem) = self.parsed.problems.last_mut() {
                        problem.generation = generation;
                    }
                }
                match invalid.key {
                    Some(key) => self.parsed.invalid.push((kind, key)),
                    None => self.parsed.unreadable = true,
                }
            }
        }
    }
}

pub(crate) fn known_kind(api_version: &str, kind: &str) -> Option<Kind> {
    Some(match (api_version, kind) {
        ("v1", "Namespace") => Kind::Namespace,
        ("v1", "Node") => Kind::Node,
        ("v1", "Pod") => Kind::Pod,
        ("v1", "Service") => Kind::Service,
        ("v1", "ServiceAccount") => Kind::ServiceAccount,
        ("discovery.k8s.io/v1", "EndpointSlice") => Kind::EndpointSlice,
        ("networking.k8s.io/v1", "NetworkPolicy") => Kind::NetworkPolicy,
        ("node.k8s.io/v1", "RuntimeClass") => Kind::RuntimeClass,
        ("v1", "Secret") => Kind::Secret,
        (gateway::API_VERSION, "Gateway") => Kind::Gateway,
        (gateway::API_VERSION, "HTTPRoute") => Kind::HttpRoute,
        (gateway::API_VERSION, "GRPCRoute") => Kind::GrpcRoute,
        (gateway::API_VERSION, "TLSRoute") => Kind::TlsRoute,
        (gateway::API_VERSION | gateway::BETA_API_VERSION, "ReferenceGrant") => {
            Kind::ReferenceGrant
        }
        (policy::API_VERSION, "AuthorizationPolicy") => Kind::AuthorizationPolicy,
        (policy::API_VERSION, "MeshTLS") => Kind::MeshTls,
        (policy::API_VERSION, "TrafficPolicy") => Kind::TrafficPolicy,
        (policy::API_VERSION, "RequestAuthentication") => Kind::RequestAuthentication,
        ("security.istio.io/v1" | "security.istio.io/v1beta1", "AuthorizationPolicy") => {
            Kind::IstioAuthorizationPolicy
        }
        ("security.istio.io/v1" | "security.istio.io/v1beta1", "PeerAuthentication") => {
            Kind::PeerAuthentication
        }
        _ => return None,
    })
}

fn build(kind: Kind, value: &Value) -> Result<Object, Vec<FieldError>> {
    Ok(match kind {
        Kind::Namespace => Object::Namespace(core(value)?),
        Kind::Node => Object::Node(core(value)?),
        Kind::Pod => {
            let pod = core(value)?;
            check(bad_account(&pod).into_iter().collect())?;
            Object::Pod(pod)
        }
        Kind::Service => Object::Service(core(value)?),
        Kind::EndpointSlice => Object::EndpointSlice(core(value)?),
        Kind::ServiceAccount => Object::ServiceAccount(core(value)?),
        Kind::NetworkPolicy => Object::NetworkPolicy(core(value)?),
        Kind::RuntimeClass => Object::RuntimeClass(core(value)?),
        Kind::Secret => Object::Secret(Arc::new(TlsSecret::read(value)?)),
        Kind::Gateway => {
            let mut gateway: Gateway = typed(value)?;
            gateway.given = value.clone();
            Object::Gateway(Arc::new(gateway))
        }
        Kind::HttpRoute => {
            let mut route: HttpRoute = typed(value)?;
            check(route.validate())?;
            route.given = value.clone();
            Object::HttpRoute(Arc::new(route))
        }
        Kind::GrpcRoute => {
            let mut route: GrpcRoute = typed(value)?;
            check(route.validate())?;
            route.given = value.clone();
            Object::GrpcRoute(Arc::new(route))
        }
        Kind::TlsRoute => {
            let mut route: TlsRoute = typed(value)?;
            check(route.validate())?;
            route.given = value.clone();
            Object::TlsRoute(Arc::new(route))
        }
        Kind::ReferenceGrant => Object::ReferenceGrant(Arc::new(typed(value)?)),
        Kind::AuthorizationPolicy => {
            let policy: AuthorizationPolicy = typed(value)?;
            check(policy.validate())?;
            Object::AuthorizationPolicy(Arc::new(policy))
        }
        Kind::MeshTls => {
            let policy: MeshTls = typed(value)?;
            check(policy.validate())?;
            Object::MeshTls(Arc::new(policy))
        }
        Kind::TrafficPolicy => {
            let policy: TrafficPolicy = typed(value)?;
            check(policy.validate())?;
            Object::TrafficPolicy(Arc::new(policy))
        }
        Kind::RequestAuthentication => {
            let policy: RequestAuthentication = typed(value)?;
            check(policy.validate())?;
            Object::RequestAuthentication(Arc::new(policy))
        }
        Kind::IstioAuthorizationPolicy => {
            let policy: istio::AuthorizationPolicy = typed(value)?;
            check(policy.validate())?;
            Object::IstioAuthorizationPolicy(Arc::new(policy))
        }
        Kind::PeerAuthentication => {
            let policy: PeerAuthentication = typed(value)?;
            check(policy.validate())?;
            Object::PeerAuthentication(Arc::new(policy))
        }
    })
}

/// It becomes a part of the pod's identity.
fn bad_account(pod: &Pod) -> Option<FieldError> {
    let account = pods::service_account(pod);
    (!policy::is_name(account)).then(|| FieldError {
        field: "spec.serviceAccountName".into(),
        message: not_a_name(account),
    })
}

fn not_a_name(text: &str) -> String {
    format!("{text:?} is no lowercase RFC 1123 name")
}

fn core<T: DeserializeOwned + Metadata<Ty = ObjectMeta>>(
    value: &Value,
) -> Result<Arc<T>, Vec<FieldError>> {
    typed(value).map(Arc::new)
}

fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, Vec<FieldError>> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = match error.path().to_string() {
            path if path == "." => String::new(),
            path => path,
        };
        vec![FieldError {
            field,
            message: error.into_inner().to_string(),
        }]
    })
}

fn check(errors: Vec<FieldError>) -> Result<(), Vec<FieldError>> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_object_is_named_by_line_and_field_and_the_others_are_read() {
        let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: skipped}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  containers:
  - name: web
    ports:
    - containerPort: eighty
---
apiVersion: policy.seine.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: db, namespace: shop}
spec:
  rules:
  - from:
    - ipBlocks:
      - 10.0.0.0/8
      - 10.0.0.0/64
---
apiVersion: policy.seine.dev/v1alpha1
kind: MeshTLS
metadata: {name: default}
spec: {mode: Strict, port: 1}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web}
";
        let parsed = parse_text("a.yaml", text);
        let keys: Vec<_> = parsed
            .objects
            .iter()
            .map(|(key, object, _)| format!("{} {key}", object.kind()))
            .collect();
        assert_eq!(keys, ["Namespace shop", "ServiceAccount default/web"]);
        let problems: Vec<_> = parsed
            .problems
            .iter()
            .map(|p| {
                (
                    p.line.unwrap(),
                    p.object.as_deref().unwrap(),
                    p.field.as_deref().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            problems[0],
            (
                16,
                "Pod shop/web",
                "spec.containers[0].ports[0].containerPort"
            )
        );
        assert_eq!(
            problems[1],
            (
                26,
                "AuthorizationPolicy shop/db",
                "spec.rules[0].from[0].ipBlocks[1]"
            )
        );
        assert_eq!(
            (problems[2].0, problems[2].1),
            (31, "MeshTLS default/default")
        );
        assert_eq!(problems.len(), 3);
        assert_eq!(parsed.invalid.len(), 3);
        assert!(!parsed.unreadable);
        assert!(
            parsed.problems[0]
                .to_string()
                .starts_with("a.yaml:16: Pod shop/web: spec.")
        );
    }

    #[test]
    fn names_that_an_api_server_would_refuse_are_told_by_field() {
        let pod = |namespace: &str, name: &str, account: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
                 spec: {{serviceAccountName: {account}, containers: []}}\n"
            );
            let problems = parse_text("a.yaml", &text).problems;
            problems.first().and_then(|problem| problem.field.clone())
        };
        assert_eq!(pod("shop", "web-0.a", "web"), None);
        for (namespace, name, account, field) in [
            ("shop", "a/b", "web", "metadata.name"),
            ("Shop", "a", "web", "metadata.namespace"),
            ("shop", "a", "we`", "spec.serviceAccountName"),
            ("shop", "a", "a/sa/b", "spec.serviceAccountName"),
        ] {
            assert_eq!(pod(namespace, name, account).as_deref(), Some(field));
        }
    }

    #[test]
    fn the_items_of_a_list_are_objects() {
        let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: a}}
- apiVersion: v1
  kind: Service
  metadata: {name: b}
  spec: {ports: [{port: x}]}
";
        let parsed = parse_text("a.yaml", text);
        assert_eq!(parsed.objects[0].0, ObjectKey::cluster("a"));
        assert_eq!(parsed.problems[0].line, Some(9));
    }

    #[test]
    fn what_is_no_object_is_a_problem() {
        let parsed = parse_text(
            "a.yaml",
            "just: a map\n---\n- a\n---\nkind: Pod\napiVersion: v1\n",
        );
        assert_eq!(parsed.problems.len(), 3);
        assert!(parsed.unreadable);
    }
}
