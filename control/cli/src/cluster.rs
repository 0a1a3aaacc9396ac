//! The cluster as the caller may see it: objects, the mesh's own pods, and its settings.

use std::{collections::BTreeMap, fmt::Debug, path::PathBuf, sync::Arc};

use anyhow::{Context as _, bail};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    node::v1::RuntimeClass,
};
use kube::{
    Api, Client, Config, Resource, ResourceExt as _,
    api::{DynamicObject, ListParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use seine_control::translate::Settings;
use seine_kubernetes::resource;
use seine_objects::{EnrolmentSettings, Kind, Object, ObjectKey, istio, parse_text};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::files::Objects;

/// The kinds of policies, ours and Istio's.
pub const POLICIES: [Kind; 7] = [
    Kind::AuthorizationPolicy,
    Kind::MeshTls,
    Kind::TrafficPolicy,
    Kind::RequestAuthentication,
    Kind::IstioAuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::IstioRequestAuthentication,
];

/// The kinds that say where requests go.
const ROUTES: [Kind; 5] = [
    Kind::Gateway,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::ReferenceGrant,
];

/// How many objects are asked for at a time.
const PAGE: u32 = 500;

/// Which cluster.
#[derive(clap::Args)]
pub struct Where {
    /// Kubeconfig; else KUBECONFIG, ~/.kube/config, or the pod's service account.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// The namespace that Seine is installed in.
    #[arg(
        long,
        global = true,
        env = "SEINE_SYSTEM_NAMESPACE",
        default_value = "seine-system"
    )]
    pub system_namespace: String,
}

/// A cluster's API server.
#[derive(Clone)]
pub struct Cluster {
    /// Speaks to it.
    pub client: Client,
    /// The namespace that Seine is installed in.
    pub system: String,
}

