//! Reaching other hosts. Threat: an agent talks to an address that its policy does not name.
//! Choke points: `socket_connect`, and `socket_sendmsg` for whatever names its destination in the
//! message (UDP without connect, TCP fast open). Both read the address from kernel memory.

use agentguard_common::budget::kind;
use agentguard_common::record::Destination;
use agentguard_common::table::flags;
use agentguard_common::verdict::{Operation, Reason, Verdict, access};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use core::ffi::c_void;

use super::sockets::{
    AF_INET, AF_INET6, AF_UNIX, IPPROTO_MPTCP, IPPROTO_TCP, IPPROTO_UDP, beginning, beginning_at,
    copy, judged_as, port_of, record, v4_of,
};
use super::{redirect, unlabelled};
use crate::approval::{self, Asked};
use crate::bound::Words;
use crate::budget;
use crate::decide::{self, Decision, with_table};
use crate::emit;
use crate::label::{Standing, Subject, enter, load, standing};
use crate::offsets::{self as off, get};

const AF_UNSPEC: u16 = 0;
const AF_NETLINK: u16 = 16;
const AF_ALG: u16 = 38;
/// `sizeof(struct sockaddr_in)` without its padding; `SIN6_LEN_RFC2133`.
const INET_LEN: u32 = 8;
const INET6_LEN: u32 = 24;
const IPPROTO_ICMP: u16 = 1;
const IPPROTO_ICMPV6: u16 = 58;
const SOCK_STREAM: u16 = 1;
const SOCK_DGRAM: u16 = 2;

/// What an address turned out to be.
enum Address {
    /// Judge it by the network rules.
    Internet,
    /// Nothing is reached: a socket is disconnected, or the kernel itself is asked (netlink). Or a Unix-domain
    /// socket is, which `super::unix` judges when the kernel has found it.
    Nowhere,
    /// Deny with this reason.
    Refuse(Reason),
}

/// `socket_connect(struct socket *sock, struct sockaddr *address, int addrlen)`. Minimum kernel 5.7. Fails closed.
#[lsm(hook = "socket_connect")]
pub fn socket_connect(ctx: LsmContext) -> i32 {
    enter(&ctx, connect)
}

#[inline(never)]
unsafe extern "C" fn connect(ctx: *mut c_void, task: *const u8) -> i32 {
    let ctx = LsmContext::new(ctx);
    if family_of(ctx.arg(0)) == AF_UNIX {
        // Whoever connects it: `super::unix` judges what the kernel finds, and no address of another family leads anywhere.
        return 0;
    }
    match standing(task) {
        Standing::Ungoverned => 0,
        Standing::Unlabelled(membership) => unlabelled(membership, Operation::Connect),
        Standing::Governed(subject) => {
            let len: i32 = ctx.arg(2);
            let (socket, address) = (ctx.arg(0), ctx.arg(1));
            emit::noted!(
                ctx,
                "socket_connect",
                governed(subject, Operation::Connect, socket, address, len as u32)
            )
        }
    }
}

/// `socket_sendmsg(struct socket *sock, struct msghdr *msg, int size)`. Minimum kernel 5.7. Fails closed.
#[lsm(hook = "socket_sendmsg")]
pub fn socket_sendmsg(ctx: LsmContext) -> i32 {
    enter(&ctx, sendmsg)
}

#[inline(never)]
unsafe extern "C" fn sendmsg(ctx: *mut c_void, task: *const u8) -> i32 {
    let ctx = LsmContext::new(ctx);
    match standing(task) {
        Standing::Ungoverned => 0,
        Standing::Unlabelled(membership) => unlabelled(membership, Operation::Send),
        Standing::Governed(subject) => {
            let msg: *const u8 = ctx.arg(1);
            // SAFETY: fields of the hook's argument.
            let (name, len): (*const u8, u32) = unsafe {
                (
                    load(msg, get(&off::OFF_MSGHDR_NAME)),
                    load(msg, get(&off::OFF_MSGHDR_NAMELEN)),
                )
            };
            if name.is_null() || len == 0 {
                // A connected socket: judged when it connected. Families that send without ever connecting
                // (packet sockets, bound to a device) have nothing that could have been judged.
                let family = family_of(ctx.arg(0));
                if connects(family) || family == AF_ALG {
                    return 0;
                }
            }
            governed(subject, Operation::Send, ctx.arg(0), name, len)
        }
    }
}

