//! From a decision to a record and a return value. A record that does not fit its ring is counted.

use core::ffi::c_void;
use core::ptr::write_volatile;

use agentguard_common::record::{HEADER_LEN, RecordHeader, class};
use agentguard_common::table::flags;
use agentguard_common::verdict::{Operation, Verdict};
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_boot_ns, bpf_ringbuf_discard, bpf_ringbuf_output, bpf_ringbuf_reserve,
    bpf_ringbuf_submit,
};

use crate::bound::forget;
use crate::decide::Decision;
use crate::fold;
use crate::label::Subject;
use crate::maps::{ALLOWED, Chunk, DENIED, LOSSES, SHORT_PATH};
use crate::offsets::field;

// `complete` writes neighbouring fields at once.
const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(RecordHeader, verdict) == offset_of!(RecordHeader, operation) + 1);
    assert!(offset_of!(RecordHeader, access) == offset_of!(RecordHeader, operation) + 2);
    assert!(offset_of!(RecordHeader, flags) == offset_of!(RecordHeader, operation) + 3);
    assert!(offset_of!(RecordHeader, operation) % 4 == 0);
    assert!(offset_of!(RecordHeader, errno) == offset_of!(RecordHeader, reason) + 2);
    assert!(offset_of!(RecordHeader, reason) % 4 == 0);
    assert!(offset_of!(RecordHeader, args_len) == offset_of!(RecordHeader, target_len) + 4);
    assert!(offset_of!(RecordHeader, target_len) % 8 == 0);
};

/// What a denied hook returns: `-EPERM`.
pub const DENIED_ERRNO: i32 = -1;

/// Neither `BPF_RB_NO_WAKEUP` nor `BPF_RB_FORCE_WAKEUP`: the reader is woken by the record, or the discarding, that
/// finds everything before it given back. It gathers what comes after that, and nobody is woken until it has given
/// that back too.
pub const WAKE_IDLE: u64 = 0;

/// What a decision comes to.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// Number of the verdict as recorded.
    pub verdict: u32,
    /// The action must not happen.
    pub refused: bool,
}

/// Applies shadow mode. `ask` is refused until somebody grants it.
#[inline(always)]
pub fn outcome(decision: Decision) -> Outcome {
    if decision.is_allowed() {
        Outcome {
            verdict: Verdict::Allow as u32,
            refused: false,
        }
    } else if decision.flags & flags::SHADOW != 0 {
        Outcome {
            verdict: Verdict::WouldDeny as u32,
            refused: false,
        }
    } else {
        Outcome {
            verdict: decision.verdict,
            refused: true,
        }
    }
}

/// Settles what is decided, before the record of it is filled in.
///
/// VERIFIER: all kernels: the ways to a decision are one from here on, and so is the record: kernels from 6.4 search all
/// of their types several times for each pointer that it follows.
///
/// # Safety
/// `kept` is live memory in a map's value, owned by the caller.
#[inline(always)]
pub unsafe fn settle(kept: *mut Decision, decision: Decision) -> (Decision, Outcome) {
    // SAFETY: the caller's promise.
    unsafe {
        let decision = forget(kept, decision);
        let outcome = outcome(decision);
        let [verdict, refused] = forget(
            kept.cast::<[u32; 2]>(),
            [outcome.verdict, u32::from(outcome.refused)],
        );
        let outcome = Outcome {
            verdict,
            refused: refused != 0,
        };
        (decision, outcome)
    }
}

/// What a record says beyond who did it, when, and what was decided.
#[derive(Clone, Copy, Default)]
pub struct Facts {
    pub access: u8,
    pub flags: u8,
    pub errno: u16,
    pub inode: u64,
    pub device: u32,
    pub aux: u32,
    pub target_len: u64,
}

/// Fills in what every record has. The caller sets target, access and what its operation adds.
#[inline(always)]
pub fn fill(
    header: &mut RecordHeader,
    subject: Subject,
    operation: Operation,
    decision: Decision,
    outcome: Outcome,
) {
    complete(
        header,
        subject,
        operation,
        decision,
        outcome,
        Facts::default(),
    );
}

