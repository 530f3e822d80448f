//! Descriptors that are used for more than they were opened for, or that somebody else opened. Threat: a
//! helper outside opens a secret, or connects a socket, and hands it over; an `ioctl` changes a file, or the
//! input of a terminal, without an open for writing. Choke points: `file_receive` (`SCM_RIGHTS`,
//! `pidfd_getfd`) and `file_ioctl`.

use agentguard_common::record::Destination;
use agentguard_common::table::flags::QUIET;
use agentguard_common::verdict::{Lock, Operation, Reason, Verdict, access};
use aya_ebpf::programs::LsmContext;

use super::names::{Request, judge, typed_parts};
use super::{locks, object, redirect, unix};
use crate::decide::{self, Decision, with_table};
use crate::emit;
use crate::label::{Subject, peek};
use crate::maps::PathScratch;
use crate::offsets::{self as off, field, get};
use crate::scratch;

const FMODE_READ: u32 = 1;
const FMODE_WRITE: u32 = 2;
const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
/// `FS_IOC_SETFLAGS` (64 and 32 bits), `FS_IOC_FSSETXATTR`, `FS_IOC_SETVERSION` (both), `FS_IOC_ENABLE_VERITY`,
/// `FS_IOC_SET_ENCRYPTION_POLICY`, `FS_IOC_SETFSLABEL`.
const CHANGES: [u32; 8] = [
    0x4008_6602,
    0x4004_6602,
    0x401c_5820,
    0x4008_7602,
    0x4004_7602,
    0x4080_6685,
    0x800c_6613,
    0x4100_9432,
];

hook! {
    /// `file_receive(struct file *file)`. Minimum kernel 5.7. Fails closed: a descriptor is judged as if it were opened.
    file_receive, "file_receive", Operation::Receive, |ctx, subject| received(subject, ctx.arg(0))
}

#[inline(always)]
fn received(subject: Subject, file: *const u8) -> i32 {
    // SAFETY: the hook's argument, which the verifier knows by its type, and what it points to.
    let (opened, path, aux) = unsafe {
        let object = object(file);
        if !object.node.is_null() && field!(object.node, OFF_INODE_MODE, u16) & S_IFMT == S_IFSOCK {
            return socket(subject, field!(file, OFF_FILE_PRIVATE, u64));
        }
        if object.anonymous {
            // Pipes and memory: readable and writable by their holders.
            return 0;
        }
        (
            field!(file, OFF_FILE_MODE, u32),
            typed_parts(file.add(get(&off::OFF_FILE_PATH))),
            field!(file, OFF_FILE_FLAGS, u32),
        )
    };
    let mut wanted = 0;
    if opened & FMODE_READ != 0 {
        wanted |= access::READ;
    }
    if opened & FMODE_WRITE != 0 {
        wanted |= access::WRITE;
    }
    if wanted == 0 {
        // A handle (`O_PATH`): whoever opens through it is judged then.
        return 0;
    }
    let request = Request {
        operation: Operation::Receive,
        mount: path.0,
        dentry: path.1,
        believed: false,
        wanted,
        aux,
    };
    judge(subject, request)
}

