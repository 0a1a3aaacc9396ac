//! The whole process: everything that `main` starts, and its orderly end.

use std::{future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use seine_identity::TrustDomain;
use seine_kubernetes::{Scope, Source};
use seine_telemetry::{Readiness, http as pages};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    admin::Admin,
    authn::{Authenticator, JwtAuthenticator, TokenReviewer},
    ca::{Authority, CaOptions, CertificateService, DirectoryStore, External, server_tls},
    cluster::Cluster,
    leader::Leadership,
    model::{self, Model, PodAuthorizer},
    publish::writer::Sources,
    translate::Settings,
    xds::server::{Clients, ServerOptions, XdsServer},
};

/// Everything that is set from outside.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the objects and keys are, and who judges tokens.
    pub place: Place,
    /// Where xDS and certificates are served.
    pub listen: SocketAddr,
    /// Where the admin pages are.
    pub admin: SocketAddr,
    /// Where the metrics are, for a scraper from elsewhere.
    pub metrics: Option<SocketAddr>,
    /// Where the readiness page is, for the kubelet.
    pub readiness: Option<SocketAddr>,
    /// Audience of the tokens.
    pub token_audience: String,
    /// Accounts of node proxies and agents.
    pub trusted_accounts: Vec<String>,
    /// Names of the server's certificate.
    pub server_names: Vec<String>,
    /// Longest lifetime of a certificate, also the lifetime where none is asked for.
    pub certificate_lifetime: Duration,
    /// Lifetime of the intermediate; a new one is made at half of it.
    pub intermediate_lifetime: Duration,
    /// An xDS stream is closed after this time.
    pub max_stream_age: Duration,
    /// Streams may take this long to end.
    pub drain: Duration,
    /// Of the translation.
    pub translation: Settings,
}

/// Where the objects and the CA's keys are, and who judges tokens.
#[derive(Clone, Debug)]
pub enum Place {
    /// Files of this machine.
    Files(Files),
    /// An API server. Several replicas share the CA, and one of them writes.
    Cluster(Cluster),
}

/// A control plane without a cluster.
#[derive(Clone, Debug)]
pub struct Files {
    /// The folder of YAML.
    pub objects: PathBuf,
    /// The CA's folder.
    pub ca: PathBuf,
    /// Public half of the key that signs tokens (PEM).
    pub token_public_key: PathBuf,
    /// Issuer of the tokens.
    pub token_issuer: String,
}

impl Place {
    async fn source(&self, istio: bool) -> anyhow::Result<Source> {
        match self {
            Self::Files(files) => {
                // Beside the keys, which is all else that is to outlive the process.
                let memory = files.ca.join("last-good-objects");
                Source::directory(files.objects.clone(), Some(memory))
                    .await
                    .context("opening the objects' directory")
            }
            Self::Cluster(cluster) => {
                Ok(Source::cluster(cluster.client.clone(), Scope::Cluster { istio }).await)
            }
        }
    }

    /// The CA, and the task that follows an external intermediate.
    async fn authority(
        &self,
        options: CaOptions,
    ) -> anyhow::Result<(Arc<Authority>, Option<AbortOnDropHandle<()>>)> {
        let opened = match self {
            Self::Files(files) => {
                let store = Box::new(DirectoryStore::open(&files.ca)?);
                // There is no cluster, so nobody else has an intermediate for us.
                let (_, external) = watch::channel(External::Absent);
                let authority = Authority::open(options, store, external).await;
                authority.map(|authority| (authority, None))
            }
            Self::Cluster(cluster) => {
                let opened = cluster.open_authority(options).await;
                opened.map(|(authority, follows)| (authority, Some(follows)))
            }
        };
        opened.context("opening the certificate authority")
    }

    async fn authenticator(
        &self,
        audience: &str,
        models: &watch::Receiver<Arc<Model>>,
    ) -> anyhow::Result<Arc<dyn Authenticator>> {
        Ok(match self {
            Self::Files(files) => {
                let path = &files.token_public_key;
                let key = tokio::fs::read(path)
                    .await
                    .with_context(|| format!("reading {}", path.display()))?;
                let authenticator = JwtAuthenticator::new(&key, &files.token_issuer, audience)
                    .with_context(|| path.display().to_string())?;
                Arc::new(authenticator)
            }
            Self::Cluster(cluster) => Arc::new(TokenReviewer::new(
                cluster.client.clone(),
                audience,
                models.clone(),
            )),
        })
    }

    fn cluster(&self) -> Option<&Cluster> {
        match self {
            Self::Files(_) => None,
            Self::Cluster(cluster) => Some(cluster),
        }
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))
}

