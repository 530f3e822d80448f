//! Bytes of a ring buffer to an [`Event`], every length and number checked.

use agentguard_common::record::{Destination, HEADER_LEN, RecordHeader, record_flags};
use agentguard_common::table::{MAX_COMMAND, MAX_PATH};
use agentguard_common::verdict::{Operation, Reason, Verdict, access};
use memchr::memchr;
use thiserror::Error;
use zerocopy::FromBytes;

use super::{Event, Target};

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// Fewer bytes than a header.
    #[error("record of {0} bytes is shorter than its header ({HEADER_LEN} bytes)")]
    Short(usize),
    /// The header's length does not fit the bytes or the parts of the tail.
    #[error("record says {said} bytes, its parts need {parts}, {got} bytes arrived")]
    Length {
        /// `len` of the header.
        said: u32,
        /// Header and tail together.
        parts: u64,
        /// Bytes that arrived.
        got: usize,
    },
    /// The operation's number is unknown.
    #[error("operation {0} is unknown")]
    Operation(u8),
    /// The verdict's number is unknown.
    #[error("verdict {0} is unknown")]
    Verdict(u8),
    /// The reason's number is unknown.
    #[error("reason {0} is unknown")]
    Reason(u16),
    /// An access bit is unknown.
    #[error("access bits {0:#x} are unknown")]
    Access(u8),
    /// The target is too long, or not of a form that the operation has.
    #[error("target of {len} bytes is impossible for {operation}", operation = .operation.name())]
    Target {
        /// The operation.
        operation: Operation,
        /// `target_len` of the header.
        len: u32,
    },
    /// The path contains a NUL, which no path can.
    #[error("path contains a NUL at byte {0}")]
    PathNul(usize),
    /// The arguments are too long, or the operation has none.
    #[error("{len} bytes of arguments are impossible for {operation}", operation = .operation.name())]
    Arguments {
        /// The operation.
        operation: Operation,
        /// `args_len` of the header.
        len: u32,
    },
}

/// Decodes one record. Bytes after `len` are ignored (a ring reserves in fixed steps).
pub fn decode(bytes: &[u8]) -> Result<Event<'_>, Malformed> {
    let (header, tail) =
        RecordHeader::read_from_prefix(bytes).map_err(|_| Malformed::Short(bytes.len()))?;
    let parts = HEADER_LEN as u64 + u64::from(header.target_len) + u64::from(header.args_len);
    if u64::from(header.len) != parts || parts > bytes.len() as u64 {
        return Err(Malformed::Length {
            said: header.len,
            parts,
            got: bytes.len(),
        });
    }
    let operation =
        Operation::from_number(header.operation).ok_or(Malformed::Operation(header.operation))?;
    let verdict = Verdict::from_number(header.verdict).ok_or(Malformed::Verdict(header.verdict))?;
    let reason = Reason::from_number(header.reason).ok_or(Malformed::Reason(header.reason))?;
    if header.access & !(access::READ | access::WRITE | access::EXEC) != 0 {
        return Err(Malformed::Access(header.access));
    }
    let (target, rest) = tail.split_at(header.target_len as usize);
    let arguments = &rest[..header.args_len as usize];
    check_arguments(operation, arguments)?;
    Ok(Event {
        operation,
        verdict,
        reason,
        access: header.access,
        flags: header.flags,
        time: header.time,
        agent: header.agent,
        session: header.session,
        generation: header.generation,
        errno: header.errno,
        pid: header.pid,
        tid: header.tid,
        ppid: header.ppid,
        uid: header.uid,
        euid: header.euid,
        exec_id: header.exec_id,
        new_exec_id: header.new_exec_id,
        inode: header.inode,
        device: header.device,
        aux: header.aux,
        name: header.name,
        target: target_of(operation, header.flags & record_flags::SOCKET != 0, target)?,
        arguments,
    })
}

