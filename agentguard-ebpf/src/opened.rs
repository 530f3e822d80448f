//! Addresses that are open because a permitted name was answered with them, for this agent and for a while.
//! Must never permit what a rule denies: it is asked where no rule speaks of an address.

use agentguard_common::opened::{Address, EVERY_PROTOCOL, GRANTS};
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;

use crate::maps::OPENED;

/// Number of the name that opened the address for this port and protocol; 0 where none did, or its time is over.
/// Above it the marks for budgets, of all names that did.
#[inline(never)]
pub extern "C" fn opened(key: &Address, port: u64, protocol: u64) -> u64 {
    let Some(entry) = OPENED.get_ptr(key) else {
        return 0;
    };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // VERIFIER: 6.1: one number of both, because the stack of `file_receive` is full.
    let mut found = 0u64;
    let mut i = 0;
    while i < GRANTS {
        // SAFETY: fields of a map's value, read once each.
        let grant = unsafe { core::ptr::read_volatile(&raw const (*entry).grants[i]) };
        if grant.deadline > now
            && port >= u64::from(grant.low)
            && port <= u64::from(grant.high)
            && (grant.protocol == EVERY_PROTOCOL || protocol == u64::from(grant.protocol))
        {
            found = (found >> 32 | u64::from(grant.marks)) << 32 | u64::from(grant.name);
        }
        i += 1;
    }
    // Memory that belongs to another address by now said nothing about this one.
    // SAFETY: as above.
    let own = unsafe { core::ptr::read_volatile(&raw const (*entry).key) };
    if own.agent == key.agent
        && own.session == key.session
        && halves(&own.address) == halves(&key.address)
    {
        found
    } else {
        0
    }
}

/// An address as two numbers. (Comparing arrays would be a call of a function that there is not.)
#[inline(always)]
fn halves(address: &[u8; 16]) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    (
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    )
}
