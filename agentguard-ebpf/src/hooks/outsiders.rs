//! Other processes. Threat: an agent makes a process that is not governed act for it, or stops the one that
//! watches it: by tracing, by signals, by its limits or its priority. Choke points: the `ptrace` and `task_*`
//! hooks. Processes of the same session of the same agent are its own affair.

use agentguard_common::verdict::Lock;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use super::locks;
use crate::label::{Standing, Subject, current, load, peek_label};
use crate::offsets::{self as off, get};

/// `PTRACE_MODE_NOAUDIT`: the kernel only asks what would be, to blank a field of `/proc`.
const PTRACE_MODE_NOAUDIT: u64 = 4;

/// Whether a task is not of the same session of the same agent.
#[inline(always)]
fn is_outsider(subject: Subject, task: *const u8) -> bool {
    let other = peek_label(task);
    if other.is_null() {
        return true;
    }
    // SAFETY: both labels are live map values.
    unsafe {
        (*other).agent != (*subject.label).agent || (*other).session != (*subject.label).session
    }
}

/// Process id of a task that a hook was handed.
#[inline(always)]
fn pid_of(task: *const u8) -> u64 {
    // SAFETY: a field of the hook's argument.
    u64::from(unsafe { load::<u32>(task, get(&off::OFF_TASK_TGID)) })
}

/// Judges an act on another task.
#[inline(always)]
fn reach(task: *const u8, lock: Lock, extra: u64) -> i32 {
    match current() {
        Standing::Ungoverned => 0,
        Standing::Unlabelled => super::unlabelled(),
        Standing::Governed(subject) => {
            if is_outsider(subject, task) {
                locks::bare(subject, lock, extra << 32 | pid_of(task))
            } else {
                0
            }
        }
    }
}

/// `ptrace_access_check(struct task_struct *child, unsigned int mode)`. Minimum kernel 5.7. Fails closed. Also asked
/// for reading another process's memory, environment and descriptors, and for taking a descriptor from it.
#[lsm(hook = "ptrace_access_check")]
pub fn ptrace_access_check(ctx: LsmContext) -> i32 {
    if ctx.arg::<u64>(1) & PTRACE_MODE_NOAUDIT != 0 {
        return match current() {
            Standing::Governed(subject) if is_outsider(subject, ctx.arg(0)) => {
                locks::decide_unseen(subject, Lock::Ptrace)
            }
            Standing::Unlabelled => super::unlabelled(),
            _ => 0,
        };
    }
    reach(ctx.arg(0), Lock::Ptrace, 0)
}

/// `task_kill(struct task_struct *p, struct kernel_siginfo *info, int sig, const struct cred *cred)`. Minimum kernel
/// 5.7. Fails closed. Signal 0 sends nothing.
#[lsm(hook = "task_kill")]
pub fn task_kill(ctx: LsmContext) -> i32 {
    let signal = ctx.arg::<u64>(2) as u32;
    if signal == 0 {
        return 0;
    }
    reach(ctx.arg(0), Lock::Signals, u64::from(signal))
}

/// `file_send_sigiotask(struct task_struct *tsk, struct fown_struct *fown, int sig)`. Minimum kernel 5.7. Fails
/// closed. A descriptor can be told to send any signal to any process.
#[lsm(hook = "file_send_sigiotask")]
pub fn file_send_sigiotask(ctx: LsmContext) -> i32 {
    let signal = ctx.arg::<u64>(2) as u32;
    reach(ctx.arg(0), Lock::Signals, u64::from(signal))
}

/// `task_setrlimit(struct task_struct *p, unsigned int resource, struct rlimit *new_rlim)`. Minimum kernel 5.7.
/// Fails closed.
#[lsm(hook = "task_setrlimit")]
pub fn task_setrlimit(ctx: LsmContext) -> i32 {
    reach(ctx.arg(0), Lock::Priorities, 0)
}

/// `task_setscheduler(struct task_struct *p)`. Minimum kernel 5.7. Fails closed.
#[lsm(hook = "task_setscheduler")]
pub fn task_setscheduler(ctx: LsmContext) -> i32 {
    reach(ctx.arg(0), Lock::Priorities, 0)
}

/// `task_setnice(struct task_struct *p, int nice)`. Minimum kernel 5.7. Fails closed.
#[lsm(hook = "task_setnice")]
pub fn task_setnice(ctx: LsmContext) -> i32 {
    reach(ctx.arg(0), Lock::Priorities, 0)
}

/// `task_setioprio(struct task_struct *p, int ioprio)`. Minimum kernel 5.7. Fails closed.
#[lsm(hook = "task_setioprio")]
pub fn task_setioprio(ctx: LsmContext) -> i32 {
    reach(ctx.arg(0), Lock::Priorities, 0)
}

/// `task_movememory(struct task_struct *p)`. Minimum kernel 5.7. Fails closed.
#[lsm(hook = "task_movememory")]
pub fn task_movememory(ctx: LsmContext) -> i32 {
    reach(ctx.arg(0), Lock::Priorities, 0)
}