/// Arguments of an exec, or the second path of what has two.
fn check_arguments(operation: Operation, bytes: &[u8]) -> Result<(), Malformed> {
    let longest = match operation {
        _ if bytes.is_empty() => return Ok(()),
        Operation::Exec => MAX_COMMAND,
        Operation::Rename | Operation::Link => {
            if let Some(at) = memchr(0, bytes) {
                return Err(Malformed::PathNul(at));
            }
            MAX_PATH
        }
        _ => 0,
    };
    if bytes.len() > longest {
        return Err(Malformed::Arguments {
            operation,
            len: bytes.len() as u32,
        });
    }
    Ok(())
}

/// A destination, and perhaps the name of a Unix-domain socket behind it.
fn socket_of(bytes: &[u8]) -> Option<Target<'_>> {
    match Destination::read_from_prefix(bytes) {
        Ok((destination, [])) => Some(Target::Socket(destination)),
        Ok((destination, name)) if name.len() <= MAX_PATH => Some(Target::Unix(destination, name)),
        _ => None,
    }
}

/// The target in the form that its operation has.
fn target_of(operation: Operation, socket: bool, bytes: &[u8]) -> Result<Target<'_>, Malformed> {
    let impossible = Malformed::Target {
        operation,
        len: bytes.len() as u32,
    };
    if bytes.is_empty() {
        return Ok(Target::Unnamed);
    }
    match operation {
        Operation::Receive if socket => socket_of(bytes).ok_or(impossible),
        Operation::Exec
        | Operation::Open
        | Operation::Rename
        | Operation::Link
        | Operation::Unlink
        | Operation::Rmdir
        | Operation::Mkdir
        | Operation::Create
        | Operation::Mknod
        | Operation::Symlink
        | Operation::Truncate
        | Operation::Chmod
        | Operation::Chown
        | Operation::Attribute
        | Operation::Map
        | Operation::Receive
        | Operation::Kernel => {
            if bytes.len() > MAX_PATH {
                return Err(impossible);
            }
            match memchr(0, bytes) {
                Some(at) => Err(Malformed::PathNul(at)),
                None => Ok(Target::Path(bytes)),
            }
        }
        Operation::Connect | Operation::Send | Operation::Listen => {
            socket_of(bytes).ok_or(impossible)
        }
        Operation::Fork | Operation::Exit | Operation::Attach | Operation::Socket => {
            Err(impossible)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;

    fn record(operation: Operation, target: &[u8], arguments: &[u8]) -> (RecordHeader, Vec<u8>) {
        let header = RecordHeader {
            len: (HEADER_LEN + target.len() + arguments.len()) as u32,
            operation: operation as u8,
            verdict: Verdict::Deny as u8,
            access: access::READ,
            reason: Reason::Rule as u16,
            target_len: target.len() as u32,
            args_len: arguments.len() as u32,
            pid: 42,
            ..RecordHeader::default()
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(target);
        bytes.extend_from_slice(arguments);
        (header, bytes)
    }

    /// The error that a header gives after one change.
    fn refused(change: impl FnOnce(&mut RecordHeader)) -> Malformed {
        let (mut header, mut bytes) = record(Operation::Open, b"/etc/passwd", b"");
        change(&mut header);
        bytes[..HEADER_LEN].copy_from_slice(header.as_bytes());
        decode(&bytes).unwrap_err()
    }

    #[test]
    fn an_open_has_its_path() {
        let (_, bytes) = record(Operation::Open, b"/tmp/a\nb", b"");
        let event = decode(&bytes).unwrap();
        assert_eq!(event.path(), Some(&b"/tmp/a\nb"[..]));
        assert!(event.is_denied());
        assert_eq!(event.argv().count(), 0);
    }

    #[test]
    fn an_exec_has_its_arguments() {
        let (mut header, mut bytes) = record(Operation::Exec, b"/bin/sh", b"sh\0\0-c\0");
        header.aux = 3;
        bytes[..HEADER_LEN].copy_from_slice(header.as_bytes());
        let event = decode(&bytes).unwrap();
        let argv: Vec<_> = event.argv().collect();
        assert_eq!(argv, [&b"sh"[..], b"", b"-c"]);
        assert!(event.argv_is_complete());
    }

    #[test]
    fn one_empty_argument_is_not_no_argument() {
        let (_, bytes) = record(Operation::Exec, b"/bin/sh", b"\0");
        assert_eq!(
            decode(&bytes).unwrap().argv().collect::<Vec<_>>(),
            [&b""[..]]
        );
    }

    #[test]
    fn a_connect_has_its_destination() {
        let destination = Destination {
            family: 2,
            protocol: 6,
            port: 443,
            kind: 1,
            address: [1; 16],
        };
        let (_, bytes) = record(Operation::Connect, destination.as_bytes(), b"");
        assert_eq!(decode(&bytes).unwrap().target, Target::Socket(destination));
    }

    #[test]
    fn a_unix_socket_has_its_name() {
        let destination = Destination {
            family: 1,
            kind: 1,
            ..Destination::default()
        };
        let mut target = destination.as_bytes().to_vec();
        target.extend_from_slice(b"\0abstract");
        let (_, bytes) = record(Operation::Connect, &target, b"");
        let expected = Target::Unix(destination, b"\0abstract");
        assert_eq!(decode(&bytes).unwrap().target, expected);
        target.resize(24 + MAX_PATH + 1, b'x');
        let (_, bytes) = record(Operation::Connect, &target, b"");
        assert!(matches!(decode(&bytes), Err(Malformed::Target { .. })));
    }

    #[test]
    fn slack_after_the_record_is_ignored() {
        let (_, mut bytes) = record(Operation::Open, b"/x", b"");
        bytes.extend_from_slice(b"garbage");
        assert_eq!(decode(&bytes).unwrap().path(), Some(&b"/x"[..]));
    }

    #[test]
    fn each_damage_has_its_error() {
        assert_eq!(decode(b"abc"), Err(Malformed::Short(3)));
        assert_eq!(refused(|h| h.operation = 99), Malformed::Operation(99));
        assert_eq!(refused(|h| h.operation = 0), Malformed::Operation(0));
        assert_eq!(refused(|h| h.verdict = 5), Malformed::Verdict(5));
        assert_eq!(refused(|h| h.reason = 999), Malformed::Reason(999));
        assert_eq!(refused(|h| h.access = 0x80), Malformed::Access(0x80));
        assert!(matches!(refused(|h| h.len += 1), Malformed::Length { .. }));
        assert!(matches!(
            refused(|h| {
                h.target_len = u32::MAX;
                h.args_len = u32::MAX;
                h.len = u32::MAX;
            }),
            Malformed::Length { .. }
        ));
        assert!(matches!(
            refused(|h| h.operation = Operation::Connect as u8),
            Malformed::Target { len: 11, .. }
        ));
        assert!(matches!(
            refused(|h| h.operation = Operation::Fork as u8),
            Malformed::Target { .. }
        ));
        let (_, bytes) = record(Operation::Open, b"/a\0b", b"");
        assert_eq!(decode(&bytes), Err(Malformed::PathNul(2)));
        let (_, bytes) = record(Operation::Open, b"/a", b"x\0");
        assert!(matches!(decode(&bytes), Err(Malformed::Arguments { .. })));
        let (_, bytes) = record(Operation::Open, &[b'a'; MAX_PATH + 1], b"");
        assert!(matches!(decode(&bytes), Err(Malformed::Target { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_event_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn a_damaged_header_never_panics(at in 0..HEADER_LEN, value: u8, cut in 0..140usize) {
            let (_, mut bytes) = record(Operation::Exec, b"/usr/bin/python3", b"python3\0-c\0pass\0");
            bytes[at] = value;
            bytes.truncate(cut);
            if let Ok(event) = decode(&bytes) {
                let _ = event.argv().count();
            }
        }

        #[test]
        fn what_is_written_is_read(target in proptest::collection::vec(1u8.., 1..MAX_PATH),
                                   argv in proptest::collection::vec(proptest::collection::vec(1u8.., 0..20), 0..20)) {
            let mut arguments = Vec::new();
            for argument in &argv {
                arguments.extend_from_slice(argument);
                arguments.push(0);
            }
            let (_, bytes) = record(Operation::Exec, &target, &arguments);
            let event = decode(&bytes).unwrap();
            prop_assert_eq!(event.path(), Some(&target[..]));
            let read: Vec<_> = event.argv().map(<[u8]>::to_vec).collect();
            prop_assert_eq!(read, argv);
        }
    }
}
