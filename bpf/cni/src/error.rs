//! A failure as the CNI specification wants it: a code, a message and details, on standard output.

use serde::Serialize;

/// An error of the plugin. The codes are those of the CNI specification 1.1.0, section "Error".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub struct CniError {
    /// The specification's code.
    pub code: u32,
    /// What failed, in one sentence.
    pub msg: String,
    /// What to do, or more of the cause.
    pub details: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    cni_version: &'a str,
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

impl CniError {
    /// The configuration asks for a version that the plugin doesn't speak.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A variable of the environment is missing or malformed.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// A file or descriptor could not be read.
    pub const IO_FAILURE: u32 = 5;
    /// What came on standard input is not what it should be.
    pub const DECODE_FAILURE: u32 = 6;
    /// The configuration is understood but can't work.
    pub const INVALID_CONFIG: u32 = 7;
    /// The runtime should try again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// The agent answered that it failed.
    pub const NOT_ENROLLED: u32 = 100;

    pub(crate) fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: details.into(),
        }
    }

    /// The JSON object that goes to standard output.
    pub fn to_json(&self, cni_version: &str) -> String {
        let wire = Wire {
            cni_version,
            code: self.code,
            msg: &self.msg,
            details: &self.details,
        };
        serde_json::to_string(&wire).expect("strings and a number always serialise")
    }
}
