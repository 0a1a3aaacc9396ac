//! [`Authority`]: the keys, what they sign, and their rotation.
//!
//! Signing reads an immutable [`Signer`] without a lock; rotation (a background task, or an
//! operator) replaces it under the mutex of the state. File access is synchronous and rare: at
//! start and when something rotates.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use seine_identity::{Identity, X509Bundle};
use serde::{Deserialize, Serialize};
use tracing::{error, info};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::store::{State, Store, file, intermediate_file, root_file};
use super::{CaError, CaOptions};

const STATE_VERSION: u32 = 1;

/// Certificates are valid from a bit before now, for clocks that are behind ours.
const BACKDATE: Duration = Duration::from_secs(30);

/// Added to each phase of a root's rotation, for clocks that differ.
const PHASE_MARGIN: Duration = Duration::from_secs(60);

/// How often rotation is thought about.
const TICK: Duration = Duration::from_secs(15);

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

/// A certificate that was just signed.
#[derive(Debug, Clone)]
pub struct Issued {
    /// PEM: leaf, intermediate, and in the last element every trusted root.
    pub chain: Vec<String>,
    /// The same leaf and intermediate in DER, for our own TLS.
    pub der: Vec<CertificateDer<'static>>,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// End.
    pub not_after: SystemTime,
}

/// For the admin page.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaStatus {
    /// Where a rotation stands.
    pub phase: Phase,
    /// When the next phase may start, in seconds since 1970; none while steady.
    pub next_phase_after: Option<u64>,
    /// Roots that are trusted.
    pub trusted_roots: usize,
    /// Number of the root that signs.
    pub root: u64,
    /// Number of the intermediate that signs.
    pub intermediate: u64,
    /// Seconds left of the intermediate.
    pub intermediate_seconds_left: u64,
}

/// The certificate authority of one trust domain.
pub struct Authority {
    options: CaOptions,
    store: Store,
    state: Mutex<State>,
    signer: ArcSwap<Signer>,
}

/// What is needed to sign, of one moment.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    intermediate: CaCertificate,
    root_number: u64,
    roots: Vec<CaCertificate>,
}

