//! What came from Istio, at a waypoint: its labels, its rules on tokens, and its policies on requests.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use seine_e2e::manifests::{Pod, meshed_namespace, service};
use seine_e2e::trial::Shared;
use seine_e2e::{Bed, trials, until};
use seine_lab::Options;
use serde_json::{Value, json};

const ISSUER: &str = "https://issuer.test";

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            a_token_is_checked_where_istio_looks_for_it_and_its_claims_decide,
            a_rule_on_tokens_that_is_not_obeyed_in_full_lets_no_request_pass,
        ],
    )
}

struct Stage {
    bed: Bed,
    issuer: EncodingKey,
}

impl Shared for Stage {
    fn last_words(&self) -> String {
        self.bed.last_words()
    }
}

fn up() -> Result<Stage> {
    let pem = rcgen::KeyPair::generate()?.serialize_pem();
    let issuer = EncodingKey::from_ec_pem(pem.as_bytes())?;
    let mut web = service("mesh", "web", "web", &[("http", 80, 8080)]);
    web["metadata"]["labels"] = json!({"istio.io/use-waypoint": "wp"});
    let mut options = Options::new("e2e-wp-istio");
    for name in ["SEINE_ISTIO_POLICIES", "SEINE_ISTIO_ALIAS"] {
        options
            .environment
            .push((name.to_owned(), "true".to_owned()));
    }
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
        authentication(&issuer, json!({}))?,
        istio(
            "AuthorizationPolicy",
            json!({"action": "ALLOW", "rules": [
                {"to": [{"operation": {"paths": ["/open*"], "methods": ["GET"]}}]},
                {
                    "from": [{"source": {"requestPrincipals": [format!("{ISSUER}/*")]}}],
                    "to": [{"operation": {"paths": ["/mine*"]}}],
                    "when": [{"key": "request.auth.claims[realm][role]", "values": ["admin"]}],
                },
            ]}),
        ),
    ];
    let bed = Bed::with(options, &objects)?;
    Ok(Stage { bed, issuer })
}

/// One that is attached to the service.
fn istio(kind: &str, mut spec: Value) -> Value {
    spec["targetRefs"] = json!([{"kind": "Service", "group": "", "name": "web"}]);
    json!({
        "apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": {"name": "web", "namespace": "mesh"}, "spec": spec,
    })
}

fn authentication(issuer: &EncodingKey, more: Value) -> Result<Value> {
    let key = Jwk::from_encoding_key(issuer, Algorithm::ES256)?;
    let mut rule = json!({
        "issuer": ISSUER, "jwks": json!({"keys": [key]}).to_string(),
        "outputClaimToHeaders": [{"header": "X-Role", "claim": "realm.role"}],
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        rule[name] = value.clone();
    }
    Ok(istio("RequestAuthentication", json!({"jwtRules": [rule]})))
}

impl Stage {
    fn token(&self, role: &str) -> Result<String> {
        let claims = json!({
            "iss": ISSUER, "sub": "alice", "exp": get_current_timestamp() + 3600, "realm": {"role": role},
        });
        Ok(encode(
            &Header::new(Algorithm::ES256),
            &claims,
            &self.issuer,
        )?)
    }

    fn answer(&self, request: &str, token: Option<&str>) -> Result<String> {
        let token = token.map(|token| format!("authorization: Bearer {token}\r\n"));
        let request = format!(
            "{request} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n{}\r\n",
            token.unwrap_or_default()
        );
        Ok(self.bed.ask("mesh/client", "web", 80, &request)?.received)
    }

    fn is(&self, request: &str, token: Option<&str>, status: u16) -> Result<String> {
        let answer = self.answer(request, token)?;
        let begins = format!("HTTP/1.1 {status}");
        ensure!(
            answer.starts_with(&begins),
            "{request} is not {status}: {answer}"
        );
        Ok(answer)
    }
}

fn a_token_is_checked_where_istio_looks_for_it_and_its_claims_decide(stage: &Stage) -> Result<()> {
    let (admin, guest) = (stage.token("admin")?, stage.token("guest")?);
    stage.is("GET /open", None, 200)?;
    stage.is("POST /open", None, 403)?;
    stage.is("GET /mine", None, 403)?;
    stage.is("GET /mine", Some(&guest), 403)?;
    let told = stage.is("GET /mine", Some(&admin), 200)?.to_lowercase();
    ensure!(told.contains("x-role: admin"), "{told}");
    // By the parameter of its default, too.
    stage.is(&format!("GET /mine?access_token={admin}"), None, 200)?;
    stage.is("GET /open", Some("not.a.token"), 401)?;
    Ok(())
}

fn a_rule_on_tokens_that_is_not_obeyed_in_full_lets_no_request_pass(stage: &Stage) -> Result<()> {
    let more = json!({"fromCookies": ["token"]});
    stage.bed.apply(&[authentication(&stage.issuer, more)?])?;
    until("nothing passes", || {
        let answer = stage.answer("GET /open", None)?;
        let status = answer.split(' ').nth(1).context("no answer")?.to_owned();
        Ok((status != "200").then_some(()))
    })?;
    stage
        .bed
        .apply(&[authentication(&stage.issuer, json!({}))?])?;
    until("requests pass again", || {
        let answer = stage.answer("GET /open", None)?;
        Ok(answer.starts_with("HTTP/1.1 200").then_some(()))
    })
}
