//! Questions to name servers go to the agent's own resolver, whatever server a program asks. Threat: a program
//! asks another server, or opens addresses with answers of its own making. Choke points: `connect` and `sendmsg`
//! of the cgroup that an agent lives in change the destination after the security hooks have judged what the
//! program wrote; `recvmsg` and `getpeername` show the program the server that it asked.
//!
//! A socket is redirected only where the hook of the security module has noted it (`note`): no note, no change.
//! The hook permits port 53 only where these programs will see the socket, so nothing goes to another server.

use agentguard_common::opened::{DNS_PORT, Redirect};
use agentguard_common::record::{Destination, LOOPBACK_V6, MAPPED, reached};
use agentguard_common::verdict::{Reason, Verdict};
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use core::ffi::c_void;

use crate::bound::words;
use crate::decide::{self, Decision, Policy, with_table};
use crate::label::{self, Subject, load, peek};
use crate::maps::{REDIRECTS, RESOLVER_PORTS, RESOLVERS};
use crate::offsets::{self as off, get};

const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u16 = 17;
const SOCK_STREAM: u16 = 1;
/// `BPF_SK_STORAGE_GET_F_CREATE`.
const CREATE: u64 = 1;
const LOOPBACK_V4: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
const ONE: u32 = u32::from_ne_bytes([0, 0, 0, 1]);
const DNS: u32 = DNS_PORT.to_be() as u32;

/// Whether a destination is a name server that the resolver stands for.
#[inline(always)]
pub fn is_question(to: &Destination) -> bool {
    to.port == DNS_PORT && (to.protocol == IPPROTO_UDP || to.protocol == IPPROTO_TCP)
}

/// Decides on asking a name server under a policy with rules about names: permitted only where the question goes
/// to the resolver.
#[inline(always)]
pub fn question(
    subject: Subject,
    policy: Policy,
    socket: *const u8,
    sending: bool,
    to: &Destination,
) -> Decision {
    let noted = note(subject, socket, sending, to);
    let (verdict, reason) = if noted {
        (Verdict::Allow, Reason::Redirected)
    } else {
        (Verdict::Deny, Reason::ResolverOnly)
    };
    with_table!(policy, t => decide::fixed(t, verdict, reason))
}

/// Notes that the socket's questions go to the resolver; false where they would not get there.
#[inline(always)]
fn note(subject: Subject, socket: *const u8, sending: bool, to: &Destination) -> bool {
    // SAFETY: typed loads along pointers that the verifier follows; the label is a live map value.
    unsafe {
        let sk: *const u8 = load(socket, get(&off::OFF_SOCKET_SK));
        if sk.is_null() {
            return false;
        }
        let protocol: u16 = load(sk, get(&off::OFF_SOCK_PROTOCOL));
        // Multipath TCP connects by sockets that carry no note; fast open is not worth its risks.
        let plain = protocol == IPPROTO_UDP
            || (protocol == IPPROTO_TCP && to.kind == SOCK_STREAM && !sending);
        if !plain {
            return false;
        }
        let label = *subject.label;
        let Some(resolver) = RESOLVERS.get_ptr(label.agent) else {
            return false;
        };
        let resolver = *resolver;
        if resolver.port == 0 || resolver.session != label.session {
            return false;
        }
        // The programs below are attached to the agent's cgroup, and go by where a socket was made.
        if !label::made_by(subject, sk as u64) {
            return false;
        }
        let net: u64 = peek(sk as u64 + get(&off::OFF_SOCK_NET) as u64, 0);
        let namespace: u32 = peek(
            net + get(&off::OFF_NET_NS) as u64 + get(&off::OFF_NS_INUM) as u64,
            0,
        );
        if namespace != resolver.namespace {
            return false;
        }
        let mut value = Redirect {
            server: to.address,
            port: resolver.port,
            reserved: 0,
        };
        let kept = bpf_sk_storage_get(
            REDIRECTS.as_ptr(),
            sk as *mut c_void,
            (&raw mut value).cast(),
            CREATE,
        ) as *mut Redirect;
        if kept.is_null() {
            return false;
        }
        *kept = value;
        true
    }
}

