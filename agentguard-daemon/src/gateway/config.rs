//! The section `gateway` of the daemon's configuration: where it listens, and which providers there are.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use serde::Deserialize;

use super::provider::Api;

/// Where prices are, if such a file exists.
pub const PRICES: &str = "/etc/agentguard/prices.yaml";
/// The folder of keys, one file for each provider.
pub const KEYS: &str = "/etc/agentguard/keys";
/// The port that nobody else was found to use.
const PORT: u16 = 8377;

/// The section `gateway`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Address and port on loopback.
    pub listen: SocketAddr,
    /// Table of prices; by default `/etc/agentguard/prices.yaml` if it is there, else the one that comes along.
    pub prices: Option<PathBuf>,
    /// Certificates (PEM) that are trusted besides those of the system.
    pub ca: Option<PathBuf>,
    /// Providers by name; they come on top of `openai`, `anthropic` and `gemini`, or replace them.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// Largest request, in bytes.
    pub max_request: usize,
    /// Largest answer, in bytes.
    pub max_answer: u64,
    /// Seconds that a provider may take to begin an answer, or to go on with it.
    pub patience: u64,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
            prices: None,
            ca: None,
            providers: BTreeMap::new(),
            max_request: 32 << 20,
            max_answer: 64 << 20,
            patience: 600,
        }
    }
}

/// One provider.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// What it speaks.
    pub api: Api,
    /// Where it is: `https://api.example.org`. What follows the provider's name in a request's path is put
    /// behind it.
    pub upstream: String,
    /// File with its key, readable by root only; by default a credential of systemd, or a file in
    /// `/etc/agentguard/keys`.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Name of the variable that tells agents the endpoint.
    #[serde(default)]
    pub env_url: Option<String>,
    /// Name of the variable with the placeholder for the key.
    #[serde(default)]
    pub env_key: Option<String>,
}

impl GatewayConfig {
    /// How long to wait for a provider.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.patience.max(1))
    }

    /// All providers: the well-known ones, and those that are configured.
    pub fn all_providers(&self) -> BTreeMap<String, ProviderConfig> {
        let known = |api, upstream: &str| ProviderConfig {
            api,
            upstream: upstream.to_owned(),
            key_file: None,
            env_url: None,
            env_key: None,
        };
        let mut all = BTreeMap::from([
            (
                "openai".to_owned(),
                known(Api::OpenAi, "https://api.openai.com"),
            ),
            (
                "anthropic".to_owned(),
                known(Api::Anthropic, "https://api.anthropic.com"),
            ),
            (
                "gemini".to_owned(),
                known(Api::Gemini, "https://generativelanguage.googleapis.com"),
            ),
        ]);
        all.extend(self.providers.clone());
        all
    }

    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), String> {
        if !self.listen.ip().is_loopback() || !self.listen.is_ipv4() {
            return Err(format!(
                "the gateway cannot listen at {}: callers are only known on 127.0.0.0/8",
                self.listen
            ));
        }
        for (name, provider) in &self.providers {
            provider
                .uri()
                .map_err(|what| format!("provider `{name}`: {what}"))?;
        }
        Ok(())
    }
}

impl ProviderConfig {
    /// Where it is. Only loopback is spoken to without TLS.
    pub fn uri(&self) -> Result<Uri, String> {
        let uri: Uri = self
            .upstream
            .trim_end_matches('/')
            .parse()
            .map_err(|error| format!("`{}` is no address: {error}", self.upstream))?;
        let host = uri.host().unwrap_or_default();
        let local = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        match uri.scheme_str() {
            Some("https") if !host.is_empty() => {}
            Some("http") if local => {}
            _ => {
                return Err(format!(
                    "`{}` must begin with `https://` (or `http://127.0.0.1`, for a server of this machine)",
                    self.upstream
                ));
            }
        }
        if uri.query().is_some() {
            return Err(format!("`{}` has a query", self.upstream));
        }
        Ok(uri)
    }

    /// The variables that lead an agent to it.
    pub fn environment(&self, name: &str, listen: SocketAddr) -> Vec<(String, String)> {
        let (url, key, path) = match self.api {
            Api::OpenAi => ("OPENAI_BASE_URL", "OPENAI_API_KEY", "/v1"),
            Api::Anthropic => ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", ""),
            Api::Gemini => ("GOOGLE_GEMINI_BASE_URL", "GEMINI_API_KEY", ""),
        };
        // Only the usual one of each kind has the usual variables.
        let usual = matches!(name, "openai" | "anthropic" | "gemini");
        let own = |kind: &str| {
            format!(
                "{}_{kind}",
                name.to_ascii_uppercase().replace(['-', '.'], "_")
            )
        };
        let pick = |given: &Option<String>, known: &str, kind| {
            given
                .clone()
                .unwrap_or_else(|| if usual { known.to_owned() } else { own(kind) })
        };
        vec![
            (
                pick(&self.env_url, url, "BASE_URL"),
                format!("http://{listen}/{name}{path}"),
            ),
            (
                pick(&self.env_key, key, "API_KEY"),
                super::PLACEHOLDER.to_owned(),
            ),
        ]
    }
}
