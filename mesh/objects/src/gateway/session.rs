//! Sessions: that the requests of one are answered by one pod (GEP-1619).

use serde::{Deserialize, Serialize};

use super::parse_duration;
use super::reference::{add, is_token};
use crate::policy::FieldError;

/// Longest name of a session.
const MAX_NAME: usize = 128;

/// What tells the requests of a session. `idleTimeout` is not obeyed, and so not here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionPersistence {
    /// Name of the cookie or header; by default one that is the rule's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_name: Option<String>,
    /// How long it lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute_timeout: Option<String>,
    /// `Header`, or `Cookie`, the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// Of the cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie_config: Option<CookieConfig>,
}

/// What a cookie is like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CookieConfig {
    /// `Permanent`, or `Session`, the default: until the client ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime_type: Option<String>,
}

impl SessionPersistence {
    /// Whether a header tells it, and not a cookie.
    pub fn is_header(&self) -> bool {
        self.r#type.as_deref() == Some("Header")
    }

    /// Whether the cookie lasts longer than the client.
    pub fn is_permanent(&self) -> bool {
        let config = self.cookie_config.as_ref();
        let lifetime = config.and_then(|config| config.lifetime_type.as_deref());
        lifetime == Some("Permanent")
    }

    pub(super) fn validate(&self, path: &str, errors: &mut Vec<FieldError>) {
        let path = format!("{path}.sessionPersistence");
        let name = self.session_name.as_deref();
        if name.is_some_and(|name| !is_token(name) || name.len() > MAX_NAME) {
            let message = "can't be the name of a cookie or header";
            add(errors, format!("{path}.sessionName"), message);
        }
        if !matches!(self.r#type.as_deref(), None | Some("Cookie" | "Header")) {
            add(
                errors,
                format!("{path}.type"),
                "is neither Cookie nor Header",
            );
        }
        let config = self.cookie_config.clone().unwrap_or_default();
        if !matches!(
            config.lifetime_type.as_deref(),
            None | Some("Session" | "Permanent")
        ) {
            let field = format!("{path}.cookieConfig.lifetimeType");
            add(errors, field, "is neither Session nor Permanent");
        }
        let field = format!("{path}.absoluteTimeout");
        match &self.absolute_timeout {
            None if self.is_permanent() => {
                add(errors, field, "is missing: a Permanent cookie needs it");
            }
            Some(text) if parse_duration(text).is_none_or(|time| time.as_secs() == 0) => {
                add(
                    errors,
                    field,
                    "is no duration of a second or more, such as 1h",
                );
            }
            _ => {}
        }
    }
}
