//! Who asks by a token: what a waypoint refuses, what policy says of it, and what the service is told.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use seine_e2e::manifests::{Pod, meshed_namespace, plain_namespace, service};
use seine_e2e::trial::Shared;
use seine_e2e::{Bed, trials, until};
use serde_json::{Value, json};
use tempfile::TempDir;

const PORTS: [(&str, u16, u16); 1] = [("http", 80, 8080)];
const ISSUER: &str = "https://issuer.test";

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            a_token_decides_who_asks_and_the_service_is_told_and_nobody_else_tells_it,
            a_claim_decides_and_a_denial_by_one_wins,
            a_token_that_is_not_valid_is_refused_wherever_it_is_sent,
            a_gateway_judges_the_tokens_of_clients_outside_the_mesh,
            the_keys_that_an_issuer_publishes_are_followed_through_rotation_and_outage,
            a_provider_says_whether_a_request_goes_on_and_changes_it,
            without_its_word_nothing_goes_on_unless_the_policy_says_so,
            without_an_issuers_keys_its_tokens_are_refused_and_those_of_others_are_not,
        ],
    )
}

/// A lab, and an issuer's keys.
struct Stage {
    bed: Bed,
    issuer: EncodingKey,
    stranger: EncodingKey,
    /// Of the pods, too: what issuers publish.
    files: TempDir,
}

impl Shared for Stage {
    fn last_words(&self) -> String {
        self.bed.last_words()
    }
}

fn new_key() -> Result<EncodingKey> {
    let pem = rcgen::KeyPair::generate()?.serialize_pem();
    Ok(EncodingKey::from_ec_pem(pem.as_bytes())?)
}

fn jwks(key: &EncodingKey) -> Result<String> {
    let key = Jwk::from_encoding_key(key, Algorithm::ES256)?;
    Ok(json!({"keys": [key]}).to_string())
}

fn up() -> Result<Stage> {
    let (issuer, stranger) = (new_key()?, new_key()?);
    let files = tempfile::tempdir()?;
    let published = |name: &str| {
        let folder = files.path().display();
        format!("http://issuer.mesh.svc.cluster.local{folder}/{name}.json")
    };
    let mut publisher = Pod::new("mesh", "issuer", 2)
        .serves(&["page:8080"])
        .object();
    // What changes after a pod has begun it sees in a volume.
    let volume = json!({"name": "files", "hostPath": {"path": files.path()}});
    publisher["spec"]["volumes"] = json!([volume]);
    publisher["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "files", "mountPath": files.path()}]);
    let mut web = service("mesh", "web", "web", &PORTS);
    web["metadata"]["labels"] = json!({"seine.dev/use-waypoint": "wp"});
    let objects = [
        meshed_namespace("mesh"),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "wp", "namespace": "mesh"},
            "spec": {"gatewayClassName": "seine-waypoint", "listeners": [
                {"name": "mesh", "port": 15008, "protocol": "HBONE"},
            ]},
        }),
        Pod::new("mesh", "client", 1).object(),
        Pod::new("mesh", "web", 2).serves(&["mirror:8080"]).object(),
        web,
        policy(
            "RequestAuthentication",
            "users",
            json!({"jwtRules": [{
                "issuer": ISSUER, "audiences": ["web"], "jwks": jwks(&issuer)?,
                "outputClaimToHeaders": [{"header": "X-User", "path": ["sub"]}],
            }]}),
        ),
        Pod::new("mesh", "authz", 2)
            .serves(&["authz:9000", "mirror:8080"])
            .object(),
        service(
            "mesh",
            "authz",
            "authz",
            &[("grpc", 9000, 9000), ("http", 80, 8080)],
        ),
        service("mesh", "nobody", "nobody", &PORTS),
        external(
            "ask-grpc",
            "/open/grpc*",
            json!({"service": "authz", "port": 9000, "protocol": "Grpc"}),
        ),
        external(
            "ask-http",
            "/open/http*",
            json!({
                "service": "authz", "port": 80, "protocol": "Http", "pathPrefix": "/check",
                "requestHeaders": ["x-answer", "x-wait"], "headersToBackend": ["X-Mirror"], "headersToClient": ["x-mirror"],
                "timeout": "300ms",
            }),
        ),
        external(
            "ask-nobody",
            "/open/nobody*",
            json!({"service": "nobody", "port": 80, "protocol": "Http"}),
        ),
        external(
            "ask-nobody-much",
            "/open/lenient*",
            json!({"service": "nobody", "port": 80, "protocol": "Grpc", "failOpen": true}),
        ),
        publisher,
        service("mesh", "issuer", "issuer", &PORTS),
        plain_namespace("plain"),
        Pod::new("plain", "client", 1).object(),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "gw", "namespace": "mesh"},
            "spec": {"gatewayClassName": "seine", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]},
        }),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "back", "namespace": "mesh"},
            "spec": {"parentRefs": [{"name": "gw"}], "rules": [{"backendRefs": [{"name": "back", "port": 80}]}]},
        }),
        Pod::new("mesh", "back", 2)
            .serves(&["mirror:8080"])
            .object(),
        service("mesh", "back", "back", &PORTS),
        at_gateway(policy(
            "RequestAuthentication",
            "outside",
            json!({"jwtRules": [{
                "issuer": ISSUER, "audiences": ["web"], "jwks": jwks(&issuer)?,
                "outputClaimToHeaders": [{"header": "x-user", "path": ["sub"]}],
            }]}),
        )),
        at_gateway(policy(
            "AuthorizationPolicy",
            "outside",
            json!({"rules": [{"from": [{"requestPrincipals": [format!("{ISSUER}/alice")]}]}]}),
        )),
        Pod::new("plain", "issuer", 2)
            .serves(&["page:8080"])
            .object(),
        service("plain", "issuer", "issuer", &PORTS),
        policy(
            "RequestAuthentication",
            "published",
            json!({"jwtRules": [
                {"issuer": "https://published.test", "jwksUri": published("keys")},
                {"issuer": "https://gone.test", "jwksUri": published("gone")},
                {"issuer": "https://plain.test", "jwksUri": published("keys").replace("mesh", "plain")},
            ]}),
        ),
        policy(
            "AuthorizationPolicy",
            "users-only",
            json!({"rules": [
                {"to": [{"paths": ["/open*"]}]},
                {"from": [{"requestPrincipals": [format!("{ISSUER}/alice")]}], "to": [{"paths": ["/alice*"]}]},
                {"from": [{"requestPrincipals": ["*"]}], "to": [{"paths": ["/anybody*"]}]},
                {"from": [{"claims": [{"path": ["realm", "roles"], "values": ["admin"]}]}], "to": [{"paths": ["/admin*"]}]},
            ]}),
        ),
        policy(
            "AuthorizationPolicy",
            "no-guests",
            json!({"action": "Deny", "rules": [
                {"from": [{"claims": [{"path": ["groups"], "values": ["guest*"]}]}]},
            ]}),
        ),
    ];
    Ok(Stage {
        bed: Bed::up("e2e-authn", &objects)?,
        issuer,
        stranger,
        files,
    })
}

