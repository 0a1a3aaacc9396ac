//! The whole process: everything that `main` starts, and its orderly end.

use std::{future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use seine_identity::TrustDomain;
use seine_objects::{DirectoryOptions, DirectorySource};
use seine_telemetry::Readiness;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    admin::Admin,
    authn::JwtAuthenticator,
    ca::{Authority, CaOptions, CertificateService, DirectoryStore, External, server_tls},
    cluster::Cluster,
    leader::Leadership,
    model::{self, Debounce, Model, PodAuthorizer},
    publish::writer::Sources,
    translate::Settings,
    xds::server::{Clients, ServerOptions, XdsServer},
};

/// Everything that is set from outside.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of YAML.
    pub directory: PathBuf,
    /// Where xDS and certificates are served.
    pub listen: SocketAddr,
    /// Where the admin pages are.
    pub admin: SocketAddr,
    /// The CA's folder. Not used in a cluster, where a Secret has the keys.
    pub ca_directory: PathBuf,
    /// The cluster, if there is one: then several replicas share the CA, and one of them writes.
    pub cluster: Option<Cluster>,
    /// Public half of the key that signs tokens (PEM).
    pub token_public_key: PathBuf,
    /// Issuer of the tokens.
    pub token_issuer: String,
    /// Audience of the tokens.
    pub token_audience: String,
    /// Accounts of node proxies and agents.
    pub trusted_accounts: Vec<String>,
    /// Names of the server's certificate.
    pub server_names: Vec<String>,
    /// Longest lifetime of a certificate, also the lifetime where none is asked for.
    pub certificate_lifetime: Duration,
    /// An xDS stream is closed after this time.
    pub max_stream_age: Duration,
    /// Streams may take this long to end.
    pub drain: Duration,
    /// Of the translation.
    pub translation: Settings,
}

/// Serves until `stop` is ready.
///
/// # Errors
///
/// When something can't be opened or bound; once it serves, it goes on.
pub async fn run(options: Options, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let readiness = Readiness::default();
    readiness.pending("model", "the objects are not translated yet");

    let directory = options.directory.clone();
    let source = tokio::task::spawn_blocking(move || {
        DirectorySource::open(directory, DirectoryOptions::default())
    })
    .await?
    .context("opening the objects' directory")?;

    let domain = TrustDomain::new(&options.translation.trust_domain).context("--trust-domain")?;
    let mut ca = CaOptions::new(domain);
    ca.max_lifetime = options.certificate_lifetime;
    ca.default_lifetime = options.certificate_lifetime;
    ca.min_lifetime = ca.min_lifetime.min(options.certificate_lifetime);
    let (authority, _follows) = match &options.cluster {
        Some(cluster) => {
            let (authority, follows) = cluster
                .open_authority(ca)
                .await
                .context("opening the certificate authority")?;
            (authority, Some(follows))
        }
        None => {
            let store = Box::new(DirectoryStore::open(&options.ca_directory)?);
            // There is no cluster, so nobody else has an intermediate for us.
            let (_, external) = watch::channel(External::Absent);
            let authority = Authority::open(ca, store, external)
                .await
                .context("opening the certificate authority")?;
            (authority, None)
        }
    };

    let key = tokio::fs::read(&options.token_public_key)
        .await
        .with_context(|| format!("reading {}", options.token_public_key.display()))?;
    let authenticator = JwtAuthenticator::new(&key, &options.token_issuer, &options.token_audience)
        .with_context(|| format!("{}", options.token_public_key.display()))?;
    let authenticator = Arc::new(authenticator);

    let (models_out, models) = watch::channel(Arc::<Model>::default());
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

    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("listening on {}", options.listen))?;
    let admin_listener = TcpListener::bind(options.admin)
        .await
        .with_context(|| format!("listening on {}", options.admin))?;
    let address = Some(options.listen.ip()).filter(|address| !address.is_unspecified());
    let incoming = server_tls(
        &authority,
        options.server_names,
        address.into_iter().collect(),
    )
    .context("making the server's certificate")?
    .incoming(listener);

    let election = options.cluster.as_ref().map(Cluster::elect);
    let leadership = match &election {
        Some(election) => election.leadership(),
        None => Leadership::always(),
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(authority.clone().run(leadership.clone()));
    if let Some(cluster) = options.cluster {
        let sources = Sources {
            models: models.clone(),
            problems: source.subscribe_problems(),
        };
        let enrolment = options.translation.enrolment.clone();
        tasks.spawn(cluster.write(
            leadership,
            authority.clone(),
            sources,
            clients.clone(),
            enrolment,
        ));
    }
    tasks.spawn(model::run(
        source.subscribe(),
        options.translation,
        Debounce::default(),
        models_out,
    ));
    let admin = Arc::new(Admin {
        models: models.clone(),
        problems: source.subscribe_problems(),
        clients,
        authority,
        readiness: readiness.clone(),
    });
    tasks.spawn(seine_telemetry::http::serve(
        admin_listener,
        move |request| {
            let admin = admin.clone();
            async move { admin.page(&request) }
        },
    ));
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
        .add_service(xds.into_server())
        .add_service(certificates.into_server())
        .serve_with_incoming_shutdown(incoming, async {
            // Also if the sender is dropped.
            let _ = ended.await;
        });
    let mut server = std::pin::pin!(server);
    tokio::select! {
        served = &mut server => served.context("serving gRPC")?,
        () = stop => {
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
