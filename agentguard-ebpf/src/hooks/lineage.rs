//! Who descends from whom. Threat: a task leaves its governance by forking, by moving to another
//! cgroup or by being born in one. Choke points: `task_alloc` hands the label down before the child
//! can run; entering a cgroup gives it; nothing but the daemon's detach takes it away.

use agentguard_common::budget::kind;
use agentguard_common::table::flags;
use agentguard_common::verdict::{Operation, Reason, Verdict};
use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, lsm};
use aya_ebpf::programs::{BtfTracePointContext, LsmContext};
use core::ffi::c_void;

use super::unlabelled;
use crate::budget;
use crate::decide::{self, Decision, with_table};
use crate::emit::{self, DENIED_ERRNO};
use crate::fold;
use crate::label::{
    Standing, Subject, current, enter, give, governs, load, membership, membership_of, peek,
    peek_label, standing, take,
};
use crate::maps::{CONTROL, unsettled};
use crate::offsets::{self as off, field, get};

const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A record of the life cycle: something happened, nothing was decided.
const HAPPENED: Decision = Decision {
    verdict: Verdict::Allow as u32,
    reason: Reason::None as u32,
    generation: 0,
    flags: 0,
};

/// `task_alloc(struct task_struct *task, unsigned long clone_flags)`. Minimum kernel 5.7 (task storage: 5.11).
/// Fails closed: no label, no task.
#[lsm(hook = "task_alloc")]
pub fn task_alloc(ctx: LsmContext) -> i32 {
    enter(&ctx, alloc)
}

#[inline(never)]
unsafe extern "C" fn alloc(ctx: *mut c_void, task: *const u8) -> i32 {
    let ctx = LsmContext::new(ctx);
    match standing(task) {
        Standing::Ungoverned => 0,
        Standing::Unlabelled(membership) => unlabelled(membership, Operation::Fork),
        Standing::Governed(subject) => {
            // SAFETY: the label is a live map value.
            let label = unsafe { *subject.label };
            let clone_flags: u64 = ctx.arg(1);
            if clone_flags & CLONE_THREAD == 0 && exhausted(subject, label.agent) {
                return DENIED_ERRNO;
            }
            if give(ctx.arg(0), label.agent, label.session, label.exec_id).is_null() {
                // No memory: deny (label-unavailable).
                return emit::bare(
                    subject,
                    Operation::Fork,
                    Decision::failure(Reason::LabelUnavailable),
                );
            }
            0
        }
    }
}

/// Charges a new process; whether a budget is spent, and a record says so.
#[inline(always)]
fn exhausted(subject: Subject, agent: u32) -> bool {
    // A process whose agent has no policy can do nothing.
    let Some(policy) = decide::policy(agent) else {
        return false;
    };
    if policy.flags() >> flags::BUDGETS & kind::PROCESSES == 0 {
        return false;
    }
    let granted = with_table!(policy, t => decide::fixed(t, Verdict::Allow, Reason::None));
    let decision = budget::charge(subject, granted, kind::PROCESSES);
    !decision.is_allowed() && emit::bare(subject, Operation::Fork, decision) != 0
}

/// `task_newtask(struct task_struct *task, unsigned long clone_flags)`: the child exists, has its
/// cgroup and has not run yet. Labels tasks born into an agent's cgroup, and those whose parent got its
/// label when `task_alloc` had already passed; records forks.
#[btf_tracepoint(function = "task_newtask")]
pub fn task_newtask(ctx: BtfTracePointContext) -> i32 {
    let child: *const u8 = ctx.arg(0);
    let flags: u64 = ctx.arg(1);
    match current() {
        Standing::Governed(subject) => {
            if peek_label(child).is_null() {
                // SAFETY: the label is a live map value.
                let label = unsafe { *subject.label };
                if give(child, label.agent, label.session, label.exec_id).is_null() {
                    // The child is judged by its cgroup until a label can be had.
                    crate::atomic::add(unsettled(), 1);
                }
            }
            if flags & CLONE_THREAD == 0 {
                // SAFETY: a field of the tracepoint's argument.
                let pid: u32 = unsafe { load(child, get(&off::OFF_TASK_TGID)) };
                emit::event(subject, Operation::Fork, HAPPENED, pid, flags);
            }
        }
        Standing::Unlabelled(_) => born_governed(child),
        Standing::Ungoverned => {
            if flags & CLONE_INTO_CGROUP != 0 {
                born_governed(child);
            }
        }
    }
    0
}

