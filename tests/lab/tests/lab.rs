//! The lab itself, without a mesh: what a pod sees, what commands pass on, what stays behind.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers may fail as its body may"
)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use seine_lab::{Lab, Options, cgroup, pcap};

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: page, namespace: shop}
data: {hello: "hello from a volume\n"}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web, namespace: shop}
spec:
  serviceName: web
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        command: [python3, -m, http.server, "8080", --bind, "::", --directory, /page]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /hello, port: http}}
        volumeMounts: [{name: page, mountPath: /page}]
      volumes: [{name: page, configMap: {name: page}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: http, port: 8080, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec:
  terminationGracePeriodSeconds: 0
  nodeName: node1
  containers:
  - name: c
    command: [sleep, infinity]
    env: [{name: WHERE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
"#;

/// A lab without a mesh, or `None` (and a line that says so) where it can't be had.
fn lab(test: &str, name: &str) -> Option<Lab> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {test}: it needs root");
        return None;
    }
    let options = Options {
        mesh: false,
        ..Options::new(name)
    };
    Some(Lab::up(&options, MANIFESTS).expect("the lab comes up"))
}

fn curl(lab: &Lab, arguments: &[&str]) -> String {
    let mut command = vec!["curl", "-sS", "--max-time", "5"];
    command.extend(arguments);
    let output = lab.exec("shop", "client", &command).expect("exec works");
    assert_eq!(output.code, 0, "curl {arguments:?}: {}", output.stderr);
    output.stdout
}

fn cgroup_of(name: &str) -> std::path::PathBuf {
    cgroup::mount_point()
        .unwrap()
        .join(format!("seine-lab-{name}"))
}

fn is_gone(name: &str) -> bool {
    !Path::new("/run/seine-lab").join(name).exists() && !cgroup_of(name).exists()
}

fn await_gone(name: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_gone(name) {
        assert!(Instant::now() < deadline, "something of lab {name} is left");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn pods_reach_each_other_by_service_name_and_address_in_both_families() {
    let Some(lab) = lab("pods_reach_each_other", "t-net") else {
        return;
    };
    for url in [
        "http://front/hello",
        "http://front.shop.svc.cluster.local/hello",
        "http://web-0.web:8080/hello",
        "http://web-1.web.shop:8080/hello",
    ] {
        assert_eq!(curl(&lab, &[url]), "hello from a volume\n", "{url}");
    }
    for family in ["-4", "-6"] {
        assert_eq!(
            curl(&lab, &[family, "http://front/hello"]),
            "hello from a volume\n"
        );
    }
    let status = lab.status().unwrap();
    for pod in status.pods.iter().filter(|pod| pod.name.starts_with("web")) {
        for address in &pod.addresses {
            let url = format!("http://{}/hello", std::net::SocketAddr::new(*address, 8080));
            assert_eq!(curl(&lab, &[&url]), "hello from a volume\n", "{url}");
        }
    }
    let output = lab
        .exec("shop", "client", &["curl", "-sS", "http://nothing.shop/"])
        .unwrap();
    assert_eq!(
        output.code, 6,
        "a name that does not exist: {}",
        output.stderr
    );
}

#[test]
fn exec_passes_streams_environment_and_exit_status_and_writes_nothing_to_the_machine() {
    let Some(lab) = lab("exec_passes", "t-exec") else {
        return;
    };
    let script =
        "cat; echo to-stderr >&2; hostname; echo $WHERE; echo x > /seine-lab-trace; exit 42";
    let output = lab
        .exec_with("shop", "client", &["sh", "-c", script], "from stdin\n")
        .unwrap();
    assert_eq!(output.code, 42);
    assert_eq!(output.stdout, "from stdin\nclient\nnode1\n");
    assert_eq!(output.stderr, "to-stderr\n");
    assert!(!Path::new("/seine-lab-trace").exists());
    let output = lab
        .exec("shop", "client", &["cat", "/seine-lab-trace"])
        .unwrap();
    assert_eq!(
        output.stdout, "x\n",
        "what a pod writes is there for the pod"
    );
    let output = lab
        .exec("shop", "client", &["cat", "/proc/self/cgroup"])
        .unwrap();
    assert!(
        output
            .stdout
            .contains("/seine-lab-t-exec/node1/kubepods/pod"),
        "{}",
        output.stdout
    );
    let output = lab.exec("shop", "client", &["no-such-program"]).unwrap();
    assert_eq!(output.code, 127);
}

#[test]
fn objects_change_live_and_a_capture_shows_what_crosses_between_nodes() {
    let Some(lab) = lab("objects_change_live", "t-live") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wire.pcap");
    let other = "http://web-1.web:8080/hello";
    let web = lab
        .status()
        .unwrap()
        .pods
        .into_iter()
        .find(|p| p.name == "web-1" && p.node == 2);
    let other = if web.is_some() {
        other
    } else {
        "http://web-0.web:8080/hello"
    };
    let capture = lab.capture(1, &file, &["tcp"]).unwrap();
    curl(&lab, &[other]);
    capture.stop().unwrap();
    let seen = pcap::Capture::read(&file).unwrap();
    assert!(
        seen.count(b"hello from a volume") >= 1,
        "{:?}",
        seen.by_port()
    );
    assert!(
        seen.segments
            .iter()
            .any(|segment| segment.opens && segment.touches(8080))
    );

    lab.delete("shop", "statefulset/web").unwrap();
    let output = lab
        .exec(
            "shop",
            "client",
            &["curl", "-sS", "--max-time", "3", "http://front/"],
        )
        .unwrap();
    assert_eq!(
        output.code, 7,
        "a service without endpoints refuses: {}",
        output.stderr
    );
    lab.apply_and_wait(&MANIFESTS.replace("hello from a volume", "hello again"))
        .unwrap();
    assert_eq!(curl(&lab, &["http://front/hello"]), "hello again\n");

    let error = format!(
        "{:#}",
        lab.apply("kind: Pod\nmetadata: {name: x}\n").unwrap_err()
    );
    assert!(error.contains("apiVersion"), "{error}");
    let stray = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: nowhere}\nspec: {containers: []}\n";
    let error = format!("{:#}", lab.apply(stray).unwrap_err());
    assert!(error.contains("there is no namespace nowhere"), "{error}");
}

#[test]
fn two_labs_run_side_by_side_and_neither_leaves_anything_however_it_ends() {
    let Some(first) = lab("two_labs", "t-one") else {
        return;
    };
    let second = lab("two_labs", "t-two").unwrap();
    let blocks = [
        first.status().unwrap().block,
        second.status().unwrap().block,
    ];
    assert_ne!(blocks[0], blocks[1]);
    assert_eq!(
        curl(&first, &["http://front/hello"]),
        curl(&second, &["http://front/hello"])
    );

    // Killed without a chance to clean up.
    let init = fs::read_to_string("/run/seine-lab/t-one/init.pid").unwrap();
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
    let supervisor = children.split_whitespace().find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.contains("internal-supervise"))
    });
    kill(supervisor.expect("process 1 started the supervisor"));
    await_gone("t-one");
    assert_eq!(
        curl(&second, &["http://front/hello"]),
        "hello from a volume\n"
    );

    // Now the process outside of the lab that would clean up after it.
    let init = fs::read_to_string("/run/seine-lab/t-two/init.pid").unwrap();
    let stat = fs::read_to_string(format!("/proc/{init}/stat")).unwrap();
    let keeper = stat
        .rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .nth(1)
        .unwrap()
        .to_owned();
    kill(&keeper);
    await_gone("t-two");
    let links = Command::new("ip").args(["-o", "link"]).output().unwrap();
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(!links.contains("fabric"), "{links}");
}

