//! Repeats: what a thread does again, exactly as before and soon after, is counted in place of a record for each, where its
//! policy says so. Must never count an act that differs in anything but its time, nor lose a count: each is told in a
//! record (`REPEATED`) when its window is over, when another act takes its place, or when the thread ends.
//!
//! A place belongs to its thread, which alone changes what is kept there. The daemon's walk over all tasks may take the
//! count of a thread that went quiet, in one step together with the number of what is kept: a place that got another act
//! meanwhile has another number.

use agentguard_common::record::{
    FOLD_WINDOW, HEADER_LEN, REPEATED_PLACES, RecordHeader, folding, record_flags,
};
use agentguard_common::table::flags;
use agentguard_common::verdict::{Reason, Verdict};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_ktime_get_boot_ns, bpf_ringbuf_discard, bpf_ringbuf_reserve,
    bpf_ringbuf_submit, bpf_task_storage_get,
};
use aya_ebpf::programs::BtfTracePointContext;
use core::ffi::c_void;

use crate::atomic;
use crate::bound::at_most_64;
use crate::decide::Decision;
use crate::emit::{self, ForHelper as _, WAKE_IDLE};
use crate::maps::{ALLOWED, Chunk, DENIED, FOLDING, Place, REPEATS, Repeats, SHORT_PATH};

/// `BPF_LOCAL_STORAGE_GET_F_CREATE`.
const CREATE: u64 = 1;
/// Words of a header, of a tail, and those that differ between repeats: `time` and `new_exec_id`.
const HEADER_WORDS: usize = HEADER_LEN / 8;
const TAIL_WORDS: usize = SHORT_PATH / 8;
const TIME: usize = core::mem::offset_of!(agentguard_common::record::RecordHeader, time) / 8;
const COUNT: usize =
    core::mem::offset_of!(agentguard_common::record::RecordHeader, new_exec_id) / 8;
/// Lower half of a place's word: how often. Upper half: the number of what is kept there.
const HALF: u32 = 32;
const LOW: u64 = u32::MAX as u64;

/// [`counted`], where the policy wants it, and not for what an operator has to do with: each of these counts.
/// `record` must be followed by as much memory as a [`Chunk`] has.
#[inline(always)]
pub fn is_counted(record: *mut RecordHeader, tail: u32, decision: Decision) -> bool {
    decision.flags & flags::FOLD != 0
        && decision.verdict != Verdict::Ask as u32
        && decision.reason & 0xffff != Reason::Approved as u32
        && counted(record.cast(), tail) != 0
}

/// Whether a record of the current thread, complete but for being sent, repeats one that was, and is counted there: then
/// nothing is sent. `tail` bytes follow its header.
///
/// VERIFIER: all kernels: a global function, verified once and not for each way that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn counted(record: *mut Chunk, tail: u32) -> u64 {
    if record.is_null() || tail as usize >= SHORT_PATH {
        return 0;
    }
    // SAFETY: helpers; a live map value, whose places this thread alone changes; the record is the caller's.
    unsafe {
        let task = bpf_get_current_task_btf() as *mut _;
        let kept = bpf_task_storage_get(REPEATS.as_ptr(), task, core::ptr::null_mut(), CREATE)
            as *mut Repeats;
        // Without memory, and where a thread has told all, each has its own record.
        if kept.is_null() || (*kept).closed != 0 {
            return 0;
        }
        let place = place_of(kept, record);
        let now = (*record).header.time;
        let word = &raw mut (*place).word;
        if now.wrapping_sub((*place).first) < FOLD_WINDOW
            && same(&raw const (*place).record, record, tail)
        {
            if atomic::read(word) & LOW == 0 {
                (*place).since = now;
            }
            (*place).last = now;
            if atomic::add(word, 1) & LOW == 0 {
                // Told meanwhile.
                (*place).since = now;
                pending(1);
            }
            return 1;
        }
        tell(place);
        copy(&raw mut (*place).record, record, words_of(tail));
        (*place).first = now;
    }
    0
}

/// Tells what a thread that ends has counted. From here on each of its acts has a record of its own.
#[inline(always)]
pub fn close(task: *const u8) {
    // SAFETY: helpers; a live task, which is the current one; a live map value.
    unsafe {
        let kept = bpf_task_storage_get(REPEATS.as_ptr(), task as *mut _, core::ptr::null_mut(), 0)
            as *mut Repeats;
        if kept.is_null() {
            return;
        }
        (*kept).closed = 1;
        let mut i = 0;
        while i < REPEATED_PLACES {
            tell(&raw mut (*kept).places[i]);
            i += 1;
        }
    }
}

/// The place for a record: by its inode, or by where it goes to.
#[inline(always)]
unsafe fn place_of(kept: *mut Repeats, record: *mut Chunk) -> *mut Place {
    // SAFETY: the caller's memory; the index is masked.
    unsafe {
        let mut key = (*record).header.inode;
        if key == 0 {
            let tail = (&raw const (*record).tail).cast::<u64>();
            key = *tail ^ *tail.add(1) ^ *tail.add(2);
        }
        let index = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61;
        (&raw mut (*kept).places)
            .cast::<Place>()
            .add(at_most_64(index, REPEATED_PLACES as u64 - 1) as usize)
    }
}

/// Words that hold so many bytes.
#[inline(always)]
const fn words_of(tail: u32) -> usize {
    (tail as usize).div_ceil(8)
}

