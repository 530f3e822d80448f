//! Unix-domain sockets. Threat: an agent asks somebody with more rights (a container engine, D-Bus, an agent
//! for keys) to act for it. Choke points: `unix_stream_connect` (streams and sequenced packets) and
//! `unix_may_send` (datagrams, connected or not). Both are handed the socket that is reached, so its own name
//! is judged, and not what the caller wrote: links, relative names and other mounts have no say.

use agentguard_common::record::{Destination, record_flags};
use agentguard_common::table::flags::QUIET;
use agentguard_common::verdict::{Operation, Reason, Verdict, access};
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

use super::names::{parts, send};
use super::prepare;
use super::sockets::AF_UNIX;
use crate::approval::{self, Asked, Use};
use crate::bound::{at_most, forget};
use crate::climb::climb;
use crate::decide::{self, Decision, with_table};
use crate::emit;
use crate::label::{self, Subject, peek};
use crate::maps::{NameScratch, PATH_BUFFER};
use crate::offsets::{self as off, get};
use crate::scratch;

/// Bytes of a record before the name.
const HEAD: u32 = size_of::<Destination>() as u32;
/// Longest name in an address, and the bytes before it.
const NAME_MAX: u32 = 108;
const NAME_AT: u32 = 2;
const EINVAL: i64 = -22;
const EFAULT: i64 = -14;

hook! {
    /// `unix_stream_connect(struct sock *sock, struct sock *other, struct sock *newsk)`. Minimum kernel 5.7. Fails
    /// closed.
    unix_stream_connect, "unix_stream_connect", Operation::Connect, |ctx, subject| {
        reach(subject, Operation::Connect, ctx.arg(1))
    }
}

hook! {
    /// `unix_may_send(struct socket *sock, struct socket *other)`. Minimum kernel 5.7. Fails closed. Connecting a
    /// datagram socket comes here as well, and is a `send` in the record.
    unix_may_send, "unix_may_send", Operation::Send, |ctx, subject| {
        let own: u64 = peek(ctx.arg::<u64>(0) + get(&off::OFF_SOCKET_SK) as u64, 0);
        let other: u64 = peek(ctx.arg::<u64>(1) + get(&off::OFF_SOCKET_SK) as u64, 0);
        if other != 0 && peek::<u64>(own + get(&off::OFF_UNIX_PEER) as u64, 0) == other {
            // Judged when it was connected, or made as one of a pair.
            return 0;
        }
        reach(subject, Operation::Send, other)
    }
}

/// A socket that comes from somebody else, judged by where it is connected to.
#[inline(always)]
pub fn received(subject: Subject, sk: u64) -> i32 {
    let peer: u64 = peek(sk + get(&off::OFF_UNIX_PEER) as u64, 0);
    if peer == 0 || peek::<u64>(peer + get(&off::OFF_UNIX_ADDR) as u64, 0) == 0 {
        // Not connected: connecting is judged. Or to a socket without a name: one of a pair, or a client.
        return 0;
    }
    reach(subject, Operation::Receive, peer)
}

/// Judges reaching a socket by its name.
#[inline(always)]
fn reach(subject: Subject, operation: Operation, sk: u64) -> i32 {
    let (policy, scratch) = match prepare::<NameScratch>(subject, operation) {
        Ok(prepared) => prepared,
        Err(refused) => return refused,
    };
    // SAFETY: this task owns the slot until it is released.
    let refused = unsafe {
        let len = name(scratch, subject.task, sk);
        let kept = &raw mut (*scratch).decision;
        let path = (&raw const (*scratch).tail as *const u8).add(HEAD as usize);
        let decision = if len < 0 {
            // Which socket it is cannot be known: deny (path-unreadable).
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::PathUnreadable))
        } else {
            let len = at_most(len as u32, PATH_BUFFER as u32 - 1);
            with_table!(policy, t => decide::unix(t, decide::label_of(t, path, len)))
        };
        let decision = forget(kept, decision);
        let decision =
            if decision.reason == Reason::UnixSocket as u32 && label::made_by(subject, sk) {
                decision.with(Verdict::Allow, Reason::OwnSocket)
            } else {
                decision
            };
        let decision = forget(kept, decision);
        let decision = if matches!(operation, Operation::Receive) {
            decision
        } else {
            let asked = Asked::path(access::CONNECT, Use::Whole, path, len as u32);
            forget(kept, approval::consult(subject, decision, asked))
        };
        record(scratch, subject, operation, decision, len, sk)
    };
    scratch::release(scratch);
    crate::bound::verdict(refused)
}

