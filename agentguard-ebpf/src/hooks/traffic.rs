//! Bytes and packets of an agent's sockets, by protocol and destination. Choke points: what a socket of the agent's
//! cgroup hands to the network layer, and what it is handed, pass these programs.
//!
//! They count, and let every packet go on but those for which a budget of bytes has no room ([`admit`]). Each byte is
//! counted once for each socket that sends or receives it: in the row of its destination, or, where there is no row,
//! in the agent's account. They must never leave a byte of an agent out, and never count one of anybody else.

use agentguard_common::budget::kind;
use agentguard_common::label::Membership;
use agentguard_common::opened::Address;
use agentguard_common::table::flags;
use agentguard_common::traffic::{Counts, FLOWS_EACH, Flow, Owner, Row, UNREADABLE};
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_sk_storage_get, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id, bpf_skb_load_bytes,
};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use core::ptr::read_volatile;

use crate::atomic;
use crate::bound::Words;
use crate::budget::charged;
use crate::decide;
use crate::maps::{ACCOUNTS, CGROUPS, FLOWS, OWNERS};
use crate::opened::opened;

/// Levels of cgroups below the root at which an agent's can be.
const MAX_DEPTH: i32 = 64;
/// Headers between that of IPv6 and that of the protocol. With more, the next one is taken for the protocol.
const MAX_EXTENSIONS: u32 = 8;
/// `BPF_SK_STORAGE_GET_F_CREATE`.
const CREATE: u64 = 1;
/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;
/// Lengths of the headers of both versions of IP, and of what has both ports behind them.
const V4: usize = 20;
const V6: usize = 40;
const PORTS: usize = 4;
const TCP: u16 = 6;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const TCP_SYN_SENT: u32 = 2;
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;

/// Seen from the agent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// Whether a packet may go on: a budget of bytes that has no room for it refuses it, before it is counted.
#[inline(always)]
fn admit(who: Membership, direction: Direction, bytes: u64) -> bool {
    // Without a policy there is no budget, and nobody who could do anything.
    let Some(policy) = decide::policy(who.agent) else {
        return true;
    };
    let kind = match direction {
        Direction::In => kind::RECEIVED,
        Direction::Out => kind::SENT,
    };
    let has = policy.flags();
    if has >> flags::BUDGETS & kind == 0 {
        return true;
    }
    charged(who.agent, kind, bytes as u32) == 0 || has & flags::SHADOW != 0
}

/// What both programs do: 1 lets the packet go on.
#[inline(always)]
fn count(skb: *mut __sk_buff, direction: Direction) -> i32 {
    let mut memory = Words::new();
    // SAFETY: numbers.
    let flow: &mut Flow = unsafe { memory.zeroed() };
    flow.protocol = UNREADABLE;
    read_headers(skb, direction, flow);
    let Some((who, called)) = owner(skb, direction, flow.protocol == TCP) else {
        return 1;
    };
    // SAFETY: a field of the context.
    let bytes = u64::from(unsafe { read_volatile(&raw const (*skb).len) });
    if !admit(who, direction, bytes) {
        return 0;
    }
    flow.agent = who.agent;
    flow.session = who.session;
    if called {
        flow.port = 0;
    }
    let counts = counts_of(flow, called);
    if !counts.is_null() {
        add(counts, direction, bytes);
    }
    1
}

#[inline(always)]
fn add(counts: *mut Counts, direction: Direction, bytes: u64) {
    // SAFETY: fields of a live map value, which everybody changes atomically.
    unsafe {
        let (sum, packets) = match direction {
            Direction::In => (&raw mut (*counts).bytes_in, &raw mut (*counts).packets_in),
            Direction::Out => (&raw mut (*counts).bytes_out, &raw mut (*counts).packets_out),
        };
        atomic::add(sum, bytes);
        atomic::add(packets, 1);
    }
}

/// The counters of a row, made if need be, or else those for everything without one.
#[inline(always)]
fn counts_of(flow: &Flow, called: bool) -> *mut Counts {
    if let Some(row) = FLOWS.get_ptr_mut(flow) {
        // SAFETY: a field of a live map value.
        return unsafe { &raw mut (*row).counts };
    }
    let Some(account) = ACCOUNTS.get_ptr_mut(flow.agent) else {
        return core::ptr::null_mut();
    };
    // SAFETY: fields of a live map value.
    let (rest, rows) = unsafe { (&raw mut (*account).rest, &raw mut (*account).rows) };
    if atomic::read(rows) >= FLOWS_EACH {
        return rest;
    }
    let row = Row {
        name: if called { 0 } else { name_of(flow) },
        ..Row::default()
    };
    // Another processor may make it at the same time: the row is whoever's was first.
    if FLOWS.insert(flow, &row, NO_EXIST).is_ok() {
        atomic::add(rows, 1);
    }
    match FLOWS.get_ptr_mut(flow) {
        // SAFETY: a field of a live map value.
        Some(row) => unsafe { &raw mut (*row).counts },
        None => rest,
    }
}

