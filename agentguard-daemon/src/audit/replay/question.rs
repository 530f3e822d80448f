//! From a record back to the question that the kernel was asked.

use std::net::{IpAddr, SocketAddr};

use agentguard_common::record::{Destination, record_flags};
use agentguard_common::verdict::{Lock, Operation, Reason, Verdict, access};

use crate::audit::record::Record;
use crate::event::escape::unescape;
use crate::event::{Event, Target};
use crate::policy::names::normal;

/// A question that the kernel was asked, restored from its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What was done.
    pub operation: Operation,
    /// What was decided.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Bits of access.
    pub access: u8,
    /// What it was done to.
    pub target: Asked,
    arguments: Vec<u8>,
    aux: u32,
    flags: u8,
    /// Whether the record has all arguments of an exec.
    is_complete: bool,
    /// The name that opened the address.
    name: Option<String>,
}

/// A target that is owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing with a name.
    Unnamed,
    /// A path.
    Path(Vec<u8>),
    /// An address.
    Socket(Destination),
    /// A Unix-domain socket: its path, or a NUL and its abstract name.
    Unix(Vec<u8>),
}

/// Finds the value whose name is a text.
fn named<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str, text: Option<&str>) -> Option<T> {
    let text = text?;
    all.iter().copied().find(|value| name(*value) == text)
}

impl Question {
    /// The question behind a record; `None` where nothing was decided, or the record does not say what about.
    pub fn of(record: &Record<'_>) -> Option<Self> {
        let operation = named(Operation::ALL, Operation::name, Some(&record.op))?;
        let verdict = named(Verdict::ALL, Verdict::name, record.verdict.as_deref())?;
        let reason = named(Reason::ALL, Reason::name, record.cause.as_deref())?;
        let mut arguments = Vec::new();
        let mut aux = 0;
        let access = match record.access.as_deref() {
            Some("read") => access::READ,
            Some("write") => access::WRITE,
            Some("read+write") => access::READ | access::WRITE,
            Some("exec") => access::EXEC,
            _ => 0,
        };
        let target = match operation {
            Operation::Kernel => {
                let text = record.target.as_deref()?;
                let name = text.split(':').next();
                aux = named(Lock::ALL, Lock::name, name)? as u32;
                Asked::Unnamed
            }
            Operation::Connect | Operation::Send | Operation::Listen => socket(record)?,
            Operation::Receive if has(record, "socket") => socket(record)?,
            Operation::Fork | Operation::Exit | Operation::Attach | Operation::Socket => {
                return None;
            }
            _ => match record.target.as_deref() {
                Some(path) => Asked::Path(unescape(path).ok()?),
                None => Asked::Unnamed,
            },
        };
        match operation {
            Operation::Exec => {
                for argument in record.argv.iter().flatten() {
                    arguments.extend_from_slice(&unescape(argument).ok()?);
                    arguments.push(0);
                }
                let count = record.argv.as_ref().map_or(0, Vec::len) as u32;
                aux = record.argc.unwrap_or(count);
            }
            Operation::Rename | Operation::Link => {
                arguments = unescape(record.to.as_deref().unwrap_or_default()).ok()?;
            }
            _ => {}
        }
        let flags = if has(record, "for-exec") {
            record_flags::FOR_EXEC
        } else {
            0
        };
        let name = record.name.as_deref();
        let is_cut = record.argc.is_some() || has(record, "argv-truncated");
        Some(Self {
            operation,
            verdict,
            reason,
            access,
            target,
            is_complete: !arguments.is_empty() && !is_cut,
            arguments,
            aux,
            flags,
            name: name.map(str::to_owned),
        })
    }

    /// As the judge takes it, under a policy of this generation.
    pub fn event(&self, generation: u32) -> Event<'_> {
        Event {
            operation: self.operation,
            verdict: self.verdict,
            reason: self.reason,
            access: self.access,
            flags: self.flags,
            time: 0,
            agent: 0,
            session: 0,
            generation,
            errno: 0,
            pid: 0,
            tid: 0,
            ppid: 0,
            uid: 0,
            euid: 0,
            exec_id: 0,
            new_exec_id: 0,
            inode: 0,
            device: 0,
            aux: self.aux,
            name: 0,
            target: match &self.target {
                Asked::Unnamed => Target::Unnamed,
                Asked::Path(path) => Target::Path(path),
                Asked::Socket(destination) => Target::Socket(*destination),
                Asked::Unix(name) => Target::Unix(
                    Destination {
                        family: 1,
                        ..Destination::default()
                    },
                    name,
                ),
            },
            arguments: &self.arguments,
        }
    }

    /// The name that opened the address, in its normal form.
    pub fn opened_by(&self) -> Option<&str> {
        let name = self.name.as_deref()?;
        (self.reason == Reason::Opened && normal(name).is_ok_and(|it| it == name)).then_some(name)
    }

    /// The arguments of an exec.
    pub fn argv(&self) -> Vec<&[u8]> {
        let bytes = self.arguments.strip_suffix(b"\0");
        match bytes {
            Some(bytes) if self.operation == Operation::Exec => {
                bytes.split(|byte| *byte == 0).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The second path of a rename or link.
    pub fn second_path(&self) -> Option<&[u8]> {
        let two = matches!(self.operation, Operation::Rename | Operation::Link);
        (two && !self.arguments.is_empty()).then_some(&self.arguments[..])
    }

    /// Whether it is the start of a program with all of its arguments.
    pub fn has_all_arguments(&self) -> bool {
        self.operation == Operation::Exec && self.is_complete
    }

    /// Whether the open is part of starting a program.
    pub fn is_for_exec(&self) -> bool {
        self.flags & record_flags::FOR_EXEC != 0
    }
}

fn has(record: &Record<'_>, flag: &str) -> bool {
    record.flags.iter().flatten().any(|have| have == flag)
}

/// The name behind `unix:/path` or `unix:@name`.
fn unix(text: &str) -> Option<Vec<u8>> {
    let mut name = unescape(text.strip_prefix("unix:")?).ok()?;
    match name.first() {
        Some(b'@') => name[0] = 0,
        Some(b'/') => {}
        _ => return None,
    }
    Some(name)
}

fn socket(record: &Record<'_>) -> Option<Asked> {
    let family = match record.family.as_deref()? {
        "unix" => return unix(record.target.as_deref()?).map(Asked::Unix),
        "unspecified" => 0,
        "inet" => 2,
        "inet6" => 10,
        other => other.parse().ok()?,
    };
    let protocol = match record.protocol.as_deref()? {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "icmpv6" => 58,
        "sctp" => 132,
        "udplite" => 136,
        other => other.parse().ok()?,
    };
    let address: SocketAddr = record.target.as_deref()?.parse().ok()?;
    let address_of = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    Some(Asked::Socket(Destination {
        family,
        protocol,
        port: address.port(),
        kind: 0,
        address: address_of(address.ip()),
    }))
}
