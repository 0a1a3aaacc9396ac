//! grpcurl, which speaks gRPC by the schemas alone and says what it gets as JSON.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

/// Says where the program is: `make test-interop` builds it.
const VARIABLE: &str = "SEINE_GRPCURL";
const PATIENCE: Duration = Duration::from_secs(30);

/// How to reach a server, and as whom.
pub(crate) struct Grpcurl {
    arguments: Vec<String>,
    server: SocketAddr,
}

impl Grpcurl {
    pub(crate) fn new(server: SocketAddr, roots: &Path, token: &str) -> Self {
        let schemas = seine_kubernetes_tests::root().join("mesh/proto/proto");
        let arguments = [
            "-cacert",
            roots.to_str().unwrap(),
            "-servername",
            "seine-control.seine-system.svc",
            "-H",
            &format!("authorization: Bearer {token}"),
            "-import-path",
            schemas.to_str().unwrap(),
            "-proto",
            "discovery.proto",
            "-proto",
            "workload.proto",
            "-proto",
            "authorization.proto",
            "-proto",
            "extensions.proto",
            "-proto",
            "ca.proto",
            "-d",
            "@",
        ];
        Self {
            arguments: arguments.map(str::to_owned).to_vec(),
            server,
        }
    }

    fn start(&self, method: &str) -> Child {
        let program = std::env::var_os(VARIABLE)
            .expect("SEINE_GRPCURL says where grpcurl is: make test-interop");
        Command::new(program)
            .args(&self.arguments)
            .arg(self.server.to_string())
            .arg(method)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// One request and its answer, or what grpcurl says of the failure.
    pub(crate) fn call(&self, method: &str, request: &Value) -> Result<Value, String> {
        let mut child = self.start(method);
        let mut input = child.stdin.take().unwrap();
        input.write_all(request.to_string().as_bytes()).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// A stream that stays open.
    pub(crate) fn stream(&self, method: &str) -> Stream {
        let mut child = self.start(method);
        let input = child.stdin.take().unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for answer in serde_json::Deserializer::from_reader(output).into_iter() {
                // Broken off when the stream is dropped.
                let Ok(answer) = answer else { return };
                if sender.send(answer).is_err() {
                    return;
                }
            }
        });
        Stream {
            child,
            input,
            answers,
        }
    }
}

/// It ends when this is dropped.
pub(crate) struct Stream {
    child: Child,
    input: ChildStdin,
    answers: Receiver<Value>,
}

impl Stream {
    pub(crate) fn send(&mut self, request: &Value) {
        writeln!(self.input, "{request}").unwrap();
        self.input.flush().unwrap();
    }

    /// The next answer.
    pub(crate) fn receive(&mut self) -> Value {
        if let Ok(answer) = self.answers.recv_timeout(PATIENCE) {
            return answer;
        }
        let _ = self.child.kill();
        let mut said = String::new();
        let _ = self.child.stderr.take().unwrap().read_to_string(&mut said);
        panic!("no answer within {PATIENCE:?}: {said}");
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
