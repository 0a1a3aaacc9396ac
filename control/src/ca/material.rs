//! [`Material`]: the state and the keys of a CA, as a store has them, and what becomes of them.
//!
//! Everything here is a function of what it is given: the store writes what comes out.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::certificate::{CaCertificate, key_of, make_intermediate, make_root, same_set};
use super::external::Intermediate;
use super::{CaError, CaOptions};

/// Name of the state among the files.
pub(super) const STATE: &str = "state.json";

const STATE_VERSION: u32 = 1;

/// Added to each phase of a root's rotation, for clocks that differ.
const PHASE_MARGIN: Duration = Duration::from_secs(60);

/// Where the rotation of the root stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// One root.
    Steady,
    /// Two are trusted, the old one signs.
    TrustBoth,
    /// Two are trusted, the new one signs.
    IssueFromNew,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Steady => "steady",
            Self::TrustBoth => "trust-both",
            Self::IssueFromNew => "issue-from-new",
        })
    }
}

/// What survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct State {
    /// Layout of the files.
    version: u32,
    trust_domain: String,
    pub(super) phase: Phase,
    /// Start of the phase, in seconds since 1970.
    since: u64,
    /// The longest life, in seconds, that a certificate was ever given.
    longest_lifetime: u64,
    /// The older root in a rotation, else the only one.
    pub(super) root: u64,
    /// The intermediate that signs.
    pub(super) intermediate: u64,
    /// An intermediate from outside that will sign from the next phase on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_intermediate: Option<u64>,
}

/// State and keys. Never printed but for its state.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    pub(super) state: State,
    /// `root-N.pem` and `intermediate-N.pem`: certificates, and the key where it is ours to use.
    files: BTreeMap<String, Zeroizing<String>>,
}

impl Material {
    /// What a store had.
    pub(super) fn from_files(
        place: &str,
        state: &str,
        files: BTreeMap<String, Zeroizing<String>>,
    ) -> Result<Self, CaError> {
        let wrong = |reason| CaError::Material {
            place: place.into(),
            reason,
        };
        let state: State = serde_json::from_str(state)
            .map_err(|error| wrong(format!("{STATE} is no state of a CA: {error}")))?;
        if state.version != STATE_VERSION {
            return Err(wrong(format!(
                "layout {} is not known to this version (it knows {STATE_VERSION})",
                state.version
            )));
        }
        let mut material = Self { state, files };
        for name in material.named() {
            if !material.files.contains_key(&name) {
                return Err(wrong(format!("{STATE} names {name}, which is missing")));
            }
        }
        material.forget_unnamed();
        Ok(material)
    }

    /// A new CA of its own.
    pub(super) fn new(options: &CaOptions, now: SystemTime) -> Result<Self, CaError> {
        let mut material = Self::empty(options, now);
        material.put_root(1, make_root(options, 1, now)?);
        material.renew(options, 1, now)?;
        Ok(material)
    }

    /// A CA below an intermediate from outside.
    pub(super) fn external(options: &CaOptions, given: &Intermediate, now: SystemTime) -> Self {
        let mut material = Self::empty(options, now);
        material.put_root(1, given.roots_pem());
        material.put_intermediate(1, given.chain_and_key_pem());
        material.state.intermediate = 1;
        material
    }

    fn empty(options: &CaOptions, now: SystemTime) -> Self {
        Self {
            state: State {
                version: STATE_VERSION,
                trust_domain: options.trust_domain.to_string(),
                phase: Phase::Steady,
                since: unix(now),
                longest_lifetime: longest(options),
                root: 1,
                intermediate: 0,
                next_intermediate: None,
            },
            files: BTreeMap::new(),
        }
    }

    /// Refuses the CA of another trust domain.
    pub(super) fn check(&self, place: &str, options: &CaOptions) -> Result<(), CaError> {
        if self.state.trust_domain == options.trust_domain.as_str() {
            return Ok(());
        }
        Err(CaError::TrustDomain {
            place: place.into(),
            actual: self.state.trust_domain.clone(),
            wanted: options.trust_domain.clone(),
        })
    }

    /// By name; all of them are secret.
    pub(super) fn files(&self) -> &BTreeMap<String, Zeroizing<String>> {
        &self.files
    }

    pub(super) fn state_json(&self) -> String {
        serde_json::to_string_pretty(&self.state).expect("the state has no maps and no floats")
    }

    /// Every root that is trusted, each once, the newest last.
    pub(super) fn roots(&self) -> Result<Vec<CaCertificate>, CaError> {
        let mut roots: Vec<CaCertificate> = Vec::new();
        for number in self.trusted_roots() {
            for root in self.certificates(&root_file(number))? {
                roots.retain(|known| known.der != root.der);
                roots.push(root);
            }
        }
        Ok(roots)
    }

