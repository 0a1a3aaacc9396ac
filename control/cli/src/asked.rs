//! The request of which an explanation is asked.

use std::str::FromStr;

use anyhow::{Context as _, bail};
use http::{Request, header::CONTENT_TYPE};
use seine_policy::Claim;
use seine_waypoint::why::version;

/// A request on the connection that is explained. There is one if any of these is said.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "A request, as a waypoint judges it")]
pub struct Asked {
    /// Its method; GET if another of these flags is given.
    #[arg(long)]
    method: Option<String>,
    /// Its path, with the query if it has one; by default /.
    #[arg(long)]
    path: Option<String>,
    /// Its host; by default the service's full name.
    #[arg(long)]
    host: Option<String>,
    /// A header.
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<Pair>,
    /// What its valid token claims: `iss` and `sub` make its principal, names within names are divided by dots.
    #[arg(long, value_name = "CLAIM=VALUE")]
    claim: Vec<Pair>,
}

#[derive(Clone, Debug)]
struct Pair {
    name: String,
    value: String,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let (name, value) = parts.ok_or_else(|| format!("{text:?} is no NAME=VALUE"))?;
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

impl Asked {
    /// The request to a host, where there is one.
    pub(crate) fn request(&self, host: &str) -> anyhow::Result<Option<Request<()>>> {
        let said = self.method.is_some() || self.path.is_some() || self.host.is_some();
        if !said && self.header.is_empty() && self.claim.is_empty() {
            return Ok(None);
        }
        let header = |name: &str| {
            let mut all = self.header.iter();
            all.find(|header| header.name.eq_ignore_ascii_case(name))
        };
        if header("host").is_some() {
            bail!("--header host: say it by --host");
        }
        let kind = header(CONTENT_TYPE.as_str()).map(|header| &*header.value);
        let mut request = Request::builder()
            .version(version(kind))
            .method(self.method.as_deref().unwrap_or("GET"))
            .uri(self.path.as_deref().unwrap_or("/"))
            .header("host", self.host.as_deref().unwrap_or(host));
        for Pair { name, value } in &self.header {
            request = request.header(name, value);
        }
        let request = request.body(());
        Ok(Some(request.context("that is no request of HTTP")?))
    }

    /// Whom its token names, and what it claims; none without one.
    pub(crate) fn token(&self) -> Option<(Option<String>, Vec<Claim>)> {
        let claim = |name: &str| self.claim.iter().find(|claim| claim.name == name);
        let principal = claim("iss").zip(claim("sub"));
        let principal =
            principal.map(|(issuer, subject)| format!("{}/{}", issuer.value, subject.value));
        let claims = self.claim.iter().map(|Pair { name, value }| Claim {
            path: name.split('.').map(Box::from).collect(),
            value: value.as_str().into(),
        });
        (!self.claim.is_empty()).then(|| (principal, claims.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_request_if_anything_of_it_is_said() {
        assert!(Asked::default().request("web").unwrap().is_none());
        let pair = |text: &str| text.parse::<Pair>();
        let asked = Asked {
            header: vec![pair("X-A=b=c").unwrap()],
            claim: vec![pair("iss=https://a").unwrap(), pair("sub=bob").unwrap()],
            ..Asked::default()
        };
        let request = asked.request("web").unwrap().unwrap();
        assert_eq!(
            (request.method().as_str(), request.uri().path()),
            ("GET", "/")
        );
        assert_eq!(request.headers()["host"], "web");
        assert_eq!(request.headers()["x-a"], "b=c");
        assert_eq!(asked.token().unwrap().0.as_deref(), Some("https://a/bob"));
        assert!(pair("=a").is_err() && pair("a").is_err());
        for bad in [
            Asked {
                method: Some("G ET".into()),
                ..Asked::default()
            },
            Asked {
                header: vec![pair("Host=a").unwrap()],
                ..Asked::default()
            },
        ] {
            assert!(bad.request("web").is_err(), "{bad:?}");
        }
    }
}
