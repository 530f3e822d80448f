//! The `kernel` section. Threat: an agent changes the system under its rules (mounts, modules, other
//! programs in the kernel, settings), or reaches outside of its own processes. Everything here is locked
//! unless its policy permits it, also for root.

use agentguard_common::offsets::ABSENT;
use agentguard_common::table::flags::QUIET;
use agentguard_common::verdict::{Lock, Operation, Reason};

use super::names::{parts, send};
use super::prepare;
use crate::climb::climb;
use crate::decide::{self, Decision, Policy, with_table};
use crate::emit::{self, DENIED_ERRNO as DENIED};
use crate::label::{Subject, load, peek};
use crate::maps::NameScratch;
use crate::offsets::{self as off, get};
use crate::scratch;

/// `CAP_OPT_NOAUDIT`: the kernel only asks what would be.
const NOAUDIT: u64 = 2;
/// Capabilities that reach no further than files and processes of one's own, or whose every use another hook
/// judges with its object: chown, `dac_override`, `dac_read_search`, fowner, fsetid, kill, setgid, setuid,
/// setpcap, `net_bind_service`, `net_broadcast`, `ipc_lock`, `ipc_owner`, `sys_ptrace`, `sys_nice`, lease,
/// `audit_write`.
const HARMLESS: u64 = 1 << 0
    | 1 << 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 10
    | 1 << 11
    | 1 << 14
    | 1 << 15
    | 1 << 19
    | 1 << 23
    | 1 << 28
    | 1 << 29;

/// Judges one lock; the record has no path.
#[inline(always)]
pub fn bare(subject: Subject, lock: Lock, detail: u64) -> i32 {
    // SAFETY: the label is a live map value.
    let decision = match decide::policy(unsafe { (*subject.label).agent }) {
        // The agent is gone or was never installed: deny (no-policy).
        None => Decision::failure(Reason::NoPolicy),
        Some(policy) => with_table!(policy, t => decide::lock(t, lock as u32)),
    };
    if decision.is_unheard(QUIET) {
        return 0;
    }
    let outcome = emit::outcome(decision);
    emit::event(subject, Operation::Kernel, decision, lock as u32, detail);
    crate::bound::verdict(outcome.refused)
}

/// Judges one lock; what is permitted leaves no record.
#[inline(always)]
pub fn decide_quietly(subject: Subject, policy: Policy, lock: Lock) -> i32 {
    let decision = with_table!(policy, t => decide::lock(t, lock as u32));
    if decision.is_allowed() {
        return 0;
    }
    let outcome = emit::outcome(decision);
    emit::event(subject, Operation::Kernel, decision, lock as u32, 0);
    crate::bound::verdict(outcome.refused)
}

/// Judges one lock for a question of the kernel's own, which is answered but not recorded.
#[inline(always)]
pub fn decide_unseen(subject: Subject, lock: Lock) -> i32 {
    // SAFETY: the label is a live map value.
    match decide::policy(unsafe { (*subject.label).agent }) {
        // The agent is gone or was never installed: deny (no-policy).
        None => DENIED,
        Some(policy) => {
            let decision = with_table!(policy, t => decide::lock(t, lock as u32));
            crate::bound::verdict(emit::outcome(decision).refused)
        }
    }
}

/// Judges one lock on an object with a path.
#[inline(always)]
pub fn object(subject: Subject, lock: Lock, mount: u64, dentry: u64) -> i32 {
    let (policy, scratch) = match prepare::<NameScratch>(subject, Operation::Kernel) {
        Ok(prepared) => prepared,
        Err(refused) => return refused,
    };
    let decision = with_table!(policy, t => decide::lock(t, lock as u32));
    if decision.is_unheard(QUIET) {
        scratch::release(scratch);
        return 0;
    }
    // SAFETY: this task owns the slot until it is released.
    let refused = unsafe {
        let (decision, outcome) = emit::settle(&raw mut (*scratch).decision, decision);
        let len = climb(scratch, subject.task, mount, dentry, 0);
        let header = &mut (*scratch).header;
        emit::fill(header, subject, Operation::Kernel, decision, outcome);
        header.aux = lock as u32;
        // Without a path the decision stands; the record says why it has none.
        let len = if len < 0 {
            header.errno = -len as u16;
            0
        } else {
            len as u32
        };
        header.target_len = len;
        send(scratch, len, outcome);
        outcome.refused
    };
    scratch::release(scratch);
    crate::bound::verdict(refused)
}