/// Number of the name that opened the address.
#[inline(always)]
fn name_of(flow: &Flow) -> u32 {
    let key = Address {
        agent: flow.agent,
        session: flow.session,
        address: flow.address,
    };
    opened(&key, u64::from(flow.port), u64::from(flow.protocol)) as u32
}

/// Whose socket a packet is of, and whether that one is called by others. `None`: nobody's who is governed.
#[inline(always)]
fn owner(skb: *mut __sk_buff, direction: Direction, is_tcp: bool) -> Option<(Membership, bool)> {
    // SAFETY: a field of the context; the helpers take the socket that the kernel put there, and give memory that
    // goes with it.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        let state = if is_tcp {
            read_volatile(&raw const (*sk).state)
        } else {
            0
        };
        let known =
            bpf_sk_storage_get(OWNERS.as_ptr(), sk.cast(), core::ptr::null_mut(), 0) as *mut Owner;
        if !known.is_null() {
            // A socket may listen after it called, and call after it was accepted.
            if state == TCP_LISTEN {
                (*known).called = 1;
            } else if state == TCP_SYN_SENT {
                (*known).called = 0;
            }
            let cgroup = (*known).cgroup;
            if let Some(who) = CGROUPS.get(&cgroup) {
                return Some((*who, (*known).called != 0));
            }
        }
        let (cgroup, who, is_own) = governed(skb)?;
        let first = if is_tcp {
            // A request that is not accepted yet has no memory of its own.
            state == TCP_LISTEN || state == TCP_NEW_SYN_RECV
        } else {
            direction == Direction::In
        };
        if !known.is_null() {
            // The agent of before has gone, and another one has the cgroup.
            (*known).cgroup = cgroup;
            return Some((who, (*known).called != 0));
        }
        if is_tcp && !first && is_own {
            // One that called, in the agent's very cgroup: the same is found again as quickly as it is remembered, and
            // most live for a few packets.
            return Some((who, false));
        }
        let mut value = Owner {
            cgroup,
            called: u32::from(first),
            reserved: 0,
        };
        // Where there is no memory, the next packet tries again.
        bpf_sk_storage_get(OWNERS.as_ptr(), sk.cast(), (&raw mut value).cast(), CREATE);
        Some((who, first))
    }
}

/// The nearest governed cgroup of a packet's socket, and whether it is the socket's own. The kernel notes a socket's
/// cgroup when it is made, and it stays.
#[inline(always)]
fn governed(skb: *mut __sk_buff) -> Option<(u64, Membership, bool)> {
    // SAFETY: the helpers take the context; entries are copied before anything else happens.
    unsafe {
        let own = bpf_skb_cgroup_id(skb);
        if let Some(who) = CGROUPS.get(&own) {
            return Some((own, *who, true));
        }
        let mut level = MAX_DEPTH;
        while level > 0 {
            level -= 1;
            // 0 where the socket's cgroup is not that deep.
            let id = bpf_skb_ancestor_cgroup_id(skb, level);
            if let Some(who) = CGROUPS.get(&id) {
                return Some((id, *who, false));
            }
        }
        None
    }
}

/// Bytes of a packet, from the header of IP on.
#[inline(always)]
fn bytes<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: a buffer of this length.
    let status =
        unsafe { bpf_skb_load_bytes(skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) };
    (status == 0).then_some(bytes)
}

/// Puts into a flow what the headers say, if they are there.
///
/// VERIFIER: all kernels: as an optional value, its parts would be registers that nobody has written where it is none,
/// and LLVM keeps those on the stack.
#[inline(always)]
fn read_headers(skb: *mut __sk_buff, direction: Direction, flow: &mut Flow) {
    if read_linear(skb, direction, flow) {
        return;
    }
    match bytes(skb, 0) {
        Some([first]) if first >> 4 == 4 => read_v4(skb, direction, flow),
        Some([first]) if first >> 4 == 6 => read_v6(skb, direction, flow),
        _ => {}
    }
}

