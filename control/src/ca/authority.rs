//! [`Authority`]: what signs, and the rotation of its keys.
//!
//! Signing reads an immutable [`Signer`] without a lock. One task ([`Authority::run`]) reads the
//! store and, while this process leads, writes to it what [`Material::next`] says is due; whatever
//! the store has then is what signs. So replicas that don't lead follow the one that does.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use seine_identity::{Identity, X509Bundle};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use super::certificate::{BACKDATE, CaCertificate, new_serial, signing};
use super::external::External;
use super::material::{Material, Phase, unix};
use super::store::{Revision, Store};
use super::{CaError, CaOptions};
use crate::leader::Leadership;

/// How often rotation is thought about, and a shared store is read though nothing was heard of it.
const TICK: Duration = Duration::from_secs(15);

/// Two replicas that start at once settle within a few attempts.
const ATTEMPTS: usize = 5;

/// A certificate that was just signed.
#[derive(Debug, Clone)]
pub struct Issued {
    /// PEM: leaf, intermediates, and in the last element every trusted root.
    pub chain: Vec<String>,
    /// The same leaf and intermediates in DER, for our own TLS.
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
    /// The directory or the Secret that has the keys.
    pub store: String,
    /// The intermediate was made elsewhere (Secret `seine-intermediate`).
    pub external: bool,
    /// Why the Secret `seine-intermediate` is not used; what was good before it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_problem: Option<String>,
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
    store: Box<dyn Store>,
    external: watch::Receiver<External>,
    /// What the store had when it was last read or written.
    held: tokio::sync::Mutex<Held>,
    /// When that was.
    confirmed: Mutex<Instant>,
    signer: ArcSwap<Signer>,
    /// Told when the roots change.
    roots: watch::Sender<Arc<str>>,
}

struct Held {
    material: Material,
    revision: Option<Revision>,
}

/// What is needed to sign, of one moment.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// The intermediate, and those between it and the root.
    chain: Vec<CaCertificate>,
    roots: Vec<CaCertificate>,
    material: Material,
}

impl Authority {
    /// Loads the CA of the store, or makes one there: below the intermediate from outside if there
    /// is one, else with a root of its own.
    ///
    /// # Errors
    ///
    /// When the store can't be read or written or has the CA of another trust domain, or when
    /// there is neither a CA nor a good intermediate to make one of.
    pub async fn open(
        options: CaOptions,
        store: Box<dyn Store>,
        external: watch::Receiver<External>,
    ) -> Result<Arc<Self>, CaError> {
        Self::open_at(options, store, external, SystemTime::now()).await
    }

