//! The section `approvals` of the daemon's configuration. It never holds a secret: that is in a file for root only.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::outbound::{Endpoint, Span, TlsConfig};

/// The longest of its times, in seconds.
const HOUR: u64 = 3600;

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
    pub timeout: Span<HOUR>,
    /// How long after a `pending` it is asked again.
    #[serde(default = "WebhookConfig::poll")]
    pub poll: Span<HOUR>,
}

impl WebhookConfig {
    const fn timeout() -> Span<HOUR> {
        Span(Duration::from_secs(10))
    }

    const fn poll() -> Span<HOUR> {
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
