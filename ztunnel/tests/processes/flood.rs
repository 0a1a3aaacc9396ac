//! Strangers that want the log to be full.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use seine_hbone::OpenError;

use crate::{Client, Node, POD};

const FLOOD: usize = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_decide_how_much_is_logged_and_metrics_count_them_all() {
    let Some(node) = Node::new() else {
        println!("SKIPPED a flood of the log: it needs root");
        return;
    };
    let _control = node.control.start();
    let proxy = node.proxy("only");
    proxy.says(&["200 OK"]).await;
    let netns = node.namespace.open();
    let garbage = || {
        let server = SocketAddr::from((POD, 15008));
        let mut stream = netns.run(|| TcpStream::connect(server)).unwrap().unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        // Until it is refused.
        let _ = stream.read_to_end(&mut Vec::new());
    };
    let denied = async || {
        let opened = Client::of(&node).open((POD, 15001).into()).await;
        assert!(
            matches!(opened, Err(OpenError::Status { .. })),
            "{opened:?}"
        );
    };

    let start = Instant::now();
    for _ in 0..FLOOD {
        garbage();
        denied().await;
    }
    let all = format!(" {FLOOD}");
    for label in ["reason=\"tls\"", "response_flags=\"REFUSED\""] {
        let counted = || {
            let page = proxy.admin("GET /stats");
            let line = page.lines().find(|line| line.contains(label));
            line.unwrap_or_default().to_owned()
        };
        proxy.wait_for(label, &[&all], counted).await;
    }
    let at_most = 50 + 2 + start.elapsed().as_secs() as usize;
    for what in ["a tunnel is refused", "connection denied"] {
        let log = proxy.log();
        let lines = log.lines().filter(|line| line.contains(what)).count();
        assert!((50..=at_most).contains(&lines), "{lines} lines: {what}");
    }

    // Who comes later is told of, and how many were not.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    garbage();
    denied().await;
    for what in ["a tunnel is refused", "connection denied"] {
        let lines = || {
            let log = proxy.log();
            let lines = log.lines().filter(|line| line.contains(what));
            lines.collect::<Vec<_>>().join("\n")
        };
        proxy.wait_for(what, &[" suppressed="], lines).await;
    }
}
