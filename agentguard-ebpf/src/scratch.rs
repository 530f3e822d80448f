//! Owned scratch memory: claimed by compare-and-swap, held for one decision, released by drop.
//! A buffer that is not owned must never be read or written.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;

use crate::maps::{
    EXEC_SCRATCH, ExecScratch, GRANT_SCRATCH, GrantScratch, NAME_SCRATCH, NameScratch,
    PATH_SCRATCH, PathScratch, SCRATCH_SLOTS,
};

/// How many slots a claim tries before it gives up (and the action is denied).
const TRIES: u32 = 8;

/// A slot of a pool.
pub trait Slot: 'static {
    /// The slot with this number.
    fn slot(index: u32) -> Option<*mut Self>;
    /// Its owner word.
    fn owner(this: *mut Self) -> *mut u64;
}

impl Slot for PathScratch {
    #[inline(always)]
    fn slot(index: u32) -> Option<*mut Self> {
        PATH_SCRATCH.get_ptr_mut(index)
    }
    #[inline(always)]
    fn owner(this: *mut Self) -> *mut u64 {
        // SAFETY: a field of a live map value.
        unsafe { &raw mut (*this).owner }
    }
}

impl Slot for ExecScratch {
    #[inline(always)]
    fn slot(index: u32) -> Option<*mut Self> {
        EXEC_SCRATCH.get_ptr_mut(index)
    }
    #[inline(always)]
    fn owner(this: *mut Self) -> *mut u64 {
        // SAFETY: a field of a live map value.
        unsafe { &raw mut (*this).owner }
    }
}

impl Slot for NameScratch {
    #[inline(always)]
    fn slot(index: u32) -> Option<*mut Self> {
        NAME_SCRATCH.get_ptr_mut(index)
    }
    #[inline(always)]
    fn owner(this: *mut Self) -> *mut u64 {
        // SAFETY: a field of a live map value.
        unsafe { &raw mut (*this).owner }
    }
}

impl Slot for GrantScratch {
    #[inline(always)]
    fn slot(index: u32) -> Option<*mut Self> {
        GRANT_SCRATCH.get_ptr_mut(index)
    }
    #[inline(always)]
    fn owner(this: *mut Self) -> *mut u64 {
        // SAFETY: a field of a live map value.
        unsafe { &raw mut (*this).owner }
    }
}

/// Claims a free slot, beginning with this CPU's own.
#[inline(always)]
pub fn claim<S: Slot>() -> Option<*mut S> {
    // SAFETY: a helper without arguments.
    let first = unsafe { bpf_get_smp_processor_id() } as u32;
    let mut i = 0;
    while i < TRIES {
        let index = first.wrapping_add(i * 7) & (SCRATCH_SLOTS as u32 - 1);
        if let Some(slot) = S::slot(index) {
            if crate::atomic::claim(S::owner(slot)) {
                return Some(slot);
            }
        }
        i += 1;
    }
    None
}

/// Gives a slot back.
#[inline(always)]
pub fn release<S: Slot>(slot: *mut S) {
    crate::atomic::clear(S::owner(slot));
}
