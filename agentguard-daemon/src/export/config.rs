//! The section `sinks` of the daemon's configuration: to whom records go, and how.
//!
//! It never holds a secret: keys, passwords and headers are in files that only root may read, and are read when they
//! are used.

use std::path::PathBuf;

use hyper::Uri;
use serde::Deserialize;

use super::{Form, ocsf};
use crate::outbound::{Endpoint, TlsConfig, is_here};

/// Longest name of a sink.
const NAME_MAX: usize = 32;

/// The name of a sink. It is also the name of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct SinkName(String);

impl SinkName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SinkName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let good = (1..=NAME_MAX).contains(&name.len())
            && name.bytes().all(|byte| plain(byte) || byte == b'-')
            && name.bytes().next().is_some_and(plain);
        if good {
            Ok(Self(name))
        } else {
            Err(format!(
                "`{}` is no name of a sink: up to {NAME_MAX} of a-z, 0-9 and `-`",
                name.escape_debug()
            ))
        }
    }
}

/// One sink.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkConfig {
    /// A receiver of syslog.
    Syslog(SyslogConfig),
    /// A receiver of OpenTelemetry logs over HTTP.
    Otlp(OtlpConfig),
    /// The journal of this host.
    Journald(JournaldConfig),
}

/// What a record is sent as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The line of the log.
    #[default]
    Record,
    /// An event of OCSF.
    Ocsf,
}

impl Format {
    /// Ready to be used.
    pub fn form(self) -> Form {
        match self {
            Self::Record => Form::Record,
            Self::Ocsf => Form::Ocsf(ocsf::Mapper::here()),
        }
    }
}

/// Where a sink begins that has never sent anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Begin {
    /// With the oldest record that is there.
    #[default]
    Oldest,
    /// With the next one.
    Now,
}

/// Settings of `syslog`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyslogConfig {
    /// Where it is: `tls://HOST[:PORT]`, or on this host `tcp://`, `udp://` and `unix:///dev/log`.
    pub to: SyslogAddress,
    /// What is sent.
    #[serde(default)]
    pub format: Format,
    /// Where to begin.
    #[serde(default)]
    pub begin: Begin,
    /// The facility, 0 to 23.
    #[serde(default = "SyslogConfig::facility")]
    pub facility: u8,
    /// Certificates and keys, for `tls://`.
    #[serde(default)]
    pub tls: TlsConfig,
}

impl SyslogConfig {
    /// `log audit`, as RFC 5424 calls it.
    const fn facility() -> u8 {
        13
    }
}

/// Settings of `otlp`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtlpConfig {
    /// The whole address: `https://HOST:4318/v1/logs`. Without TLS only on this host.
    pub endpoint: Endpoint,
    /// How it is written.
    #[serde(default)]
    pub encoding: Encoding,
    /// What is the body of a log record.
    #[serde(default)]
    pub format: Format,
    /// Where to begin.
    #[serde(default)]
    pub begin: Begin,
    /// File with further headers of the request, one `Name: value` a line.
    #[serde(default)]
    pub headers: Option<PathBuf>,
    /// Certificates and keys, for `https://`.
    #[serde(default)]
    pub tls: TlsConfig,
}

/// How OTLP is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Binary.
    #[default]
    Protobuf,
    /// JSON.
    Json,
}

/// Settings of `journald`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournaldConfig {
    /// The journal's socket.
    #[serde(default = "JournaldConfig::socket")]
    pub socket: PathBuf,
    /// What is in the field `AGENTGUARD_RECORD`.
    #[serde(default)]
    pub format: Format,
    /// Where to begin.
    #[serde(default)]
    pub begin: Begin,
}

impl JournaldConfig {
    fn socket() -> PathBuf {
        PathBuf::from("/run/systemd/journal/socket")
    }
}

/// Where a receiver of syslog is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum SyslogAddress {
    /// TCP with TLS (RFC 5425).
    Tls(String, u16),
    /// TCP with octet counting (RFC 6587), on this host.
    Tcp(String, u16),
    /// UDP (RFC 5426), on this host.
    Udp(String, u16),
    /// A Unix-domain socket for datagrams.
    Unix(PathBuf),
}