/// A socket that comes from somebody else is judged by where it is connected to.
#[inline(always)]
fn socket(subject: Subject, socket: u64) -> i32 {
    let sk: u64 = peek(socket + get(&off::OFF_SOCKET_SK) as u64, 0);
    let family: u16 = peek(sk + get(&off::OFF_SOCK_FAMILY) as u64, 0);
    if family == AF_UNIX {
        return unix::received(subject, sk);
    }
    let port = u16::from_be(peek(sk + get(&off::OFF_SOCK_DPORT) as u64, 0));
    if !matches!(family, AF_INET | AF_INET6) || port == 0 {
        // Not connected: connecting is judged.
        return 0;
    }
    let mut destination = Destination {
        family,
        protocol: peek(sk + get(&off::OFF_SOCK_PROTOCOL) as u64, 0),
        port,
        kind: peek(socket + get(&off::OFF_SOCKET_TYPE) as u64, 0),
        address: [0; 16],
    };
    if destination.protocol == 262 {
        // MPTCP is judged as TCP.
        destination.protocol = 6;
    }
    if family == AF_INET {
        let address: [u8; 4] = peek(sk + get(&off::OFF_SOCK_DADDR) as u64, [0; 4]);
        destination.address = [
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, address[0], address[1], address[2],
            address[3],
        ];
    } else {
        let address = sk + get(&off::OFF_SOCK_V6_DADDR) as u64;
        let halves: [u64; 2] = [peek(address, 0), peek(address + 8, 0)];
        destination.address[..8].copy_from_slice(&halves[0].to_ne_bytes());
        destination.address[8..].copy_from_slice(&halves[1].to_ne_bytes());
    }
    // SAFETY: the label is a live map value.
    let label = unsafe { *subject.label };
    let mut name = 0;
    let decision = match decide::policy(label.agent) {
        // The agent is gone or was never installed: deny (no-policy).
        None => Decision::failure(Reason::NoPolicy),
        Some(policy) if redirect::is_resolver(&destination) => {
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::ResolverOnly))
        }
        Some(policy) => {
            with_table!(policy, t => decide::destination(t, (label.agent, label.session), &destination, &mut name))
        }
    };
    if decision.is_unheard(QUIET) {
        return 0;
    }
    let Some(scratch) = scratch::claim::<PathScratch>() else {
        // The decision stands; only its target is missing from the record.
        return emit::bare(subject, Operation::Receive, decision);
    };
    let outcome = emit::outcome(decision);
    // SAFETY: this task owns the slot until it is released.
    unsafe {
        let header = &mut (*scratch).header;
        emit::fill(header, subject, Operation::Receive, decision, outcome);
        header.flags |= agentguard_common::record::record_flags::SOCKET;
        header.name = name;
        let tail = &raw mut (*scratch).tail;
        *tail.cast::<Destination>() = destination;
        header.target_len = size_of::<Destination>() as u32;
        emit::send::<64>(header, size_of::<Destination>() as u32, outcome);
    }
    scratch::release(scratch);
    crate::bound::verdict(outcome.refused)
}

hook! {
    /// `file_ioctl(struct file *file, unsigned int cmd, unsigned long arg)`. Minimum kernel 5.7. Fails closed.
    file_ioctl, "file_ioctl", Operation::Attribute, where |ctx| changes(ctx.arg(1)),
    |ctx, subject| ioctl(&ctx, subject)
}

hook! {
    /// `file_ioctl_compat(struct file *file, unsigned int cmd, unsigned long arg)`: of 32-bit programs. Minimum kernel
    /// 6.8 and some stable releases; where it is missing, `file_ioctl` is called for both. Fails closed.
    file_ioctl_compat, "file_ioctl_compat", Operation::Attribute, where |ctx| changes(ctx.arg(1)),
    |ctx, subject| ioctl(&ctx, subject)
}

/// Whether a command changes a file, or the input of a terminal.
#[inline(always)]
fn changes(command: u64) -> bool {
    let command = command as u32;
    is_input(command) || CHANGES.contains(&command)
}

/// Whether a command puts characters into the input of a terminal.
#[inline(always)]
fn is_input(command: u32) -> bool {
    command == TIOCSTI || command == TIOCLINUX
}

#[inline(always)]
fn ioctl(ctx: &LsmContext, subject: Subject) -> i32 {
    let command = ctx.arg::<u64>(1) as u32;
    if is_input(command) {
        return locks::bare(subject, Lock::TerminalInput, u64::from(command));
    }
    // SAFETY: the hook's argument.
    let (mount, dentry) =
        unsafe { typed_parts(ctx.arg::<*const u8>(0).add(get(&off::OFF_FILE_PATH))) };
    let request = Request {
        operation: Operation::Attribute,
        mount,
        dentry,
        believed: false,
        wanted: access::WRITE,
        aux: command,
    };
    judge(subject, request)
}
