//! What the pages tell of clients and of policies.

use http_body_util::BodyExt as _;
use prost::Message as _;
use seine_objects::{InForce, Problem};
use seine_proto::{REFUSED_RESOURCES_TYPE, extensions::RefusedResources, rpc};
use serde_json::{Value, json};

use super::*;

fn rejection(message: &str, names: &[&str]) -> rpc::Status {
    let names = names.iter().map(ToString::to_string).collect();
    let details = prost_types::Any {
        type_url: REFUSED_RESOURCES_TYPE.into(),
        value: RefusedResources { names }.encode_to_vec(),
    };
    rpc::Status {
        code: 3,
        message: message.into(),
        details: vec![details],
    }
}

/// The statuses of `Programmed` on the page `/status`, by the policy's name.
async fn programmed(pages: &Admin) -> Vec<(String, String)> {
    let report = page(pages, "/status");
    let policies = report.as_array().unwrap().iter();
    let status = |policy: &Value| {
        let conditions = policy["conditions"].as_array().unwrap();
        let found = conditions
            .iter()
            .find(|found| found["type"] == "Programmed");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&policy["name"]), text(&found.unwrap()["status"]))
    };
    policies.map(status).collect()
}

fn page(pages: &Admin, path: &str) -> Value {
    let request = http::Request::get(path).body(()).unwrap();
    let response = pages.page(&request);
    assert_eq!(response.status(), 200, "{path}");
    let body = response.into_body().collect().now_or_never().unwrap();
    serde_json::from_slice(&body.unwrap().to_bytes()).unwrap()
}

#[tokio::test]
async fn the_pages_tell_one_bad_policy_of_three_from_the_good_ones_if_the_client_names_it() {
    let three = policy("a", 80) + &policy("b", 81) + &policy("c", 82);
    let server = Server::start(&three).await;
    let pages = server.pages().await;
    let mut stream = server.connect().await;
    stream.subscribe(AUTHORIZATION_TYPE, &HashMap::new()).await;
    let first = stream.next().await;
    assert_eq!(names(&first), ["shop/a", "shop/b", "shop/c"]);
    let bad = rejection("shop/b: bad", &["shop/b"]);
    stream.answer(&first, Some(bad)).await;
    stream.nothing().await;

    let types = |page: Value| page["clients"][0]["types"][AUTHORIZATION_TYPE].clone();
    let told = types(page(&pages, "/debug/clients"));
    assert_eq!(told["acceptedResources"], 2);
    assert_eq!(told["rejectedResources"], json!(["shop/b"]));
    assert_eq!(told["perhapsRejectedResources"], json!([]));
    assert_eq!(told["lastRejection"], "shop/b: bad (code 3)");
    assert_eq!((&told["acks"], &told["nacks"]), (&json!(0), &json!(1)));
    let statuses = |list: [(&str, &str); 3]| {
        list.map(|(name, status)| (name.to_owned(), status.to_owned()))
            .to_vec()
    };
    let of_b = statuses([("a", "True"), ("b", "False"), ("c", "True")]);
    assert_eq!(programmed(&pages).await, of_b);

    // A peer says only that something was bad.
    let three = three.replace("ports: [8", "ports: [9");
    server.apply(&three);
    let second = stream.next().await;
    assert_eq!(names(&second).len(), 3);
    let mut vague = rejection("no", &[]);
    vague.details.clear();
    stream.answer(&second, Some(vague)).await;
    stream.nothing().await;
    let told = types(page(&pages, "/debug/clients"));
    assert_eq!(told["acceptedResources"], 0);
    assert_eq!(told["rejectedResources"], json!([]));
    let perhaps = told["perhapsRejectedResources"].as_array().unwrap();
    assert_eq!(perhaps.len(), 3);
    assert_eq!(told["lastRejection"], "some of 3 resources: no (code 3)");
    let of_none = statuses([("a", "False"), ("b", "False"), ("c", "False")]);
    assert_eq!(programmed(&pages).await, of_none);
}

#[tokio::test]
async fn the_status_page_says_what_needs_a_waypoint() {
    let l7 = policy("p", 80).replace("ports: [80]", "ports: [80], methods: [GET]");
    let server = Server::start(&l7).await;
    let pages = server.pages().await;
    let mut stream = server.connect().await;
    stream.subscribe(AUTHORIZATION_TYPE, &HashMap::new()).await;
    let first = stream.next().await;
    stream.ack(&first).await;
    stream.nothing().await;
    let report = page(&pages, "/status");
    let conditions = report[0]["conditions"].as_array().unwrap();
    let enforced = conditions.iter().find(|found| found["type"] == "Enforced");
    let enforced = enforced.unwrap();
    assert_eq!(
        (&enforced["status"], &enforced["reason"]),
        (&json!("False"), &json!("NeedsWaypoint"))
    );
    let message = enforced["message"].as_str().unwrap();
    assert!(message.contains("spec.rules[0].to[0].methods"), "{message}");
}

#[tokio::test]
async fn of_a_policy_that_a_stand_in_is_in_force_for_only_its_mistake_is_told_as_its_acceptance() {
    let server = Server::start(&policy("p", 80)).await;
    let problem = |in_force| Problem {
        file: "".into(),
        line: None,
        object: Some("AuthorizationPolicy shop/p".into()),
        generation: Some(1),
        field: Some("spec.rules".into()),
        message: "is odd".into(),
        in_force,
    };
    let accepted = |in_force| -> Vec<_> {
        let model = server.models.borrow();
        let report = status::report(&model, &Totals::default(), &[problem(in_force)]);
        let conditions = report.iter().flat_map(|object| &object.conditions);
        let accepted = conditions.filter(|found| found.kind == "Accepted");
        accepted.map(|found| found.status).collect()
    };
    assert_eq!(accepted(InForce::LastGood), ["True", "False"]);
    assert_eq!(accepted(InForce::StandIn), ["False"]);
}
