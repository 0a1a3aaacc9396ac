//! From the wire to types, one resource at a time.
//!
//! A resource that can't be understood as a whole is refused as a whole: half of a policy or of a
//! workload is worse than its last good version. Nothing here panics on any input.

mod address;
mod policy;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnet::IpNet;
use seine_proto::{security, workload as proto};

pub(crate) use address::{parse_service, parse_workload, service_key};
pub(crate) use policy::parse_policy;

use crate::intern::Interner;
use crate::model::{Service, Workload};

/// Name of the extension on a workload that Seine's control plane sends.
pub(crate) const WORKLOAD_EXTENSION: &str = "seine.dev/workload";
/// Name of the extension on a service.
pub(crate) const SERVICE_EXTENSION: &str = "seine.dev/service";
/// Name of the extension on a policy's match.
pub(crate) const REQUEST_EXTENSION: &str = "seine.dev/request";
pub(crate) const TOKEN_EXTENSION: &str = "seine.dev/token";
/// Name of the extension on a policy.
pub(crate) const AUTHORIZATION_EXTENSION: &str = "seine.dev/authorization";

/// Why a resource was refused: the control plane sent what this proxy can't understand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ParseError {
    /// Path of the field within the resource.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl ParseError {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// The same error, seen from the message that holds the field.
    fn within(mut self, parent: impl FnOnce() -> String) -> Self {
        let parent = parent();
        self.field = if self.field.is_empty() {
            parent
        } else {
            format!("{parent}.{}", self.field)
        };
        self
    }
}

/// Parses a workload by itself, for tools and tests.
///
/// # Errors
///
/// The first field that is wrong.
pub fn workload(message: &proto::Workload) -> Result<Workload, ParseError> {
    parse_workload(message, &mut Interner::new())
}

/// Parses a service by itself, for tools and tests.
///
/// # Errors
///
/// The first field that is wrong.
pub fn service(message: &proto::Service) -> Result<Service, ParseError> {
    parse_service(message, &mut Interner::new())
}

/// Parses a policy by itself, for tools and tests.
///
/// # Errors
///
/// The first field that is wrong.
pub fn policy(message: &security::Authorization) -> Result<seine_policy::Policy, ParseError> {
    parse_policy(message, &mut Interner::new())
}

/// 4 or 16 bytes. An IPv4-mapped address becomes an IPv4 one.
fn ip(bytes: &[u8]) -> Result<IpAddr, ParseError> {
    let address = if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(v4)
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        IpAddr::from(v6)
    } else {
        let problem = format!("an address has 4 or 16 bytes, not {}", bytes.len());
        return Err(ParseError::new("address", problem));
    };
    Ok(address.to_canonical())
}

/// An address and a prefix length, with the bits beyond the prefix cleared.
fn block(bytes: &[u8], length: Option<u32>) -> Result<IpNet, ParseError> {
    let address = ip(bytes)?;
    let mapped = bytes.len() == 16 && address.is_ipv4();
    let full = if address.is_ipv4() { 32 } else { 128 };
    let mut length = length.unwrap_or(if mapped { 128 } else { full });
    if mapped {
        let Some(v4_length) = length.checked_sub(96) else {
            return Err(ParseError::new(
                "length",
                "an IPv4-mapped block is shorter than /96",
            ));
        };
        length = v4_length;
    }
    let net = u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(address, length).ok());
    net.map(|net| net.trunc())
        .ok_or_else(|| ParseError::new("length", format!("{length} is more than {full}")))
}

fn port(number: u32, field: &str) -> Result<u16, ParseError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(ParseError::new(field, format!("{number} is not a port"))),
    }
}

/// `namespace/name`, both not empty.
pub(crate) fn namespaced(text: &str) -> Option<(&str, &str)> {
    text.split_once('/')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
}

fn unknown_value(field: &str, value: i32) -> ParseError {
    ParseError::new(
        field,
        format!("{value} is not a value that this version knows"),
    )
}

fn required<'a>(text: &'a str, field: &str) -> Result<&'a str, ParseError> {
    if text.is_empty() {
        Err(ParseError::new(field, "is missing"))
    } else {
        Ok(text)
    }
}
