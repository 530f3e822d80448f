//! What the hooks of internet sockets share: an address from the kernel's memory in the form of rules and records,
//! and the record of a decision about it.

use agentguard_common::record::Destination;
use agentguard_common::table::flags::{FOLD, QUIET};
use agentguard_common::verdict::Operation;

use crate::decide::Decision;
use crate::emit::{self, Facts};
use crate::label::{Subject, peek};
use crate::maps::PathScratch;
use crate::offsets::{self as off, get};
use crate::scratch;

pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
pub const IPPROTO_TCP: u16 = 6;
pub const IPPROTO_UDP: u16 = 17;
/// Judged as TCP.
const IPPROTO_MPTCP: u16 = 262;

/// What is known of a socket itself.
#[inline(always)]
pub fn start(socket: u64, sk: u64) -> Destination {
    let protocol: u16 = peek(sk + get(&off::OFF_SOCK_PROTOCOL) as u64, 0);
    Destination {
        family: peek(sk + get(&off::OFF_SOCK_FAMILY) as u64, 0),
        protocol: if protocol == IPPROTO_MPTCP {
            IPPROTO_TCP
        } else {
            protocol
        },
        port: 0,
        kind: peek(socket + get(&off::OFF_SOCKET_TYPE) as u64, 0),
        address: [0; 16],
    }
}

/// An address of IPv4 in IPv6 form.
#[inline(always)]
pub fn v4(at: u64) -> [u8; 16] {
    let [a, b, c, d]: [u8; 4] = peek(at, [0; 4]);
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// An address of IPv6.
#[inline(always)]
pub fn v6(at: u64) -> [u8; 16] {
    let mut address = [0; 16];
    let halves: [u64; 2] = [peek(at, 0), peek(at + 8, 0)];
    address[..8].copy_from_slice(&halves[0].to_ne_bytes());
    address[8..].copy_from_slice(&halves[1].to_ne_bytes());
    address
}

/// Leaves the record of a decision about an address, with the number of the name that opened it and flags of its
/// own; gives the verdict.
#[inline(always)]
pub fn record(
    subject: Subject,
    operation: Operation,
    decision: Decision,
    address: &Destination,
    name: u32,
    flags: u8,
) -> i32 {
    const LEN: u32 = size_of::<Destination>() as u32;
    if decision.is_unheard(QUIET) {
        return 0;
    }
    let outcome = emit::outcome(decision);
    if decision.flags & FOLD == 0 {
        let facts = Facts {
            flags,
            target_len: u64::from(LEN),
            ..Facts::default()
        };
        emit::build(
            subject,
            operation,
            decision,
            outcome,
            facts,
            |header, tail| {
                header.name = name;
                *tail = *address;
            },
        );
        return crate::bound::verdict(outcome.refused);
    }
    let Some(scratch) = scratch::claim::<PathScratch>() else {
        // The decision stands; only its target is missing from the record.
        return emit::bare(subject, operation, decision);
    };
    // SAFETY: this task owns the slot until it is released.
    unsafe {
        let header = &mut (*scratch).header;
        emit::fill(header, subject, operation, decision, outcome);
        header.flags |= flags;
        header.name = name;
        *(&raw mut (*scratch).tail).cast::<Destination>() = *address;
        header.target_len = LEN;
        emit::send_or_count::<64>(header, LEN, decision, outcome);
    }
    scratch::release(scratch);
    crate::bound::verdict(outcome.refused)
}
