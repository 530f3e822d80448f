//! Atomic operations of BPF (v3). The target's description says "no compare-and-swap", which hides
//! the standard library's methods; the instructions exist since kernel 5.12.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};

const SEQ_CST: AtomicOrdering = AtomicOrdering::SeqCst;

/// Adds, and gives the value before.
#[inline(always)]
pub fn add(word: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller passes a live, aligned word that is only accessed atomically.
    unsafe { atomic_xadd::<u64, u64, SEQ_CST>(word, value) }
}

/// Replaces `0` by `1`; true if it was `0`.
#[inline(always)]
pub fn claim(word: *mut u64) -> bool {
    // SAFETY: as above.
    unsafe { atomic_cxchg::<u64, SEQ_CST, SEQ_CST>(word, 0, 1).1 }
}

/// Replaces `old` by `new`; true if it was `old`.
#[inline(always)]
pub fn replace(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: as above.
    unsafe { atomic_cxchg::<u64, SEQ_CST, SEQ_CST>(word, old, new).1 }
}

/// Puts `new` in the place of what was there, and gives that.
#[inline(always)]
pub fn swap(word: *mut u64, new: u64) -> u64 {
    // SAFETY: as above.
    unsafe { atomic_xchg::<u64, SEQ_CST>(word, new) }
}

/// Stores `0` after everything before it.
#[inline(always)]
pub fn clear(word: *mut u64) {
    swap(word, 0);
}

/// Reads a word that others write. (BPF v3 has no atomic load; an aligned load of a word is one.)
#[inline(always)]
pub fn read(word: *mut u64) -> u64 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(word) }
}
