//! Which rule decides about a request, by the precedence of the Gateway API, and what it makes of the URL. Pure.

use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderName, Method};
use rand::{Rng, RngExt};
use seine_workload::ServiceKey;

use crate::ingress::hosts::Hosts;
use crate::path;
use crate::rule::{Backend, Match, PathChange, PathMatch, Rule, Text};
use crate::service_rules::{Attached, ServiceRules};

/// A request, as far as matches look at it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The method.
    pub method: &'a Method,
    /// The normalised path.
    pub path: &'a str,
    /// What follows `?`.
    pub query: Option<&'a str>,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// It is a request of gRPC.
    pub grpc: bool,
}

impl Asked<'_> {
    /// Of a connection nobody knows what is asked: it matches what matches everything.
    pub(crate) fn nothing() -> Self {
        static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);
        Asked {
            method: &Method::CONNECT,
            path: "",
            query: None,
            headers: &NO_HEADERS,
            grpc: false,
        }
    }
}

/// What the rules about a service say of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// No rule is about the port: it goes to the service itself.
    NoRules,
    /// There are rules, and none matches.
    NoMatch,
    /// This rule decides; of its matches, the one of this index is the best.
    Rule(Arc<Rule>, usize),
}

/// Chooses among the rules about a service.
///
/// A route of another namespace than the service's is about the clients of its own namespace, and for them comes in the
/// place of the service's own routes.
pub fn choose(
    rules: &ServiceRules,
    service: &ServiceKey,
    port: u16,
    client_namespace: &str,
    asked: &Asked<'_>,
) -> Choice {
    let Some(obeyed) = Obeyed::of(rules, service, port, client_namespace) else {
        return Choice::NoRules;
    };
    let about = rules.possible(asked.path);
    let about = about.filter(|rule| obeyed.has(rule));
    best(about.map(|rule| ((), rule)), asked)
}

/// Which of the rules about a service decide about the requests of a client to one of its ports.
pub(crate) struct Obeyed<'a> {
    service: &'a ServiceKey,
    port: u16,
    namespace: &'a str,
    grpc: bool,
}

impl<'a> Obeyed<'a> {
    /// None if no rule is about the port.
    pub(crate) fn of(
        rules: &ServiceRules,
        service: &'a ServiceKey,
        port: u16,
        client_namespace: &'a str,
    ) -> Option<Self> {
        let of_client = |at: &Attached| at.namespace == client_namespace;
        let namespace = match rules.attached(port).any(of_client) {
            true => client_namespace,
            false => &*service.namespace,
        };
        let mut attached = rules
            .attached(port)
            .filter(|at| at.namespace == namespace)
            .peekable();
        attached.peek()?;
        // Of several kinds of routes at one port the most specific one is obeyed alone (GEP-1426).
        let grpc = attached.any(|at| at.grpc);
        Some(Self {
            service,
            port,
            namespace,
            grpc,
        })
    }

    /// Whether a rule about the service is among them.
    pub(crate) fn has(&self, rule: &Rule) -> bool {
        let mut parents = rule.parents.iter();
        let of_port = |of: Option<u16>| of.is_none_or(|of| of == self.port);
        rule.namespace == self.namespace
            && rule.grpc == self.grpc
            && parents.any(|(parent, of)| parent == self.service && of_port(*of))
    }
}

/// Chooses among the rules that are attached to a listener: a match of a rule that is about the host in a more specific way comes
/// first, then a better match.
pub fn choose_at(rules: &[Arc<Rule>], listener: &str, host: &str, asked: &Asked<'_>) -> Choice {
    let specific = |rule: &Rule| {
        let at = rule.listeners.iter().filter(|(name, _)| name == listener);
        let hosts = at.map(|(_, hosts)| hosts);
        let hosts = hosts.filter(|hosts| hosts.contain(host));
        hosts.map(Hosts::specific).max()
    };
    let about = rules.iter();
    best(
        about.filter_map(|rule| Some((specific(rule)?, rule))),
        asked,
    )
}

/// The rule with the best match, of those that come first.
fn best<'a, O: Copy + Ord>(
    candidates: impl Iterator<Item = (O, &'a Arc<Rule>)>,
    asked: &Asked<'_>,
) -> Choice {
    let mut best: Option<((O, Rank), &Arc<Rule>, usize)> = None;
    for (order, rule) in candidates {
        for (index, wanted) in rule.matches.iter().enumerate() {
            let place = (order, Rank::of(wanted));
            // Of equal ones that of the older route, then of the earlier rule, and there the first.
            let better = best
                .as_ref()
                .is_none_or(|(held, of, _)| place > *held || place == *held && rule.age < of.age);
            let of_kind = asked.grpc || !rule.grpc;
            if better && of_kind && wanted.matches(asked) {
                best = Some((place, rule, index));
            }
        }
    }
    match best {
        Some((_, rule, index)) => Choice::Rule(rule.clone(), index),
        None => Choice::NoMatch,
    }
}

