//! What a client holds of a type, by name and version.
//!
//! Nearly all clients hold nearly the same. So what one holds is a snapshot that it shares with the others, and in what
//! its own differs: a thousand clients of a hundred thousand resources would be gigabytes otherwise.

use std::collections::HashMap;
use std::sync::Arc;

use super::TypeResources;
use super::snapshot::ByName;

#[derive(Debug, Default)]
pub(super) struct Held {
    shared: Arc<ByName>,
    /// Other versions than the shared ones; `None`: it does not hold it.
    own: HashMap<Arc<str>, Option<Arc<str>>>,
}

impl Held {
    /// The version.
    pub(super) fn get(&self, name: &str) -> Option<&Arc<str>> {
        match self.own.get(name) {
            Some(own) => own.as_ref(),
            None => self.shared.get(name).map(|resource| &resource.version),
        }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn insert(&mut self, name: Arc<str>, version: Arc<str>) {
        self.own.insert(name, Some(version));
    }

    pub(super) fn remove(&mut self, name: &Arc<str>) {
        match self.shared.contains_key(name) {
            true => self.own.insert(name.clone(), None),
            false => self.own.remove(name),
        };
    }

    /// From now on it holds all of these and nothing else.
    pub(super) fn set_all(&mut self, resources: &TypeResources) {
        self.shared = resources.shared();
        self.own = HashMap::new();
    }

    pub(super) fn len(&self) -> usize {
        let own = self.own.iter();
        own.fold(self.shared.len(), |all, (name, version)| {
            match (version, self.shared.contains_key(name)) {
                (Some(_), false) => all + 1,
                (None, true) => all - 1,
                _ => all,
            }
        })
    }

    /// In no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let shared = self.shared.keys();
        let shared = shared.filter(|name| !self.own.contains_key(*name));
        let own = self.own.iter().filter(|(_, version)| version.is_some());
        shared.chain(own.map(|(name, _)| name))
    }
}

impl FromIterator<(String, String)> for Held {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(held: I) -> Self {
        let held = held.into_iter();
        Self {
            shared: Arc::default(),
            own: held
                .map(|(name, version)| (name.into(), Some(version.into())))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn all(held: &Held) -> BTreeMap<&str, &str> {
        let names = held.names();
        let all: BTreeMap<_, _> = names
            .map(|name| (&**name, &**held.get(name).unwrap()))
            .collect();
        assert_eq!(held.len(), all.len());
        all
    }

    #[test]
    fn what_is_its_own_hides_what_is_shared() {
        let pair = |(name, version): (&str, &str)| (name.to_owned(), version.to_owned());
        let mut held: Held = [("a", "1"), ("b", "1")].map(pair).into_iter().collect();
        held.insert("c".into(), "1".into());
        held.remove(&"a".into());
        held.remove(&"not there".into());
        assert_eq!(all(&held), [("b", "1"), ("c", "1")].into());

        let shared = crate::xds::snapshot::resources(&[("a", "2"), ("b", "2")]);
        held.set_all(&shared);
        assert_eq!(all(&held), [("a", "2"), ("b", "2")].into());
        held.insert("a".into(), "3".into());
        held.insert("d".into(), "1".into());
        held.remove(&"b".into());
        assert_eq!(all(&held), [("a", "3"), ("d", "1")].into());
        assert!(held.contains("a") && !held.contains("b"));
        held.remove(&"d".into());
        held.insert("b".into(), "4".into());
        assert_eq!(all(&held), [("a", "3"), ("b", "4")].into());
    }
}
