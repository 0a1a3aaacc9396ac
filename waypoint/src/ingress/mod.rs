//! Connections from outside the mesh, at a Gateway's listeners.
//!
//! [`listeners`] holds what the control plane says of them; `door` binds their ports and makes of each connection, after
//! its TLS, one for `request`, which then asks `Door::choose` for the rule; `forwarded` says who the client is.

pub mod clients;
pub(crate) mod door;
pub mod forwarded;
pub mod hello;
pub mod hosts;
pub mod listener;
pub mod listeners;
mod passthrough;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};

use crate::failure::Failure;
use crate::head::CLIENT_CERTIFICATE;
use crate::router::{self, Asked, Choice};
use crate::shared::Shared;
use listener::Listener;

/// Where a connection from outside came in.
#[derive(Clone, Debug)]
pub struct Door {
    /// The port.
    pub port: u16,
    /// The listener that TLS was ended for; `None` without TLS.
    pub tls: Option<Arc<Listener>>,
    /// What backends are told of the client's certificate; `None` where it showed no good one.
    pub certificate: Option<HeaderValue>,
}

impl Door {
    /// The scheme of requests that come in here.
    pub(crate) fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    /// Says in a request who the client is by its certificate. What it says of that itself has been taken away.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        if let Some(told) = &self.certificate {
            headers.insert(CLIENT_CERTIFICATE, told.clone());
        }
    }

    /// The rule for a request to this host. Which listener takes it is decided anew for each request: many hosts may be
    /// asked on one connection.
    pub(crate) fn choose(
        &self,
        shared: &Shared,
        host: &str,
        asked: &Asked<'_>,
    ) -> Result<Choice, Failure> {
        let port = shared.listeners.port(self.port).ok_or(Failure::NoRoute)?;
        let listener = port.taking(host).ok_or(Failure::NoRoute)?;
        // What one listener asks of its clients in TLS must not be walked around through another's.
        if (self.tls.as_ref()).is_some_and(|of_tls| of_tls.name != listener.name) {
            return Err(Failure::Misdirected);
        }
        let rules = shared.routes.at_listener(&listener.name);
        Ok(router::choose_at(&rules, &listener.name, host, asked))
    }
}