impl SyslogAddress {
    /// As it is written in the configuration.
    pub fn text(&self) -> String {
        let of = |scheme: &str, host: &str, port: u16| {
            let bare = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.to_owned()
            };
            format!("{scheme}://{bare}:{port}")
        };
        match self {
            Self::Tls(host, port) => of("tls", host, *port),
            Self::Tcp(host, port) => of("tcp", host, *port),
            Self::Udp(host, port) => of("udp", host, *port),
            Self::Unix(path) => format!("unix://{}", path.display()),
        }
    }
}

impl TryFrom<String> for SyslogAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            if path.starts_with('/') {
                return Ok(Self::Unix(path.into()));
            }
            return Err(format!("`{text}` needs a whole path: `unix:///dev/log`"));
        }
        let wrong = || {
            format!(
                "`{text}` is no address: write `tls://HOST:PORT`, or for this host `tcp://`, `udp://`, `unix:///dev/log`"
            )
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(wrong)?;
        let bare = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if !matches!(uri.path(), "" | "/") || text.contains('@') {
            return Err(wrong());
        }
        let port = |usual| uri.port_u16().unwrap_or(usual);
        match uri.scheme_str() {
            Some("tls") => Ok(Self::Tls(bare, port(6514))),
            Some(scheme @ ("tcp" | "udp")) if !is_here(&bare) => Err(format!(
                "`{text}` would send the log in the clear: `{scheme}` is for this host only (127.0.0.1, ::1, localhost); use `tls://`"
            )),
            Some("tcp") => Ok(Self::Tcp(bare, port(601))),
            Some("udp") => Ok(Self::Udp(bare, port(514))),
            _ => Err(wrong()),
        }
    }
}

impl SinkConfig {
    /// Where it begins.
    pub fn begin(&self) -> Begin {
        match self {
            Self::Syslog(syslog) => syslog.begin,
            Self::Otlp(otlp) => otlp.begin,
            Self::Journald(journald) => journald.begin,
        }
    }

    /// What kind it is, and where it leads, for people.
    pub fn words(&self) -> (&'static str, String) {
        match self {
            Self::Syslog(syslog) => ("syslog", syslog.to.text()),
            Self::Otlp(otlp) => ("otlp", otlp.endpoint.0.to_string()),
            Self::Journald(journald) => ("journald", journald.socket.display().to_string()),
        }
    }

    /// What is wrong with it as a whole, if anything.
    pub fn check(&self) -> Result<(), String> {
        let tls = match self {
            Self::Syslog(syslog) if syslog.facility > 23 => {
                return Err(format!("`facility: {}` is none: 0 to 23", syslog.facility));
            }
            Self::Syslog(syslog) => &syslog.tls,
            Self::Otlp(otlp) => &otlp.tls,
            Self::Journald(_) => return Ok(()),
        };
        tls.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_in_the_clear_to_another_host() {
        let address = |text: &str| SyslogAddress::try_from(text.to_owned());
        for good in [
            "tls://logs.example.com:6514",
            "tls://[2001:db8::1]:6514",
            "tcp://127.0.0.1:601",
            "udp://[::1]:514",
            "unix:///dev/log",
        ] {
            assert_eq!(address(good).unwrap().text(), good);
        }
        assert_eq!(
            address("tls://a.example").unwrap().text(),
            "tls://a.example:6514"
        );
        for bad in [
            "tcp://logs.example.com:601",
            "udp://192.0.2.1",
            "tls://",
            "tls://user:secret@a.example",
            "tls://a.example/x",
            "unix://dev/log",
            "a.example:514",
            "",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_sinks_are_names_of_files() {
        for good in ["siem", "otel-1", "0"] {
            assert!(SinkName::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a/b", "..", "a b", &"a".repeat(33)] {
            assert!(SinkName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
