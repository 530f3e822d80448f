//! From a decision to a record and a return value. A record that does not fit its ring is counted.

use agentguard_common::record::{HEADER_LEN, RecordHeader, class};
use agentguard_common::table::flags;
use agentguard_common::verdict::{Operation, Verdict};
use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_ringbuf_output};

use crate::decide::Decision;
use crate::label::{Subject, load};
use crate::maps::{ALLOWED, DENIED, LOSSES};
use crate::offsets::{self as off, get};

/// What a denied hook returns: `-EPERM`.
pub const DENIED_ERRNO: i32 = -1;

/// `BPF_RB_NO_WAKEUP`: the reader polls; only every 256th record of a slot wakes it.
const NO_WAKEUP: u64 = 1;
const WAKE_EVERY: u64 = 256;

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

/// Fills in what every record has. The caller sets target, access and what its operation adds.
#[inline(always)]
pub fn fill(
    header: &mut RecordHeader,
    subject: Subject,
    operation: Operation,
    decision: Decision,
    outcome: Outcome,
) {
    let task = subject.task;
    // SAFETY: fields of a live task and of its label; a typed load from BTF objects.
    unsafe {
        let label = *subject.label;
        header.operation = operation as u8;
        header.verdict = outcome.verdict as u8;
        header.access = 0;
        header.flags = 0;
        header.time = bpf_ktime_get_boot_ns();
        header.agent = label.agent;
        header.session = label.session;
        header.generation = decision.generation;
        header.reason = decision.reason as u16;
        header.errno = 0;
        header.pid = load(task, get(&off::OFF_TASK_TGID));
        header.tid = load(task, get(&off::OFF_TASK_PID));
        let parent: *const u8 = load(task, get(&off::OFF_TASK_REAL_PARENT));
        header.ppid = if parent.is_null() {
            0
        } else {
            load(parent, get(&off::OFF_TASK_TGID))
        };
        let cred: *const u8 = load(task, get(&off::OFF_TASK_CRED));
        if cred.is_null() {
            header.uid = u32::MAX;
            header.euid = u32::MAX;
        } else {
            header.uid = load(cred, get(&off::OFF_CRED_UID));
            header.euid = load(cred, get(&off::OFF_CRED_EUID));
        }
        header.exec_id = label.exec_id;
        header.inode = 0;
        header.device = 0;
        header.aux = 0;
        header.target_len = 0;
        header.args_len = 0;
        header.new_exec_id = 0;
        header.reserved = 0;
    }
}

/// Sends a header and the `tail` bytes that follow it in memory, which must be at most `MAX`.
#[inline(always)]
pub fn send<const MAX: u32>(
    header: *mut RecordHeader,
    tail: u32,
    outcome: Outcome,
    emitted: *mut u64,
) {
    let tail = crate::bound::at_most(tail, MAX);
    let len = HEADER_LEN as u32 + tail;
    // SAFETY: the caller owns the memory; the tail is bounded by the size of its buffer.
    let lost = unsafe {
        (*header).len = len;
        if outcome.verdict == Verdict::Allow as u32 {
            *emitted += 1;
            let wake = if *emitted % WAKE_EVERY == 0 {
                0
            } else {
                NO_WAKEUP
            };
            bpf_ringbuf_output(
                ALLOWED.as_ptr_for_helper(),
                header.cast(),
                u64::from(len),
                wake,
            ) != 0
        } else {
            bpf_ringbuf_output(DENIED.as_ptr_for_helper(), header.cast(), u64::from(len), 0) != 0
        }
    };
    if lost {
        count_loss(if outcome.verdict == Verdict::Allow as u32 {
            class::ALLOWED
        } else {
            class::DENIED
        });
    }
}

/// Counts a record that could not be delivered.
#[inline(always)]
pub fn count_loss(class: u32) {
    if let Some(total) = LOSSES.get_ptr_mut(class) {
        crate::atomic::add(total, 1);
    }
}

/// Records a decision that has no scratch memory: header only.
#[inline(always)]
pub fn bare(subject: Subject, operation: Operation, decision: Decision) -> i32 {
    let outcome = outcome(decision);
    let mut header = RecordHeader::default();
    fill(&mut header, subject, operation, decision, outcome);
    let mut emitted = 0;
    send::<0>(&mut header, 0, outcome, &mut emitted);
    crate::bound::verdict(outcome.refused)
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
trait ForHelper {
    fn as_ptr_for_helper(&self) -> *mut core::ffi::c_void;
}

impl<T, const N: usize> ForHelper for aya_ebpf::btf_maps::RingBuf<T, N> {
    #[inline(always)]
    fn as_ptr_for_helper(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// Records an event of the life cycle.
#[inline(always)]
pub fn event(subject: Subject, operation: Operation, decision: Decision, aux: u32, extra: u64) {
    let outcome = outcome(decision);
    let mut header = RecordHeader::default();
    fill(&mut header, subject, operation, decision, outcome);
    header.aux = aux;
    header.new_exec_id = extra;
    let mut emitted = 0;
    send::<0>(&mut header, 0, outcome, &mut emitted);
}
