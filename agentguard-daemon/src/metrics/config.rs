//! The section `metrics_export` of the daemon's configuration: to whom metrics are pushed, and how often.
//!
//! As that of sinks, it never holds a secret.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::export::config::Encoding;
use crate::outbound::{Endpoint, Span, TlsConfig};

/// The section `metrics_export`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricsExport {
    /// A receiver of OpenTelemetry metrics over HTTP.
    Otlp(PushConfig),
}

impl MetricsExport {
    /// What is wrong with it as a whole, if anything.
    pub fn check(&self) -> Result<(), String> {
        let Self::Otlp(push) = self;
        push.tls.check()
    }
}

/// Settings of `otlp`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushConfig {
    /// The whole address: `https://HOST:4318/v1/metrics`. Without TLS only on this host.
    pub endpoint: Endpoint,
    /// How it is written.
    #[serde(default)]
    pub encoding: Encoding,
    /// File with further headers of the request, one `Name: value` a line.
    #[serde(default)]
    pub headers: Option<PathBuf>,
    /// Certificates and keys, for `https://`.
    #[serde(default)]
    pub tls: TlsConfig,
    /// How often they are pushed.
    #[serde(default)]
    pub interval: Interval,
}

/// A time between two pushes: a second to a day.
pub type Interval = Span<{ 24 * 3600 }>;

impl Default for Interval {
    fn default() -> Self {
        Self(Duration::from_mins(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_second_to_a_day() {
        let interval = |text: &str| Interval::try_from(text.to_owned());
        assert_eq!(Interval::default().0, Duration::from_mins(1));
        assert_eq!(interval("1s").unwrap().0, Duration::from_secs(1));
        assert_eq!(interval("1m30s").unwrap().0, Duration::from_secs(90));
        assert_eq!(interval("24h").unwrap().0, Duration::from_hours(24));
        for bad in ["0s", "60", "0.5s", "500ms", "25h", "", "soon"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
