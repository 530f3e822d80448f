//! What the hooks of internet sockets share: an address from the kernel's memory in the form of rules and records,
//! and the record of a decision about it.

use agentguard_common::record::{Destination, MAPPED};
use agentguard_common::table::flags::{FOLD, QUIET};
use agentguard_common::verdict::Operation;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

use crate::bound::bytes;
use crate::decide::Decision;
use crate::emit::{self, Facts};
use crate::label::{Subject, load, peek};
use crate::maps::PathScratch;
use crate::offsets::{self as off, get};
use crate::scratch;

pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
pub const IPPROTO_TCP: u16 = 6;
pub const IPPROTO_UDP: u16 = 17;
/// Judged as TCP: that is what goes over the wire.
pub const IPPROTO_MPTCP: u16 = 262;

/// What is known of a socket itself.
///
/// # Safety
/// The verifier must know both by their types.
#[inline(always)]
pub unsafe fn start(socket: *const u8, sk: *const u8) -> Destination {
    // SAFETY: the caller's promise.
    let (family, protocol, kind) = unsafe {
        (
            load(sk, get(&off::OFF_SOCK_FAMILY)),
            load(sk, get(&off::OFF_SOCK_PROTOCOL)),
            load(socket, get(&off::OFF_SOCKET_TYPE)),
        )
    };
    Destination {
        family,
        protocol: judged_as(protocol),
        port: 0,
        kind,
        address: [0; 16],
    }
}

/// The protocol by which rules speak of a socket's.
#[inline(always)]
pub const fn judged_as(protocol: u16) -> u16 {
    if protocol == IPPROTO_MPTCP {
        IPPROTO_TCP
    } else {
        protocol
    }
}

/// The first eight bytes of the address that `socket_connect` or `socket_bind` is given: family and port, and the
/// address of IPv4. None: on a fault. The kernel has as many in any case, but what is behind the length that it was given
/// with means nothing.
///
/// # Safety
/// It must be the hook's argument.
#[inline(always)]
pub unsafe fn beginning(address: *const u8) -> Option<u64> {
    if get(&off::PLAIN_ADDRESS) == 0 {
        return beginning_at(address as u64);
    }
    let (family, rest): (u64, u64);
    // SAFETY: the caller's promise; reads.
    unsafe {
        core::arch::asm!(
            "{family} = *(u16 *)({address} + 0)",
            "{rest} = *(u64 *)({address} + 2)",
            family = out(reg) family, rest = out(reg) rest, address = in(reg) address,
            options(readonly, nostack, preserves_flags),
        );
    }
    Some(family | rest << 16)
}

/// The same of an address anywhere in the kernel's memory.
#[inline(always)]
pub fn beginning_at(address: u64) -> Option<u64> {
    let mut start = 0u64;
    copy(&mut start, address).then_some(start)
}

/// Copies bytes of the address out of kernel memory; false on a fault.
#[inline(always)]
pub fn copy<T>(to: &mut T, from: u64) -> bool {
    // SAFETY: the helper checks the address, and every value of `T` is one.
    unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(to).cast(),
            size_of::<T>() as u32,
            from as *const _,
        ) == 0
    }
}

/// The port in the first word of an address of an internet family.
#[inline(always)]
pub const fn port_of(start: u64) -> u16 {
    u16::from_be((start >> 16) as u16)
}

/// The address in the first word of one of IPv4, in IPv6 form.
#[inline(always)]
pub fn v4_of(start: u64) -> [u8; 16] {
    bytes([0, start & V4_BITS | u64::from(MAPPED)])
}

/// Where an address of IPv4 is in the first word.
const V4_BITS: u64 = 0xffff_ffff << 32;

/// An address of IPv4 in IPv6 form.
#[inline(always)]
pub fn v4(at: u64) -> [u8; 16] {
    v4_of(u64::from(peek::<u32>(at, 0)) << 32)
}

/// An address of IPv6.
#[inline(always)]
pub fn v6(at: u64) -> [u8; 16] {
    bytes([peek(at, 0), peek(at + 8, 0)])
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