/// One that is attached to the service.
fn policy(kind: &str, name: &str, mut spec: Value) -> Value {
    spec["targetRefs"] = json!([{"kind": "Service", "name": "web"}]);
    json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": "mesh"}, "spec": spec,
    })
}

/// The same, attached to the Gateway.
fn at_gateway(mut policy: Value) -> Value {
    let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw"});
    policy["spec"]["targetRefs"] = json!([gateway]);
    policy
}

fn external(name: &str, paths: &str, provider: Value) -> Value {
    let spec = json!({
        "action": "External", "provider": provider, "rules": [{"to": [{"paths": [paths]}]}],
    });
    policy("AuthorizationPolicy", name, spec)
}

impl Stage {
    /// Claims of a token for alice, with others beside or in the place of them.
    fn claims(more: &Value) -> Value {
        let mut claims = json!({
            "iss": ISSUER, "sub": "alice", "aud": "web", "exp": get_current_timestamp() + 3600,
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        claims
    }

    fn token(&self, more: &Value) -> Result<String> {
        let claims = Self::claims(more);
        Ok(encode(
            &Header::new(Algorithm::ES256),
            &claims,
            &self.issuer,
        )?)
    }

    /// A request of a client, and all of the answer, which must have this status.
    fn get(&self, path: &str, headers: &[(&str, &str)], status: u16) -> Result<String> {
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        let asked = self
            .bed
            .ask("mesh/client", "web", 80, &(request + "\r\n"))?;
        let begins = format!("HTTP/1.1 {status}");
        ensure!(
            asked.received.starts_with(&begins),
            "{path} {headers:?} is not {status}: {asked:?}"
        );
        Ok(asked.received)
    }

    fn with_token(&self, path: &str, token: &str, status: u16) -> Result<String> {
        let value = format!("Bearer {token}");
        self.get(path, &[("authorization", &value)], status)
    }

    /// Has the issuer publish these keys, by their names.
    fn publish(&self, keys: &[(&str, &EncodingKey)]) -> Result<()> {
        let mut set = Vec::new();
        for (id, key) in keys {
            let mut key = json!(Jwk::from_encoding_key(key, Algorithm::ES256)?);
            key["kid"] = json!(id);
            set.push(key);
        }
        let (new, path) = ("new.json", "keys.json");
        let file = |name: &str| self.files.path().join(name);
        std::fs::write(file(new), json!({"keys": set}).to_string())?;
        Ok(std::fs::rename(file(new), file(path))?)
    }

    fn waypoint_log(&self) -> Result<String> {
        let lab = self.bed.lab();
        let pods = lab.status()?.pods.into_iter();
        let mut found = pods.filter(|pod| pod.name.starts_with("wp-"));
        let pod = found.next().context("there is no waypoint")?;
        lab.pod_logs("mesh", &pod.name)
    }

    fn await_log(&self, needles: &[&str]) -> Result<()> {
        until(&format!("the waypoint logs {needles:?}"), || {
            let log = self.waypoint_log()?;
            let mut lines = log.lines();
            let found = lines.any(|line| needles.iter().all(|needle| line.contains(needle)));
            Ok(found.then_some(()))
        })
    }
}

fn a_token_decides_who_asks_and_the_service_is_told_and_nobody_else_tells_it(
    stage: &Stage,
) -> Result<()> {
    // Without a token there is no request identity, and policy decides.
    let spoofed = [("x-user", "root"), ("x_user", "root")];
    let answer = stage.get("/open", &spoofed, 200)?.to_lowercase();
    ensure!(!answer.contains("root"), "{answer}");
    stage.get("/alice", &[], 403)?;
    stage.get("/anybody", &[], 403)?;

    let token = stage.token(&json!({}))?;
    let value = format!("Bearer {token}");
    let headers = [&spoofed[..], &[("authorization", &value)]].concat();
    let answer = stage.get("/alice", &headers, 200)?.to_lowercase();
    ensure!(answer.contains("x-user: alice"), "{answer}");
    ensure!(
        !answer.contains("root") && !answer.contains("bearer"),
        "{answer}"
    );
    let bob = stage.token(&json!({"sub": "bob"}))?;
    stage.with_token("/alice", &bob, 403)?;
    stage.with_token("/anybody", &bob, 200)?;
    stage.await_log(&[
        "path=/alice",
        "status=403",
        "principal=https://issuer.test/bob",
        "policy=mesh/users-only_at_web",
    ])?;
    let log = stage.waypoint_log()?;
    for token in [&token, &bob] {
        let (_, signature) = token.rsplit_once('.').context("it is signed")?;
        ensure!(!log.contains(signature), "a token is in the log");
    }
    Ok(())
}

fn a_gateway_judges_the_tokens_of_clients_outside_the_mesh(stage: &Stage) -> Result<()> {
    let address = stage.bed.service_ips("mesh/gw")?.0.to_string();
    let ask = |token: Option<&str>, status: u16| {
        let token = token.map(|token| format!("authorization: Bearer {token}\r\n"));
        let request = format!(
            "GET /x HTTP/1.1\r\nhost: any\r\nconnection: close\r\nx-user: root\r\n{}\r\n",
            token.unwrap_or_default()
        );
        let asked = stage.bed.ask("plain/client", &address, 80, &request)?;
        let begins = format!("HTTP/1.1 {status}");
        ensure!(asked.received.starts_with(&begins), "{status}: {asked:?}");
        Ok(asked.received.to_lowercase())
    };
    let answer = ask(Some(&stage.token(&json!({}))?), 200)?;
    ensure!(
        answer.contains("x-user: alice") && !answer.contains("root"),
        "{answer}"
    );
    ask(None, 403)?;
    ask(Some(&stage.token(&json!({"sub": "bob"}))?), 403)?;
    ask(Some(&stage.token(&json!({"aud": "other"}))?), 401)?;
    ask(Some(&stage.token(&json!({"exp": 1}))?), 401)?;
    let header = Header::new(Algorithm::ES256);
    let strange = encode(&header, &Stage::claims(&json!({})), &stage.stranger)?;
    ask(Some(&strange), 401)?;
    Ok(())
}

fn a_claim_decides_and_a_denial_by_one_wins(stage: &Stage) -> Result<()> {
    let admin = json!({"realm": {"roles": ["user", "admin"]}});
    stage.with_token("/admin", &stage.token(&admin)?, 200)?;
    let user = json!({"realm": {"roles": ["user"]}, "realm.roles": "admin"});
    stage.with_token("/admin", &stage.token(&user)?, 403)?;
    let guest = json!({"realm": {"roles": ["admin"]}, "groups": ["a", "guest-7"]});
    stage.with_token("/admin", &stage.token(&guest)?, 403)?;
    stage.await_log(&["path=/admin", "policy=mesh/no-guests_at_web", "DENY"])?;
    stage.with_token("/open", &stage.token(&json!({"groups": ["a"]}))?, 200)?;
    Ok(())
}

fn a_token_that_is_not_valid_is_refused_wherever_it_is_sent(stage: &Stage) -> Result<()> {
    let good = stage.token(&json!({}))?;
    let (head, signature) = good.rsplit_once('.').context("it is signed")?;
    let (_, body) = head.split_once('.').context("it has a head")?;
    let now = get_current_timestamp();
    let unsigned = |end: &str| format!("eyJhbGciOiJub25lIn0.{body}.{end}");
    let signed = |algorithm: Algorithm, key: &EncodingKey| {
        encode(&Header::new(algorithm), &Stage::claims(&json!({})), key)
    };
    let public = jwks(&stage.issuer)?;
    let mut named = Header::new(Algorithm::ES256);
    named.kid = Some("another".into());
    // The path needs no token at all.
    for (what, token, why) in [
        ("no algorithm", unsigned(""), "algorithm"),
        ("no algorithm, signed", unsigned(signature), "algorithm"),
        (
            "the public key as a secret",
            signed(
                Algorithm::HS256,
                &EncodingKey::from_secret(public.as_bytes()),
            )?,
            "algorithm",
        ),
        (
            "another's key",
            signed(Algorithm::ES256, &stage.stranger)?,
            "signature",
        ),
        (
            "a key that is not there",
            encode(&named, &Stage::claims(&json!({})), &stage.issuer)?,
            "no such key",
        ),
        (
            "expired",
            stage.token(&json!({"exp": now - 120}))?,
            "expired",
        ),
        (
            "too early",
            stage.token(&json!({"nbf": now + 120}))?,
            "not valid yet",
        ),
        (
            "another issuer",
            stage.token(&json!({"iss": "https://other"}))?,
            "issuer",
        ),
        (
            "another audience",
            stage.token(&json!({"aud": "other"}))?,
            "audience",
        ),
        (
            "too long",
            stage.token(&json!({"pad": "a".repeat(20_000)}))?,
            "longer",
        ),
        ("nonsense", "a.b.c".into(), "JSON Web Token"),
    ] {
        let answer = stage
            .with_token("/open", &token, 401)
            .with_context(|| what.to_owned())?
            .to_lowercase();
        let challenge = "www-authenticate: bearer error=\"invalid_token\", error_description=";
        let why = why.to_lowercase();
        ensure!(
            answer.contains(challenge) && answer.contains(&why),
            "{what}: {answer}"
        );
    }
    let value = format!("Bearer {good}");
    let twice = [("authorization", &*value), ("authorization", &value)];
    let answer = stage.get("/open", &twice, 400)?.to_lowercase();
    ensure!(answer.contains("error=\"invalid_request\""), "{answer}");
    stage.await_log(&[
        "path=/open",
        "status=401",
        "response_flags=TOKEN",
        "fault=downstream",
    ])?;
    // The twins.
    for more in [
        json!({"exp": now + 20}),
        json!({"nbf": now + 20}),
        json!({"aud": ["other", "web"]}),
        json!({"pad": "a".repeat(5_000)}),
    ] {
        stage.with_token("/open", &stage.token(&more)?, 200)?;
    }
    Ok(())
}

/// A token of an issuer who names his key.
fn named(issuer: &str, id: &str, key: &EncodingKey) -> Result<String> {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(id.into());
    let claims = Stage::claims(&json!({"iss": issuer}));
    Ok(encode(&header, &claims, key)?)
}

fn the_keys_that_an_issuer_publishes_are_followed_through_rotation_and_outage(
    stage: &Stage,
) -> Result<()> {
    let (a, b) = (new_key()?, new_key()?);
    let of = |id: &str, key: &EncodingKey| named("https://published.test", id, key);
    stage.publish(&[("a", &a)])?;
    stage.with_token("/anybody", &of("a", &a)?, 200)?;
    let answer = stage.with_token("/anybody", &of("b", &b)?, 401)?;
    ensure!(answer.contains("no such key"), "{answer}");
    // By another's key in its name, too.
    stage.with_token("/anybody", &of("a", &b)?, 401)?;
    // Rotation: the first tokens with the new key have it fetched, not more often than every few seconds.
    stage.publish(&[("a", &a), ("b", &b)])?;
    let token = of("b", &b)?;
    until("the new key is known", || {
        let value = format!("Bearer {token}");
        let request = format!(
            "GET /anybody HTTP/1.1\r\nhost: web\r\nconnection: close\r\nauthorization: {value}\r\n\r\n"
        );
        let asked = stage.bed.ask("mesh/client", "web", 80, &request)?;
        Ok(asked.received.starts_with("HTTP/1.1 200").then_some(()))
    })?;
    // Outage: the last good keys stay.
    std::fs::remove_file(stage.files.path().join("keys.json"))?;
    for (id, key) in [("a", &a), ("b", &b)] {
        stage.with_token("/anybody", &of(id, key)?, 200)?;
    }
    stage.with_token("/anybody", &of("c", &a)?, 401)?;
    // It was asked through the mesh, by the waypoint.
    let log = stage.bed.lab().pod_logs("mesh", "issuer")?;
    ensure!(log.contains("page: "), "{log}");
    stage
        .bed
        .await_ztunnel(2, &["direction=inbound", "sa/wp", "issuer"])?;
    Ok(())
}

fn without_an_issuers_keys_its_tokens_are_refused_and_those_of_others_are_not(
    stage: &Stage,
) -> Result<()> {
    let key = new_key()?;
    for (issuer, why) in [
        ("https://gone.test", "404"),
        // Outside of the mesh somebody on the way could answer.
        (
            "https://plain.test",
            "http is for Services of the mesh alone",
        ),
    ] {
        stage.with_token("/open", &named(issuer, "a", &key)?, 503)?;
        stage.await_log(&["path=/open", "status=503", "response_flags=KEYS", issuer])?;
        stage.await_log(&["keys can't be fetched", why])?;
    }
    stage.with_token("/open", &stage.token(&json!({}))?, 200)?;
    stage.get("/open", &[], 200)?;
    Ok(())
}

fn a_provider_says_whether_a_request_goes_on_and_changes_it(stage: &Stage) -> Result<()> {
    let sent = [("x-secret", "1"), ("x-authorized", "spoofed")];
    let answer = stage.get("/open/grpc?a=b", &sent, 200)?.to_lowercase();
    // What it is told: the client's identity, not the waypoint's.
    let client = "spiffe://cluster.local/ns/mesh/sa/client";
    ensure!(
        answer.contains(&format!("x-authorized: {client}")) && answer.contains("x-by: authz"),
        "{answer}"
    );
    ensure!(
        !answer.contains("x-secret") && !answer.contains("spoofed"),
        "{answer}"
    );
    let log = stage.bed.lab().pod_logs("mesh", "authz")?;
    let asked = format!("Authorization/Check for GET /open/grpc?a=b of {client}");
    ensure!(log.contains(&asked), "{log}");

    let answer = stage
        .get("/open/grpc", &[("x-ext", "deny")], 418)?
        .to_lowercase();
    ensure!(
        answer.contains("x-by: authz") && answer.ends_with("no tea"),
        "{answer}"
    );
    stage.await_log(&[
        "path=/open/grpc",
        "status=418",
        "response_flags=DENY",
        "mesh/ask-grpc_at_web",
    ])?;

    let answer = stage.get("/open/http", &[("x-mirror", "spoofed")], 200)?;
    // The backend was told by the provider, and the client hears of it and not of the backend's own.
    ensure!(
        answer.contains("x-mirror: authz\r\n") && !answer.contains("spoofed"),
        "{answer}"
    );
    ensure!(!answer.contains("x-mirror: web"), "{answer}");
    let log = stage.bed.lab().pod_logs("mesh", "authz")?;
    ensure!(
        log.contains("request: GET /check/open/http HTTP/1.1"),
        "{log}"
    );
    let answer = stage.get("/open/http", &[("x-answer", "401 No")], 401)?;
    ensure!(answer.contains("pod authz"), "{answer}");
    // Who is denied already is not asked about.
    stage.get("/other/grpc", &[], 403)?;
    stage.get("/open", &[], 200)?;
    Ok(())
}

fn without_its_word_nothing_goes_on_unless_the_policy_says_so(stage: &Stage) -> Result<()> {
    for (path, header) in [
        ("/open/grpc", ("x-ext", "silent")),
        ("/open/grpc", ("x-ext", "bent")),
        ("/open/http", ("x-wait", "20000")),
        ("/open/http", ("x-answer", "500 Oh")),
        ("/open/nobody", ("x-a", "b")),
    ] {
        stage.get(path, &[header], 503)?;
        stage.await_log(&[
            &format!("path={path}"),
            "status=503",
            "response_flags=EXTERNAL",
        ])?;
    }
    stage.get("/open/lenient", &[], 200)?;
    stage.await_log(&[
        "a request goes on without the provider's word",
        "ask-nobody-much",
    ])?;
    Ok(())
}
