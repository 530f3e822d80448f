//! Budgets. Threat: an agent does what it may, but too often. Whatever a policy permits and a budget counts is
//! charged here before it happens, all budgets or none; what finds one spent is a denial. What is charged stays
//! charged, whether or not the action succeeds afterwards.
//!
//! A meter is changed under its lock by programs alone. The daemon reads it, and changes what is permitted by
//! putting other limits in the place of those before.

use agentguard_common::budget::{CELLS, Charge, LIVE, Limits, Meter, NO_METER, PER_AGENT};
use agentguard_common::table::{MARKS, flags};
use agentguard_common::verdict::{Reason, Verdict};
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_boot_ns, bpf_loop, bpf_map_lookup_elem, bpf_spin_lock, bpf_spin_unlock,
};
use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use crate::bound::forget;
use crate::decide::Decision;
use crate::label::Subject;
use crate::maps::{LIMITS, METERS};

/// Charges an action that is permitted; a denial where a budget is spent.
#[inline(always)]
pub fn charge(subject: Subject, decision: Decision, kind: u32) -> Decision {
    if !decision.is_allowed() || decision.flags >> flags::BUDGETS & kind == 0 {
        return decision;
    }
    // SAFETY: the label is a live map value.
    let agent = unsafe { (*subject.label).agent };
    match charged(agent, kind | decision.flags & MARKS, 1) {
        0 => decision,
        refused => Decision {
            verdict: Verdict::Deny as u32,
            // The number of the meter travels with the reason into the record.
            reason: Reason::Budget as u32 | (refused as u32 - 1) << 16,
            ..decision
        },
    }
}

/// What the loop over budgets carries.
///
/// VERIFIER: 6.1: the stacks of a hook and of all that it calls are 512 bytes together; this is 32 of them.
#[repr(C)]
struct Charging {
    limits: *const Limits,
    /// Kind and marks.
    what: u32,
    amount: u32,
    now: u64,
    /// One more than the index of the budget that had not enough.
    short: u64,
}

/// Charges an amount of a kind, which has marks perhaps, to all budgets of an agent that count it, or to none: then
/// it is one more than the number of the meter that had not enough.
///
/// VERIFIER: all kernels: a global function, verified once and not for each way that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn charged(agent: u32, what: u32, amount: u32) -> u64 {
    // SAFETY: a live map value; the callbacks have the signature that the helper expects, and the context outlives
    // the calls.
    unsafe {
        let mut charging = Charging {
            limits: core::ptr::null(),
            what,
            amount,
            now: 0,
            short: u64::from(agent),
        };
        // Keys have no place of their own: the agent, then zero, stand where the result will.
        let key = &raw mut charging.short;
        let inner = look_up(address(&LIMITS), key.cast());
        if inner.is_null() {
            // The policy has budgets, and there are none: deny.
            return u64::from(NO_METER) + 1;
        }
        write_volatile(key, 0);
        let limits: *const Limits = look_up(inner, key.cast()).cast();
        if limits.is_null() {
            return u64::from(NO_METER) + 1;
        }
        charging.limits = limits;
        charging.now = bpf_ktime_get_boot_ns() + (*limits).offset;
        let context = core::ptr::from_mut(&mut charging).cast();
        bpf_loop((*limits).count, take_next as *mut c_void, context, 0);
        let short = read_volatile(&raw const charging.short);
        if short == 0 {
            return 0;
        }
        // Those before it had enough, and get it back.
        bpf_loop(
            (short - 1) as u32,
            give_back_next as *mut c_void,
            context,
            0,
        );
        match at(limits, short - 1) {
            Some(charge) => u64::from((*charge).meter as u16) + 1,
            None => u64::from(NO_METER) + 1,
        }
    }
}

/// The address of a map for the helpers.
#[inline(always)]
const fn address<T>(map: &'static T) -> *mut c_void {
    core::ptr::from_ref(map).cast_mut().cast()
}

/// What a map has, or null. The methods of maps would copy the key to a place of its own on the stack.
///
/// # Safety
/// `map` must be a map of four-byte keys, and `key` point to one.
#[inline(always)]
unsafe fn look_up(map: *mut c_void, key: *const u32) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { bpf_map_lookup_elem(map, key.cast()) }
}

/// The budget at an index.
#[inline(always)]
fn at(limits: *const Limits, index: u64) -> Option<*const Charge> {
    if index >= PER_AGENT as u64 {
        return None;
    }
    // SAFETY: bounded just above; the caller's value is live.
    Some(unsafe {
        (&raw const (*limits).charges)
            .cast::<Charge>()
            .add(index as usize)
    })
}

/// Takes from the next budget. Returns 1 to stop.
unsafe extern "C" fn take_next(index: u64, charging: *mut Charging) -> u64 {
    // SAFETY: the helper hands back the pointer that it was given.
    unsafe {
        let Some(charge) = at((*charging).limits, index) else {
            (*charging).short = PER_AGENT as u64 + 1;
            return 1;
        };
        if concerns(charge, (*charging).what)
            && take(charge, (*charging).now, u64::from((*charging).amount)) == 0
        {
            (*charging).short = index + 1;
            return 1;
        }
    }
    0
}

