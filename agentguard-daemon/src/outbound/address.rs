//! Where somebody is who is called by HTTP.

use std::net::IpAddr;

use hyper::Uri;
use serde::Deserialize;

/// An address: `https://`, or `http://` on this host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Endpoint(pub Uri);

impl Endpoint {
    /// Scheme, host and port. What comes after them may be a secret.
    pub fn origin(&self) -> String {
        let part = |part: Option<&str>| part.unwrap_or_default().to_owned();
        let authority = part(self.0.authority().map(hyper::http::uri::Authority::as_str));
        format!("{}://{authority}", part(self.0.scheme_str()))
    }

    /// The host alone.
    pub fn host(&self) -> &str {
        self.0.host().unwrap_or_default()
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{}` is no address: write `https://HOST[:PORT]/PATH`",
                text.escape_debug()
            )
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let host = uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if text.contains('@') {
            return Err(
                "an address holds no user and no password: secrets are in files".to_owned(),
            );
        }
        match uri.scheme_str() {
            Some("https") if !bare.is_empty() => Ok(Self(uri)),
            Some("http") if is_here(bare) => Ok(Self(uri)),
            Some("http") => Err(format!(
                "`{text}` would go over the network in the clear: `http` is for this host only (127.0.0.1, ::1, localhost); use `https://`"
            )),
            _ => Err(wrong()),
        }
    }
}

/// Whether a name means this host whatever anybody's name server says.
pub fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_in_the_clear_to_another_host() {
        let endpoint = |text: &str| Endpoint::try_from(text.to_owned());
        let there = endpoint("https://otel.example.com:4318/v1/logs?key=hunter2").unwrap();
        assert_eq!(there.origin(), "https://otel.example.com:4318");
        assert_eq!(there.host(), "otel.example.com");
        for good in [
            "http://127.0.0.1:4318/v1/logs",
            "http://[::1]/",
            "http://localhost:1/",
        ] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in [
            "http://otel.example.com/v1/logs",
            "http://127.0.0.1.example.com/",
            "otel.example.com",
            "ftp://127.0.0.1/",
            "https://a:b@c.example/",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
        let hidden = endpoint("https://user:hunter2@c.example/").unwrap_err();
        assert!(!hidden.contains("hunter2"), "{hidden}");
    }
}
