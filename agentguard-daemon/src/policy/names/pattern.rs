//! One pattern of names: `api.example.com`, `*.example.com` (one label), `**.example.com` (any number of labels),
//! each with ports and a protocol.

use super::Grant;
use crate::policy::address::{Ports, Protocol, parse_ports};
use crate::policy::diagnostic::PatternError;

/// Longest name, and longest label.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Which names a pattern stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// This one.
    Exact(String),
    /// One label, and this behind it; the empty text stands for names of one label.
    OneLabel(String),
    /// One or more labels, and this behind them; the empty text stands for every name.
    AnyDepth(String),
}

/// A pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    /// Which names.
    pub shape: Shape,
    /// The ports, as inclusive ranges; `None` is every port.
    pub ports: Option<Ports>,
    /// The protocols.
    pub protocol: Protocol,
}

impl NamePattern {
    /// Parses `NAME[:PORTS][/PROTOCOL]`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let shift = |offset: usize| {
            move |error: PatternError| PatternError {
                at: error.at + offset,
                ..error
            }
        };
        let (body, protocol) = match text.rsplit_once('/') {
            Some((body, tail)) => (body, Protocol::parse(tail).map_err(shift(body.len() + 1))?),
            None => (text, Protocol::Any),
        };
        let (name, ports) = match body.split_once(':') {
            Some((name, ports)) => (
                name,
                Some(parse_ports(ports).map_err(shift(name.len() + 1))?),
            ),
            None => (body, None),
        };
        if protocol == Protocol::Icmp && ports.is_some() {
            return Err(PatternError::new(
                0,
                text.len(),
                "ICMP has no ports",
                "remove the port",
            ));
        }
        Ok(Self {
            shape: Shape::parse(name)?,
            ports,
            protocol,
        })
    }

    /// Whether it stands for a name in normal form.
    pub fn matches(&self, name: &str) -> bool {
        let before = |suffix: &str| {
            if suffix.is_empty() {
                return Some(name);
            }
            name.strip_suffix(suffix)?.strip_suffix('.')
        };
        match &self.shape {
            Shape::Exact(exact) => exact == name,
            Shape::OneLabel(suffix) => {
                before(suffix).is_some_and(|label| !label.is_empty() && !label.contains('.'))
            }
            Shape::AnyDepth(suffix) => before(suffix).is_some_and(|labels| !labels.is_empty()),
        }
    }

    /// What it opens addresses for.
    pub fn grants(&self) -> Vec<Grant> {
        let protocols: Vec<Option<u8>> = match self.protocol.numbers() {
            None => vec![None],
            Some(numbers) => numbers.iter().copied().map(Some).collect(),
        };
        let ports = self.ports.as_deref().unwrap_or(&[(0, u16::MAX)]);
        protocols
            .iter()
            .flat_map(|protocol| {
                ports.iter().map(|(low, high)| Grant {
                    low: *low,
                    high: *high,
                    protocol: *protocol,
                    marks: 0,
                })
            })
            .collect()
    }
}

impl Shape {
    fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::new(
                0,
                1,
                "the name is empty",
                "write a name such as `api.example.com`, `*.example.com` or `**.example.com`",
            ));
        }
        let (stars, rest) = match text.strip_prefix("**") {
            Some(rest) => (2, rest),
            None => text.strip_prefix('*').map_or((0, text), |rest| (1, rest)),
        };
        let suffix = match (stars, rest.strip_prefix('.')) {
            (0, _) => return normal(text).map(Self::Exact),
            (_, None) if rest.is_empty() => String::new(),
            (_, Some(suffix)) => normal(suffix).map_err(|error| PatternError {
                at: error.at + stars + 1,
                ..error
            })?,
            (_, None) => {
                return Err(PatternError::new(
                    0,
                    text.len(),
                    "`*` in a name stands for whole labels",
                    "write `*.example.com` for one label, `**.example.com` for any number of them",
                ));
            }
        };
        Ok(if stars == 1 {
            Self::OneLabel(suffix)
        } else {
            Self::AnyDepth(suffix)
        })
    }
}

/// The one form of a name: lower case, letters beyond ASCII in their `xn--` form, no dot at the end.
pub fn normal(text: &str) -> Result<String, PatternError> {
    let whole = |message: String, help: &str| PatternError::new(0, text.len(), message, help);
    if let Some(at) = text.find('*') {
        return Err(PatternError::new(
            at,
            1,
            "`*` in a name stands for whole labels, and only in front",
            "write `*.example.com` for one label, `**.example.com` for any number of them",
        ));
    }
    let body = text.strip_suffix('.').unwrap_or(text);
    let name = if body.is_ascii() {
        body.to_ascii_lowercase()
    } else {
        idna::domain_to_ascii(body).map_err(|_| {
            whole(
                format!("`{}` cannot be the name of a host", text.escape_debug()),
                "write it as it stands in links, or in its `xn--` form",
            )
        })?
    };
    let mut at = 0;
    for label in name.split('.') {
        let here = |message: String, help: &str| {
            if body.is_ascii() {
                PatternError::new(at, label.len().max(1), message, help)
            } else {
                whole(message, help)
            }
        };
        if label.is_empty() {
            return Err(here(
                "a name has no empty label".to_owned(),
                "remove one of the two dots",
            ));
        }
        if label.len() > MAX_LABEL {
            return Err(here(
                format!("a label of a name has at most {MAX_LABEL} bytes"),
                "no host has such a name",
            ));
        }
        if let Some(byte) = label
            .bytes()
            .find(|byte| !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        {
            return Err(here(
                format!(
                    "`{}` cannot be part of the name of a host",
                    char::from(byte).escape_debug()
                ),
                "names hold letters, digits, `-`, `_` and dots; addresses are written like `10.0.0.0/8` or `[::1]:80`",
            ));
        }
        at += label.len() + 1;
    }
    if name.len() > MAX_NAME {
        return Err(whole(
            format!("a name has at most {MAX_NAME} bytes"),
            "no host has such a name",
        ));
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(whole(
            format!("`{name}` is neither an address nor a name: a name does not end in a number"),
            "write an address such as `10.1.2.3`, a range such as `10.0.0.0/8`, or a name",
        ));
    }
    Ok(name)
}