/// Fills in the whole header but `len`, each field once: none of what was there before is left.
#[inline(always)]
pub fn complete(
    header: &mut RecordHeader,
    subject: Subject,
    operation: Operation,
    decision: Decision,
    outcome: Outcome,
    facts: Facts,
) {
    let task = subject.task;
    // SAFETY: fields of a live task and of its label; a typed load from BTF objects.
    unsafe {
        let label = *subject.label;
        // Neighbours are written together: operation, verdict, access and flags; reason and errno; the two
        // lengths.
        let what = operation as u32
            | (outcome.verdict & 0xff) << 8
            | u32::from(facts.access) << 16
            | u32::from(facts.flags) << 24;
        (&raw mut header.operation).cast::<u32>().write(what);
        header.time = bpf_ktime_get_boot_ns();
        header.agent = label.agent;
        header.session = label.session;
        header.generation = decision.generation;
        // The upper half of a reason is the number of the meter of a budget that is spent.
        let why = decision.reason | u32::from(facts.errno) << 16;
        (&raw mut header.reason).cast::<u32>().write(why);
        header.pid = field!(task, OFF_TASK_TGID, u32);
        header.tid = field!(task, OFF_TASK_PID, u32);
        let parent = field!(task, OFF_TASK_REAL_PARENT, u64) as *const u8;
        header.ppid = if parent.is_null() {
            0
        } else {
            field!(parent, OFF_TASK_TGID, u32)
        };
        let cred = field!(task, OFF_TASK_CRED, u64) as *const u8;
        if cred.is_null() {
            header.uid = u32::MAX;
            header.euid = u32::MAX;
        } else {
            header.uid = field!(cred, OFF_CRED_UID, u32);
            header.euid = field!(cred, OFF_CRED_EUID, u32);
        }
        header.exec_id = label.exec_id;
        // One by one: a call of `memset` writes bytes, in a loop.
        write_volatile(&raw mut header.inode, facts.inode);
        header.device = facts.device;
        header.aux = facts.aux;
        write_volatile((&raw mut header.target_len).cast(), facts.target_len);
        write_volatile(&raw mut header.new_exec_id, 0);
        header.name = 0;
    }
}

/// Space for a record in the ring of allowed actions. None where it is full: then the record is built
/// elsewhere, and whether it is lost is seen (and counted) when it is sent.
///
/// What is reserved must be given to [`deliver`] or [`discard`], once, on every way.
#[inline(always)]
pub fn reserve() -> Option<*mut Chunk> {
    // SAFETY: a helper; the verifier knows the size of what it gives.
    let chunk =
        unsafe { bpf_ringbuf_reserve(ALLOWED.as_ptr_for_helper(), size_of::<Chunk>() as u64, 0) }
            as *mut Chunk;
    if chunk.is_null() { None } else { Some(chunk) }
}

/// Gives reserved space back; nobody reads it.
#[inline(always)]
pub fn discard(chunk: *mut Chunk) {
    // SAFETY: the caller reserved it.
    unsafe { bpf_ringbuf_discard(chunk.cast(), WAKE_IDLE) };
}

/// Sends a record that was built in reserved space: that space itself if the action was allowed, else a
/// copy of it to the ring of denials. Readers ignore what follows `len` bytes. What repeats a record is counted
/// there.
#[inline(always)]
pub fn deliver(chunk: *mut Chunk, tail: u64, decision: Decision, outcome: Outcome) {
    // SAFETY: the caller reserved it; the tail is bounded by its size.
    unsafe {
        (*chunk).header.len = (HEADER_LEN as u64 + tail) as u32;
        if fold::is_counted(&raw mut (*chunk).header, tail as u32, decision) {
            discard(chunk);
            return;
        }
        if outcome.verdict == Verdict::Allow as u32 {
            bpf_ringbuf_submit(chunk.cast(), WAKE_IDLE);
            return;
        }
        let len = HEADER_LEN as u64 + crate::bound::at_most_64(tail, SHORT_PATH as u64 - 1);
        let sent = put(false, chunk.cast(), len);
        discard(chunk);
        if !sent {
            lose(false, 1);
        }
    }
}

/// Sends a header and the `tail` bytes that follow it in memory, which must be at most `MAX`, unless it repeats a
/// record and is counted there. The memory must be that of a [`Chunk`] at least.
#[inline(always)]
pub fn send_or_count<const MAX: u32>(
    header: *mut RecordHeader,
    tail: u32,
    decision: Decision,
    outcome: Outcome,
) {
    // SAFETY: the caller owns the memory.
    unsafe { (*header).len = HEADER_LEN as u32 + tail };
    if !fold::is_counted(header, tail, decision) {
        send::<MAX>(header, tail, outcome);
    }
}

/// Sends a header and the `tail` bytes that follow it in memory, which must be at most `MAX`.
#[inline(always)]
pub fn send<const MAX: u32>(header: *mut RecordHeader, tail: u32, outcome: Outcome) {
    let tail = crate::bound::at_most(tail, MAX);
    let len = HEADER_LEN as u32 + tail;
    let allowed = outcome.verdict == Verdict::Allow as u32;
    // SAFETY: the caller owns the memory; the tail is bounded by the size of its buffer.
    let sent = unsafe {
        (*header).len = len;
        put(allowed, header.cast(), u64::from(len))
    };
    if !sent {
        lose(allowed, 1);
    }
}