/// A hook whose first argument is a `struct path`.
#[inline(always)]
fn at_path(subject: Subject, path: u64, lock: Lock) -> i32 {
    let (mount, dentry) = parts(path);
    object(subject, lock, mount, dentry)
}

hook! {
    /// `capable(const struct cred *cred, struct user_namespace *ns, int cap, unsigned int opts)`. Minimum kernel 5.7.
    /// Fails closed. Asked only where the task has the capability; in a user namespace of its own as well.
    capable, "capable", Lock::Capabilities, where |ctx| !is_harmless(ctx.arg(2)),
    |ctx, subject| {
        let (capability, options): (u64, u64) = (ctx.arg(2), ctx.arg(3));
        if acts_for_another(subject) {
            0
        } else if options & NOAUDIT == 0 {
            bare(subject, Lock::Capabilities, u64::from(capability as u32))
        } else {
            decide_unseen(subject, Lock::Capabilities)
        }
    }
}

/// Whether a capability reaches no further than one's own files and processes.
#[inline(always)]
fn is_harmless(capability: u64) -> bool {
    let capability = capability as u32;
    capability < 64 && HARMLESS >> capability & 1 != 0
}

/// `PF_IO_WORKER` of a task's flags: a thread of `io_uring`.
const PF_IO_WORKER: u32 = 0x10;

/// Whether the kernel has put on other credentials for a moment, as overlayfs does for its own work. `io_uring` does
/// so too, with credentials that the task itself had before: a task that uses it is never taken for the kernel.
#[inline(always)]
fn acts_for_another(subject: Subject) -> bool {
    // SAFETY: fields of a live task.
    unsafe {
        let flags: u32 = load(subject.task, get(&off::OFF_TASK_FLAGS));
        let at = get(&off::OFF_TASK_IO_URING) as u32;
        // Where the kernel has no `io_uring`, it has no such field.
        let uring: u64 = if at == ABSENT {
            0
        } else {
            peek(subject.task as u64 + u64::from(at), 1)
        };
        if flags & PF_IO_WORKER != 0 || uring != 0 {
            return false;
        }
        let effective: u64 = load(subject.task, get(&off::OFF_TASK_CRED));
        let real: u64 = load(subject.task, get(&off::OFF_TASK_REAL_CRED));
        effective != real
    }
}

hook! {
    /// `sb_mount(const char *dev_name, const struct path *path, const char *type, unsigned long flags, void *data)`.
    /// Minimum kernel 5.7. Fails closed. Also bind mounts, remounts and changes of propagation.
    sb_mount, "sb_mount", Lock::Mount, |ctx, subject| at_path(subject, ctx.arg(1), Lock::Mount)
}

hook! {
    /// `move_mount(const struct path *from_path, const struct path *to_path)`. Minimum kernel 5.7. Fails closed.
    move_mount, "move_mount", Lock::Mount, |ctx, subject| at_path(subject, ctx.arg(1), Lock::Mount)
}

hook! {
    /// `sb_pivotroot(const struct path *old_path, const struct path *new_path)`. Minimum kernel 5.7. Fails closed.
    sb_pivotroot, "sb_pivotroot", Lock::Mount, |ctx, subject| at_path(subject, ctx.arg(1), Lock::Mount)
}

hook! {
    /// `path_chroot(const struct path *path)`. Minimum kernel 5.7. Fails closed.
    path_chroot, "path_chroot", Lock::Mount, |ctx, subject| at_path(subject, ctx.arg(0), Lock::Mount)
}