/// Whether a destination is the port of some agent's resolver: nobody who is governed reaches one but by a
/// question to a name server.
#[inline(always)]
pub fn is_resolver(to: &Destination) -> bool {
    // Few ports are one, and whether this is, is quickly seen.
    let marked = match RESOLVER_PORTS.get_ptr(u32::from(to.port) / 64) {
        // SAFETY: a live map value; an aligned word is read in one go.
        Some(word) => unsafe { core::ptr::read_volatile(word) >> (to.port & 63) & 1 != 0 },
        None => true,
    };
    if !marked {
        return false;
    }
    let [first, second] = reached(words(to));
    let in_v4 = second as u32 == MAPPED && second >> 32 & 0xff == 127;
    first == 0 && (in_v4 || second == LOOPBACK_V6)
}

/// The note of a socket, if it has one.
#[inline(always)]
fn noted(ctx: *mut bpf_sock_addr) -> Option<Redirect> {
    // SAFETY: fields of the context; the helper takes the socket that the kernel put there.
    unsafe {
        let sk = (*ctx).__bindgen_anon_1.sk;
        if sk.is_null() {
            return None;
        }
        let kept = bpf_sk_storage_get(REDIRECTS.as_ptr(), sk.cast(), core::ptr::null_mut(), 0)
            as *const Redirect;
        if kept.is_null() || (*kept).port == 0 {
            return None;
        }
        Some(*kept)
    }
}

/// The port in the form of the context.
#[inline(always)]
const fn port_of(redirect: &Redirect) -> u32 {
    (redirect.port as u16).to_be() as u32
}

/// The server's word in the form of the context.
#[inline(always)]
fn word(redirect: &Redirect, number: usize) -> u32 {
    let at = number * 4;
    u32::from_ne_bytes([
        redirect.server[at],
        redirect.server[at + 1],
        redirect.server[at + 2],
        redirect.server[at + 3],
    ])
}

/// Sends what goes to a name server over IPv4 to the resolver.
#[inline(always)]
fn there_v4(ctx: &SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    // SAFETY: fields of the context that these programs may change.
    unsafe {
        if core::ptr::read_volatile(&raw const (*ctx).user_port) != DNS {
            return 1;
        }
        if let Some(redirect) = noted(ctx) {
            core::ptr::write_volatile(&raw mut (*ctx).user_ip4, LOOPBACK_V4);
            core::ptr::write_volatile(&raw mut (*ctx).user_port, port_of(&redirect));
        }
    }
    1
}

/// The same over IPv6, where the address may stand for one of IPv4.
#[inline(always)]
fn there_v6(ctx: &SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    // SAFETY: as above.
    unsafe {
        if core::ptr::read_volatile(&raw const (*ctx).user_port) != DNS {
            return 1;
        }
        if let Some(redirect) = noted(ctx) {
            let third = core::ptr::read_volatile(&raw const (*ctx).user_ip6[2]);
            let first = core::ptr::read_volatile(&raw const (*ctx).user_ip6[0]);
            let second = core::ptr::read_volatile(&raw const (*ctx).user_ip6[1]);
            let v4 = third == MAPPED && first == 0 && second == 0;
            core::ptr::write_volatile(&raw mut (*ctx).user_ip6[0], 0);
            core::ptr::write_volatile(&raw mut (*ctx).user_ip6[1], 0);
            core::ptr::write_volatile(&raw mut (*ctx).user_ip6[2], if v4 { MAPPED } else { 0 });
            core::ptr::write_volatile(
                &raw mut (*ctx).user_ip6[3],
                if v4 { LOOPBACK_V4 } else { ONE },
            );
            core::ptr::write_volatile(&raw mut (*ctx).user_port, port_of(&redirect));
        }
    }
    1
}

