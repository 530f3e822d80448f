//! Numbers of records in words: what people read in the log and at the terminal.

use std::fmt::Write;
use std::net::Ipv6Addr;

use agentguard_common::record::{Destination, record_flags};
use agentguard_common::verdict::{Operation, Reason, access};

use crate::event::Event;
use crate::event::escape::escape_into;

/// Access bits in words; `None` where nothing is accessed.
pub fn access_name(bits: u8) -> Option<&'static str> {
    const READ_WRITE: u8 = access::READ | access::WRITE;
    match bits {
        access::READ => Some("read"),
        access::WRITE => Some("write"),
        READ_WRITE => Some("read+write"),
        bits if bits & access::EXEC != 0 => Some("exec"),
        _ => None,
    }
}

/// What a reason means where no rule has words of its own.
pub fn reason_text(event: &Event<'_>) -> Option<&'static str> {
    Some(match event.reason {
        Reason::None | Reason::Rule => return None,
        Reason::Default if !event.is_denied() && event.verdict.name() != "would-deny" => {
            "no rule speaks of it, and the default is to allow"
        }
        Reason::Default => match event.operation {
            Operation::Exec => "no rule permits this program",
            Operation::Connect | Operation::Send => "no rule permits this destination",
            Operation::Listen => "no rule permits listening there",
            Operation::Map => "no rule permits executing what the agent can write",
            _ if event.access & access::EXEC != 0 => "no rule permits this program",
            _ if event.access & access::WRITE != 0 => "no rule permits writing this path",
            _ => "no rule permits reading this path",
        },
        Reason::Budget => "a budget is spent",
        Reason::Approved => "an operator has granted it",
        Reason::AsksLater if event.is_denied() => {
            "a loader that a rule asks about is never started"
        }
        Reason::AsksLater => "what the program is started with is judged next",
        Reason::NoPolicy => "the agent has no policy in force",
        Reason::PathUnreadable => "the path could not be read or is longer than 4,095 bytes",
        Reason::ScratchUnavailable => "the kernel had no memory for the decision",
        Reason::ArgumentsUnreadable => "the program's arguments could not be read",
        Reason::ArgumentsTooLong => "the program's arguments are too long to be checked",
        Reason::ArgumentsChanged => "the arguments changed after they were approved",
        Reason::AddressUnreadable => "the socket address could not be read",
        Reason::FamilyNotPermitted => "sockets of this family are never permitted",
        Reason::ProtocolNotPermitted => "this protocol is never permitted",
        Reason::TableDamaged => "the compiled policy is damaged",
        Reason::Anonymous if event.access & access::EXEC != 0 => {
            "programs without a name on a file system are never permitted"
        }
        Reason::Anonymous => "an object without a name, open to its holder",
        Reason::LabelUnavailable => {
            "there was no memory for the label of this task, or of its child"
        }
        Reason::UnixSocket if event.is_denied() => "no rule permits this Unix-domain socket",
        Reason::UnixSocket => "the policy permits Unix-domain sockets",
        Reason::OwnSocket => "the socket is the agent's own",
        Reason::Opened => "a permitted name was resolved to this address",
        Reason::Redirected => "questions to name servers go to the agent's resolver",
        Reason::ResolverOnly => "name servers are reached through the agent's resolver only",
        Reason::Locked => "the section `kernel` of the policy does not permit it",
        Reason::ProtectedObject => "the policy protects this file, whatever its name",
        Reason::RulesDiffer => "a folder may not move to where other rules apply to what is in it",
        Reason::NameWidens => "the new name would permit what the old one does not",
    })
}

/// `address:port` of an internet destination.
pub fn destination_text(text: &mut String, destination: &Destination) {
    let address = Ipv6Addr::from(destination.address);
    // Writing to a `String` cannot fail.
    let _ = match address.to_ipv4_mapped() {
        Some(address) => write!(text, "{address}:{}", destination.port),
        None => write!(text, "[{address}]:{}", destination.port),
    };
}

/// `unix:/path`, or `unix:@name` for an abstract name.
pub fn unix_text(text: &mut String, name: &[u8]) {
    text.push_str("unix:");
    match name.split_first() {
        Some((0, abstract_name)) => {
            text.push('@');
            escape_into(text, abstract_name);
        }
        Some(_) => {
            let end = name
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(name.len());
            escape_into(text, &name[..end]);
        }
        None => {}
    }
}

/// `major:minor` of a device.
pub fn device_text(device: u32) -> String {
    format!("{}:{}", device >> 20, device & 0xf_ffff)
}

/// Name of an address family.
pub fn family_name(family: u16) -> Option<&'static str> {
    Some(match family {
        0 => "unspecified",
        1 => "unix",
        2 => "inet",
        10 => "inet6",
        16 => "netlink",
        17 => "packet",
        38 => "alg",
        40 => "vsock",
        44 => "xdp",
        _ => return None,
    })
}

/// Name of a protocol.
pub fn protocol_name(protocol: u16) -> Option<&'static str> {
    Some(match protocol {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        58 => "icmpv6",
        132 => "sctp",
        136 => "udplite",
        _ => return None,
    })
}

/// What kind of socket was to be made: `packet:raw:768`.
pub fn socket_text(aux: u32, protocol: u64) -> String {
    let (family, kind) = (aux as u16, aux >> 16);
    let family = family_name(family).map_or_else(|| family.to_string(), str::to_owned);
    let kind = match kind {
        1 => "stream".to_owned(),
        2 => "dgram".to_owned(),
        3 => "raw".to_owned(),
        5 => "seqpacket".to_owned(),
        other => other.to_string(),
    };
    format!("{family}:{kind}:{protocol}")
}

/// Names of the flags of a record.
pub fn flag_names(flags: u8) -> impl Iterator<Item = &'static str> {
    [
        (record_flags::ANONYMOUS, "anonymous"),
        (record_flags::ARGS_TRUNCATED, "argv-truncated"),
        (record_flags::KILLED, "killed"),
        (record_flags::FOR_EXEC, "for-exec"),
        (record_flags::SOCKET, "socket"),
    ]
    .into_iter()
    .filter(move |(flag, _)| flags & flag != 0)
    .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut String)) -> String {
        let mut text = String::new();
        write(&mut text);
        text
    }

    #[test]
    fn destinations_read_as_people_write_them() {
        let mut destination = Destination {
            family: 2,
            port: 443,
            ..Destination::default()
        };
        destination.address[10..].copy_from_slice(&[0xff, 0xff, 169, 254, 169, 254]);
        assert_eq!(
            text(|t| destination_text(t, &destination)),
            "169.254.169.254:443"
        );
        destination.address = Ipv6Addr::LOCALHOST.octets();
        assert_eq!(text(|t| destination_text(t, &destination)), "[::1]:443");
    }

    #[test]
    fn unix_names_are_told_apart() {
        assert_eq!(
            text(|t| unix_text(t, b"/run/docker.sock\0\0")),
            "unix:/run/docker.sock"
        );
        assert_eq!(text(|t| unix_text(t, b"\0abs\n")), r"unix:@abs\x0a");
        assert_eq!(text(|t| unix_text(t, b"")), "unix:");
    }
}
