//! Network patterns: an address range, ports and a protocol.
//!
//! Addresses have one form, IPv6; an IPv4 address is `::ffff:a.b.c.d`, however the program spelled it.
//! A range written in IPv6 never speaks of IPv4 addresses: `::/0` is all of IPv6, `any` is everything.

use std::net::IpAddr;

use agentguard_common::record::{DESTINATION_KEY, Destination};

use super::diagnostic::PatternError;

/// Length of `::ffff:0:0/96` in bytes.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Which protocols a pattern speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Every protocol.
    Any,
    /// TCP, also Multipath TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and `ICMPv6` echo sockets.
    Icmp,
}

impl Protocol {
    /// Parses the name.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        match text {
            "any" => Ok(Self::Any),
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "icmp" => Ok(Self::Icmp),
            _ => Err(PatternError::new(
                0,
                text.len(),
                format!("unknown protocol `{text}`"),
                "one of `tcp`, `udp`, `icmp`, `any`; every other protocol is denied",
            )),
        }
    }

    /// The protocol numbers, or `None` for all.
    pub fn numbers(self) -> Option<&'static [u8]> {
        match self {
            Self::Any => None,
            Self::Tcp => Some(&[6]),
            Self::Udp => Some(&[17]),
            Self::Icmp => Some(&[1, 58]),
        }
    }

    fn matches(self, number: u8) -> bool {
        self.numbers()
            .is_none_or(|numbers| numbers.contains(&number))
    }
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address, in IPv6 form.
    pub first: [u8; 16],
    /// Bits that are fixed.
    pub bits: u8,
}

impl Range {
    /// Parses an address or a CIDR range.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let Ok(ip) = address.parse::<IpAddr>() else {
            return Err(PatternError::new(
                0,
                text.len(),
                format!("`{address}` is not an IP address"),
                "write an address or a range such as `10.0.0.0/8` or `fc00::/7`, `any`, or a name",
            ));
        };
        let (first, offset) = match ip {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped().octets(), 96),
            IpAddr::V6(v6) => (v6.octets(), 0),
        };
        let width = 128 - offset;
        let bits = match prefix {
            None => width,
            Some(digits) => digits
                .parse::<u8>()
                .ok()
                .filter(|bits| *bits <= width && digits.bytes().all(|b| b.is_ascii_digit()))
                .ok_or_else(|| {
                    PatternError::new(
                        address.len() + 1,
                        digits.len(),
                        format!("`/{digits}` is not a prefix length"),
                        format!("a number from 0 to {width}"),
                    )
                })?,
        };
        let range = Self {
            first,
            bits: bits + offset,
        };
        if range.masked() != first {
            let network = range.masked();
            let shown = match ip {
                IpAddr::V4(_) => {
                    std::net::Ipv4Addr::new(network[12], network[13], network[14], network[15])
                        .to_string()
                }
                IpAddr::V6(_) => std::net::Ipv6Addr::from(network).to_string(),
            };
            return Err(PatternError::new(
                0,
                text.len(),
                format!("`{text}` has bits set beyond its prefix"),
                format!("write `{shown}/{bits}` for the range, or `{address}` for the one address"),
            ));
        }
        Ok(range)
    }

    fn masked(&self) -> [u8; 16] {
        let mut out = self.first;
        for (index, byte) in out.iter_mut().enumerate() {
            let kept = (usize::from(self.bits)).saturating_sub(index * 8).min(8);
            *byte &= (0xff00u16 >> kept) as u8;
        }
        out
    }

    /// Whether the range is written in IPv6 and is wide enough to hold the mapped IPv4 addresses,
    /// of which it then does not speak.
    pub fn excludes_mapped(&self) -> bool {
        self.bits < 96
            && Self {
                first: mapped_base(),
                bits: self.bits,
            }
            .masked()
                == self.first
    }

    fn matches(&self, address: &[u8]) -> bool {
        let whole = usize::from(self.bits / 8);
        let rest = self.bits % 8;
        let prefix = address[..whole] == self.first[..whole]
            && (rest == 0 || (address[whole] ^ self.first[whole]) >> (8 - rest) == 0);
        prefix && !(self.excludes_mapped() && address[..12] == MAPPED)
    }
}

fn mapped_base() -> [u8; 16] {
    let mut base = [0; 16];
    base[..12].copy_from_slice(&MAPPED);
    base
}

/// A parsed network pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPattern {
    /// The addresses; `None` is every address of both families.
    pub range: Option<Range>,
    /// The ports, as inclusive ranges; `None` is every port.
    pub ports: Option<Ports>,
    /// The protocols.
    pub protocol: Protocol,
}