/// Shows the server that was asked in place of the resolver.
#[inline(always)]
fn back_v4(ctx: &SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    // SAFETY: as above.
    unsafe {
        if core::ptr::read_volatile(&raw const (*ctx).user_ip4) != LOOPBACK_V4 {
            return 1;
        }
        if let Some(redirect) = noted(ctx)
            && core::ptr::read_volatile(&raw const (*ctx).user_port) == port_of(&redirect)
        {
            core::ptr::write_volatile(&raw mut (*ctx).user_ip4, word(&redirect, 3));
            core::ptr::write_volatile(&raw mut (*ctx).user_port, DNS);
        }
    }
    1
}

/// The same over IPv6.
#[inline(always)]
fn back_v6(ctx: &SockAddrContext) -> i32 {
    let ctx = ctx.sock_addr;
    // SAFETY: as above.
    unsafe {
        if core::ptr::read_volatile(&raw const (*ctx).user_ip6[0]) != 0
            || core::ptr::read_volatile(&raw const (*ctx).user_ip6[1]) != 0
        {
            return 1;
        }
        let last = core::ptr::read_volatile(&raw const (*ctx).user_ip6[3]);
        if last != ONE && last != LOOPBACK_V4 {
            return 1;
        }
        if let Some(redirect) = noted(ctx)
            && core::ptr::read_volatile(&raw const (*ctx).user_port) == port_of(&redirect)
        {
            core::ptr::write_volatile(&raw mut (*ctx).user_ip6[0], word(&redirect, 0));
            core::ptr::write_volatile(&raw mut (*ctx).user_ip6[1], word(&redirect, 1));
            core::ptr::write_volatile(&raw mut (*ctx).user_ip6[2], word(&redirect, 2));
            core::ptr::write_volatile(&raw mut (*ctx).user_ip6[3], word(&redirect, 3));
            core::ptr::write_volatile(&raw mut (*ctx).user_port, DNS);
        }
    }
    1
}

/// Connecting over IPv4. Minimum kernel 4.17.
#[cgroup_sock_addr(connect4)]
pub fn ag_connect4(ctx: SockAddrContext) -> i32 {
    there_v4(&ctx)
}

/// Connecting over IPv6. Minimum kernel 4.17.
#[cgroup_sock_addr(connect6)]
pub fn ag_connect6(ctx: SockAddrContext) -> i32 {
    there_v6(&ctx)
}

/// UDP without connecting, over IPv4. Minimum kernel 4.18.
#[cgroup_sock_addr(sendmsg4)]
pub fn ag_sendmsg4(ctx: SockAddrContext) -> i32 {
    there_v4(&ctx)
}

/// UDP without connecting, over IPv6. Minimum kernel 4.18.
#[cgroup_sock_addr(sendmsg6)]
pub fn ag_sendmsg6(ctx: SockAddrContext) -> i32 {
    there_v6(&ctx)
}

/// Where a datagram over IPv4 came from. Minimum kernel 5.2.
#[cgroup_sock_addr(recvmsg4)]
pub fn ag_recvmsg4(ctx: SockAddrContext) -> i32 {
    back_v4(&ctx)
}

/// Where a datagram over IPv6 came from. Minimum kernel 5.2.
#[cgroup_sock_addr(recvmsg6)]
pub fn ag_recvmsg6(ctx: SockAddrContext) -> i32 {
    back_v6(&ctx)
}

/// Who a socket of IPv4 is connected to. Minimum kernel 5.8.
#[cgroup_sock_addr(getpeername4)]
pub fn ag_getpeername4(ctx: SockAddrContext) -> i32 {
    back_v4(&ctx)
}

/// Who a socket of IPv6 is connected to. Minimum kernel 5.8.
#[cgroup_sock_addr(getpeername6)]
pub fn ag_getpeername6(ctx: SockAddrContext) -> i32 {
    back_v6(&ctx)
}