/// `socket_create(int family, int type, int protocol, int kern)`. Minimum kernel 5.7. Fails closed. Sockets
/// that could never be judged are never made: raw and packet sockets, vsock, SCTP with its own ways to
/// connect, and whatever this version does not know.
#[lsm(hook = "socket_create")]
pub fn socket_create(ctx: LsmContext) -> i32 {
    enter(&ctx, create)
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Wanted {
    family: u16,
    kind: u16,
    protocol: u32,
}

#[inline(always)]
fn wanted(ctx: &LsmContext) -> Wanted {
    let (family, kind, protocol): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    Wanted {
        family: family as u16,
        kind: kind as u16,
        protocol: protocol as u32,
    }
}

/// Before anything else, whether it is fit: nearly all are, whoever makes them, and nothing is reached yet.
#[inline(never)]
unsafe extern "C" fn create(ctx: *mut c_void, task: *const u8) -> i32 {
    match unfit(wanted(&LsmContext::new(ctx))) {
        None => 0,
        // SAFETY: a context and a live task, as they were given.
        Some(_) => unsafe { refuse(ctx, task) },
    }
}

/// The way of the few that are not. Why is asked again: handing it on would cost those that are fit.
#[inline(never)]
unsafe extern "C" fn refuse(ctx: *mut c_void, task: *const u8) -> i32 {
    let ctx = LsmContext::new(ctx);
    let (asked, kern): (Wanted, u64) = (wanted(&ctx), ctx.arg(3));
    let operation = Operation::Socket;
    let subject = match standing(task) {
        Standing::Ungoverned => return 0,
        Standing::Unlabelled(membership) => return unlabelled(membership, operation),
        Standing::Governed(subject) => subject,
    };
    let Some(reason) = unfit(asked) else {
        return 0;
    };
    if kern as u32 != 0 {
        return 0;
    }
    // SAFETY: the label is a live map value.
    let decision = match decide::policy(unsafe { (*subject.label).agent }) {
        // The agent is gone or was never installed: deny (no-policy).
        None => Decision::failure(Reason::NoPolicy),
        Some(policy) => with_table!(policy, t => decide::fixed(t, Verdict::Deny, reason)),
    };
    let outcome = emit::outcome(decision);
    let which = u32::from(asked.family) | u32::from(asked.kind) << 16;
    emit::event(
        subject,
        operation,
        decision,
        which,
        u64::from(asked.protocol),
    );
    crate::bound::verdict(outcome.refused)
}

/// Why a socket of this kind can never be judged; `None` for those that are judged when they are used.
#[inline(always)]
fn unfit(
    Wanted {
        family,
        kind,
        protocol,
    }: Wanted,
) -> Option<Reason> {
    match family {
        AF_UNIX | AF_NETLINK => None,
        AF_INET | AF_INET6 => {
            let known = protocol == 0
                || protocol == u32::from(IPPROTO_MPTCP)
                || protocol == u32::from(IPPROTO_TCP)
                || protocol == u32::from(IPPROTO_UDP)
                || protocol == u32::from(IPPROTO_ICMP)
                || protocol == u32::from(IPPROTO_ICMPV6);
            let judged = known && matches!(kind, SOCK_STREAM | SOCK_DGRAM);
            (!judged).then_some(Reason::ProtocolNotPermitted)
        }
        _ => Some(Reason::FamilyNotPermitted),
    }
}

/// The family of a socket itself, whatever an address says; 0 if it cannot be known.
#[inline(always)]
fn family_of(socket: *const u8) -> u16 {
    // SAFETY: typed loads along pointers that the verifier follows.
    unsafe {
        let sk: *const u8 = load(socket, get(&off::OFF_SOCKET_SK));
        if sk.is_null() {
            return AF_UNSPEC;
        }
        load(sk, get(&off::OFF_SOCK_FAMILY))
    }
}

/// Families whose sockets reach only what an address that was judged here names.
#[inline(always)]
fn connects(family: u16) -> bool {
    matches!(family, AF_INET | AF_INET6 | AF_UNIX | AF_NETLINK)
}

#[inline(always)]
fn governed(
    subject: Subject,
    operation: Operation,
    socket: *const u8,
    address: *const u8,
    len: u32,
) -> i32 {
    // SAFETY: the label is a live map value.
    let label = unsafe { *subject.label };
    let Some(policy) = decide::policy(label.agent) else {
        // The agent is gone or was never installed: deny (no-policy).
        return emit::bare(subject, operation, Decision::failure(Reason::NoPolicy));
    };
    let mut name = 0;
    let mut memory = Words::new();
    // SAFETY: numbers.
    let destination: &mut Destination = unsafe { memory.zeroed() };
    let kind = read(destination, operation, socket, address, len);
    let decision = match kind {
        Address::Nowhere => return 0,
        Address::Internet if redirect::is_resolver(destination) => {
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::ResolverOnly))
        }
        Address::Internet
            if policy.flags() & flags::HAS_NAMES != 0 && redirect::is_question(destination) =>
        {
            let sending = matches!(operation, Operation::Send);
            redirect::question(subject, policy, socket, sending, destination)
        }
        Address::Internet => {
            let decision = with_table!(policy, t => decide::destination(t, (label.agent, label.session), destination, &mut name));
            let asked = Asked::address(access::CONNECT, destination);
            let decision = approval::consult(subject, decision, asked);
            budget::charge(subject, decision, kind::CONNECTS)
        }
        Address::Refuse(reason) => {
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, reason))
        }
    };
    record(subject, operation, decision, destination, name, 0)
}