impl NetworkPattern {
    /// Parses `ADDRESS[:PORTS][/PROTOCOL]`, with an IPv6 address in brackets where ports follow.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::new(
                0,
                1,
                "the pattern is empty",
                "write an address, a range or `any`",
            ));
        }
        let shift = |offset: usize| {
            move |error: PatternError| PatternError {
                at: error.at + offset,
                ..error
            }
        };
        let (body, protocol) = match text.rsplit_once('/') {
            Some((body, tail))
                if !tail.is_empty() && tail.bytes().all(|b| b.is_ascii_alphabetic()) =>
            {
                (body, Protocol::parse(tail).map_err(shift(body.len() + 1))?)
            }
            _ => (text, Protocol::Any),
        };
        let (address, offset, ports) = split_ports(body)?;
        let range = if address == "any" {
            None
        } else {
            Some(Range::parse(address).map_err(shift(offset))?)
        };
        let ports = match ports {
            Some((at, ports)) => Some(parse_ports(ports).map_err(shift(at))?),
            None => None,
        };
        let pattern = Self {
            range,
            ports,
            protocol,
        };
        pattern.check(text)?;
        Ok(pattern)
    }

    /// Refuses ports for a protocol that has none.
    pub fn check(&self, text: &str) -> Result<(), PatternError> {
        if self.protocol == Protocol::Icmp && self.ports.is_some() {
            return Err(PatternError::new(
                0,
                text.len(),
                "ICMP has no ports",
                "remove the port",
            ));
        }
        Ok(())
    }

    /// Whether the pattern matches a destination, given as its key.
    pub fn matches(&self, key: &[u8; DESTINATION_KEY]) -> bool {
        let port = u16::from_be_bytes([key[17], key[18]]);
        self.range.is_none_or(|range| range.matches(&key[..16]))
            && self.protocol.matches(key[16])
            && self.ports.as_ref().is_none_or(|ports| {
                ports
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&port))
            })
    }
}

/// Address, its offset, and the ports with their offset.
type Split<'a> = (&'a str, usize, Option<(usize, &'a str)>);

fn split_ports(body: &str) -> Result<Split<'_>, PatternError> {
    if let Some(rest) = body.strip_prefix('[') {
        let Some((address, tail)) = rest.split_once(']') else {
            return Err(PatternError::new(
                0,
                body.len(),
                "`[` is never closed",
                "write `[fc00::/7]:443`",
            ));
        };
        let at = address.len() + 2;
        return match tail.strip_prefix(':') {
            Some(ports) => Ok((address, 1, Some((at + 1, ports)))),
            None if tail.is_empty() => Ok((address, 1, None)),
            None => Err(PatternError::new(
                at,
                tail.len(),
                "unexpected text after `]`",
                "write `[fc00::/7]:443/tcp`",
            )),
        };
    }
    // More than one colon is an IPv6 address without ports.
    match body.split_once(':') {
        Some((address, ports)) if !ports.contains(':') => {
            Ok((address, 0, Some((address.len() + 1, ports))))
        }
        _ => Ok((body, 0, None)),
    }
}

/// Ranges of ports, first and last of each.
pub type Ports = Vec<(u16, u16)>;

/// Parses `443`, `80,443`, `1024-65535`.
pub fn parse_ports(text: &str) -> Result<Ports, PatternError> {
    let help = "write a port (`443`), a list (`80,443`) or a range (`8000-8999`) of numbers from 0 to 65535";
    let mut ports = Vec::new();
    let mut at = 0;
    for part in text.split(',') {
        let number = |digits: &str| {
            digits
                .bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| digits.parse::<u16>().ok())
                .flatten()
        };
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        match (number(low), number(high)) {
            (Some(low), Some(high)) if low <= high => ports.push((low, high)),
            (Some(_), Some(_)) => {
                return Err(PatternError::new(
                    at,
                    part.len(),
                    format!("the port range `{part}` runs backwards"),
                    help,
                ));
            }
            _ => {
                return Err(PatternError::new(
                    at,
                    part.len(),
                    format!("`{part}` is not a port"),
                    help,
                ));
            }
        }
        at += part.len() + 1;
    }
    Ok(ports)
}

/// Parses one destination: `ADDRESS:PORT/PROTOCOL` (TCP where none is written).
pub fn parse_destination(text: &str) -> Result<Destination, PatternError> {
    let pattern = NetworkPattern::parse(text)?;
    let wrong = |message: &str| {
        PatternError::new(
            0,
            text.len(),
            message,
            "write one address, port and protocol: `10.1.2.3:443/tcp`, `[::1]:53/udp`",
        )
    };
    let range = pattern
        .range
        .filter(|range| range.bits == 128)
        .ok_or_else(|| wrong("this is not a single address"))?;
    let port = match (pattern.ports.as_deref(), pattern.protocol) {
        (None, Protocol::Icmp) => 0,
        (Some([(low, high)]), _) if low == high => *low,
        _ => return Err(wrong("this is not a single port")),
    };
    let v4 = range.first[..12] == MAPPED;
    let (protocol, kind) = match (pattern.protocol, v4) {
        (Protocol::Tcp | Protocol::Any, _) => (6, 1),
        (Protocol::Udp, _) => (17, 2),
        (Protocol::Icmp, true) => (1, 2),
        (Protocol::Icmp, false) => (58, 2),
    };
    Ok(Destination {
        family: if v4 { 2 } else { 10 },
        protocol,
        port,
        kind,
        address: range.first,
    })
}