/// Whether two records say the same, but for the time.
#[inline(always)]
unsafe fn same(kept: *const Chunk, record: *const Chunk, tail: u32) -> bool {
    let (a, b) = (kept.cast::<u64>(), record.cast::<u64>());
    let mut differs = 0;
    let mut i = 0;
    while i < HEADER_WORDS {
        if i != TIME && i != COUNT {
            // SAFETY: within the header.
            differs |= unsafe { *a.add(i) ^ *b.add(i) };
        }
        i += 1;
    }
    if differs != 0 {
        return false;
    }
    let mut left = tail;
    let mut i = HEADER_WORDS;
    while i < HEADER_WORDS + TAIL_WORDS {
        // SAFETY: within the tail.
        let differs = unsafe { *a.add(i) ^ *b.add(i) };
        if left <= 8 {
            // What is behind the end is anything.
            return left == 0 || differs << (64 - 8 * left) == 0;
        }
        if differs != 0 {
            return false;
        }
        left -= 8;
        i += 1;
    }
    false
}

/// Copies a header and so many words of its tail.
#[inline(always)]
unsafe fn copy(to: *mut Chunk, from: *const Chunk, words: usize) {
    let (to, from) = (to.cast::<u64>(), from.cast::<u64>());
    let mut i = 0;
    while i < HEADER_WORDS + TAIL_WORDS {
        if i >= HEADER_WORDS + words {
            break;
        }
        // SAFETY: within both. Volatile: the compiler would make a call of `memcpy` of it.
        unsafe { core::ptr::write_volatile(to.add(i), core::ptr::read_volatile(from.add(i))) };
        i += 1;
    }
}

/// Tells what is counted in a place of the current thread, which then counts for nothing until another act is kept there.
#[inline(never)]
unsafe extern "C" fn tell(place: *mut Place) {
    // SAFETY: the caller's memory.
    unsafe {
        let word = &raw mut (*place).word;
        let number = (atomic::read(word) >> HALF).wrapping_add(1);
        let count = atomic::swap(word, number << HALF) & LOW;
        if count == 0 {
            return;
        }
        pending(u64::MAX);
        let header = &raw mut (*place).record.header;
        repeated(header, ((*place).since, (*place).last), count);
        let allowed = (*header).verdict == Verdict::Allow as u8;
        let len =
            HEADER_LEN as u64 + at_most_64(u64::from((*header).target_len), SHORT_PATH as u64 - 1);
        let record = (&raw mut (*place).record).cast();
        if !emit::put(allowed, record, len) {
            emit::lose(allowed, count);
        }
    }
}

/// Makes the record of repeats of the record that it was.
///
/// # Safety
/// The caller's memory.
#[inline(always)]
unsafe fn repeated(header: *mut RecordHeader, (since, last): (u64, u64), count: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let apart = last.wrapping_sub(since) / 1000;
        let apart = if apart < LOW { apart } else { LOW };
        (*header).flags |= record_flags::REPEATED;
        (*header).time = last;
        (*header).new_exec_id = count | apart << HALF;
    }
}

/// Counts places that have something to tell.
#[inline(always)]
fn pending(change: u64) {
    if let Some(count) = FOLDING.get_ptr_mut(folding::PENDING) {
        atomic::add(count, change);
    }
}

/// Task iterator, run by the daemon: tells what threads have counted whose window is over, or what all have. What finds no
/// room in its ring waits for the next walk. Context: `struct bpf_iter__task { meta, task }`; the last call has no task.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn tell_repeats(ctx: *mut c_void) -> i32 {
    let ctx = BtfTracePointContext::new(ctx);
    // SAFETY: the second word of the context is the task or null; helpers; live map values.
    unsafe {
        let task: *const u8 = *ctx.as_ptr().cast::<*const u8>().add(1);
        if task.is_null() {
            return 0;
        }
        let Some(all) = FOLDING.get_ptr_mut(folding::ALL) else {
            return 0;
        };
        let kept = bpf_task_storage_get(REPEATS.as_ptr(), task as *mut _, core::ptr::null_mut(), 0)
            as *mut Repeats;
        if kept.is_null() {
            return 0;
        }
        let until = if atomic::read(all) != 0 {
            u64::MAX
        } else {
            bpf_ktime_get_boot_ns().wrapping_sub(FOLD_WINDOW)
        };
        let mut i = 0;
        while i < REPEATED_PLACES {
            take(&raw mut (*kept).places[i], until);
            i += 1;
        }
    }
    0
}

/// Takes what is counted in a place of another thread, if its window began before `until`.
#[inline(never)]
unsafe extern "C" fn take(place: *mut Place, until: u64) {
    // SAFETY: live memory that its thread changes meanwhile: what was copied counts only if the place's word is still what
    // it was before. The chunk is this program's until it is submitted or discarded.
    unsafe {
        let word = &raw mut (*place).word;
        let before = atomic::read(word);
        if before & LOW == 0 || atomic::read(&raw mut (*place).first) > until {
            return;
        }
        let verdict = core::ptr::read_volatile(&raw const (*place).record.header.verdict);
        let chunk = if verdict == Verdict::Allow as u8 {
            bpf_ringbuf_reserve(ALLOWED.as_ptr_for_helper(), size_of::<Chunk>() as u64, 0)
        } else {
            bpf_ringbuf_reserve(DENIED.as_ptr_for_helper(), size_of::<Chunk>() as u64, 0)
        } as *mut Chunk;
        if chunk.is_null() {
            return;
        }
        copy(chunk, &raw const (*place).record, TAIL_WORDS);
        let times = (
            atomic::read(&raw mut (*place).since),
            atomic::read(&raw mut (*place).last),
        );
        repeated(&raw mut (*chunk).header, times, before & LOW);
        if atomic::replace(word, before, before & !LOW) {
            pending(u64::MAX);
            bpf_ringbuf_submit(chunk.cast(), WAKE_IDLE);
        } else {
            bpf_ringbuf_discard(chunk.cast(), WAKE_IDLE);
        }
    }
}