/// The same, without calls, for what nearly all packets are: headers in one piece, without options and extensions, and
/// no fragment. False: nothing was put there.
#[inline(always)]
fn read_linear(skb: *mut __sk_buff, direction: Direction, flow: &mut Flow) -> bool {
    // SAFETY: fields of the context; the verifier sees that nothing behind the end is read.
    unsafe {
        let packet = read_volatile(&raw const (*skb).data) as usize as *const u8;
        let end = read_volatile(&raw const (*skb).data_end) as usize as *const u8;
        let at = |index: usize| read_volatile(packet.add(index));
        let other = match direction {
            Direction::In => 0,
            Direction::Out => 1,
        };
        if packet.add(V4 + PORTS) > end {
            return false;
        }
        if at(0) == 0x45 {
            if at(6) & 0x1f | at(7) != 0 {
                return false;
            }
            flow.address[10] = 0xff;
            flow.address[11] = 0xff;
            copy_word(flow, 12, packet.add(12 + 4 * other));
            let protocol = at(9);
            flow.protocol = u16::from(protocol);
            if has_ports(protocol) {
                let port = V4 + 2 * other;
                flow.port = u16::from_be_bytes([at(port), at(port + 1)]);
            }
            return true;
        }
        if at(0) >> 4 != 6 || packet.add(V6 + PORTS) > end {
            return false;
        }
        let protocol = at(6);
        if !has_ports(protocol) {
            return false;
        }
        let mut i = 0;
        while i < 16 {
            copy_word(flow, i, packet.add(8 + 16 * other + i));
            i += 4;
        }
        flow.protocol = u16::from(protocol);
        let port = V6 + 2 * other;
        flow.port = u16::from_be_bytes([at(port), at(port + 1)]);
        true
    }
}

/// Copies four bytes of a packet into the address, from a place that is a multiple of four on.
///
/// # Safety
/// The packet must go on for as long.
#[inline(always)]
unsafe fn copy_word(flow: &mut Flow, to: usize, from: *const u8) {
    // SAFETY: the caller's promise. x86-64, where words may lie anywhere in a packet; the address begins at a multiple of
    // four, behind two numbers.
    unsafe {
        let word = from.cast::<u32>().read_volatile();
        let at = (&raw mut flow.address).cast::<u8>().add(to);
        at.cast::<u32>().write_volatile(word);
    }
}

#[inline(always)]
fn read_v4(skb: *mut __sk_buff, direction: Direction, flow: &mut Flow) {
    let Some(header) = bytes::<20>(skb, 0) else {
        return;
    };
    let at = match direction {
        Direction::In => 12,
        Direction::Out => 16,
    };
    flow.address[10] = 0xff;
    flow.address[11] = 0xff;
    let mut i = 0;
    while i < 4 {
        flow.address[12 + i] = header[at + i];
        i += 1;
    }
    let protocol = header[9];
    flow.protocol = u16::from(protocol);
    let is_later = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    if !is_later {
        flow.port = port_of(skb, u32::from(header[0] & 15) * 4, protocol, direction);
    }
}

#[inline(always)]
fn read_v6(skb: *mut __sk_buff, direction: Direction, flow: &mut Flow) {
    let at = match direction {
        Direction::In => 8,
        Direction::Out => 24,
    };
    let (Some([next]), Some(address)) = (bytes(skb, 6), bytes(skb, at)) else {
        return;
    };
    flow.address = address;
    let (mut protocol, mut at) = (next, 40);
    let mut i = 0;
    while i < MAX_EXTENSIONS && matches!(protocol, 0 | 43 | 44 | 51 | 60) {
        let Some(header) = bytes::<4>(skb, at) else {
            break;
        };
        let len = u32::from(header[1]);
        let is_later =
            protocol == FRAGMENT && u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0;
        at += match protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (len + 2) * 4,
            _ => (len + 1) * 8,
        };
        protocol = header[0];
        if is_later {
            flow.protocol = u16::from(protocol);
            return;
        }
        i += 1;
    }
    flow.protocol = u16::from(protocol);
    flow.port = port_of(skb, at, protocol, direction);
}

/// TCP, UDP, DCCP, SCTP, UDP-Lite.
#[inline(always)]
const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 33 | 132 | 136)
}

/// The other side's port, of a protocol that has ports.
#[inline(always)]
fn port_of(skb: *mut __sk_buff, at: u32, protocol: u8, direction: Direction) -> u16 {
    if !has_ports(protocol) {
        return 0;
    }
    let at = match direction {
        Direction::In => at,
        Direction::Out => at + 2,
    };
    bytes(skb, at).map_or(0, u16::from_be_bytes)
}

/// What sockets of the cgroup receive. Minimum kernel 4.10. A packet that cannot be read is counted without a
/// destination; only a budget refuses one.
#[cgroup_skb(ingress)]
pub fn ag_ingress(ctx: SkBuffContext) -> i32 {
    count(ctx.skb.skb, Direction::In)
}

/// What sockets of the cgroup send. Minimum kernel 4.10. As above.
#[cgroup_skb(egress)]
pub fn ag_egress(ctx: SkBuffContext) -> i32 {
    count(ctx.skb.skb, Direction::Out)
}