/// Copies a record to the ring of allowed actions or to that of denials; whether it is there. A second time where it
/// is not: kernels from 6.15 on may give up on a ring's lock although the ring has room.
///
/// # Safety
/// `record` must be the caller's memory of `len` bytes.
#[inline(always)]
pub unsafe fn put(allowed: bool, record: *mut c_void, len: u64) -> bool {
    // SAFETY: the caller's promise.
    let put = |ring| unsafe {
        bpf_ringbuf_output(ring, record, len, WAKE_IDLE) == 0
            || bpf_ringbuf_output(ring, record, len, WAKE_IDLE) == 0
    };
    // VERIFIER: all kernels: a call knows its ring.
    if allowed {
        put(ALLOWED.as_ptr_for_helper())
    } else {
        put(DENIED.as_ptr_for_helper())
    }
}

/// Space in one of them for a record, or null. A second time as in [`put`].
#[inline(always)]
fn space<T>(allowed: bool) -> *mut Built<T> {
    let len = size_of::<Built<T>>() as u64;
    // SAFETY: a helper.
    let space = |ring| unsafe {
        let mut space = bpf_ringbuf_reserve(ring, len, 0);
        if space.is_null() {
            space = bpf_ringbuf_reserve(ring, len, 0);
        }
        space.cast()
    };
    if allowed {
        space(ALLOWED.as_ptr_for_helper())
    } else {
        space(DENIED.as_ptr_for_helper())
    }
}

/// Counts a record that could not be delivered, and the acts that it stands for.
#[inline(always)]
pub fn lose(allowed: bool, acts: u64) {
    let class = if allowed {
        class::ALLOWED
    } else {
        class::DENIED
    };
    if let Some(total) = LOSSES.get_ptr_mut(class) {
        crate::atomic::add(total, acts);
    }
}

/// A record whose tail is always of the same length.
#[repr(C)]
struct Built<T> {
    header: RecordHeader,
    tail: T,
}

/// Sends a record that is built where the daemon will read it: `rest` writes the tail, and what else the header says.
#[inline(always)]
pub fn build<T>(
    subject: Subject,
    operation: Operation,
    decision: Decision,
    outcome: Outcome,
    facts: Facts,
    rest: impl FnOnce(&mut RecordHeader, &mut T),
) {
    let allowed = outcome.verdict == Verdict::Allow as u32;
    // SAFETY: helpers; what is reserved is filled and submitted on every way; every field of the header is written, and
    // whatever is in the tail before is a value of it.
    unsafe {
        let record = space::<T>(allowed);
        if record.is_null() {
            lose(allowed, 1);
            return;
        }
        let header = &mut (*record).header;
        complete(header, subject, operation, decision, outcome, facts);
        header.len = size_of::<Built<T>>() as u32;
        rest(header, &mut (*record).tail);
        bpf_ringbuf_submit(record.cast(), WAKE_IDLE);
    }
}

/// Sends a record that has a header only.
#[inline(always)]
fn headed(
    subject: Subject,
    operation: Operation,
    decision: Decision,
    outcome: Outcome,
    (aux, new_exec_id): (u32, u64),
) {
    let facts = Facts {
        aux,
        ..Facts::default()
    };
    build::<()>(
        subject,
        operation,
        decision,
        outcome,
        facts,
        |header, ()| {
            header.new_exec_id = new_exec_id;
        },
    );
}

/// Records a decision that has no scratch memory, and gives what the hook returns.
#[inline(never)]
fn bare_record(subject: Subject, operation: Operation, decision: &Decision) -> i32 {
    let outcome = outcome(*decision);
    headed(subject, operation, *decision, outcome, (0, 0));
    crate::bound::verdict(outcome.refused)
}

/// The same for a decision in registers.
#[inline(always)]
pub fn bare(subject: Subject, operation: Operation, decision: Decision) -> i32 {
    bare_record(subject, operation, &decision)
}

/// Gives a hook's result on; in builds with the feature `log` also to aya-log. Test builds only.
macro_rules! noted {
    ($ctx:expr, $hook:literal, $result:expr) => {{
        let result = $result;
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!(&$ctx, "{} of a governed task gives {}", $hook, result);
        result
    }};
}
pub(crate) use noted;

/// The address of a ring for the helpers.
pub trait ForHelper {
    fn as_ptr_for_helper(&self) -> *mut c_void;
}

impl<T, const N: usize> ForHelper for aya_ebpf::btf_maps::RingBuf<T, N> {
    #[inline(always)]
    fn as_ptr_for_helper(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// Records an event of the life cycle.
#[inline(always)]
pub fn event(subject: Subject, operation: Operation, decision: Decision, aux: u32, extra: u64) {
    headed(
        subject,
        operation,
        decision,
        outcome(decision),
        (aux, extra),
    );
}