/// Gives back to the next budget. Returns 1 to stop.
unsafe extern "C" fn give_back_next(index: u64, charging: *mut Charging) -> u64 {
    // SAFETY: as above.
    unsafe {
        let Some(charge) = at((*charging).limits, index) else {
            return 1;
        };
        if concerns(charge, (*charging).what) {
            give_back(charge, (*charging).now, u64::from((*charging).amount));
        }
    }
    0
}

/// Whether a budget counts what is done.
///
/// # Safety
/// `charge` must be in a live map value.
#[inline(always)]
unsafe fn concerns(charge: *const Charge, what: u32) -> bool {
    // SAFETY: the caller's promise.
    let (kinds, marks) = unsafe { ((*charge).kinds, (*charge).marks) };
    kinds & what != 0 && (marks == 0 || marks & what != 0)
}

/// Number of the window, or of the part of a sliding one, at a time.
#[inline(always)]
const fn window(length: u64, now: u64) -> u64 {
    if length == 0 { 0 } else { now / length }
}

/// Takes an amount from one budget; 0 if there is not enough left, and then nothing is taken.
///
/// VERIFIER: 6.1: no call between locking and unlocking, so everything there is written out, and by volatile
/// accesses, which no compiler turns into a call of `memset`.
#[inline(always)]
unsafe fn take(charge: *const Charge, now: u64, amount: u64) -> u64 {
    // SAFETY: the caller gives a live map value; the meter is one, and cells are masked by their number.
    unsafe {
        let meter: *mut Meter = look_up(address(&METERS), &raw const (*charge).meter).cast();
        if meter.is_null() {
            return 0;
        }
        let now = window((*charge).length, now);
        let cells = (&raw mut (*meter).cells).cast::<u64>();
        let cell = |part: u64| cells.add(part as usize & (CELLS - 1));
        // What the limits say is read where it is needed: kept in between, it would lie on the stack.
        macro_rules! limit {
            ($field:ident) => {
                read_volatile(&raw const (*charge).$field)
            };
        }
        let lock = (&raw mut (*meter).lock).cast();
        bpf_spin_lock(lock);
        if read_volatile(&raw const (*meter).epoch) < limit!(epoch) {
            write_volatile(&raw mut (*meter).epoch, limit!(epoch));
            write_volatile(&raw mut (*meter).window, limit!(base_window));
            write_volatile(&raw mut (*meter).sum, limit!(base));
            let mut part = 0;
            while part < CELLS {
                write_volatile(cells.add(part), 0);
                part += 1;
            }
            write_volatile(cell(limit!(base_window)), limit!(base));
        }
        let mut at = read_volatile(&raw const (*meter).window);
        let mut sum = read_volatile(&raw const (*meter).sum);
        if now > at {
            if limit!(sliding) != 0 {
                let mut steps = 0;
                while steps < CELLS {
                    if at >= now {
                        break;
                    }
                    at += 1;
                    let gone = cell(at.wrapping_sub(LIVE));
                    // VERIFIER: all kernels: by way of memory, so that both ways through the subtraction are one.
                    sum = forget(
                        &raw mut (*meter).sum,
                        sum.saturating_sub(read_volatile(gone)),
                    );
                    write_volatile(gone, 0);
                    steps += 1;
                }
            } else {
                sum = 0;
            }
            at = now;
            write_volatile(&raw mut (*meter).window, at);
        }
        let ceiling = if limit!(sliding) != 0 || at == limit!(ceiling_window) {
            limit!(ceiling)
        } else {
            limit!(chunk)
        };
        let limit = limit!(limit);
        let most = if limit < ceiling { limit } else { ceiling };
        let fits = amount <= most && sum <= most - amount;
        if fits {
            sum += amount;
            if limit!(sliding) != 0 {
                let present = cell(at);
                write_volatile(present, read_volatile(present) + amount);
            }
        }
        write_volatile(&raw mut (*meter).sum, sum);
        let refused = if fits { 0 } else { amount as u32 };
        write_volatile(&raw mut (*meter).refused, refused);
        bpf_spin_unlock(lock);
        u64::from(fits)
    }
}

/// Gives back what was taken at `now`, since another budget had not enough.
#[inline(always)]
unsafe fn give_back(charge: *const Charge, now: u64, amount: u64) -> u64 {
    // SAFETY: as above.
    unsafe {
        let meter: *mut Meter = look_up(address(&METERS), &raw const (*charge).meter).cast();
        if meter.is_null() {
            return 0;
        }
        let sliding = (*charge).sliding != 0;
        let then = window((*charge).length, now);
        let cells = (&raw mut (*meter).cells).cast::<u64>();
        let lock = (&raw mut (*meter).lock).cast();
        bpf_spin_lock(lock);
        let at = read_volatile(&raw const (*meter).window);
        let sum = read_volatile(&raw const (*meter).sum);
        // Whoever was ahead may have charged a later window than ours: then it is that one's.
        if sliding {
            let part = if then > at { at } else { then };
            if at - part < LIVE {
                let cell = cells.add(part as usize & (CELLS - 1));
                let spent = read_volatile(cell);
                let back = if spent < amount { spent } else { amount };
                write_volatile(cell, spent - back);
                write_volatile(&raw mut (*meter).sum, sum.saturating_sub(back));
            }
        } else if at == then {
            write_volatile(&raw mut (*meter).sum, sum.saturating_sub(amount));
        }
        bpf_spin_unlock(lock);
    }
    0
}