#[inline(always)]
fn read(
    destination: &mut Destination,
    operation: Operation,
    socket: *const u8,
    address: *const u8,
    len: u32,
) -> Address {
    // SAFETY: typed loads along pointers that the verifier follows.
    let own_family: u16 = unsafe {
        let sk: *const u8 = load(socket, get(&off::OFF_SOCKET_SK));
        if sk.is_null() {
            return Address::Refuse(Reason::AddressUnreadable);
        }
        let kind: u16 = load(socket, get(&off::OFF_SOCKET_TYPE));
        let protocol: u16 = load(sk, get(&off::OFF_SOCK_PROTOCOL));
        destination.kind = kind;
        destination.protocol = judged_as(protocol);
        load(sk, get(&off::OFF_SOCK_FAMILY))
    };
    if !connects(own_family) {
        // Not every family reads the one in the address: a packet socket would be judged by a forged one.
        destination.family = own_family;
        return Address::Refuse(Reason::FamilyNotPermitted);
    }
    // Family and port, and the address of IPv4: all of it at once, where it is there.
    let start = if len >= INET_LEN {
        match operation {
            // SAFETY: that hook's argument.
            Operation::Connect => unsafe { beginning(address) },
            _ => beginning_at(address as u64),
        }
    } else {
        let mut family = 0u16;
        (len >= 2 && copy(&mut family, address as u64)).then_some(u64::from(family))
    };
    let Some(start) = start else {
        return Address::Refuse(Reason::AddressUnreadable);
    };
    let given = start as u16;
    destination.family = given;
    let judged = if given == AF_UNSPEC {
        if matches!(operation, Operation::Connect) {
            // Dissolves an association; nothing is reached.
            return Address::Nowhere;
        }
        // The kernel takes an unspecified family in a message for the socket's own.
        own_family
    } else {
        given
    };
    match judged {
        AF_INET => {
            if len < INET_LEN {
                return Address::Refuse(Reason::AddressUnreadable);
            }
            destination.port = port_of(start);
            destination.address = v4_of(start);
            internet(destination)
        }
        AF_INET6 => {
            if len < INET6_LEN || !copy(&mut destination.address, address as u64 + 8) {
                return Address::Refuse(Reason::AddressUnreadable);
            }
            destination.port = port_of(start);
            internet(destination)
        }
        AF_UNIX if own_family == AF_UNIX => Address::Nowhere,
        AF_NETLINK => {
            // sockaddr_nl: family, pad, pid, groups. Port id 0 without groups is the kernel; everybody else is
            // another process.
            let mut port_and_groups = 0u64;
            if len < 12 || !copy(&mut port_and_groups, address as u64 + 4) {
                return Address::Refuse(Reason::AddressUnreadable);
            }
            if port_and_groups == 0 {
                Address::Nowhere
            } else {
                Address::Refuse(Reason::FamilyNotPermitted)
            }
        }
        _ => Address::Refuse(Reason::FamilyNotPermitted),
    }
}

/// Protocols that policies speak of are judged by rules, all others refused. Raw sockets write headers,
/// and with them destinations, of their own.
#[inline(always)]
fn internet(destination: &Destination) -> Address {
    if matches!(destination.kind, SOCK_STREAM | SOCK_DGRAM)
        && matches!(
            destination.protocol,
            IPPROTO_TCP | IPPROTO_UDP | IPPROTO_ICMP | IPPROTO_ICMPV6
        )
    {
        Address::Internet
    } else {
        Address::Refuse(Reason::ProtocolNotPermitted)
    }
}
