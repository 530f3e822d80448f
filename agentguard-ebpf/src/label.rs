//! Who is governed: reading, giving and inheriting the lineage label.
//! The answer for an ungoverned task must stay cheap: one load when it has no task storage at all.

use agentguard_common::label::{Label, Membership};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_storage_delete, bpf_task_storage_get,
};
use aya_ebpf::programs::LsmContext;
use core::ffi::c_void;

use crate::maps::{CGROUPS, LABELS, unsettled};
use crate::offsets::{self as off, field, get};

/// `BPF_LOCAL_STORAGE_GET_F_CREATE`.
const CREATE: u64 = 1;
/// How often a label is asked for again.
const TRIES: u32 = 8;
/// Levels of cgroups that are searched for a governed ancestor.
const MAX_DEPTH: u32 = 24;

/// A task and its label, for the length of one hook.
#[derive(Clone, Copy)]
pub struct Subject {
    /// The current task.
    pub task: *const u8,
    /// Its label, in task storage.
    pub label: *mut Label,
}

/// Reads a kernel word through a pointer that the verifier does not know.
#[inline(always)]
pub fn peek<T: Copy>(address: u64, zero: T) -> T {
    let mut value = zero;
    // SAFETY: the helper checks the address and leaves zeroes on a fault.
    unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(&mut value).cast(),
            size_of::<T>() as u32,
            address as *const _,
        )
    };
    value
}

/// A typed load from an object that the verifier tracks by BTF.
///
/// # Safety
/// `object` must be a kernel object known to the verifier and `offset` the offset of a field of this type.
#[inline(always)]
pub unsafe fn load<T: Copy>(object: *const u8, offset: usize) -> T {
    // SAFETY: the caller's promise; faults read as zero.
    unsafe { core::ptr::read_volatile(object.add(offset).cast::<T>()) }
}

/// What is known of the current task.
pub enum Standing {
    /// Not governed. Never "could not find out".
    Ungoverned,
    /// Governed, with its label.
    Governed(Subject),
    /// In an agent's cgroup, but there is no memory for its label: deny everything.
    Unlabelled(Membership),
}

/// What a hook does for a task that may be governed: given its context and the current task.
pub type Rest = unsafe extern "C" fn(*mut c_void, *const u8) -> i32;

/// All that a hook does for a task that cannot be governed, which is nothing, and its way to `rest`
/// for every other task.
///
/// `rest` must be a function of its own (`inline(never)`): what it needs of registers and stack would
/// be set up before the test, for every process of the machine. The context waits on the stack for
/// the same reason, since keeping it in a register means saving that one and restoring it.
#[inline(always)]
pub fn enter(ctx: &LsmContext, rest: Rest) -> i32 {
    let mut context = ctx.as_ptr();
    // SAFETY: a local variable; a helper without arguments; the task is live while it runs.
    unsafe {
        core::ptr::write_volatile(&raw mut context, context);
        let task = bpf_get_current_task_btf() as *const u8;
        if stands_outside(task) {
            return 0;
        }
        rest(core::ptr::read_volatile(&raw const context), task)
    }
}

/// Whether a task cannot be governed: it has no storage at all, and nobody lacks a label.
#[inline(always)]
fn stands_outside(task: *const u8) -> bool {
    // SAFETY: a pointer field of the task.
    let storage = unsafe { field!(task, OFF_TASK_STORAGE, u64) };
    // VERIFIER: all kernels: the second (volatile) read stays inside the branch, or both are merged
    // into arithmetic on a pointer.
    storage == 0 && crate::atomic::read(unsettled()) == 0
}

/// The standing of the current task.
#[inline(always)]
pub fn current() -> Standing {
    // SAFETY: a helper without arguments; the task is live while it runs.
    let task = unsafe { bpf_get_current_task_btf() } as *const u8;
    if stands_outside(task) {
        return Standing::Ungoverned;
    }
    standing(task)
}

/// The standing of the current task, where [`enter`] has let it through.
#[inline(always)]
pub fn standing(task: *const u8) -> Standing {
    let label = peek_label(task);
    if !label.is_null() {
        return Standing::Governed(Subject { task, label });
    }
    settle(task)
}

/// The standing of a task without a label: its cgroup decides, and gives it the label.
#[inline(always)]
fn settle(task: *const u8) -> Standing {
    let Some(membership) = membership(task) else {
        return Standing::Ungoverned;
    };
    let label = give(task, membership.agent, membership.session, 0);
    if label.is_null() {
        Standing::Unlabelled(membership)
    } else {
        Standing::Governed(Subject { task, label })
    }
}

