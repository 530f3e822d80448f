//! Scripts with command rules. Threat: the second check of an exec sees the interpreter and its command
//! line; a script's own rules would then hang on the first check alone, which a list that is too long, a
//! 32-bit call or a second thread goes round. So the first check leaves a note, and the second judges it.

use aya_ebpf::helpers::generated::bpf_task_storage_get;

use crate::label::peek;
use crate::maps::{SCRIPTS, Script};
use crate::offsets::{self as off, get};

/// `BPF_LOCAL_STORAGE_GET_F_CREATE`.
const CREATE: u64 = 1;

/// The note of a task; with [`CREATE`] a new one is all zeroes.
#[inline(always)]
fn slot(task: *const u8, flags: u64) -> *mut Script {
    let initial = core::ptr::null_mut();
    // SAFETY: the map, the current task, and no value.
    (unsafe { bpf_task_storage_get(SCRIPTS.as_ptr(), task as *mut _, initial, flags) })
        as *mut Script
}

/// Forgets what an exec that failed has left.
#[inline(always)]
pub fn forget(task: *const u8) {
    let slot = slot(task, 0);
    if !slot.is_null() {
        // SAFETY: a live map value that only this task uses.
        unsafe {
            (*slot).pending = 0;
            (*slot).deferred = 0;
            (*slot).inode = 0;
        }
    }
}

/// A program that a rule asks about is opened to be started. False: no memory. The check that follows settles it; a
/// loader, for which none follows, is found by [`is_deferred`].
#[inline(always)]
pub fn defer(task: *const u8) -> bool {
    let slot = slot(task, CREATE);
    if slot.is_null() {
        return false;
    }
    // SAFETY: a live map value that only this task uses.
    unsafe { (*slot).deferred = 1 };
    true
}

/// What was opened last was judged, with its arguments.
#[inline(always)]
pub fn settle(task: *const u8) {
    let slot = slot(task, 0);
    if !slot.is_null() {
        // SAFETY: as above.
        unsafe { (*slot).deferred = 0 };
    }
}

/// Whether a program was opened that nothing has judged since.
#[inline(always)]
pub fn is_deferred(task: *const u8) -> bool {
    let slot = slot(task, 0);
    // SAFETY: as above.
    !slot.is_null() && unsafe { (*slot).deferred } != 0
}

/// The task runs this program under a grant: its own code may be mapped.
#[inline(always)]
pub fn runs(task: *const u8, inode: u64, device: u32) {
    let slot = slot(task, 0);
    if !slot.is_null() {
        // SAFETY: as above.
        unsafe {
            (*slot).inode = inode;
            (*slot).device = device;
        }
    }
}

/// Whether the task runs this program under a grant.
#[inline(always)]
pub fn is_running(task: *const u8, inode: u64, device: u32) -> bool {
    let slot = slot(task, 0);
    // SAFETY: as above.
    !slot.is_null() && inode != 0 && unsafe { (*slot).inode == inode && (*slot).device == device }
}

/// Leaves a note for the second check. False: there is one already, or no memory.
#[inline(always)]
pub fn note(task: *const u8, script: Script) -> bool {
    let slot = slot(task, CREATE);
    if slot.is_null() {
        return false;
    }
    // SAFETY: a live map value that only this task uses.
    unsafe {
        if (*slot).pending != 0 {
            return false;
        }
        // One by one: for what is zero a call of `memset` would write bytes, in a loop.
        (*slot).pending = script.pending;
        (*slot).generation = script.generation;
        (*slot).label = script.label;
        (*slot).state = script.state;
        (*slot).count = script.count;
        (*slot).approved = script.approved;
        (*slot).argv0 = script.argv0;
        (*slot).deferred = script.deferred;
        core::ptr::write_volatile(&raw mut (*slot).inode, script.inode);
        (*slot).device = script.device;
    }
    true
}

/// The note of the first check.
#[inline(always)]
pub fn noted(task: *const u8) -> Option<&'static Script> {
    let slot = slot(task, 0);
    // SAFETY: a live map value that only this task uses.
    let script = unsafe { slot.as_ref() }?;
    (script.pending != 0).then_some(script)
}

/// Whether the file that is being started begins with `#!`.
#[inline(always)]
pub fn is_script(bprm: *const u8) -> bool {
    peek(bprm as u64 + get(&off::OFF_BPRM_BUF) as u64, [0u8; 2]) == *b"#!"
}