#[derive(Clone)]
struct CaCertificate {
    der: CertificateDer<'static>,
    pem: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Authority {
    /// Loads the CA of the directory, or makes one there.
    ///
    /// # Errors
    ///
    /// When files can't be read or written, or belong to another trust domain.
    pub fn open(options: CaOptions) -> Result<Arc<Self>, CaError> {
        Self::open_at(options, SystemTime::now())
    }

    pub(super) fn open_at(options: CaOptions, now: SystemTime) -> Result<Arc<Self>, CaError> {
        let store = Store::open(&options.directory)?;
        let mut state = match store.state()? {
            Some(state) => check(&store, state, &options)?,
            None => create(&store, &options, now)?,
        };
        // With a longer maximum than before, the phases of a rotation take longer.
        let longest = longest(&options);
        if longest > state.longest_lifetime {
            state.longest_lifetime = longest;
            store.write_state(&state)?;
        }
        let signer = Signer::load(&store, &state)?;
        store.publish_roots(&signer.roots_pem())?;
        info!(
            directory = %options.directory.display(), trust_domain = %options.trust_domain,
            phase = %state.phase, root = state.root, intermediate = state.intermediate,
            "certificate authority ready"
        );
        let authority = Self {
            options,
            store,
            state: Mutex::new(state),
            signer: ArcSwap::from_pointee(signer),
        };
        authority.tick(now)?;
        Ok(Arc::new(authority))
    }

    /// Settings.
    pub fn options(&self) -> &CaOptions {
        &self.options
    }

    /// A certificate for a checked identity and key, and for no more than `lifetime` (zero: the
    /// default), within the bounds of the settings.
    ///
    /// # Errors
    ///
    /// Only if signing fails.
    pub fn issue(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        lifetime: Duration,
    ) -> Result<Issued, CaError> {
        let name = identity
            .as_str()
            .try_into()
            .map_err(signing("certificate"))?;
        self.sign(vec![SanType::URI(name)], key, lifetime, SystemTime::now())
    }

    /// A certificate for a server of the control plane, and its PKCS#8 key.
    ///
    /// # Errors
    ///
    /// If a name is not ASCII, or signing fails.
    pub fn issue_server(
        &self,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<(Issued, Zeroizing<Vec<u8>>), CaError> {
        let mut sans = Vec::with_capacity(names.len() + addresses.len());
        for name in names {
            let name = name
                .as_str()
                .try_into()
                .map_err(signing("server certificate"))?;
            sans.push(SanType::DnsName(name));
        }
        sans.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        let key = KeyPair::generate().map_err(signing("server key"))?;
        let issued = self.sign(sans, &key, Duration::ZERO, SystemTime::now())?;
        Ok((issued, Zeroizing::new(key.serialize_der())))
    }

    /// Every root that is trusted now, in PEM.
    pub fn roots_pem(&self) -> String {
        self.signer.load().roots_pem()
    }

    /// The same as the trust domain's bundle.
    pub fn bundle(&self) -> X509Bundle {
        let signer = self.signer.load();
        let roots: Vec<&[u8]> = signer.roots.iter().map(|root| root.der.as_ref()).collect();
        X509Bundle::from_x509_authorities(self.options.trust_domain.clone(), &roots)
            .expect("roots were parsed when they were loaded")
    }

    /// Where things stand; no keys.
    pub fn status(&self) -> CaStatus {
        let state = self.state.lock().clone();
        let signer = self.signer.load();
        let left = signer
            .intermediate
            .not_after
            .duration_since(SystemTime::now());
        CaStatus {
            phase: state.phase,
            next_phase_after: (state.phase != Phase::Steady).then(|| unix(phase_end(&state))),
            trusted_roots: signer.roots.len(),
            root: signer.root_number,
            intermediate: state.intermediate,
            intermediate_seconds_left: left.unwrap_or_default().as_secs(),
        }
    }

    /// Makes a new intermediate under the root that signs, and uses it from now on.
    ///
    /// # Errors
    ///
    /// When files can't be written. The old one stays in use then.
    pub fn rotate_intermediate(&self) -> Result<(), CaError> {
        let mut state = self.state.lock();
        let next = State {
            intermediate: state.intermediate + 1,
            ..state.clone()
        };
        self.change(&mut state, next, SystemTime::now())
    }

    /// Starts the rotation of the root; it goes on by itself (see the module's docs).
    ///
    /// # Errors
    ///
    /// When one is under way, or files can't be written.
    pub fn start_root_rotation(&self) -> Result<(), CaError> {
        self.start_root_rotation_at(SystemTime::now())
    }

    /// Runs for ever: rotates what is due, and starts what an operator asks for.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            let authority = Arc::clone(&self);
            let tick = move || authority.tick(SystemTime::now());
            match tokio::task::spawn_blocking(tick).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => error!(%error, "rotation of the CA's keys failed; tried again"),
                Err(error) => error!(%error, "rotation of the CA's keys did not end well"),
            }
        }
    }

    /// Rotates what is due at `now`.
    pub(super) fn tick(&self, now: SystemTime) -> Result<(), CaError> {
        let signer = self.signer.load_full();
        if self.store.rotation_asked() {
            match self.start_root_rotation_at(now) {
                Ok(()) => {}
                Err(error @ CaError::RotationUnderWay(_)) => info!(%error, "no second one started"),
                Err(error) => return Err(error),
            }
            self.store.rotation_started();
        }
        let mut state = self.state.lock();
        let due = state.phase != Phase::Steady && now >= phase_end(&state);
        match state.phase {
            Phase::Steady if signer.newest_root().left(now) < 0.2 => {
                drop(state);
                return self.start_root_rotation_at(now);
            }
            Phase::TrustBoth if due => {
                let next = State {
                    phase: Phase::IssueFromNew,
                    since: unix(now),
                    intermediate: state.intermediate + 1,
                    ..state.clone()
                };
                self.change(&mut state, next, now)?;
            }
            Phase::IssueFromNew if due => {
                let old = state.root;
                let next = State {
                    phase: Phase::Steady,
                    since: unix(now),
                    root: old + 1,
                    ..state.clone()
                };
                self.change(&mut state, next, now)?;
                self.store.remove(&root_file(old));
            }
            _ => {}
        }
        if self.signer.load().intermediate.left(now) < 0.5 {
            let next = State {
                intermediate: state.intermediate + 1,
                ..state.clone()
            };
            self.change(&mut state, next, now)?;
        }
        Ok(())
    }

    pub(super) fn start_root_rotation_at(&self, now: SystemTime) -> Result<(), CaError> {
        let mut state = self.state.lock();
        if state.phase != Phase::Steady {
            return Err(CaError::RotationUnderWay(state.phase));
        }
        let next = State {
            phase: Phase::TrustBoth,
            since: unix(now),
            ..state.clone()
        };
        make_root(&self.store, &self.options, state.root + 1, now)?;
        self.change(&mut state, next, now)
    }

    pub(super) fn sign(
        &self,
        sans: Vec<SanType>,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let signer = self.signer.load();
        let options = &self.options;
        let lifetime = match lifetime {
            Duration::ZERO => options.default_lifetime,
            asked => asked,
        };
        let lifetime = lifetime.min(options.max_lifetime).max(options.min_lifetime);
        let not_after = (now + lifetime).min(signer.intermediate.not_after);
        if not_after <= now {
            return Err(CaError::IntermediateEnded);
        }
        let serial = new_serial();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = sans;
        params.not_before = (now - BACKDATE).max(signer.intermediate.not_before).into();
        params.not_after = not_after.into();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let leaf = params
            .signed_by(key, &signer.issuer)
            .map_err(signing("certificate"))?;
        Ok(Issued {
            chain: vec![
                leaf.pem(),
                signer.intermediate.pem.clone(),
                signer.roots_pem(),
            ],
            der: vec![leaf.der().clone(), signer.intermediate.der.clone()],
            serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
            not_after,
        })
    }

    /// Puts a new state in force: keys first, then the state that names them, then what they
    /// replace goes away.
    fn change(&self, state: &mut State, next: State, now: SystemTime) -> Result<(), CaError> {
        if next.intermediate != state.intermediate {
            let root = signing_root(&next);
            make_intermediate(&self.store, &self.options, root, next.intermediate, now)?;
        }
        let signer = Signer::load(&self.store, &next)?;
        self.store.write_state(&next)?;
        self.store.publish_roots(&signer.roots_pem())?;
        let old = std::mem::replace(state, next);
        self.signer.store(Arc::new(signer));
        if old.intermediate != state.intermediate {
            self.store.remove(&intermediate_file(old.intermediate));
        }
        info!(
            phase = %state.phase, root = signing_root(state), intermediate = state.intermediate,
            "the CA's keys were rotated"
        );
        Ok(())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl Signer {
    fn load(store: &Store, state: &State) -> Result<Self, CaError> {
        let numbers = match state.phase {
            Phase::Steady => vec![state.root],
            Phase::TrustBoth | Phase::IssueFromNew => vec![state.root, state.root + 1],
        };
        let mut roots = Vec::with_capacity(numbers.len());
        for number in numbers {
            roots.push(read(store, &root_file(number))?.0);
        }
        let (intermediate, key) = read(store, &intermediate_file(state.intermediate))?;
        let issuer = Issuer::from_ca_cert_der(&intermediate.der, key)
            .map_err(signing("signer of the intermediate"))?;
        Ok(Self {
            issuer,
            intermediate,
            root_number: signing_root(state),
            roots,
        })
    }

    fn roots_pem(&self) -> String {
        self.roots.iter().map(|root| root.pem.as_str()).collect()
    }

    fn newest_root(&self) -> &CaCertificate {
        self.roots.last().expect("every phase has a root")
    }
}

impl CaCertificate {
    fn parse(der: CertificateDer<'static>, pem: String) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        let time = |seconds: i64| {
            UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
        };
        let (not_before, not_after) = (
            time(parsed.validity().not_before.timestamp()),
            time(parsed.validity().not_after.timestamp()),
        );
        Ok(Self {
            der,
            pem,
            not_before,
            not_after,
        })
    }

    /// Which part of its life is left.
    fn left(&self, now: SystemTime) -> f64 {
        let life = self
            .not_after
            .duration_since(self.not_before)
            .unwrap_or_default();
        let left = self.not_after.duration_since(now).unwrap_or_default();
        left.as_secs_f64() / life.as_secs_f64().max(1.0)
    }
}