/// Labels a new task by its cgroup.
#[inline(always)]
fn born_governed(child: *const u8) {
    if let Some(membership) = membership(child) {
        let label = give(child, membership.agent, membership.session, 0);
        if label.is_null() {
            // The child is judged by its cgroup until a label can be had.
            crate::atomic::add(unsettled(), 1);
        } else {
            let subject = Subject { task: child, label };
            emit::event(subject, Operation::Attach, HAPPENED, 0, 0);
        }
    }
}

/// `cgroup_attach_task(struct cgroup *dst, const char *path, struct task_struct *task, bool threadgroup)`:
/// somebody moved a task, or all threads of a process, into a cgroup.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(2);
    if !governs(ctx.arg(0), task) {
        return 0;
    }
    let Some(membership) = membership_of(ctx.arg::<u64>(0)) else {
        return 0;
    };
    let threadgroup = ctx.arg::<u64>(3) & 0xff != 0;
    // A task that is governed already keeps the label that it has, whoever moves it.
    let mut label = peek_label(task);
    let fresh = label.is_null();
    if fresh {
        label = give(task, membership.agent, membership.session, 0);
    }
    let signal: u64 = peek(task as u64 + get(&off::OFF_TASK_SIGNAL) as u64, 0);
    let threads: u32 = peek(signal + get(&off::OFF_SIGNAL_NR_THREADS) as u64, u32::MAX);
    if label.is_null() || (threadgroup && threads != 1) {
        // Other threads, or this one, may lack the label: judge by cgroup until the daemon has settled them.
        crate::atomic::add(unsettled(), 1);
    }
    if fresh && !label.is_null() {
        emit::event(Subject { task, label }, Operation::Attach, HAPPENED, 0, 0);
    }
    0
}

/// `sched_process_exit(struct task_struct *task)`: records the end of a process.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    // SAFETY: a pointer field of the tracepoint's argument. Nearly every task of a machine has none.
    if unsafe { field!(task, OFF_TASK_STORAGE, u64) } == 0 {
        return 0;
    }
    let label = peek_label(task);
    if label.is_null() {
        return 0;
    }
    fold::close(task);
    let signal: u64 = peek(task as u64 + get(&off::OFF_TASK_SIGNAL) as u64, 0);
    let live: u32 = peek(signal + get(&off::OFF_SIGNAL_LIVE) as u64, 0);
    if live == 0 {
        // SAFETY: a field of the tracepoint's argument.
        let code: u32 = unsafe { load(task, get(&off::OFF_TASK_EXIT_CODE)) };
        emit::event(Subject { task, label }, Operation::Exit, HAPPENED, code, 0);
    }
    0
}

/// Task iterator, run by the daemon: labels every thread in a governed cgroup, or takes the label of
/// one agent away. Context: `struct bpf_iter__task { meta, task }`; the last call has no task.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn settle_tasks(ctx: *mut core::ffi::c_void) -> i32 {
    let ctx = BtfTracePointContext::new(ctx);
    // SAFETY: the second word of the context is the task or null.
    let task: *const u8 = unsafe { *ctx.as_ptr().cast::<*const u8>().add(1) };
    let Some(control) = CONTROL.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: fields of a live map value.
    let (settled, unlabel, changed) = unsafe {
        (
            &raw mut (*control).settled,
            &raw mut (*control).unlabel_agent,
            &raw mut (*control).changed,
        )
    };
    if task.is_null() {
        crate::atomic::add(unsettled(), crate::atomic::read(settled).wrapping_neg());
        return 0;
    }
    let label = peek_label(task);
    let unlabel = crate::atomic::read(unlabel);
    if unlabel != 0 {
        // SAFETY: a live map value.
        if !label.is_null() && u64::from(unsafe { (*label).agent }) == unlabel {
            take(task);
            crate::atomic::add(changed, 1);
        }
        return 0;
    }
    if label.is_null() {
        if let Some(membership) = membership(task) {
            let label = give(task, membership.agent, membership.session, 0);
            if label.is_null() {
                crate::atomic::add(unsettled(), 1);
            } else {
                crate::atomic::add(changed, 1);
                emit::event(Subject { task, label }, Operation::Attach, HAPPENED, 0, 0);
            }
        }
    }
    0
}