/// Serves until `stop` is ready.
///
/// # Errors
///
/// When something can't be opened or bound; once it serves, it goes on.
pub async fn run(options: Options, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut stop = std::pin::pin!(stop);
    let readiness = Readiness::default();
    readiness.pending("model", "the objects are not translated yet");
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(address) = options.readiness {
        let page = readiness.clone();
        tasks.spawn(pages::serve(bind(address).await?, move |request| {
            let page = match request.uri().path() {
                "/healthz/ready" => page.page(),
                _ => pages::not_found(&["/healthz/ready"]),
            };
            async move { page }
        }));
    }

    let place = &options.place;
    let istio = options.translation.istio_root_namespace.is_some();
    let source = tokio::select! {
        source = place.source(istio) => source?,
        // There is no hurry to an API server that is away.
        () = &mut stop => return Ok(()),
    };
    let domain = TrustDomain::new(&options.translation.trust_domain).context("--trust-domain")?;
    let mut ca = CaOptions::new(domain);
    ca.max_lifetime = options.certificate_lifetime;
    ca.default_lifetime = options.certificate_lifetime;
    ca.intermediate_lifetime = options.intermediate_lifetime;
    ca.min_lifetime = ca.min_lifetime.min(options.certificate_lifetime);
    let (authority, _follows) = place.authority(ca).await?;

    let (models_out, models) = watch::channel(Arc::<Model>::default());
    let authenticator = place
        .authenticator(&options.token_audience, &models)
        .await?;
    let (stop_streams, streams_stop) = watch::channel(false);
    let clients = Clients::default();
    let xds = XdsServer::new(
        models.clone(),
        authenticator.clone(),
        clients.clone(),
        ServerOptions {
            trusted_accounts: options.trusted_accounts.clone(),
            max_stream_age: options.max_stream_age,
        },
        streams_stop,
    );
    let certificates = CertificateService::new(
        authority.clone(),
        authenticator,
        Arc::new(PodAuthorizer::new(models.clone())),
        options.trusted_accounts,
    );

    let listener = bind(options.listen).await?;
    let admin_listener = bind(options.admin).await?;
    let address = Some(options.listen.ip()).filter(|address| !address.is_unspecified());
    let incoming = server_tls(
        &authority,
        options.server_names,
        address.into_iter().collect(),
    )
    .context("making the server's certificate")?
    .incoming(listener);

    let election = place.cluster().map(Cluster::elect);
    let leadership = match &election {
        Some(election) => election.leadership(),
        None => Leadership::always(),
    };
    tasks.spawn(authority.clone().run(leadership.clone()));
    if let Some(cluster) = place.cluster() {
        let sources = Sources {
            models: models.clone(),
            problems: source.problems(),
        };
        tasks.spawn(cluster.clone().write(
            leadership,
            authority.clone(),
            sources,
            clients.clone(),
            options.translation.clone(),
        ));
    }
    tasks.spawn(model::run(
        source.objects(),
        options.translation,
        models_out,
    ));
    let admin = Arc::new(Admin {
        models: models.clone(),
        problems: source.problems(),
        clients,
        authority,
        readiness: readiness.clone(),
    });
    if let Some(address) = options.metrics {
        let admin = admin.clone();
        tasks.spawn(pages::serve(bind(address).await?, move |request| {
            let page = match request.uri().path() {
                "/metrics" => admin.page(&request),
                _ => pages::not_found(&["/metrics"]),
            };
            async move { page }
        }));
    }
    tasks.spawn(pages::serve(admin_listener, move |request| {
        let admin = admin.clone();
        async move { admin.page(&request) }
    }));
    let mut first = models;
    let ready = readiness.clone();
    tasks.spawn(async move {
        if first
            .wait_for(|model| model.snapshot.generation > 0)
            .await
            .is_ok()
        {
            ready.done("model");
        }
    });
    tracing::info!(listen = %options.listen, admin = %options.admin, "seine-control serves");

    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(xds.into_service())
        .add_service(certificates.into_server())
        .serve_with_incoming_shutdown(incoming, async {
            // Also if the sender is dropped.
            let _ = ended.await;
        });
    let mut server = std::pin::pin!(server);
    tokio::select! {
        served = &mut server => served.context("serving gRPC")?,
        () = &mut stop => {
            tracing::info!("shutting down");
            readiness.pending("shutdown", "the process is ending");
            stop_streams.send_replace(true);
            let _ = end.send(());
            if let Some(election) = election {
                election.release().await;
            }
            match tokio::time::timeout(options.drain, server).await {
                Ok(served) => served.context("serving gRPC")?,
                Err(_) => tracing::warn!("clients did not let go in time"),
            }
        }
    }
    drop(source);
    Ok(())
}