/// How specific a match is, the most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    path: Specific,
    method: bool,
    headers: usize,
    query: usize,
}

impl Rank {
    fn of(wanted: &Match) -> Self {
        let length = |text: &str| text.chars().count();
        let path = match &wanted.path {
            PathMatch::Prefix(prefix) => Specific::Prefix(length(prefix)),
            PathMatch::Pattern(pattern) => Specific::Pattern(length(pattern.as_str())),
            PathMatch::Exact(_) => Specific::Exact,
            PathMatch::Grpc(service, method) => {
                let length = |text: &Option<Text>| match text {
                    None => 0,
                    Some(Text::Exact(text)) => length(text),
                    Some(Text::Pattern(pattern)) => length(pattern.as_str()),
                };
                Specific::Grpc(length(service), length(method))
            }
        };
        Self {
            path,
            method: wanted.method.is_some(),
            headers: wanted.headers.len(),
            query: wanted.query.len(),
        }
    }
}

/// How specific a match of the path is. The place of regular expressions is for each implementation to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Specific {
    Prefix(usize),
    Pattern(usize),
    Exact,
    /// Characters of the service and of the method; never compared with the others.
    Grpc(usize, usize),
}

impl Text {
    /// Bytes that are no UTF-8 match nothing.
    fn matches(&self, found: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == found,
            Self::Pattern(pattern) => {
                std::str::from_utf8(found).is_ok_and(|text| pattern.matches(text))
            }
        }
    }
}

impl Match {
    fn matches(&self, asked: &Asked<'_>) -> bool {
        self.path.matches(asked.path)
            && self.method.as_ref().is_none_or(|m| m == asked.method)
            && self.headers.iter().all(|pair| has_header(asked, pair))
            && self.query.iter().all(|pair| has_parameter(asked, pair))
    }
}

impl PathMatch {
    /// Whether it is the path of a request.
    pub(crate) fn matches(&self, asked: &str) -> bool {
        match self {
            Self::Exact(path) => path == asked,
            Self::Prefix(prefix) => after_prefix(asked, prefix).is_some(),
            Self::Pattern(pattern) => pattern.matches(asked),
            Self::Grpc(service, method) => {
                let found = asked
                    .strip_prefix('/')
                    .and_then(|path| path.split_once('/'));
                let is = |wanted: &Option<Text>, found: &str| {
                    let mut wanted = wanted.iter();
                    wanted.all(|wanted| wanted.matches(found.as_bytes()))
                };
                found.is_some_and(|found| is(service, found.0) && is(method, found.1))
            }
        }
    }
}

/// Whether a header of a request has a value.
pub(crate) fn has_header(asked: &Asked<'_>, (name, value): &(HeaderName, Text)) -> bool {
    let mut values = asked.headers.get_all(name).iter();
    values.any(|found| value.matches(found.as_bytes()))
}

/// Whether a query parameter of a request has a value.
pub(crate) fn has_parameter(asked: &Asked<'_>, (name, value): &(String, Text)) -> bool {
    let pairs = asked.query.unwrap_or_default().split('&');
    let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    // Of a parameter that occurs twice the first counts.
    pairs
        .find(|(found, _)| path::decode(found) == name.as_bytes())
        .is_some_and(|(_, found)| value.matches(&path::decode(found)))
}

/// What follows a prefix of whole segments.
fn after_prefix<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

impl PathChange {
    /// The new path of a request that this match matched.
    pub fn apply(&self, path: &str, matched: &PathMatch) -> String {
        let changed = match (self, matched) {
            (Self::Full(full), _) => full.clone(),
            (Self::Prefix(new), PathMatch::Prefix(prefix)) => {
                let rest = after_prefix(path, prefix).unwrap_or(path);
                format!("{}{rest}", new.trim_end_matches('/'))
            }
            // The Gateway API allows it with a prefix alone.
            (Self::Prefix(_), _) => path.to_owned(),
        };
        match changed.starts_with('/') {
            true => changed,
            false => format!("/{changed}"),
        }
    }
}