fn kill(pid: &str) {
    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// What `seine-lab` with these words prints for people; it must succeed.
fn printed(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_seine-lab"))
        .args(words)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The words of the line of a table that begins so.
fn row<'a>(table: &'a str, begins: &[&str]) -> Vec<&'a str> {
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.starts_with(begins))
        .unwrap_or_else(|| panic!("no line of {begins:?}:\n{table}"))
}

#[test]
fn up_prints_a_table_status_json_and_logs_what_a_pod_wrote() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED up_prints_a_table: it needs root");
        return;
    }
    let name = ["--name", "t-words"];
    printed(&[&name[..], &["down"]].concat());
    // What ends the lab also where the test fails.
    struct Down;
    impl Drop for Down {
        fn drop(&mut self) {
            let mut down = Command::new(env!("CARGO_BIN_EXE_seine-lab"));
            let _ = down.args(["--name", "t-words", "down"]).status();
        }
    }
    let _down = Down;
    let pods: String = [1, 2, 1]
        .iter()
        .enumerate()
        .map(|(i, node)| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}, namespace: default}}\n\
                 spec: {{nodeName: node{node}, terminationGracePeriodSeconds: 0, containers: [{{name: c, \
                 command: [sh, -c, \"echo this is p{i}; exec sleep infinity\"]}}]}}\n"
            )
        })
        .collect();
    let manifests = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: default}}\n{pods}");
    let mut up = Command::new(env!("CARGO_BIN_EXE_seine-lab"))
        .args(name)
        .args(["up", "-", "--no-mesh", "--nodes", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = up.stdin.take().unwrap();
    stdin.write_all(manifests.as_bytes()).unwrap();
    drop(stdin);
    let output = up.wait_with_output().unwrap();
    assert!(output.status.success());

    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        row(&table, &["NAMESPACE"])[1..4],
        ["POD", "READY", "STATUS"]
    );
    // Where nodeName says, ready when `up` returns.
    for (pod, node) in [("p0", "node1"), ("p1", "node2"), ("p2", "node1")] {
        let row = row(&table, &["default", pod]);
        assert_eq!(row[2..6], ["yes", "Running", "0", node], "{table}");
    }
    let status = printed(&[&name[..], &["status", "-o", "json"]].concat());
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let listed = status["pods"].as_array().unwrap();
    for (pod, node) in [("p0", 1), ("p1", 2), ("p2", 1)] {
        let found = listed.iter().find(|listed| listed["name"] == pod).unwrap();
        assert_eq!(
            (&found["node"], &found["ready"]),
            (&node.into(), &true.into())
        );
        // And it is there that it runs.
        let cgroup =
            printed(&[&name[..], &["exec", pod, "--", "cat", "/proc/self/cgroup"]].concat());
        assert!(
            cgroup.contains(&format!("/node{node}/kubepods/pod")),
            "{cgroup}"
        );
    }
    assert_eq!(
        printed(&[&name[..], &["logs", "p1"]].concat()),
        "this is p1\n"
    );

    // A capture that ends by itself, with a whole file.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wire.pcap");
    let path = file.to_str().unwrap();
    printed(
        &[
            &name[..],
            &["capture", "--duration", "1", "-w", path, "--", "tcp"],
        ]
        .concat(),
    );
    pcap::Capture::read(&file).unwrap();
}

#[test]
fn who_is_not_root_is_told_so() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED who_is_not_root_is_told_so: root alone can be somebody else");
        return;
    }
    // Where anybody may run it.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("seine-lab");
    fs::copy(env!("CARGO_BIN_EXE_seine-lab"), &program).unwrap();
    let output = Command::new(&program)
        .args(["up", "."])
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("seine-lab needs root"), "{error}");
}