    pub(super) async fn open_at(
        options: CaOptions,
        store: Box<dyn Store>,
        external: watch::Receiver<External>,
        now: SystemTime,
    ) -> Result<Arc<Self>, CaError> {
        let given = external.borrow().clone();
        let held = open_held(&options, &*store, &given, now).await?;
        held.material.check(&store.place(), &options)?;
        let signer = Signer::new(held.material.clone())?;
        info!(
            store = %store.place(), trust_domain = %options.trust_domain,
            phase = %held.material.state.phase, root = held.material.signing_root(),
            intermediate = held.material.state.intermediate,
            external = held.material.is_external(),
            "certificate authority ready"
        );
        let ended = signer.chain[0].not_after <= now;
        let (roots, _) = watch::channel(signer.roots_pem().into());
        let authority = Arc::new(Self {
            options,
            store,
            external,
            held: tokio::sync::Mutex::new(held),
            confirmed: Mutex::new(Instant::now()),
            signer: ArcSwap::from_pointee(signer),
            roots,
        });
        // Of a shared store the leader does it; but without a certificate of its own this process
        // would not get so far as to lead.
        if !authority.is_shared() || ended {
            authority.follow(&Leadership::always(), now).await?;
        }
        Ok(authority)
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

    /// The same, and told of each change.
    pub fn subscribe_roots(&self) -> watch::Receiver<Arc<str>> {
        self.roots.subscribe()
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
        let signer = self.signer.load();
        let material = &signer.material;
        let left = signer.chain[0].not_after.duration_since(SystemTime::now());
        let steady = material.state.phase == Phase::Steady;
        let phase_end = material.phase_end(self.store.lag());
        CaStatus {
            store: self.store.place(),
            external: material.is_external(),
            external_problem: match &*self.external.borrow() {
                External::Invalid(reason) => Some(reason.clone()),
                External::Absent | External::Valid(_) => None,
            },
            phase: material.state.phase,
            next_phase_after: (!steady).then(|| unix(phase_end)),
            trusted_roots: signer.roots.len(),
            root: material.signing_root(),
            intermediate: material.state.intermediate,
            intermediate_seconds_left: left.unwrap_or_default().as_secs(),
        }
    }

    /// Makes a new intermediate under the root that signs, and uses it from now on.
    ///
    /// # Errors
    ///
    /// When the store can't be written, or the intermediate is not of our making. The old one stays
    /// in use then.
    pub async fn rotate_intermediate(&self) -> Result<(), CaError> {
        let mut held = self.held.lock().await;
        if held.material.is_external() {
            return Err(CaError::RootIsExternal);
        }
        let next = held
            .material
            .with_new_intermediate(&self.options, SystemTime::now())?;
        self.change(&mut held, next).await
    }

    /// Starts the rotation of the root; it goes on by itself (see the module's docs).
    ///
    /// # Errors
    ///
    /// When one is under way, the root is not ours, or the store can't be written.
    pub async fn start_root_rotation(&self) -> Result<(), CaError> {
        let mut held = self.held.lock().await;
        self.start_root_rotation_at(&mut held, SystemTime::now())
            .await
    }

    /// Runs for ever: follows the store, and while this process leads rotates what is due and
    /// starts what an operator asks for.
    pub async fn run(self: Arc<Self>, leadership: Leadership) {
        let mut external = self.external.clone();
        let mut external_ends = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                () = self.store.changed() => {}
                changed = external.changed(), if !external_ends => external_ends = changed.is_err(),
            }
            match self.follow(&leadership, SystemTime::now()).await {
                Ok(()) => {}
                // Another replica was first; what it wrote is read next time.
                Err(error @ CaError::Conflict(_)) => info!(%error, "read again"),
                Err(error) => {
                    error!(%error, "the CA's keys can't be read or rotated; tried again");
                }
            }
        }
    }

    /// Takes over what the store has, and writes what is due if this process leads.
    async fn follow(&self, leadership: &Leadership, now: SystemTime) -> Result<(), CaError> {
        let mut held = self.held.lock().await;
        let found = self.store.poll(held.revision.as_ref()).await?;
        *self.confirmed.lock() = Instant::now();
        if let Some(material) = found.material {
            material.check(&self.store.place(), &self.options)?;
            self.install(&mut held, material, found.revision.clone())?;
        }
        let gone = held.revision.is_some() && found.revision.is_none() && self.is_shared();
        let work = async {
            if gone {
                warn!(store = %self.store.place(), "the CA's keys were deleted; written again");
                held.revision = self.store.replace(&held.material, None).await.map(Some)?;
            }
            self.rotate(&mut held, found.rotation_asked, now).await
        };
        leadership.lead(work).await.unwrap_or(Ok(()))
    }

    /// Another process may write to the store too.
    fn is_shared(&self) -> bool {
        !self.store.lag().is_zero()
    }

    /// Rotates what is due at `now`.
    async fn rotate(&self, held: &mut Held, asked: bool, now: SystemTime) -> Result<(), CaError> {
        if asked {
            match self.start_root_rotation_at(held, now).await {
                Ok(()) => {}
                Err(error @ (CaError::RotationUnderWay(_) | CaError::RootIsExternal)) => {
                    warn!(%error, "no rotation of the root is started");
                }
                Err(error) => return Err(error),
            }
            self.store.rotation_answered().await?;
        }
        let external = self.external.borrow().clone();
        let given = match &external {
            External::Valid(given) => Some(given),
            External::Absent | External::Invalid(_) => None,
        };
        let lag = self.store.lag();
        while let Some(next) = held.material.next(&self.options, given, lag, now)? {
            self.change(held, next).await?;
        }
        Ok(())
    }

    async fn start_root_rotation_at(
        &self,
        held: &mut Held,
        now: SystemTime,
    ) -> Result<(), CaError> {
        let next = held.material.begin_root_rotation(&self.options, now)?;
        self.change(held, next).await
    }

    #[cfg(test)]
    pub(super) async fn tick(&self, now: SystemTime) -> Result<(), CaError> {
        self.follow(&Leadership::always(), now).await
    }

    pub(super) fn sign(
        &self,
        sans: Vec<SanType>,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        if self.is_shared() && self.confirmed.lock().elapsed() >= self.store.lag() {
            return Err(CaError::Stale(self.store.place()));
        }
        let signer = self.signer.load();
        let intermediate = &signer.chain[0];
        let options = &self.options;
        let lifetime = match lifetime {
            Duration::ZERO => options.default_lifetime,
            asked => asked,
        };
        let lifetime = lifetime.min(options.max_lifetime).max(options.min_lifetime);
        let not_after = (now + lifetime).min(intermediate.not_after);
        if not_after <= now {
            return Err(CaError::IntermediateEnded);
        }
        let serial = new_serial();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = sans;
        params.not_before = (now - BACKDATE).max(intermediate.not_before).into();
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
        let between = || signer.chain.iter();
        let mut chain = vec![leaf.pem()];
        chain.extend(between().map(|certificate| certificate.pem.clone()));
        chain.push(signer.roots_pem());
        let mut der = vec![leaf.der().clone()];
        der.extend(between().map(|certificate| certificate.der.clone()));
        Ok(Issued {
            chain,
            der,
            serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
            not_after,
        })
    }

    /// Writes, and then signs with what was written.
    async fn change(&self, held: &mut Held, next: Material) -> Result<(), CaError> {
        // First: what can't sign is never written.
        Signer::new(next.clone())?;
        let revision = self.store.replace(&next, held.revision.as_ref()).await?;
        self.install(held, next, Some(revision))
    }

    fn install(
        &self,
        held: &mut Held,
        material: Material,
        revision: Option<Revision>,
    ) -> Result<(), CaError> {
        let signer = Signer::new(material.clone())?;
        let roots: Arc<str> = signer.roots_pem().into();
        let same = held.material == material;
        *held = Held { material, revision };
        self.signer.store(Arc::new(signer));
        self.roots.send_if_modified(|known| {
            let changed = *known != roots;
            *known = roots;
            changed
        });
        if !same {
            let state = &held.material.state;
            info!(
                phase = %state.phase, root = held.material.signing_root(),
                intermediate = state.intermediate, external = held.material.is_external(),
                "the CA's keys changed"
            );
        }
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
    fn new(material: Material) -> Result<Self, CaError> {
        // Never empty: an empty file is an error.
        let chain = material.chain()?;
        let issuer = Issuer::from_ca_cert_der(&chain[0].der, material.key()?)
            .map_err(signing("signer of the intermediate"))?;
        Ok(Self {
            issuer,
            roots: material.roots()?,
            chain,
            material,
        })
    }

    fn roots_pem(&self) -> String {
        self.roots.iter().map(|root| root.pem.as_str()).collect()
    }
}

/// What the store has; made there if it has nothing. Of several that make at once one wins, and the
/// others take what it made.
async fn open_held(
    options: &CaOptions,
    store: &dyn Store,
    external: &External,
    now: SystemTime,
) -> Result<Held, CaError> {
    let mut attempt = 1;
    loop {
        let found = store.load().await?;
        if let Some(material) = found.material {
            let revision = found.revision;
            return Ok(Held { material, revision });
        }
        let material = match external {
            External::Absent => Material::new(options, now)?,
            External::Valid(given) => Material::external(options, given, now),
            External::Invalid(reason) => return Err(CaError::External(reason.clone())),
        };
        match store.replace(&material, found.revision.as_ref()).await {
            Ok(revision) => {
                info!(store = %store.place(), "a new certificate authority was made");
                let revision = Some(revision);
                return Ok(Held { material, revision });
            }
            Err(CaError::Conflict(place)) if attempt < ATTEMPTS => {
                info!(place, "another replica made the certificate authority");
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}