/// Gives a task its label; null when there is no memory for it.
#[inline(always)]
pub fn give(task: *const u8, agent: u32, session: u32, exec_id: u64) -> *mut Label {
    let label = Label {
        agent,
        session,
        exec_id,
    };
    let kept = create(task, &label);
    if kept.is_null() {
        give_again(task, &label)
    } else {
        kept
    }
}

/// What stands in the way of a label may be gone at once: another processor gives the same task its first storage
/// (`EAGAIN`, all kernels), or holds the lock of the memory that kernels from 7.0 on ask for without waiting.
#[inline(never)]
fn give_again(task: *const u8, label: &Label) -> *mut Label {
    let mut tries = 0;
    while tries < TRIES {
        let kept = create(task, label);
        if !kept.is_null() {
            return kept;
        }
        tries += 1;
    }
    core::ptr::null_mut()
}

/// Asks for a label once.
#[inline(always)]
fn create(task: *const u8, label: &Label) -> *mut Label {
    // SAFETY: the map, a live task, and a value of the map's type, which is only read.
    (unsafe {
        bpf_task_storage_get(
            LABELS.as_ptr(),
            task as *mut _,
            core::ptr::from_ref(label).cast_mut().cast(),
            CREATE,
        )
    }) as *mut Label
}

/// Takes the label from a task.
#[inline(always)]
pub fn take(task: *const u8) {
    // SAFETY: the map and a live task.
    unsafe { bpf_task_storage_delete(LABELS.as_ptr(), task as *mut _) };
}

/// The label of another live task, if it has one.
#[inline(always)]
pub fn peek_label(task: *const u8) -> *mut Label {
    // SAFETY: the map and a live task.
    (unsafe { bpf_task_storage_get(LABELS.as_ptr(), task as *mut _, core::ptr::null_mut(), 0) })
        as *mut Label
}

/// The agent whose cgroup, or a cgroup below it, a task is in.
#[inline(always)]
pub fn membership(task: *const u8) -> Option<Membership> {
    membership_of(cgroup_of(task))
}

/// The cgroup of a task in the one hierarchy that governs: that of version 2.
#[inline(always)]
fn cgroup_of(task: *const u8) -> u64 {
    let set: u64 = peek(task as u64 + get(&off::OFF_TASK_CGROUPS) as u64, 0);
    peek(set + get(&off::OFF_CSS_SET_DFL_CGRP) as u64, 0)
}

/// Whether a cgroup is in the hierarchy that governs. Others (of version 1) number theirs alike.
#[inline(always)]
pub fn governs(cgroup: u64, task: *const u8) -> bool {
    let root = get(&off::OFF_CGROUP_ROOT) as u64;
    peek::<u64>(cgroup + root, 0) == peek::<u64>(cgroup_of(task) + root, 0)
}

/// Whether a socket was made in the cgroup of the same agent and session. The kernel notes that when a socket is
/// made, and it stays.
#[inline(always)]
pub fn made_by(subject: Subject, sk: u64) -> bool {
    let data = sk + get(&off::OFF_SOCK_CGROUP) as u64 + get(&off::OFF_SOCK_CGROUP_DATA) as u64;
    // SAFETY: the label is a live map value.
    let label = unsafe { *subject.label };
    membership_of(peek(data, 0))
        .is_some_and(|maker| maker.agent == label.agent && maker.session == label.session)
}

/// The agent that governs a cgroup or one of its ancestors.
#[inline(always)]
pub fn membership_of(mut cgroup: u64) -> Option<Membership> {
    let mut level = 0;
    while level < MAX_DEPTH {
        if cgroup == 0 {
            return None;
        }
        let node: u64 = peek(cgroup + get(&off::OFF_CGROUP_KN) as u64, 0);
        let id: u64 = peek(node + get(&off::OFF_KERNFS_NODE_ID) as u64, 0);
        // SAFETY: the entry is copied before anything else happens.
        if let Some(membership) = unsafe { CGROUPS.get(&id) } {
            return Some(*membership);
        }
        let css: u64 = peek(
            cgroup + get(&off::OFF_CGROUP_SELF) as u64 + get(&off::OFF_CSS_PARENT) as u64,
            0,
        );
        if css == 0 {
            return None;
        }
        cgroup = peek(css + get(&off::OFF_CSS_CGROUP) as u64, 0);
        level += 1;
    }
    None
}