    pub(super) fn roots_pem(&self) -> Result<String, CaError> {
        Ok(self.roots()?.into_iter().map(|root| root.pem).collect())
    }

    /// The certificates of the intermediate that signs, its own first.
    pub(super) fn chain(&self) -> Result<Vec<CaCertificate>, CaError> {
        self.certificates(&intermediate_file(self.state.intermediate))
    }

    /// The key of the intermediate that signs.
    pub(super) fn key(&self) -> Result<rcgen::KeyPair, CaError> {
        self.key_in(&intermediate_file(self.state.intermediate))
    }

    /// Number of the root above the intermediate that signs.
    pub(super) fn signing_root(&self) -> u64 {
        match self.state.phase {
            Phase::Steady | Phase::TrustBoth => self.state.root,
            Phase::IssueFromNew => self.state.root + 1,
        }
    }

    /// The intermediate that signs was made elsewhere.
    pub(super) fn is_external(&self) -> bool {
        !self.has_key(self.signing_root())
    }

    /// When every certificate from before this phase has ended; `lag`: see the store.
    pub(super) fn phase_end(&self, lag: Duration) -> SystemTime {
        UNIX_EPOCH
            + Duration::from_secs(self.state.since.saturating_add(self.state.longest_lifetime))
            + PHASE_MARGIN
            + lag
    }

    /// What comes after this at `now`; nothing if it stays. Ask again after each step.
    pub(super) fn next(
        &self,
        options: &CaOptions,
        given: Option<&Intermediate>,
        lag: Duration,
        now: SystemTime,
    ) -> Result<Option<Self>, CaError> {
        let mut next = self.clone();
        let longest = longest(options);
        if longest > self.state.longest_lifetime {
            // With a longer maximum than before, the phases of a rotation take longer.
            next.state.longest_lifetime = longest;
            return Ok(Some(next));
        }
        if let Some(given) = given
            && next.take(given, now)?
        {
            return Ok(Some(next));
        }
        let signer_ends = self.chain()?.first().is_none_or(|intermediate| {
            intermediate.not_after <= now + PHASE_MARGIN && self.is_external()
        });
        let due = now >= self.phase_end(lag);
        match self.state.phase {
            Phase::Steady => {
                let newest = self.roots()?.pop();
                let near_end = newest.is_some_and(|root| root.left(now) < 0.2);
                if near_end && !self.is_external() {
                    return self.begin_root_rotation(options, now).map(Some);
                }
            }
            Phase::TrustBoth if due || signer_ends => {
                next.enter(Phase::IssueFromNew, now);
                match next.state.next_intermediate.take() {
                    Some(number) => next.state.intermediate = number,
                    None => next.renew(options, self.state.root + 1, now)?,
                }
                next.forget_unnamed();
                return Ok(Some(next));
            }
            Phase::IssueFromNew if due => {
                next.enter(Phase::Steady, now);
                next.state.root += 1;
                next.forget_unnamed();
                return Ok(Some(next));
            }
            Phase::TrustBoth | Phase::IssueFromNew => {}
        }
        let half = self
            .chain()?
            .first()
            .is_some_and(|intermediate| intermediate.left(now) < 0.5);
        if half && !self.is_external() {
            return self.with_new_intermediate(options, now).map(Some);
        }
        Ok(None)
    }

    /// With a new intermediate under the root that signs.
    pub(super) fn with_new_intermediate(
        &self,
        options: &CaOptions,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let mut next = self.clone();
        next.renew(options, self.signing_root(), now)?;
        next.forget_unnamed();
        Ok(next)
    }

    /// With a new root of its own that is trusted beside the old one.
    pub(super) fn begin_root_rotation(
        &self,
        options: &CaOptions,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        if self.state.phase != Phase::Steady {
            return Err(CaError::RotationUnderWay(self.state.phase));
        }
        if self.is_external() {
            return Err(CaError::RootIsExternal);
        }
        let mut next = self.clone();
        let number = self.state.root + 1;
        next.put_root(number, make_root(options, number, now)?);
        next.enter(Phase::TrustBoth, now);
        Ok(next)
    }