impl Cluster {
    /// Finds out where the cluster is; the first request tells whether it answers.
    pub async fn new(at: &Where) -> anyhow::Result<Self> {
        let options = KubeConfigOptions {
            context: at.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &at.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &options).await?
            }
            None if at.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await.context(
                "no cluster: there is no kubeconfig, and this is not a pod (files can be read with -f)",
            )?,
        };
        Ok(Self {
            client: Client::try_from(config)?,
            system: at.system_namespace.clone(),
        })
    }

    /// Objects of the namespace that Seine is installed in.
    pub fn own<K>(&self) -> Api<K>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.system)
    }

    /// The pods of a component, in order of their names.
    pub async fn component(&self, name: &str) -> anyhow::Result<Vec<Pod>> {
        let selector = format!("app.kubernetes.io/name=seine-{name}");
        let pods = self.own::<Pod>();
        let found = pods.list(&ListParams::default().labels(&selector)).await;
        let mut found = found
            .with_context(|| format!("listing pods of seine-{name} in {}", self.system))?
            .items;
        found.sort_by_key(|pod| pod.name_any());
        Ok(found)
    }

    /// All objects that Seine reads.
    pub async fn objects(&self) -> anyhow::Result<Objects> {
        let mut objects = Objects::default();
        let set = &mut objects.set;
        for one in self.all::<Namespace>().await? {
            set.insert(key(&one), Object::Namespace(Arc::new(one)));
        }
        for one in self.all::<Node>().await? {
            set.insert(key(&one), Object::Node(Arc::new(one)));
        }
        for one in self.all::<Pod>().await? {
            set.insert(key(&one), Object::Pod(Arc::new(one)));
        }
        for one in self.all::<Service>().await? {
            set.insert(key(&one), Object::Service(Arc::new(one)));
        }
        for one in self.all::<EndpointSlice>().await? {
            set.insert(key(&one), Object::EndpointSlice(Arc::new(one)));
        }
        for one in self.all::<ServiceAccount>().await? {
            set.insert(key(&one), Object::ServiceAccount(Arc::new(one)));
        }
        for one in self.all::<NetworkPolicy>().await? {
            set.insert(key(&one), Object::NetworkPolicy(Arc::new(one)));
        }
        for one in self.all::<RuntimeClass>().await? {
            set.insert(key(&one), Object::RuntimeClass(Arc::new(one)));
        }
        for kind in POLICIES.into_iter().chain(ROUTES) {
            // By the parser that judges files, too: what it refuses is in force nowhere.
            let items = self.policies(kind).await?;
            let items: Vec<_> = items.iter().map(|item| json!(item)).collect();
            let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
            let parsed = parse_text("the API server", &list);
            objects.problems.extend(parsed.problems);
            for (key, object, _) in parsed.objects {
                objects.set.insert(key, object);
            }
        }
        Ok(objects)
    }

    /// The policies of a kind, as they are; none where the kind isn't installed.
    pub async fn policies(&self, kind: Kind) -> anyhow::Result<Vec<DynamicObject>> {
        let resource = resource(kind);
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        match pages(&api).await {
            Ok(mut items) => {
                for item in &mut items {
                    item.types = Some(kube::core::TypeMeta {
                        api_version: resource.api_version.clone(),
                        kind: resource.kind.clone(),
                    });
                }
                Ok(items)
            }
            Err(error) if is_not_found(&error) => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("listing {kind}")),
        }
    }

    /// Every object of a kind.
    pub async fn all<K>(&self) -> anyhow::Result<Vec<K>>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api = Api::<K>::all(self.client.clone());
        let found = pages(&api).await;
        found.with_context(|| format!("listing {}", K::plural(&())))
    }

    /// The settings that the control plane of this cluster runs with.
    pub async fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = Settings::default();
        let Some(deployment) = self.deployment().await? else {
            // As the chart would install it.
            settings.istio_root_namespace = Some(istio::ROOT_NAMESPACE.into());
            return Ok(settings);
        };
        let flags = flags(&deployment);
        settings.istio_root_namespace = flags.contains_key("istio-policies").then(|| {
            let named = flags.get("istio-root-namespace").cloned();
            named.unwrap_or_else(|| istio::ROOT_NAMESPACE.into())
        });
        let set = |field: &mut String, flag: &str| {
            if let Some(value) = flags.get(flag) {
                field.clone_from(value);
            }
        };
        set(&mut settings.trust_domain, "trust-domain");
        set(&mut settings.cluster_id, "cluster-id");
        set(&mut settings.network, "network");
        set(&mut settings.dns_domain, "dns-domain");
        let runtimes = flags.get("sandboxed-runtimes").into_iter();
        let runtimes = runtimes.flat_map(|list| list.split(',').map(str::to_owned));
        settings.enrolment = EnrolmentSettings::also_sandboxed(runtimes.collect());
        settings.enrolment.istio_alias = flags.contains_key("istio-alias");
        Ok(settings)
    }

    /// The control plane's Deployment.
    pub async fn deployment(&self) -> anyhow::Result<Option<Deployment>> {
        let found = self.own::<Deployment>().get_opt("seine-control").await;
        found.with_context(|| format!("reading deployment seine-control in {}", self.system))
    }

    /// One of the two DaemonSets.
    pub async fn daemon_set(&self, name: &str) -> anyhow::Result<Option<DaemonSet>> {
        let found = self.own::<DaemonSet>().get_opt(name).await;
        found.with_context(|| format!("reading daemonset {name} in {}", self.system))
    }

    /// The one of these pods that was named, or that is on the node named; else all.
    pub fn select(
        pods: Vec<Pod>,
        pod: Option<&str>,
        node: Option<&str>,
    ) -> anyhow::Result<Vec<Pod>> {
        let is_meant = |found: &Pod| {
            pod.is_none_or(|name| found.name_any() == name)
                && node.is_none_or(|name| seine_objects::pods::node(found) == Some(name))
        };
        let found: Vec<Pod> = pods.into_iter().filter(is_meant).collect();
        if found.is_empty() {
            bail!("there is no such pod of Seine; `seine status` lists them");
        }
        Ok(found)
    }
}

/// Whether the server says that there is no such thing.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn key<K: Resource>(object: &K) -> ObjectKey {
    let metadata = object.meta();
    ObjectKey::new(
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

async fn pages<K: Clone + DeserializeOwned + Debug>(api: &Api<K>) -> kube::Result<Vec<K>> {
    let mut found = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(found),
        }
    }
}

/// The flags of the first container: `--name=value`, or `--name` alone.
fn flags(deployment: &Deployment) -> BTreeMap<String, String> {
    let spec = deployment.spec.as_ref();
    let pod = spec.and_then(|spec| spec.template.spec.as_ref());
    let container = pod.and_then(|pod| pod.containers.first());
    let words = container.and_then(|container| container.args.as_deref());
    let flag = |word: &String| {
        let flag = word.strip_prefix("--")?;
        let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
        Some((name.to_owned(), value.to_owned()))
    };
    words.unwrap_or_default().iter().filter_map(flag).collect()
}
