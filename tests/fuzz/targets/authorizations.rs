//! A policy from a control plane, and verdicts by it: explanation and verdict agree.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use seine_policy::{Claim, Connection, Request, Token, explain, verdict};

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = seine_proto::security::Authorization::decode(bytes) else {
        return;
    };
    let Ok(policy) = seine_workload::parse::policy(&message) else {
        return;
    };
    let policies = [Arc::new(policy)];
    let identity = "spiffe://cluster.local/ns/shop/sa/web"
        .parse()
        .expect("a valid SPIFFE ID");
    let claims = [Claim {
        path: ["a".into()].into(),
        value: "b".into(),
    }];
    let request = Request {
        method: "GET",
        path: "/a",
        host: "web.shop",
        headers: &[("a", "b")],
        token: Some(Token {
            principal: Some("https://a/b"),
            claims: &claims,
        }),
    };
    for (identity, request) in [
        (None, None),
        (Some(&identity), None),
        (Some(&identity), Some(request)),
    ] {
        let connection = Connection {
            source: ([10, 0, 0, 1], 40000).into(),
            destination: ([10, 0, 0, 2], 8080).into(),
            identity,
            request,
        };
        let decision = verdict(&policies, &connection);
        assert_eq!(explain(&policies, &connection).decision, decision);
    }
});
