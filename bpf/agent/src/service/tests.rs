//! A whole life, with a stand-in for the kernel and an API server in memory.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use seine_cni::PluginEntry;
use seine_objects::EnrolmentSettings;
use serde_json::Value;
use serde_json::json;
use tokio::sync::oneshot;

use super::*;
use crate::Listeners;
use crate::NodeProxy;
use crate::cluster::fake::FakeApi;
use crate::cluster::uninstall::UNINSTALL;
use crate::cni_chain::ChainSettings;
use crate::redirect::Counters;
use crate::redirect::EnrolledPod;
use crate::redirect::Enrolment;
use crate::redirect::OlderConnections;
use crate::redirect::PodNetns;
use crate::redirect::PodSettings;
use crate::redirect::Repairs;
use crate::redirect::Status;
use crate::redirect::Udp;

const SET: &str = "/apis/apps/v1/namespaces/seine-system/daemonsets/seine-agent";
const AGENT: &str = "/api/v1/namespaces/seine-system/pods/seine-agent-1";
const PATIENCE: Duration = Duration::from_secs(60);

/// Nobody is ever enrolled.
struct Idle;

impl Redirector for Idle {
    fn enrol(&self, _: PodNetns<'_>) -> Result<Enrolment, RedirectError> {
        Err(RedirectError::Invalid("nobody is".into()))
    }
    fn update(&self, cookie: u64, _: &PodSettings) -> Result<(), RedirectError> {
        Err(RedirectError::NotEnrolled(cookie))
    }
    fn release(&self, _: u64) -> Result<(), RedirectError> {
        Ok(())
    }
    fn enrolled(&self) -> Result<Vec<EnrolledPod>, RedirectError> {
        Ok(Vec::new())
    }
    fn reconcile(&self) -> Result<Repairs, RedirectError> {
        Ok(Repairs::default())
    }
    fn canary(&self) -> Result<(), RedirectError> {
        Ok(())
    }
    fn set_proxy_cgroups(&self, _: &[PathBuf]) -> Result<(), RedirectError> {
        Ok(())
    }
    fn counters(&self) -> Result<Counters, RedirectError> {
        Ok(Vec::new())
    }
    fn status(&self) -> Result<Status, RedirectError> {
        Err(RedirectError::Invalid("not asked here".into()))
    }
}

#[derive(Default)]
struct Counting {
    loaded: AtomicUsize,
    cleaned: AtomicUsize,
}