/// Writes the name of a socket behind the head of the record: a path, or a NUL and an abstract name. Its length,
/// or a negative errno.
///
/// # Safety
/// The caller owns the slot.
#[inline(always)]
unsafe fn name(scratch: *mut NameScratch, task: *const u8, sk: u64) -> i64 {
    let (mount, dentry) = parts(sk + get(&off::OFF_UNIX_PATH) as u64);
    if dentry != 0 {
        // SAFETY: the caller's promise.
        return unsafe { climb(scratch, task, mount, dentry, HEAD) };
    }
    let address: u64 = peek(sk + get(&off::OFF_UNIX_ADDR) as u64, 0);
    if address == 0 {
        return EINVAL;
    }
    let len: u32 = peek(address + get(&off::OFF_UNIX_ADDRESS_LEN) as u64, 0);
    let at = address + get(&off::OFF_UNIX_ADDRESS_NAME) as u64 + u64::from(NAME_AT);
    // SAFETY: as above.
    unsafe { abstract_name(scratch, at, len) }
}

/// The same for an abstract name in an address of `len` bytes.
///
/// # Safety
/// The caller owns the slot.
#[inline(always)]
pub unsafe fn abstract_name(scratch: *mut NameScratch, at: u64, len: u32) -> i64 {
    if len <= NAME_AT || len > NAME_AT + NAME_MAX {
        return EINVAL;
    }
    let len = at_most(len - NAME_AT, NAME_MAX);
    // SAFETY: the caller's promise; bounded just above.
    unsafe {
        let to = (&raw mut (*scratch).tail as *mut u8).add(HEAD as usize);
        if bpf_probe_read_kernel(to.cast(), len, at as *const _) != 0 || *to != 0 {
            // A path without its entry: the socket is going away.
            return EFAULT;
        }
    }
    i64::from(len)
}

/// Leaves the record of a decision about a socket whose name is in the slot; whether it is refused.
///
/// # Safety
/// The caller owns the slot.
#[inline(always)]
pub unsafe fn record(
    scratch: *mut NameScratch,
    subject: Subject,
    operation: Operation,
    decision: Decision,
    len: i64,
    sk: u64,
) -> bool {
    if decision.is_unheard(QUIET) {
        return false;
    }
    let outcome = emit::outcome(decision);
    // SAFETY: the caller's promise.
    unsafe {
        let header = &mut (*scratch).header;
        emit::fill(header, subject, operation, decision, outcome);
        if matches!(operation, Operation::Receive) {
            header.flags |= record_flags::SOCKET;
        }
        let head = (&raw mut (*scratch).tail).cast::<Destination>();
        // By words: the linker makes a call of `memset` of what the compiler writes.
        let kind: u16 = peek(sk + get(&off::OFF_SOCK_TYPE) as u64, 0);
        let words = head.cast::<u64>();
        words.write_volatile(u64::from(AF_UNIX) | u64::from(kind) << 48);
        words.add(1).write_volatile(0);
        words.add(2).write_volatile(0);
        let name = if len < 0 {
            header.errno = -len as u16;
            0
        } else {
            at_most(len as u32, PATH_BUFFER as u32 - 1)
        };
        header.target_len = HEAD + name;
        send(scratch, HEAD + name, outcome);
    }
    outcome.refused
}