/// The root above the intermediate in use.
fn signing_root(state: &State) -> u64 {
    match state.phase {
        Phase::Steady | Phase::TrustBoth => state.root,
        Phase::IssueFromNew => state.root + 1,
    }
}

/// When every certificate from before this phase has ended.
fn phase_end(state: &State) -> SystemTime {
    UNIX_EPOCH
        + Duration::from_secs(state.since.saturating_add(state.longest_lifetime))
        + PHASE_MARGIN
}

fn longest(options: &CaOptions) -> u64 {
    options.max_lifetime.max(options.min_lifetime).as_secs()
}

fn check(store: &Store, state: State, options: &CaOptions) -> Result<State, CaError> {
    if state.version != STATE_VERSION {
        let reason = format!(
            "layout {} is not known to this version (it knows {STATE_VERSION})",
            state.version
        );
        return Err(file(store.path(), reason));
    }
    if state.trust_domain != options.trust_domain.as_str() {
        return Err(CaError::TrustDomain {
            path: store.path().into(),
            actual: state.trust_domain,
            wanted: options.trust_domain.clone(),
        });
    }
    Ok(state)
}

fn create(store: &Store, options: &CaOptions, now: SystemTime) -> Result<State, CaError> {
    make_root(store, options, 1, now)?;
    make_intermediate(store, options, 1, 1, now)?;
    let state = State {
        version: STATE_VERSION,
        trust_domain: options.trust_domain.to_string(),
        phase: Phase::Steady,
        since: unix(now),
        longest_lifetime: longest(options),
        root: 1,
        intermediate: 1,
    };
    store.write_state(&state)?;
    Ok(state)
}

