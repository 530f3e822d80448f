//! Other processes. Threat: an agent makes a process that is not governed act for it, or stops the one that
//! watches it: by tracing, by signals, by its limits or its priority. Choke points: the `ptrace` and `task_*`
//! hooks. Processes of the same session of the same agent are its own affair.

use agentguard_common::verdict::Lock;

use super::locks;
use crate::label::{Subject, load, peek_label};
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
fn reach(subject: Subject, task: *const u8, lock: Lock, extra: u64) -> i32 {
    if is_outsider(subject, task) {
        locks::bare(subject, lock, extra << 32 | pid_of(task))
    } else {
        0
    }
}

hook! {
    /// `ptrace_access_check(struct task_struct *child, unsigned int mode)`. Minimum kernel 5.7. Fails closed. Also asked
    /// for reading another process's memory, environment and descriptors, and for taking a descriptor from it.
    ptrace_access_check, "ptrace_access_check", Lock::Ptrace, |ctx, subject| {
        let task = ctx.arg(0);
        if ctx.arg::<u64>(1) & PTRACE_MODE_NOAUDIT == 0 {
            reach(subject, task, Lock::Ptrace, 0)
        } else if is_outsider(subject, task) {
            locks::decide_unseen(subject, Lock::Ptrace)
        } else {
            0
        }
    }
}

hook! {
    /// `ptrace_traceme(struct task_struct *parent)`. Minimum kernel 5.7. Fails closed. A child that makes its parent its
    /// tracer stops, and is waited for, in ways that a supervisor outside does not expect.
    ptrace_traceme, "ptrace_traceme", Lock::Ptrace, |ctx, subject| reach(subject, ctx.arg(0), Lock::Ptrace, 0)
}

hook! {
    /// `task_kill(struct task_struct *p, struct kernel_siginfo *info, int sig, const struct cred *cred)`. Minimum kernel
    /// 5.7. Fails closed. Signal 0 sends nothing.
    task_kill, "task_kill", Lock::Signals, |ctx, subject| {
        let signal = ctx.arg::<u64>(2) as u32;
        if signal == 0 {
            0
        } else {
            reach(subject, ctx.arg(0), Lock::Signals, u64::from(signal))
        }
    }
}

hook! {
    /// `file_send_sigiotask(struct task_struct *tsk, struct fown_struct *fown, int sig)`. Minimum kernel 5.7. Fails
    /// closed. A descriptor can be told to send any signal to any process.
    file_send_sigiotask, "file_send_sigiotask", Lock::Signals, |ctx, subject| {
let signal = ctx.arg::<u64>(2) as u32;
    reach(subject, ctx.arg(0), Lock::Signals, u64::from(signal))
}
}

hook! {
    /// `task_setrlimit(struct task_struct *p, unsigned int resource, struct rlimit *new_rlim)`. Minimum kernel 5.7.
    /// Fails closed.
    task_setrlimit, "task_setrlimit", Lock::Priorities, |ctx, subject| reach(subject, ctx.arg(0), Lock::Priorities, 0)
}

hook! {
    /// `task_setscheduler(struct task_struct *p)`. Minimum kernel 5.7. Fails closed.
    task_setscheduler, "task_setscheduler", Lock::Priorities, |ctx, subject| reach(subject, ctx.arg(0), Lock::Priorities, 0)
}

hook! {
    /// `task_setnice(struct task_struct *p, int nice)`. Minimum kernel 5.7. Fails closed.
    task_setnice, "task_setnice", Lock::Priorities, |ctx, subject| reach(subject, ctx.arg(0), Lock::Priorities, 0)
}

hook! {
    /// `task_setioprio(struct task_struct *p, int ioprio)`. Minimum kernel 5.7. Fails closed.
    task_setioprio, "task_setioprio", Lock::Priorities, |ctx, subject| reach(subject, ctx.arg(0), Lock::Priorities, 0)
}

hook! {
    /// `task_movememory(struct task_struct *p)`. Minimum kernel 5.7. Fails closed.
    task_movememory, "task_movememory", Lock::Priorities, |ctx, subject| reach(subject, ctx.arg(0), Lock::Priorities, 0)
}