hook! {
    /// `sb_umount(struct vfsmount *mnt, int flags)`. Minimum kernel 5.7. Fails closed.
    sb_umount, "sb_umount", Lock::Mount, |ctx, subject| {
            let mount: u64 = ctx.arg(0);
            let root = peek(mount + get(&off::OFF_VFSMOUNT_ROOT) as u64, 0);
            object(subject, Lock::Mount, mount, root)
        }
}

hook! {
    /// `sb_remount(struct super_block *sb, void *mnt_opts)`. Minimum kernel 5.7. Fails closed.
    sb_remount, "sb_remount", Lock::Mount, |_ctx, subject| bare(subject, Lock::Mount, 0)
}

hook! {
    /// `userns_create(const struct cred *cred)`. Minimum kernel 6.1. Fails closed.
    userns_create, "userns_create", Lock::UserNamespaces, |_ctx, subject| bare(subject, Lock::UserNamespaces, 0)
}

hook! {
    /// `bpf(int cmd, union bpf_attr *attr, unsigned int size)`. Minimum kernel 5.7. Fails closed.
    bpf, "bpf", Lock::Bpf, |ctx, subject| {
        let command: u64 = ctx.arg(0);
        bare(subject, Lock::Bpf, u64::from(command as u32))
    }
}

hook! {
    /// `perf_event_open(struct perf_event_attr *attr, int type)`. Minimum kernel 5.7. Fails closed.
    perf_event_open, "perf_event_open", Lock::Perf, |_ctx, subject| bare(subject, Lock::Perf, 0)
}

hook! {
    /// `kernel_module_request(char *kmod_name)`. Minimum kernel 5.7. Fails closed.
    kernel_module_request, "kernel_module_request", Lock::Modules, |_ctx, subject| bare(subject, Lock::Modules, 0)
}

hook! {
    /// `uring_override_creds(const struct cred *new)`. Minimum kernel 5.16. Fails closed.
    uring_override_creds, "uring_override_creds", Lock::UringCommands, |_ctx, subject| bare(subject, Lock::UringCommands, 0)
}

hook! {
    /// `uring_cmd(struct io_uring_cmd *ioucmd)`. Minimum kernel 6.0. Fails closed.
    uring_cmd, "uring_cmd", Lock::UringCommands, |_ctx, subject| bare(subject, Lock::UringCommands, 0)
}

/// Extended attributes: judged by a switch, since these hooks see no mount and so no path.
#[inline(always)]
fn attribute(subject: Subject, dentry: u64) -> i32 {
    if acts_for_another(subject) {
        return 0;
    }
    bare(subject, Lock::Xattrs, crate::identity::of(dentry).inode)
}

hook! {
    /// `inode_setxattr(struct mnt_idmap *idmap, struct dentry *dentry, const char *name, …)`. Minimum kernel 5.12 (the
    /// first argument). Fails closed.
    inode_setxattr, "inode_setxattr", Lock::Xattrs, |ctx, subject| attribute(subject, ctx.arg(1))
}

hook! {
    /// `inode_removexattr(struct mnt_idmap *idmap, struct dentry *dentry, const char *name)`. Minimum kernel 5.12.
    /// Fails closed.
    inode_removexattr, "inode_removexattr", Lock::Xattrs, |ctx, subject| attribute(subject, ctx.arg(1))
}

hook! {
    /// `inode_remove_acl(struct mnt_idmap *idmap, struct dentry *dentry, const char *acl_name)`. Minimum kernel 6.2.
    /// Fails closed.
    inode_remove_acl, "inode_remove_acl", Lock::Xattrs, |ctx, subject| attribute(subject, ctx.arg(1))
}

hook! {
    /// `inode_set_acl(struct mnt_idmap *idmap, struct dentry *dentry, const char *acl_name, struct posix_acl *kacl)`.
    /// Minimum kernel 6.2; before, lists are extended attributes. Fails closed.
    inode_set_acl, "inode_set_acl", Lock::Xattrs, |ctx, subject| attribute(subject, ctx.arg(1))
}
