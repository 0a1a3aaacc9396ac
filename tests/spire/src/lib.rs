//! A SPIRE agent for tests: of the Delegated Identity API and of the SPIFFE Workload API what our proxies ask, at one
//! Unix socket. Like the real one it is told who gets what, pushes what changes, and refuses whom it doesn't know.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use seine_identity::testing::{TestCa, TestLeaf};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::pb::delegated::delegated_identity_server::{DelegatedIdentity, DelegatedIdentityServer};
use crate::pb::delegated::{
    SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest,
    SubscribeToX509sviDsResponse, X509svid, X509svidWithKey,
};
use crate::pb::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use crate::pb::workload::{
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
mod pb {
    pub(crate) mod delegated {
        tonic::include_proto!("spire.api.agent.delegatedidentity.v1");
    }
    pub(crate) mod workload {
        tonic::include_proto!("_");
    }
}

/// The selector of whoever asks the Workload API here.
pub const THIS_PROCESS: &str = "unix:uid:0";

/// What an agent knows, also while it does not run.
#[derive(Clone, Debug)]
pub struct Agent {
    socket: PathBuf,
    state: Arc<watch::Sender<State>>,
}

/// The agent as long as it runs.
#[derive(Debug)]
pub struct Running(Option<tokio::runtime::Runtime>);

#[derive(Clone, Debug, Default)]
struct State {
    entries: Vec<Entry>,
    bundles: BTreeMap<String, Vec<u8>>,
    denies: bool,
}

/// Who gets which SVID.
#[derive(Clone, Debug)]
struct Entry {
    selectors: Vec<String>,
    spiffe_id: String,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Agent {
    /// Will listen at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            state: Arc::default(),
        }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Gives whoever has all `selectors` this certificate, in the place of an earlier one of the same SPIFFE ID.
    pub fn issue(&self, selectors: &[&str], ca: &TestCa, leaf: &TestLeaf) {
        let (certificate, key) = ca.sign(leaf);
        let entry = Entry {
            selectors: selectors.iter().map(|&one| one.to_owned()).collect(),
            spiffe_id: leaf.uris.concat(),
            certificate: certificate.to_vec(),
            key: key.to_vec(),
        };
        self.state.send_modify(|state| {
            state.entries.retain(|old| old.spiffe_id != entry.spiffe_id);
            state.entries.push(entry);
        });
    }

    /// Names these roots of a trust domain.
    pub fn trust(&self, trust_domain: &str, roots: &[&TestCa]) {
        let roots = roots.iter().flat_map(|ca| ca.root().to_vec()).collect();
        self.state
            .send_modify(|state| drop(state.bundles.insert(trust_domain.to_owned(), roots)));
    }

    /// Names a trust domain no more.
    pub fn distrust(&self, trust_domain: &str) {
        self.state
            .send_modify(|state| drop(state.bundles.remove(trust_domain)));
    }

    /// Whether everybody is refused who asks from now on.
    pub fn deny(&self, denies: bool) {
        self.state.send_modify(|state| state.denies = denies);
    }

    /// Listens, on a runtime of its own: it goes away as a process does, with all its connections.
    pub fn start(&self) -> Running {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let _ = std::fs::remove_file(&self.socket);
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(&self.socket).unwrap()
        };
        let server = Server::builder()
            .add_service(DelegatedIdentityServer::new(self.clone()))
            .add_service(SpiffeWorkloadApiServer::new(self.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        runtime.spawn(async move { server.await.unwrap() });
        Running(Some(runtime))
    }

    /// An answer now, and one with each change.
    fn answers<T: Send + 'static>(
        &self,
        answer: impl Fn(State) -> Result<T, Status> + Send + Sync + 'static,
    ) -> Result<Response<Answers<T>>, Status> {
        if self.state.borrow().denies {
            return Err(Status::permission_denied("the caller is no delegate"));
        }
        let states = WatchStream::new(self.state.subscribe());
        Ok(Response::new(Box::pin(states.map(answer))))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl State {
    fn entries_of(&self, selectors: &[String]) -> impl Iterator<Item = &Entry> {
        let all = move |entry: &&Entry| entry.selectors.iter().all(|one| selectors.contains(one));
        self.entries.iter().filter(all)
    }

    /// With the keys that released agents write.
    fn bundles_as_sent(self) -> HashMap<String, Vec<u8>> {
        let bundles = self.bundles.into_iter();
        let bundles = bundles.map(|(domain, roots)| (format!("spiffe://{domain}"), roots));
        bundles.collect()
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl DelegatedIdentity for Agent {
    type SubscribeToX509SVIDsStream = Answers<SubscribeToX509sviDsResponse>;
    type SubscribeToX509BundlesStream = Answers<SubscribeToX509BundlesResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let selectors = request.into_inner().selectors;
        let selectors: Vec<String> = selectors
            .iter()
            .map(|selector| format!("{}:{}", selector.r#type, selector.value))
            .collect();
        self.answers(move |state| {
            let svids = state.entries_of(&selectors).map(|entry| X509svidWithKey {
                x509_svid: Some(X509svid {
                    cert_chain: vec![entry.certificate.clone()],
                }),
                x509_svid_key: entry.key.clone(),
            });
            Ok(SubscribeToX509sviDsResponse {
                x509_svids: svids.collect(),
            })
        })
    }

    async fn subscribe_to_x509_bundles(
        &self,
        _: Request<SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        self.answers(|state| {
            Ok(SubscribeToX509BundlesResponse {
                ca_certificates: state.bundles_as_sent(),
            })
        })
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Agent {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        has_header(&request)?;
        self.answers(|state| {
            let svids = state
                .entries_of(&[THIS_PROCESS.to_owned()])
                .map(|entry| pb::workload::X509svid {
                    spiffe_id: entry.spiffe_id.clone(),
                    x509_svid: entry.certificate.clone(),
                    x509_svid_key: entry.key.clone(),
                    bundle: state
                        .bundles
                        .iter()
                        .find(|(domain, _)| {
                            entry.spiffe_id.starts_with(&format!("spiffe://{domain}/"))
                        })
                        .map(|(_, roots)| roots.clone())
                        .unwrap_or_default(),
                })
                .collect::<Vec<_>>();
            match svids.is_empty() {
                true => Err(Status::permission_denied("no identity issued")),
                false => Ok(X509svidResponse {
                    svids,
                    ..Default::default()
                }),
            }
        })
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        has_header(&request)?;
        self.answers(|state| {
            Ok(X509BundlesResponse {
                bundles: state.bundles_as_sent(),
            })
        })
    }
}

/// SPIFFE Workload API, section 5: so that no browser can be made to ask.
fn has_header<T>(request: &Request<T>) -> Result<(), Status> {
    let header = request.metadata().get("workload.spiffe.io");
    let there = header.is_some_and(|value| value == "true");
    there
        .then_some(())
        .ok_or_else(|| Status::invalid_argument("security header missing from request"))
}
