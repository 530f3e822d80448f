//! The section `approvals` of the daemon's configuration. It never holds a secret: that is in a file for root only.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::outbound::{Endpoint, TlsConfig};
use crate::policy::limits::parse_duration;

/// Who answers besides operators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalsConfig {
    /// A receiver that is asked.
    pub webhook: Option<WebhookConfig>,
}

/// Settings of `webhook`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// The whole address. Without TLS only on this host.
    pub url: Endpoint,
    /// The file with what questions and answers are signed with.
    pub secret: PathBuf,
    /// Certificates and keys, for `https://`.
    #[serde(default)]
    pub tls: TlsConfig,
    /// How long an answer may take.
    #[serde(default = "WebhookConfig::timeout")]
    pub timeout: Span,
    /// How long after a `pending` it is asked again.
    #[serde(default = "WebhookConfig::poll")]
    pub poll: Span,
}

impl WebhookConfig {
    const fn timeout() -> Span {
        Span(Duration::from_secs(10))
    }

    const fn poll() -> Span {
        Span(Duration::from_secs(5))
    }

    /// What is wrong with it as a whole, if anything.
    pub fn check(&self) -> Result<(), String> {
        if !self.secret.is_absolute() {
            return Err("`secret` is a file, with its whole path".to_owned());
        }
        self.tls.check()
    }
}

/// A stretch of time, between a second and an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let micros = parse_duration(&text).map_err(|error| error.message)?;
        let time = Duration::from_micros(micros);
        if (Duration::from_secs(1)..=Duration::from_hours(1)).contains(&time) {
            Ok(Self(time))
        } else {
            Err(format!("`{text}` is not between a second and an hour"))
        }
    }
}