    /// Takes an intermediate from outside in; whether that changed anything.
    ///
    /// Below roots that are trusted it replaces the one that signs (or will sign) at once: every
    /// certificate brings its intermediates. Other roots are a root's rotation, with its phases.
    fn take(&mut self, given: &Intermediate, now: SystemTime) -> Result<bool, CaError> {
        let below = |number: u64| -> Result<bool, CaError> {
            let roots = self.certificates(&root_file(number))?;
            Ok(same_set(&roots, given.roots()))
        };
        let pending = self.state.next_intermediate;
        let new = self.newest_intermediate() + 1;
        if below(self.signing_root())? && self.is_external() {
            if self.file(&intermediate_file(self.state.intermediate))
                == Some(&given.chain_and_key_pem())
            {
                return Ok(false);
            }
            self.put_intermediate(new, given.chain_and_key_pem());
            self.state.intermediate = new;
        } else if let Some(pending) = pending {
            let same = self.file(&intermediate_file(pending)) == Some(&given.chain_and_key_pem());
            // Roots of a third kind wait until this rotation is over.
            if same || !below(self.state.root + 1)? {
                return Ok(false);
            }
            self.put_intermediate(new, given.chain_and_key_pem());
            self.state.next_intermediate = Some(new);
        } else if self.state.phase == Phase::Steady {
            let root = self.state.root + 1;
            self.put_root(root, given.roots_pem());
            self.put_intermediate(new, given.chain_and_key_pem());
            self.state.next_intermediate = Some(new);
            self.enter(Phase::TrustBoth, now);
        } else {
            return Ok(false);
        }
        self.forget_unnamed();
        Ok(true)
    }

    /// Makes an intermediate below the root of that number, and lets it sign.
    fn renew(&mut self, options: &CaOptions, root: u64, now: SystemTime) -> Result<(), CaError> {
        let name = root_file(root);
        let key = self.key_in(&name)?;
        let certificates = self.certificates(&name)?;
        let certificate = certificates
            .first()
            .ok_or_else(|| wrong(&name, "has no certificate"))?;
        let number = self.newest_intermediate() + 1;
        let made = make_intermediate(options, certificate, key, number, now)?;
        self.put_intermediate(number, made);
        self.state.intermediate = number;
        Ok(())
    }

    fn enter(&mut self, phase: Phase, now: SystemTime) {
        self.state.phase = phase;
        self.state.since = unix(now);
    }

    fn newest_intermediate(&self) -> u64 {
        self.state
            .intermediate
            .max(self.state.next_intermediate.unwrap_or_default())
    }

    fn trusted_roots(&self) -> Vec<u64> {
        match self.state.phase {
            Phase::Steady => vec![self.state.root],
            Phase::TrustBoth | Phase::IssueFromNew => vec![self.state.root, self.state.root + 1],
        }
    }

    /// The files that the state names.
    fn named(&self) -> Vec<String> {
        let mut names: Vec<_> = self.trusted_roots().into_iter().map(root_file).collect();
        names.push(intermediate_file(self.state.intermediate));
        names.extend(self.state.next_intermediate.map(intermediate_file));
        names
    }

    fn forget_unnamed(&mut self) {
        let named = self.named();
        self.files.retain(|name, _| named.contains(name));
    }

    fn file(&self, name: &str) -> Option<&Zeroizing<String>> {
        self.files.get(name)
    }

    fn put_root(&mut self, number: u64, pem: Zeroizing<String>) {
        self.files.insert(root_file(number), pem);
    }

    fn put_intermediate(&mut self, number: u64, pem: Zeroizing<String>) {
        self.files.insert(intermediate_file(number), pem);
    }

    fn has_key(&self, root: u64) -> bool {
        self.file(&root_file(root))
            .is_some_and(|text| text.contains("PRIVATE KEY-----"))
    }

    fn text(&self, name: &str) -> Result<&[u8], CaError> {
        let text = self.file(name).ok_or_else(|| wrong(name, "is missing"))?;
        Ok(text.as_bytes())
    }

    fn certificates(&self, name: &str) -> Result<Vec<CaCertificate>, CaError> {
        let found = CaCertificate::parse_all(self.text(name)?)
            .map_err(|error| wrong(name, &format!("certificate: {error}")))?;
        match found.is_empty() {
            true => Err(wrong(name, "has no certificate")),
            false => Ok(found),
        }
    }

    fn key_in(&self, name: &str) -> Result<rcgen::KeyPair, CaError> {
        key_of(self.text(name)?).map_err(|error| wrong(name, &format!("key: {error}")))
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// Whether a name is that of a file with a certificate and key of ours.
pub(super) fn is_key_file(name: &str) -> bool {
    let number = |prefix| name.strip_prefix(prefix)?.strip_suffix(".pem");
    [number("root-"), number("intermediate-")]
        .into_iter()
        .flatten()
        .any(|number: &str| number.parse::<u64>().is_ok())
}

pub(super) fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn longest(options: &CaOptions) -> u64 {
    options.max_lifetime.max(options.min_lifetime).as_secs()
}

fn root_file(number: u64) -> String {
    format!("root-{number}.pem")
}

fn intermediate_file(number: u64) -> String {
    format!("intermediate-{number}.pem")
}

fn wrong(name: &str, reason: &str) -> CaError {
    CaError::Material {
        place: name.into(),
        reason: reason.into(),
    }
}