/// One of the backends, by weight; `None`: there is none that takes requests.
pub fn pick<'a>(backends: &'a [Backend], random: &mut impl Rng) -> Option<&'a Backend> {
    let total: u64 = backends
        .iter()
        .map(|backend| u64::from(backend.weight))
        .sum();
    if total == 0 {
        return None;
    }
    let mut drawn = random.random_range(0..total);
    backends.iter().find(|backend| {
        let weight = u64::from(backend.weight);
        let hit = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        hit
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use seine_proto::waypoint as wire;

    const WEB: &str = "web.shop.svc.cluster.local";

    /// A rule for each match `exact|prefix path [method] [h=v]… [?q=v]…`, named by its index; `created` is its age.
    fn rule(namespace: &str, name: &str, created: i64, matches: &[&str]) -> Arc<Rule> {
        let one = |text: &&str| {
            let mut found = wire::Match::default();
            for (index, word) in text.split(' ').enumerate() {
                let pair = |text: &str| {
                    let (name, value) = text.split_once('=').unwrap();
                    wire::Pair {
                        name: name.into(),
                        value: value.into(),
                    }
                };
                match (index, word.strip_prefix('?')) {
                    (0, _) => {
                        found.path = Some(match (word.strip_suffix('*'), word.strip_prefix('~')) {
                            (_, Some(regex)) => wire::r#match::Path::Regex(regex.into()),
                            (Some(prefix), _) => wire::r#match::Path::Prefix(prefix.into()),
                            _ => wire::r#match::Path::Exact(word.into()),
                        });
                    }
                    (_, None) if word.contains('~') => {
                        let (name, value) = word.split_once('~').unwrap();
                        found.header_patterns.push(wire::Pair {
                            name: name.into(),
                            value: value.into(),
                        });
                    }
                    (_, Some(query)) => found.query.push(pair(query)),
                    (_, None) if word.contains('=') => found.headers.push(pair(word)),
                    (_, None) => found.method = word.into(),
                }
            }
            found
        };
        let message = wire::RouteRule {
            kind: "HTTPRoute".into(),
            namespace: namespace.into(),
            name: name.into(),
            created,
            parents: vec![wire::Parent {
                namespace: "shop".into(),
                hostname: WEB.into(),
                port: 80,
            }],
            matches: matches.iter().map(one).collect(),
            ..Default::default()
        };
        Arc::new(Rule::parse(name, &message).unwrap())
    }

    fn chosen(rules: &[Arc<Rule>], from: &str, request: &str) -> String {
        let (method, rest) = request.split_once(' ').unwrap();
        let (url, headers) = rest.split_once(' ').unwrap_or((rest, ""));
        let (path, query) = match url.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (url, None),
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers.split(' ').filter_map(|pair| pair.split_once('=')) {
            map.append(
                name.parse::<http::HeaderName>().unwrap(),
                value.parse().unwrap(),
            );
        }
        let asked = Asked {
            method: &method.parse().unwrap(),
            path,
            query,
            grpc: map.contains_key("grpc"),
            headers: &map,
        };
        let service = ServiceKey {
            namespace: "shop".into(),
            hostname: WEB.into(),
        };
        let mut of_service = ServiceRules::default();
        for rule in rules {
            of_service.add(&service, rule);
        }
        match choose(&of_service, &service, 80, from, &asked) {
            Choice::NoRules => "no rules".into(),
            Choice::NoMatch => "no match".into(),
            Choice::Rule(rule, index) => format!("{}:{index}", rule.name),
        }
    }

    #[test]
    fn at_a_listener_the_most_specific_host_decides_before_any_match() {
        let at = |name: &str, matches: &str, hosts: &[&str]| {
            let mut rule = Rule::clone(&rule("shop", name, 1, &[matches]));
            let hosts = hosts.iter().map(|host| Hosts::parse(host).unwrap());
            rule.listeners = hosts.map(|hosts| ("l".to_owned(), hosts)).collect();
            rule.parents = Vec::new();
            Arc::new(rule)
        };
        let mut elsewhere = Rule::clone(&at("elsewhere", "/a", &["a.example"]));
        elsewhere.listeners[0].0 = "other".into();
        let rules = [
            at("any", "/any", &[""]),
            at("wild", "/a", &["*.example"]),
            at("one", "/*", &["a.example", "b.example"]),
            at("also", "/a", &["a.example", "*.example"]),
            Arc::new(elsewhere),
        ];
        let chosen = |host: &str, path: &str| {
            let asked = Asked {
                method: &Method::GET,
                path,
                query: None,
                headers: &HeaderMap::new(),
                grpc: false,
            };
            match choose_at(&rules, "l", host, &asked) {
                Choice::NoRules => "no rules".into(),
                Choice::NoMatch => "no match".into(),
                Choice::Rule(rule, _) => rule.name.clone(),
            }
        };
        for (host, path, expected) in [
            ("a.example", "/a", "also"),
            ("a.example", "/b", "one"),
            ("b.example", "/a", "one"),
            ("b.example", "/any", "one"),
            // Of equal ones the first by name.
            ("c.example", "/a", "also"),
            // No rule of a more specific host matches.
            ("c.example", "/any", "any"),
            ("example", "/any", "any"),
            ("example", "/a", "no match"),
        ] {
            assert_eq!(chosen(host, path), expected, "{host}{path}");
        }
    }

    #[test]
    fn the_most_specific_match_wins_in_the_order_of_the_gateway_api() {
        // Each next one beats all before it, whatever the order of the rules.
        let ladder = [
            "/*",
            "/* ?a=1",
            "/a* ?a=1 ?b=2",
            "/a* x=1",
            "/a* x=1 ?a=1",
            "/a* x=1 y=1",
            "/a* GET",
            "/a* GET x=1",
            "/a/b*",
            "~/[a-z]/b",
            "/a/b",
        ];
        for count in 1..=ladder.len() {
            for backwards in [false, true] {
                let mut rules: Vec<_> = (0..count)
                    .map(|index| rule("shop", &format!("r{index}"), 1, &ladder[index..=index]))
                    .collect();
                if backwards {
                    rules.reverse();
                }
                let found = chosen(&rules, "shop", "GET /a/b?a=1&b=2 x=1 y=1");
                assert_eq!(found, format!("r{}:0", count - 1));
            }
        }
    }

    #[test]
    fn of_equal_matches_the_older_route_wins_then_the_name_then_the_first_match() {
        let rules = [
            rule("shop", "b", 1, &["/a*"]),
            rule("shop", "c", 1, &["/a*"]),
            rule("shop", "a", 2, &["/a*"]),
            rule("shop", "unknown", 0, &["/a*"]),
        ];
        assert_eq!(chosen(&rules, "shop", "GET /a"), "b:0");
        let two = [rule("shop", "a", 1, &["/b", "/a", "/a"])];
        assert_eq!(chosen(&two, "shop", "GET /a"), "a:1");
    }

    #[test]
    fn prefixes_are_of_whole_segments_and_exact_is_exact() {
        let rules = [
            rule("shop", "r", 1, &["/a/*"]),
            rule("shop", "e", 1, &["/exact"]),
        ];
        for (path, found) in [
            ("/a", "r:0"),
            ("/a/", "r:0"),
            ("/a/b", "r:0"),
            ("/ab", "no match"),
            ("/exact", "e:0"),
            ("/exact/", "no match"),
            ("/Exact", "no match"),
        ] {
            assert_eq!(
                chosen(&rules, "shop", &format!("GET {path}")),
                found,
                "{path}"
            );
        }
    }

    #[test]
    fn of_a_query_parameter_that_occurs_twice_the_first_counts_and_values_are_decoded() {
        let rules = [rule("shop", "r", 1, &["/* ?a=1+2"])];
        for (query, found) in [
            ("a=1%2B2", "r:0"),
            ("b=&a=1%2b2&a=3", "r:0"),
            ("a=3&a=1%2B2", "no match"),
            ("a", "no match"),
            ("%61=1%2B2", "r:0"),
        ] {
            assert_eq!(
                chosen(&rules, "shop", &format!("GET /?{query}")),
                found,
                "{query}"
            );
        }
    }

    #[test]
    fn regular_expressions_are_of_whole_paths_and_values() {
        let rules = [rule("shop", "r", 1, &["~/v[0-9]+/.* x~b+"])];
        for (request, found) in [
            ("GET /v1/a x=bb", "r:0"),
            ("GET /v1/a x=bbc", "no match"),
            ("GET /v1/a", "no match"),
            ("GET /a/v1/a x=b", "no match"),
        ] {
            assert_eq!(chosen(&rules, "shop", request), found, "{request}");
        }
    }

    /// A rule of a `GRPCRoute` for each `service/method`, `~` before it for regular expressions; `-` is any.
    fn grpc(name: &str, matches: &[&str]) -> Arc<Rule> {
        let one = |text: &&str| {
            let (regex, text) = match text.strip_prefix('~') {
                Some(text) => (true, text),
                None => (false, *text),
            };
            let (service, method) = text.split_once('/').unwrap();
            let part = |text: &str| match text {
                "-" => String::new(),
                text => text.into(),
            };
            wire::Match {
                path: Some(wire::r#match::Path::Grpc(wire::GrpcMethod {
                    service: part(service),
                    method: part(method),
                    regex,
                })),
                ..wire::Match::default()
            }
        };
        let message = wire::RouteRule {
            kind: "GRPCRoute".into(),
            namespace: "shop".into(),
            name: name.into(),
            created: 1,
            parents: vec![wire::Parent {
                namespace: "shop".into(),
                hostname: WEB.into(),
                port: 80,
            }],
            matches: matches.iter().map(one).collect(),
            ..Default::default()
        };
        Arc::new(Rule::parse(name, &message).unwrap())
    }

    #[test]
    fn of_grpc_the_longest_service_wins_then_the_longest_method() {
        let ladder = ["-/-", "-/Get", "~a.[A-Z]/-", "a.Bcdef/-", "a.Bcdef/Get"];
        for count in 1..=ladder.len() {
            for backwards in [false, true] {
                let mut rules: Vec<_> = (0..count)
                    .map(|index| grpc(&format!("r{index}"), &ladder[index..=index]))
                    .collect();
                if backwards {
                    rules.reverse();
                }
                let found = chosen(&rules, "shop", "POST /a.Bcdef/Get grpc=1");
                // The expression is of a whole service, which this one isn't.
                let best = [0, 1, 1, 3, 4][count - 1];
                assert_eq!(found, format!("r{best}:0"));
            }
        }
        let rules = [grpc("r", &["~a.[A-Z]/-", "b.C/D"])];
        for (request, found) in [
            ("POST /a.B/X grpc=1", "r:0"),
            ("POST /b.C/D grpc=1", "r:1"),
            ("POST /b.C/d grpc=1", "no match"),
            ("POST /b.C grpc=1", "no match"),
            // Not gRPC.
            ("POST /b.C/D", "no match"),
        ] {
            assert_eq!(chosen(&rules, "shop", request), found, "{request}");
        }
    }

    #[test]
    fn a_service_with_both_kinds_of_routes_obeys_those_of_grpc_alone() {
        let rules = [grpc("g", &[]), rule("shop", "h", 0, &["/a/b"])];
        assert_eq!(chosen(&rules, "shop", "POST /a/b grpc=1"), "g:0");
        assert_eq!(chosen(&rules, "shop", "GET /a/b"), "no match");
    }

    #[test]
    fn a_consumers_route_is_for_its_own_namespace_and_in_the_place_of_the_producers() {
        let rules = [
            rule("shop", "producer", 1, &["/a"]),
            rule("team", "consumer", 2, &["/*"]),
        ];
        assert_eq!(chosen(&rules, "team", "GET /a"), "consumer:0");
        assert_eq!(chosen(&rules, "shop", "GET /a"), "producer:0");
        assert_eq!(chosen(&rules, "other", "GET /b"), "no match");
        assert_eq!(chosen(&rules[1..], "other", "GET /b"), "no rules");
    }

    #[test]
    fn a_prefix_is_replaced_as_the_gateway_api_s_table_says() {
        let replaced = |path: &str, prefix: &str, new: &str| {
            let prefix = PathMatch::Prefix(prefix.trim_end_matches('/').into());
            PathChange::Prefix(new.into()).apply(path, &prefix)
        };
        for (path, prefix, new, found) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/a", "/", "/x", "/x/a"),
        ] {
            assert_eq!(replaced(path, prefix, new), found, "{path} {prefix} {new}");
        }
    }

    #[test]
    fn each_backend_gets_its_share_and_one_without_weight_none() {
        let backend = |weight| Backend {
            service: ServiceKey {
                namespace: "shop".into(),
                hostname: WEB.into(),
            },
            port: 80,
            weight,
            filters: Vec::new(),
            refused: None,
            tls: None,
        };
        let backends = [backend(3), backend(0), backend(1)];
        let mut counts = [0; 3];
        for _ in 0..4000 {
            let picked = pick(&backends, &mut rand::rng()).unwrap();
            counts[backends
                .iter()
                .position(|b| b.weight == picked.weight)
                .unwrap()] += 1;
        }
        assert!(
            (2700..3300).contains(&counts[0]) && counts[1] == 0,
            "{counts:?}"
        );
        assert!(pick(&backends[1..2], &mut rand::rng()).is_none());
    }
}
