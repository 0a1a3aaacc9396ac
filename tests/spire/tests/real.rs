//! The real SPIRE, where SPIRE_BIN names the folder of `spire-server` and `spire-agent`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use seine_identity::SpireApi;
use seine_identity::testing::TestCa;
use support::{DOMAIN, World, until};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const GATE: &str = "spiffe://cluster.local/ns/shop/sa/gate";

/// A server and an agent, each a process.
struct Spire {
    bin: PathBuf,
    folder: tempfile::TempDir,
    server: Child,
    agent: Option<Child>,
    token: String,
}

impl Spire {
    fn start() -> Option<Self> {
        let bin = PathBuf::from(std::env::var_os("SPIRE_BIN")?);
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        for part in ["admin", "public", "agent"] {
            fs::create_dir(folder.path().join(part)).unwrap();
        }
        let server = format!(
            r#"server {{
                bind_address = "127.0.0.1"
                bind_port = "{port}"
                socket_path = "{at}/server.sock"
                trust_domain = "{DOMAIN}"
                data_dir = "{at}/server"
            }}
            plugins {{
                DataStore "sql" {{ plugin_data {{ database_type = "sqlite3", connection_string = "{at}/entries" }} }}
                NodeAttestor "join_token" {{ plugin_data {{}} }}
                KeyManager "memory" {{ plugin_data {{}} }}
            }}"#
        );
        let agent = format!(
            r#"agent {{
                server_address = "127.0.0.1"
                server_port = "{port}"
                socket_path = "{at}/public/agent.sock"
                admin_socket_path = "{at}/admin/admin.sock"
                trust_domain = "{DOMAIN}"
                data_dir = "{at}/agent"
                insecure_bootstrap = true
                authorized_delegates = ["spiffe://{DOMAIN}/proxy"]
            }}
            plugins {{
                NodeAttestor "join_token" {{ plugin_data {{}} }}
                KeyManager "disk" {{ plugin_data {{ directory = "{at}/agent" }} }}
                WorkloadAttestor "unix" {{ plugin_data {{}} }}
            }}"#
        );
        fs::write(folder.path().join("server.conf"), server).unwrap();
        fs::write(folder.path().join("agent.conf"), agent).unwrap();
        let server = run(&bin.join("spire-server"), folder.path(), "server", &[]);
        let mut spire = Self {
            bin,
            folder,
            server,
            agent: None,
            token: String::new(),
        };
        let node = format!("spiffe://{DOMAIN}/node");
        for _ in 0..100 {
            if let Ok(answer) = spire.ask(&["token", "generate", "-spiffeID", &node]) {
                spire.token = answer.split_whitespace().last().unwrap().to_owned();
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(!spire.token.is_empty(), "{}", spire.log("server"));
        // This process is the delegate.
        spire.register(&format!("spiffe://{DOMAIN}/proxy"), &["unix:uid:0"], &[]);
        Some(spire)
    }

    fn start_agent(&mut self) {
        let agent = self.bin.join("spire-agent");
        let token = ["-joinToken", &self.token];
        self.agent = Some(run(&agent, self.folder.path(), "agent", &token));
    }

    fn stop_agent(&mut self) {
        end(self.agent.take());
    }

    fn register(&self, spiffe_id: &str, selectors: &[&str], more: &[&str]) {
        let node = format!("spiffe://{DOMAIN}/node");
        let mut args = vec![
            "entry",
            "create",
            "-parentID",
            &node,
            "-spiffeID",
            spiffe_id,
        ];
        args.extend(selectors.iter().flat_map(|one| ["-selector", *one]));
        args.extend(more);
        self.ask(&args).unwrap();
    }

    /// What the server answers on the command line.
    fn ask(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new(self.bin.join("spire-server"))
            .args(args)
            .arg("-socketPath")
            .arg(self.folder.path().join("server.sock"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(text),
            false => Err(text + &String::from_utf8_lossy(&output.stderr)),
        }
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    fn socket(&self, api: SpireApi) -> PathBuf {
        self.folder.path().join(match api {
            SpireApi::Delegated => "admin/admin.sock",
            SpireApi::Workload => "public/agent.sock",
        })
    }
}

impl Drop for Spire {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}\n{}", self.log("server"), self.log("agent"));
        }
        self.stop_agent();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn run(program: &Path, folder: &Path, name: &str, args: &[&str]) -> Child {
    let log = fs::File::create(folder.join(format!("{name}.log"))).unwrap();
    let child = Command::new(program)
        .arg("run")
        .arg("-config")
        .arg(folder.join(format!("{name}.conf")))
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    child.unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_spire_issues_renews_federates_and_comes_back() {
    let Some(mut spire) = Spire::start() else {
        println!(
            "SKIPPED: the real SPIRE: SPIRE_BIN names no folder with spire-server and spire-agent"
        );
        return;
    };
    let partner = TestCa::new("partner.example");
    let roots = spire.folder.path().join("partner.pem");
    fs::write(&roots, partner.root_pem()).unwrap();
    let roots = roots.to_str().unwrap();
    let federated = [
        "bundle",
        "set",
        "-id",
        "spiffe://partner.example",
        "-path",
        roots,
    ];
    spire.ask(&federated).unwrap();
    let federates = [
        "-x509SVIDTTL",
        "20",
        "-federatesWith",
        "spiffe://partner.example",
    ];
    spire.register(WEB, &["k8s:ns:shop", "k8s:sa:web"], &federates);
    spire.register(GATE, &["unix:uid:0"], &[]);
    spire.start_agent();

    // Certificates of others, by the Delegated Identity API.
    let delegate = World::at(spire.socket(SpireApi::Delegated), SpireApi::Delegated);
    let web = WEB.parse().unwrap();
    delegate.certificates.prefetch(&web);
    until("an SVID", async || delegate.serial(&web).await.is_ok()).await;
    let first = delegate.serial(&web).await.unwrap();
    until("the partner is trusted", async || {
        delegate.trusts("partner.example") == [partner.root().to_vec()]
    })
    .await;
    until("a new SVID before the old one ends", async || {
        delegate.serial(&web).await.unwrap() != first
    })
    .await;

    // One's own, of several, by the Workload API.
    let dedicated = World::at(spire.socket(SpireApi::Workload), SpireApi::Workload);
    let gate = GATE.parse().unwrap();
    dedicated.certificates.prefetch(&gate);
    until("an SVID of its own", async || {
        dedicated.serial(&gate).await.is_ok()
    })
    .await;

    // A second root.
    assert_eq!(delegate.trusts(DOMAIN).len(), 1);
    spire.ask(&["localauthority", "x509", "prepare"]).unwrap();
    until("both roots are trusted", async || {
        delegate.trusts(DOMAIN).len() == 2 && dedicated.trusts(DOMAIN).len() == 2
    })
    .await;

    // Without the agent what is there holds; with it again, who came meanwhile gets its own.
    spire.stop_agent();
    delegate.serial(&web).await.unwrap();
    let api = "spiffe://cluster.local/ns/shop/sa/api".parse().unwrap();
    spire.register(
        "spiffe://cluster.local/ns/shop/sa/api",
        &["k8s:ns:shop", "k8s:sa:api"],
        &[],
    );
    delegate.certificates.prefetch(&api);
    delegate.serial(&api).await.unwrap_err();
    spire.start_agent();
    until("an SVID by the new agent", async || {
        delegate.serial(&api).await.is_ok()
    })
    .await;
}