fn make_root(
    store: &Store,
    options: &CaOptions,
    number: u64,
    now: SystemTime,
) -> Result<(), CaError> {
    let key = KeyPair::generate().map_err(signing("root key"))?;
    let params = ca_params(options, "root", number, now, options.root_lifetime, 1);
    let certificate = params.self_signed(&key).map_err(signing("root"))?;
    write(store, &root_file(number), &certificate.pem(), &key)
}

fn make_intermediate(
    store: &Store,
    options: &CaOptions,
    root: u64,
    number: u64,
    now: SystemTime,
) -> Result<(), CaError> {
    let (root, root_key) = read(store, &root_file(root))?;
    let left = root.not_after.duration_since(now).unwrap_or_default();
    let lifetime = options.intermediate_lifetime.min(left);
    let issuer = Issuer::from_ca_cert_der(&root.der, root_key).map_err(signing("signer"))?;
    let key = KeyPair::generate().map_err(signing("intermediate key"))?;
    let params = ca_params(options, "intermediate", number, now, lifetime, 0);
    let certificate = params
        .signed_by(&key, &issuer)
        .map_err(signing("intermediate"))?;
    write(store, &intermediate_file(number), &certificate.pem(), &key)
}

fn ca_params(
    options: &CaOptions,
    what: &str,
    number: u64,
    now: SystemTime,
    lifetime: Duration,
    path_length: u8,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, options.trust_domain.as_str());
    // A name of its own for each: peers hold several during a rotation, and two directories of the
    // same domain never have the same.
    let serial = new_serial();
    let unique: String = serial[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    name.push(
        DnType::CommonName,
        format!("Seine {what} {number} {unique}"),
    );
    params.distinguished_name = name;
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = what != "root";
    params
}

fn write(store: &Store, name: &str, certificate: &str, key: &KeyPair) -> Result<(), CaError> {
    let key = Zeroizing::new(key.serialize_pem());
    let mut text = Zeroizing::new(String::with_capacity(certificate.len() + key.len()));
    text.push_str(certificate);
    text.push_str(&key);
    store.write_keys(name, &text)
}

fn read(store: &Store, name: &str) -> Result<(CaCertificate, KeyPair), CaError> {
    let text = store.read_keys(name)?;
    let bad = |reason: String| file(&store.path().join(name), reason);
    let der = CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|error| bad(format!("certificate: {error}")))?;
    let at = text
        .find("-----BEGIN PRIVATE KEY")
        .ok_or_else(|| bad("no key in it".into()))?;
    let (certificate, key) = text.split_at(at);
    let key = KeyPair::from_pem(key).map_err(|error| bad(format!("key: {error}")))?;
    let certificate = CaCertificate::parse(der, certificate.to_owned())
        .map_err(|error| bad(format!("certificate: {error}")))?;
    Ok((certificate, key))
}

/// 126 random bits, positive and of constant length (RFC 5280 section 4.1.2.2).
fn new_serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x3f | 0x40;
    serial
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn signing(what: &'static str) -> impl FnOnce(rcgen::Error) -> CaError {
    move |source| CaError::Signing { what, source }
}
