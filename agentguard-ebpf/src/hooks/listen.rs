//! Being reached by others. Threat: an agent opens a door on the host, or answers in the place of a service.
//! Choke points: `socket_listen` for streams, by the address that the socket has by then; `socket_bind` for
//! UDP, which listens as soon as it has a port, and for abstract names of Unix-domain sockets. A path is
//! judged as a file that is made. A port that the kernel picks for a UDP socket is not judged: every client has
//! one.

use agentguard_common::record::Destination;
use agentguard_common::verdict::{Operation, Reason, Verdict, access};
use aya_ebpf::programs::LsmContext;

use super::sockets::{
    AF_INET, AF_INET6, AF_UNIX, IPPROTO_UDP, beginning, port_of, record, start, v4, v4_of, v6,
};
use super::{prepare, unix};
use crate::approval::{self, Asked, Use};
use crate::bound::{at_most, forget};
use crate::decide::{self, Decision, with_table};
use crate::emit;
use crate::label::{Subject, load, peek};
use crate::maps::{NameScratch, PATH_BUFFER};
use crate::offsets::{self as off, get};
use crate::scratch;

/// `sizeof(struct sockaddr_in)` without its padding; `SIN6_LEN_RFC2133`.
const INET_LEN: u32 = 8;
const INET6_LEN: u32 = 24;

hook! {
    /// `socket_bind(struct socket *sock, struct sockaddr *address, int addrlen)`. Minimum kernel 5.7. Fails closed.
    socket_bind, "socket_bind", Operation::Listen, |ctx, subject| bind(&ctx, subject)
}

hook! {
    /// `socket_listen(struct socket *sock, int backlog)`. Minimum kernel 5.7. Fails closed.
    socket_listen, "socket_listen", Operation::Listen, |ctx, subject| listen(&ctx, subject)
}

#[inline(always)]
fn listen(ctx: &LsmContext, subject: Subject) -> i32 {
    let socket = ctx.arg(0);
    // SAFETY: typed loads along pointers that the verifier follows.
    let (at, sk) = unsafe {
        let sk: *const u8 = load(socket, get(&off::OFF_SOCKET_SK));
        if sk.is_null() {
            return 0;
        }
        let mut at = start(socket, sk);
        at.port = load(sk, get(&off::OFF_SOCK_NUM));
        (at, sk as u64)
    };
    let address = match at.family {
        AF_INET => v4(sk + get(&off::OFF_SOCK_RCV_SADDR) as u64),
        AF_INET6 => v6(sk + get(&off::OFF_SOCK_V6_RCV_SADDR) as u64),
        // A path was judged when it was made, an abstract name when it was taken. Other families are not made.
        _ => return 0,
    };
    judge(subject, &Destination { address, ..at })
}

#[inline(always)]
fn bind(ctx: &LsmContext, subject: Subject) -> i32 {
    let (socket, address): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    let len: u64 = ctx.arg(2);
    let len = len as u32;
    // SAFETY: typed loads along pointers that the verifier follows.
    let (at, sk) = unsafe {
        let sk: *const u8 = load(socket, get(&off::OFF_SOCKET_SK));
        if sk.is_null() {
            return 0;
        }
        (start(socket, sk), sk as u64)
    };
    if at.family == AF_UNIX {
        let name = address as u64 + 2;
        // A family alone asks the kernel for a name of its own making, as a client has a port.
        if len <= 2 || peek::<u8>(name, 0) != 0 {
            return 0;
        }
        return take(subject, name, len, sk);
    }
    // Streams are judged when they listen, by the address that they have then.
    if !matches!(at.family, AF_INET | AF_INET6) || at.protocol != IPPROTO_UDP {
        return 0;
    }
    let needed = if at.family == AF_INET {
        INET_LEN
    } else {
        INET6_LEN
    };
    if len < needed {
        // The kernel refuses it.
        return 0;
    }
    // SAFETY: the hook's argument.
    let Some(start) = (unsafe { beginning(address) }) else {
        // Deny (address-unreadable).
        let decision = Decision::failure(Reason::AddressUnreadable);
        return emit::bare(subject, Operation::Listen, decision);
    };
    let port = port_of(start);
    if port == 0 {
        return 0;
    }
    let address = if at.family == AF_INET {
        v4_of(start)
    } else {
        v6(address as u64 + 8)
    };
    judge(
        subject,
        &Destination {
            port,
            address,
            ..at
        },
    )
}

/// Judges listening at an address.
#[inline(always)]
fn judge(subject: Subject, at: &Destination) -> i32 {
    // SAFETY: the label is a live map value.
    let decision = match decide::policy(unsafe { (*subject.label).agent }) {
        // The agent is gone or was never installed: deny (no-policy).
        None => Decision::failure(Reason::NoPolicy),
        Some(policy) => with_table!(policy, t => decide::listen(t, at)),
    };
    let asked = Asked::address(access::LISTEN, at);
    let decision = approval::consult(subject, decision, asked);
    record(subject, Operation::Listen, decision, at, 0, 0)
}

/// Judges taking an abstract name.
#[inline(always)]
fn take(subject: Subject, name: u64, len: u32, sk: u64) -> i32 {
    let operation = Operation::Listen;
    let (policy, scratch) = match prepare::<NameScratch>(subject, operation) {
        Ok(prepared) => prepared,
        Err(refused) => return refused,
    };
    // SAFETY: this task owns the slot until it is released.
    let refused = unsafe {
        let len = unix::abstract_name(scratch, name, len);
        let path = (&raw const (*scratch).tail as *const u8).add(size_of::<Destination>());
        let decision = if len < 0 {
            // Which name it is cannot be known: deny (address-unreadable).
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::AddressUnreadable))
        } else {
            let len = at_most(len as u32, PATH_BUFFER as u32 - 1);
            with_table!(policy, t => decide::abstract_name(t, decide::label_of(t, path, len)))
        };
        let decision = forget(&raw mut (*scratch).decision, decision);
        let asked = Asked::path(access::LISTEN, Use::Whole, path, len as u32);
        let decision = approval::consult(subject, decision, asked);
        let decision = forget(&raw mut (*scratch).decision, decision);
        unix::record(scratch, subject, operation, decision, len, sk)
    };
    scratch::release(scratch);
    crate::bound::verdict(refused)
}