impl Kernel for Counting {
    fn load(&self) -> Result<Arc<dyn Redirector>, RedirectError> {
        self.loaded.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(Idle))
    }

    fn clean(&self, state_dir: &Path) -> Result<(), UninstallError> {
        // As the real one.
        if crate::is_running(state_dir) {
            return Err(UninstallError::Running);
        }
        self.cleaned.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

struct Node {
    folder: tempfile::TempDir,
    kernel: Arc<Counting>,
    api: FakeApi,
}

type Life = tokio::task::JoinHandle<Result<(), ServiceError>>;

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bin", "net.d", "run", "state", "account"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("seine-cni"), "the program").unwrap();
        for name in ["token", "ca.crt"] {
            fs::write(folder.path().join("account").join(name), name).unwrap();
        }
        let node = Self {
            folder,
            kernel: Arc::default(),
            api: FakeApi::default(),
        };
        let chain = json!({"cniVersion": "1.0.0", "name": "k8s", "plugins": [{"type": "bridge"}]});
        fs::write(node.configuration(), chain.to_string()).unwrap();
        node.ask(None);
        node.api.put(
            AGENT,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "seine-agent-1"},
                "spec": {"containers": []}}),
        );
        node
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("net.d/10-k8s.conflist")
    }

    fn plugins(&self) -> BTreeSet<String> {
        let root: Value = serde_json::from_slice(&fs::read(self.configuration()).unwrap()).unwrap();
        let plugins = root["plugins"].as_array().unwrap().iter();
        plugins
            .map(|plugin| plugin["type"].as_str().unwrap().to_owned())
            .collect()
    }

    fn ask(&self, value: Option<&str>) {
        let annotations = value.map_or(json!({}), |value| json!({UNINSTALL: value}));
        self.api.put(
            SET,
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
                "metadata": {"name": "seine-agent", "annotations": annotations},
                "spec": {"selector": {}, "template": {}}}),
        );
    }

    fn answer(&self) -> Value {
        self.api.get(AGENT)["metadata"]["annotations"]["seine.dev/uninstalled"].clone()
    }

    fn start(&self) -> (Life, oneshot::Sender<()>) {
        let path = |name: &str| self.folder.path().join(name);
        let config = Config {
            node: "n1".into(),
            pods_cgroup: None,
            proxy: NodeProxy::AnyProcess,
            cni_cgroup: None,
            run_dir: path("run"),
            state_dir: path("state"),
            admin_address: "127.0.0.1:0".parse().unwrap(),
            metrics_address: None,
            listeners: Listeners::Agent,
            older_connections: OlderConnections::Leave,
            udp: Udp::Pass,
            reconcile_every: Duration::from_millis(100),
            canary_every: Duration::from_secs(60),
            pod_wait: Duration::from_millis(100),
            chain: Some(ChainSettings {
                program: path("seine-cni"),
                bin_dir: path("bin"),
                conf_dir: path("net.d"),
                entry: PluginEntry::default(),
            }),
            enrolment: EnrolmentSettings::default(),
        };
        let cluster = Cluster {
            client: self.api.client(),
            account: Some(ServiceAccount::new("https://10.0.0.1", path("account"))),
            agents: Agents {
                namespace: "seine-system".into(),
                daemon_set: "seine-agent".into(),
            },
            pod: "seine-agent-1".into(),
            startup_taint: false,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let kernel = self.kernel.clone();
        let life = tokio::spawn(async move {
            let (_objects_out, objects) = watch::channel(Arc::new(ObjectSet::default()));
            let stop = async {
                // Dropped by a test that does not stop it.
                if stopped.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            serve(config, kernel, objects, Some(cluster), stop).await
        });
        (life, stop)
    }

    fn is_clean(&self) -> bool {
        self.kernel.cleaned.load(Ordering::SeqCst) > 0
            && !self.plugins().contains("seine-cni")
            && !self.folder.path().join("bin/seine-cni").exists()
    }
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_takes_nothing_down() {
    let node = Node::new();
    let (life, stop) = node.start();
    eventually("it is in the chain", || {
        node.plugins().contains("seine-cni")
    })
    .await;
    stop.send(()).unwrap();
    life.await.unwrap().unwrap();
    assert!(node.plugins().contains("seine-cni"));
    assert_eq!(node.kernel.cleaned.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uninstall_cleans_the_node_answers_and_can_be_called_off() {
    let node = Node::new();
    let (life, _stop) = node.start();
    eventually("it is in the chain", || {
        node.plugins().contains("seine-cni")
    })
    .await;
    let kubeconfig = node.folder.path().join("state").join(KUBECONFIG_FILE);
    eventually("the plugin could ask", || kubeconfig.exists()).await;
    node.ask(Some("now"));
    eventually("it answers", || node.answer() == "now").await;
    assert!(node.is_clean(), "before it answered");
    assert!(!kubeconfig.exists(), "a token is left");
    let left: Vec<_> = std::fs::read_dir(node.folder.path().join("run"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!life.is_finished(), "an end would be followed by a start");
    node.ask(None);
    tokio::time::timeout(PATIENCE, life)
        .await
        .expect("it ends, to be started again")
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_during_an_uninstall_enrols_nobody_and_cleans() {
    let node = Node::new();
    node.ask(Some("now"));
    let (life, stop) = node.start();
    eventually("it answers", || node.answer() == "now").await;
    assert!(node.is_clean());
    assert_eq!(node.kernel.loaded.load(Ordering::SeqCst), 0);
    stop.send(()).unwrap();
    life.await.unwrap().unwrap();
}
