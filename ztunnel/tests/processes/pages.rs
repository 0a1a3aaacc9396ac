//! The admin pages and the access log of a running proxy.

use crate::{Node, exchange, finish};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_show_and_change_what_they_say_and_the_log_is_json() {
    let Some(node) = Node::new() else {
        println!("SKIPPED the pages of a proxy: it needs root");
        return;
    };
    let _control = node.control.start();
    let flags = [("--access-log", "json"), ("--metric-names", "seine")];
    let mut proxy = node.proxy_with("only", &flags);
    proxy.says(&["200 OK"]).await;
    let mut connection = node.connect().await.unwrap();
    exchange(&mut connection).await.unwrap();

    let json = |page: &str| -> serde_json::Value {
        let page = proxy.admin(page);
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        let (_, body) = page.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    };
    let connections = json("GET /connections");
    let live = &connections[0];
    assert_eq!(live["direction"], "inbound");
    assert_eq!(live["security"], "mutual_tls");
    assert_eq!(
        live["sourceIdentity"],
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    assert_eq!(live["original"], node.application.to_string());
    let dump = json("GET /config_dump");
    assert_eq!(
        dump["pods"][0]["identity"],
        "spiffe://cluster.local/ns/shop/sa/b"
    );
    assert_eq!(json("GET /certificates")[0]["state"], "valid");

    // The level of the log.
    let body = |page: String| page.split_once("\r\n\r\n").unwrap().1.to_owned();
    let level = body(proxy.admin("GET /logging"));
    assert_eq!(level.trim(), "info");
    assert_eq!(
        body(proxy.admin("GET /logging?level=debug")).trim(),
        "debug"
    );
    assert_eq!(body(proxy.admin("GET /logging")).trim(), "debug");
    let bad = proxy.admin("GET /logging?level=a%3D%3D,,");
    assert!(bad.starts_with("HTTP/1.1 400"), "{bad}");

    // The names of the metrics.
    let metrics = proxy.admin("GET /stats");
    assert!(
        metrics.contains("\nseine_connections_opened_total"),
        "{metrics}"
    );
    assert!(!metrics.contains("istio_tcp"), "{metrics}");

    // Whoever is led here by a browser.
    let loopback = format!("host: {}\r\n", proxy.admin);
    for (request, headers) in [
        ("GET /config_dump", "host: evil.example\r\n".to_owned()),
        (
            "GET /config_dump",
            "host: evil.example:15000\r\n".to_owned(),
        ),
        (
            "GET /config_dump",
            "host: 127.0.0.1.evil.example\r\n".to_owned(),
        ),
        (
            "POST /drain",
            format!("{loopback}origin: http://evil.example\r\n"),
        ),
    ] {
        let refused = proxy.ask(proxy.admin, request, &headers);
        assert!(refused.starts_with("HTTP/1.1 403"), "{headers}: {refused}");
    }
    let port = proxy.admin.port();
    for host in [
        "localhost".to_owned(),
        format!("localhost:{port}"),
        format!("[::1]:{port}"),
    ] {
        let page = proxy.ask(
            proxy.admin,
            "GET /certificates",
            &format!("host: {host}\r\n"),
        );
        assert!(page.starts_with("HTTP/1.1 200"), "{host}: {page}");
    }

    finish(connection).await.unwrap();
    // Every line is an object, and that of a connection has both identities.
    proxy.logs(&["connection closed"]).await;
    let log = proxy.log();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let closed: Vec<_> = lines.filter(|line| line["target"] == "access").collect();
    assert_eq!(closed.len(), 1, "{closed:?}");
    let line = &closed[0];
    for (key, value) in [
        ("message", "connection closed"),
        ("src.identity", "spiffe://cluster.local/ns/shop/sa/web"),
        ("dst.identity", "spiffe://cluster.local/ns/shop/sa/b"),
        ("dst.addr", &node.application.to_string()),
        ("response_flags", "-"),
    ] {
        assert_eq!(line[key], value, "{key} in {line}");
    }
    assert_eq!(
        (&line["bytes_sent"], &line["bytes_received"]),
        (&5.into(), &5.into())
    );

    let wrong = proxy.admin("GET /drain");
    assert!(wrong.starts_with("HTTP/1.1 405"), "{wrong}");
    let drain = proxy.admin("POST /drain");
    assert!(drain.starts_with("HTTP/1.1 200"), "{drain}");
    proxy.ended().await;
    proxy.logs(&["drained"]).await;
}
