//! What was reached and where it was listened, as rules have it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use agentguard_common::record::{DESTINATION_KEY, Destination};

use super::places::{self, quote, quote_path, with_names};
use super::text::{comment, json};
use super::{Lesson, Seen};

/// Ports that Linux picks for sockets that ask for none of their own.
const PICKED: (u16, u16) = (32768, 60999);

/// A host or an address, with ports and protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    what: String,
    /// The first and the last port; none where ports have no meaning.
    ports: Option<(u16, u16)>,
    protocol: &'static str,
}

/// Something, with the port and the protocol of a destination.
pub fn place(what: String, destination: &Destination) -> Place {
    let protocol = match destination.protocol {
        6 => "tcp",
        17 => "udp",
        1 | 58 => "icmp",
        // Policies have no name for it.
        _ => "any",
    };
    let port = destination.port;
    Place {
        what,
        ports: (port != 0 && protocol != "icmp").then_some((port, port)),
        protocol,
    }
}

/// An address as it is judged.
pub fn address(key: &[u8; DESTINATION_KEY], destination: &Destination) -> Place {
    let address: [u8; 16] = std::array::from_fn(|index| key[index]);
    let address = std::net::Ipv6Addr::from(address);
    let address = address.to_ipv4_mapped().map_or_else(
        || format!("{address}/128"),
        |address| format!("{address}/32"),
    );
    place(address, destination)
}

/// A port that was picked for it is another one each time.
pub fn as_listened(mut place: Place) -> Place {
    if let Some((port, _)) = place.ports
        && (PICKED.0..=PICKED.1).contains(&port)
    {
        place.ports = Some(PICKED);
    }
    place
}

impl Place {
    fn line(&self, text: &mut String, field: &str) {
        let ports = match self.ports {
            None => String::new(),
            Some((low, high)) if low == high => format!(", port: {low}"),
            Some((low, high)) => format!(", port: \"{low}-{high}\""),
        };
        let (what, protocol) = (json(&self.what), self.protocol);
        let _ = writeln!(
            text,
            "      - {{ {field}: {what}{ports}, protocol: {protocol} }}"
        );
    }
}

/// The pattern of a socket's name.
fn socket(name: &[u8], named: &[(&str, &str)]) -> String {
    if let Some((0, name)) = name.split_first() {
        // Patterns have no NUL: any bytes in its place.
        let mut pattern = "@".to_owned();
        for part in name.chunk_by(|one, other| (*one == 0) == (*other == 0)) {
            match part[0] {
                0 => pattern.push('*'),
                _ => pattern.push_str(&quote(part)),
            }
        }
        return pattern;
    }
    let place = places::Place {
        pattern: quote_path(name),
        root: name.to_vec(),
        seen: Seen::default(),
        spares_secrets: false,
    };
    with_names(&place, named)
}

/// The section `network`.
pub fn write(text: &mut String, lesson: &Lesson, named: &[(&str, &str)]) {
    text.push_str("\nnetwork:\n  default: deny\n");
    if !lesson.hosts.is_empty() || !lesson.names.is_empty() {
        text.push_str("  allow:\n");
    }
    let rules = |text: &mut String, field: &str, places: &BTreeMap<Place, Seen>| {
        for (place, seen) in places {
            comment(text, seen);
            place.line(text, field);
        }
    };
    rules(text, "name", &lesson.names);
    rules(text, "cidr", &lesson.hosts);
    if !lesson.unix.is_empty() {
        text.push_str("  unix:\n    default: deny\n    allow:\n");
    }
    for (name, seen) in &lesson.unix {
        comment(text, seen);
        let _ = writeln!(text, "      - {}", json(&socket(name, named)));
    }
    if !lesson.listening.is_empty() || !lesson.taken.is_empty() {
        text.push_str("  listen:\n    default: deny\n    allow:\n");
    }
    rules(text, "cidr", &lesson.listening);
    for (name, seen) in &lesson.taken {
        comment(text, seen);
        let _ = writeln!(text, "      - {}", json(&socket(name, named)));
    }
}
