//! The listeners that the control plane has sent.
//!
//! One writer, the configuration's task; connections and requests read those of their port.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;
use prost::Message;
use seine_proto::discovery::Resource;
use seine_proto::waypoint as wire;
use seine_xds::Refused;
use tokio::sync::watch;

use super::listener::Listener;

/// The listeners.
#[derive(Debug)]
pub struct Listeners {
    state: RwLock<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Version and listener by name.
    held: HashMap<String, (String, Arc<Listener>)>,
    by_port: BTreeMap<u16, Arc<Port>>,
}

/// The listeners of one port, the most specific first.
#[derive(Debug)]
pub struct Port(Vec<Arc<Listener>>);

impl Default for Listeners {
    fn default() -> Self {
        Self {
            state: RwLock::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Listeners {
    /// Those of a port.
    pub fn port(&self, port: u16) -> Option<Arc<Port>> {
        self.state.read().by_port.get(&port).cloned()
    }

    /// The ports that have one.
    pub fn ports(&self) -> Vec<u16> {
        self.state.read().by_port.keys().copied().collect()
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Listener>> {
        let state = self.state.read();
        let mut all: Vec<_> = state.held.values().map(|(_, held)| held.clone()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Told of every change.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Name and version of each.
    pub(crate) fn versions(&self) -> HashMap<String, String> {
        let state = self.state.read();
        let held = state.held.iter();
        held.map(|(name, (version, _))| (name.clone(), version.clone()))
            .collect()
    }

    /// Applies what the control plane sent. Of a listener that can't be read the earlier version stays in force.
    pub fn apply(&self, resources: &[Resource], removed: &[String]) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut state = self.state.write();
        for name in removed {
            state.held.remove(name);
        }
        for resource in resources {
            match parse(resource) {
                Ok(listener) => {
                    let held = (resource.version.clone(), Arc::new(listener));
                    state.held.insert(resource.name.clone(), held);
                }
                Err(problem) => refused.push(Refused {
                    name: resource.name.clone(),
                    problem,
                }),
            }
        }
        let mut by_port: BTreeMap<u16, Vec<Arc<Listener>>> = BTreeMap::new();
        for (_, listener) in state.held.values() {
            by_port
                .entry(listener.port)
                .or_default()
                .push(listener.clone());
        }
        let by_port = by_port.into_iter().map(|(port, mut listeners)| {
            let order = |one: &Arc<Listener>| (one.hosts.specific(), one.name.clone());
            listeners.sort_by_key(|one| std::cmp::Reverse(order(one)));
            (port, Arc::new(Port(listeners)))
        });
        state.by_port = by_port.collect();
        drop(state);
        self.changed.send_modify(|changes| *changes += 1);
        refused
    }
}

fn parse(resource: &Resource) -> Result<Listener, String> {
    let body = resource.resource.as_ref().ok_or("it has no content")?;
    let message = wire::Listener::decode(&*body.value).map_err(|error| error.to_string())?;
    Listener::parse(&resource.name, &message)
}

impl Port {
    /// The one that takes requests to a host; without a host one that takes any.
    pub fn taking(&self, host: &str) -> Option<&Arc<Listener>> {
        self.0.iter().find(|listener| listener.hosts.contain(host))
    }

    /// Connections begin with TLS. The control plane lets no other listeners be at one port.
    pub fn is_tls(&self) -> bool {
        let mut listeners = self.0.iter();
        listeners.all(|listener| listener.protocol.begins_with_tls())
    }

    /// TLS ends at one of them.
    pub fn ends_tls(&self) -> bool {
        let mut listeners = self.0.iter();
        listeners.any(|listener| listener.protocol.tls().is_some())
    }

    /// Any of them, for what they have in common: they are of one Gateway.
    pub fn any(&self) -> Option<&Arc<Listener>> {
        self.0.first()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seine_proto::LISTENER_TYPE;
    use seine_proto::waypoint::listener::Protocol as WireProtocol;

    fn resource(name: &str, port: u32, hostname: &str, protocol: WireProtocol) -> Resource {
        let message = wire::Listener {
            port,
            hostname: hostname.into(),
            protocol: protocol.into(),
            ..wire::Listener::default()
        };
        Resource {
            name: name.into(),
            version: "1".into(),
            resource: Some(prost_types::Any {
                type_url: LISTENER_TYPE.into(),
                value: message.encode_to_vec(),
            }),
            ..Resource::default()
        }
    }

    #[test]
    fn the_most_specific_listener_of_a_port_takes_a_host() {
        let listeners = Listeners::default();
        let http = WireProtocol::Http;
        let all = [
            resource("any", 80, "", http),
            resource("wild", 80, "*.example", http),
            resource("wilder", 80, "*.a.example", http),
            resource("one", 80, "b.a.example", http),
            resource("other", 81, "c.example", http),
        ];
        assert_eq!(listeners.apply(&all, &[]), []);
        let taking = |port: u16, host: &str| {
            let port = listeners.port(port)?;
            Some(port.taking(host)?.name.clone())
        };
        for (port, host, expected) in [
            (80, "b.a.example", Some("one")),
            (80, "c.a.example", Some("wilder")),
            (80, "a.example", Some("wild")),
            (80, "example", Some("any")),
            (80, "", Some("any")),
            (81, "c.example", Some("other")),
            (81, "a.example", None),
            (82, "a.example", None),
        ] {
            assert_eq!(taking(port, host).as_deref(), expected, "{port} {host}");
        }
        listeners.apply(&[], &["one".to_owned(), "other".to_owned()]);
        assert_eq!(taking(80, "b.a.example").as_deref(), Some("wilder"));
        assert_eq!(listeners.ports(), [80]);
    }

    #[test]
    fn a_listener_that_cannot_be_read_leaves_the_earlier_one_in_force() {
        let listeners = Listeners::default();
        listeners.apply(&[resource("a", 80, "", WireProtocol::Http)], &[]);
        for bad in [
            resource("a", 0, "", WireProtocol::Http),
            resource("a", 65536, "", WireProtocol::Http),
            resource("a", 81, "*", WireProtocol::Http),
            resource("a", 81, "", WireProtocol::Unknown),
            // Without a certificate.
            resource("a", 81, "", WireProtocol::Https),
            resource("a", 81, "", WireProtocol::Tls),
        ] {
            assert_eq!(listeners.apply(&[bad], &[]).len(), 1);
            assert_eq!(listeners.ports(), [80]);
        }
    }
}
