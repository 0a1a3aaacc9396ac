//! One copy of each string and identity that many resources share. Owned and touched by the
//! store's writer.

use std::collections::HashSet;
use std::sync::Arc;

use seine_identity::Identity;

/// Strings in use. Those that only the table holds are dropped now and then.
pub(crate) struct Interner {
    strings: HashSet<Arc<str>>,
    identities: HashSet<Identity>,
    /// Size at which to sweep the strings next.
    sweep_at: usize,
}

const MIN_SWEEP: usize = 1024;

/// Identities that are kept for sharing; when there are more, sharing begins anew.
const MAX_IDENTITIES: usize = 16_384;

impl Interner {
    pub(crate) fn new() -> Self {
        Self {
            strings: HashSet::new(),
            identities: HashSet::new(),
            sweep_at: MIN_SWEEP,
        }
    }

    /// The shared copy of `text`.
    pub(crate) fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.strings.get(text) {
            return known.clone();
        }
        if self.strings.len() >= self.sweep_at {
            self.strings.retain(|s| Arc::strong_count(s) > 1);
            self.sweep_at = (self.strings.len() * 2).max(MIN_SWEEP);
        }
        let new: Arc<str> = text.into();
        self.strings.insert(new.clone());
        new
    }

    /// The shared copy of `identity`.
    pub(crate) fn identity(&mut self, identity: Identity) -> Identity {
        if let Some(known) = self.identities.get(&identity) {
            return known.clone();
        }
        if self.identities.len() >= MAX_IDENTITIES {
            self.identities.clear();
        }
        self.identities.insert(identity.clone());
        identity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_share_one_copy() {
        let mut interner = Interner::new();
        assert!(Arc::ptr_eq(&interner.get("a"), &interner.get("a")));
    }

    #[test]
    fn strings_that_nobody_holds_are_forgotten() {
        let mut interner = Interner::new();
        let kept = interner.get("kept");
        for i in 0..3 * MIN_SWEEP {
            interner.get(&i.to_string());
        }
        assert!(interner.strings.len() <= MIN_SWEEP + 1);
        assert!(Arc::ptr_eq(&kept, &interner.get("kept")));
    }
}
