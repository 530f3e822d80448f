//! Names of files. Threat: an agent removes, replaces, makes or changes what it may not write, without ever
//! opening it. Choke points: the `path_*` hooks, which every system call and io_uring go through. All are
//! judged as writing, on the path that the kernel resolved, and are refused before anything happens.

use agentguard_common::table::flags;
use agentguard_common::verdict::{Lock, Operation, Reason, Verdict, access};
use aya_ebpf::programs::LsmContext;

use super::{doors, locks, prepare};
use crate::approval::{self, Asked, Use};
use crate::bound::forget;
use crate::decide::{self, Policy, with_table};
use crate::emit::{self, Outcome};
use crate::folder;
use crate::identity;
use crate::label::{Subject, peek};
use crate::maps::{NameScratch, PATH_BUFFER};
use crate::offsets::{self as off, field, get};
use crate::scratch;

const S_IFMT: u32 = 0o170_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFREG: u32 = 0o100_000;

/// What is about to happen to one name, whose entry the verifier knows by its type.
#[derive(Clone, Copy)]
pub struct Request {
    pub operation: Operation,
    /// `struct vfsmount` and `struct dentry` of the object.
    pub mount: u64,
    pub dentry: u64,
    /// Whether the verifier believes the type of `dentry`.
    pub believed: bool,
    pub wanted: u8,
    pub aux: u32,
}

/// Mount and entry of a `struct path`.
#[inline(always)]
pub fn parts(path: u64) -> (u64, u64) {
    (
        peek(path + get(&off::OFF_PATH_MNT) as u64, 0),
        peek(path + get(&off::OFF_PATH_DENTRY) as u64, 0),
    )
}

/// The same of one that the verifier knows by its type: loads, and no calls.
///
/// # Safety
/// `path` must be a `struct path` that the verifier knows.
#[inline(always)]
pub unsafe fn typed_parts(path: *const u8) -> (u64, u64) {
    // SAFETY: the caller's promise.
    unsafe {
        (
            field!(path, OFF_PATH_MNT, u64),
            field!(path, OFF_PATH_DENTRY, u64),
        )
    }
}

/// Judges an entry of a folder that changes as a writer would change it.
#[inline(always)]
fn entry(ctx: &LsmContext, subject: Subject, operation: Operation, aux: u32) -> i32 {
    // SAFETY: the hook's argument.
    let (mount, _) = unsafe { typed_parts(ctx.arg(0)) };
    let request = Request {
        operation,
        mount,
        dentry: ctx.arg(1),
        believed: true,
        wanted: access::WRITE,
        aux,
    };
    judge(subject, request)
}

/// The same for a hook that is handed the whole path.
#[inline(always)]
fn whole(ctx: &LsmContext, subject: Subject, operation: Operation, aux: u32) -> i32 {
    // SAFETY: the hook's argument.
    let (mount, dentry) = unsafe { typed_parts(ctx.arg(0)) };
    let request = Request {
        operation,
        mount,
        dentry,
        believed: true,
        wanted: access::WRITE,
        aux,
    };
    judge(subject, request)
}

hook! {
    /// `path_unlink(const struct path *dir, struct dentry *dentry)`. Minimum kernel 5.7. Fails closed.
    path_unlink, "path_unlink", Operation::Unlink, |ctx, subject| entry(&ctx, subject, Operation::Unlink, 0)
}

hook! {
    /// `path_rmdir(const struct path *dir, struct dentry *dentry)`. Minimum kernel 5.7. Fails closed.
    path_rmdir, "path_rmdir", Operation::Rmdir, |ctx, subject| entry(&ctx, subject, Operation::Rmdir, 0)
}

hook! {
    /// `path_mkdir(const struct path *dir, struct dentry *dentry, umode_t mode)`. Minimum kernel 5.7. Fails closed.
    path_mkdir, "path_mkdir", Operation::Mkdir, |ctx, subject| {
        let mode: u64 = ctx.arg(2);
        entry(&ctx, subject, Operation::Mkdir, u32::from(mode as u16))
    }
}

hook! {
    /// `path_symlink(const struct path *dir, struct dentry *dentry, const char *old_name)`. Minimum kernel 5.7.
    /// Fails closed. Where the link points to has no say: whoever follows it is judged there.
    path_symlink, "path_symlink", Operation::Symlink, |ctx, subject| entry(&ctx, subject, Operation::Symlink, 0)
}

hook! {
    /// `path_mknod(const struct path *dir, struct dentry *dentry, umode_t mode, unsigned int dev)`. Minimum
    /// kernel 5.7. Fails closed. Also called when an open or a `bind` makes a file.
    path_mknod, "path_mknod", Operation::Mknod, |ctx, subject| {
        let (mode, device): (u64, u64) = (ctx.arg(2), ctx.arg(3));
        let mode = u32::from(mode as u16);
        match mode & S_IFMT {
            0 | S_IFREG => entry(&ctx, subject, Operation::Create, mode),
            // A whiteout (character device 0:0) reaches nothing.
            S_IFCHR | S_IFBLK if device as u32 != 0 || mode & S_IFMT == S_IFBLK => {
                let (mount, _) = parts(ctx.arg(0));
                locks::object(subject, Lock::RawDevices, mount, ctx.arg(1))
            }
            _ => entry(&ctx, subject, Operation::Mknod, mode),
        }
    }
}

hook! {
    /// `path_truncate(const struct path *path)`. Minimum kernel 5.7. Fails closed.
    path_truncate, "path_truncate", Operation::Truncate, |ctx, subject| whole(&ctx, subject, Operation::Truncate, 0)
}

hook! {
    /// `path_chmod(const struct path *path, umode_t mode)`. Minimum kernel 5.7. Fails closed.
    path_chmod, "path_chmod", Operation::Chmod, |ctx, subject| {
        let mode: u64 = ctx.arg(1);
        whole(&ctx, subject, Operation::Chmod, u32::from(mode as u16))
    }
}

hook! {
    /// `path_chown(const struct path *path, kuid_t uid, kgid_t gid)`. Minimum kernel 5.7. Fails closed.
    path_chown, "path_chown", Operation::Chown, |ctx, subject| whole(&ctx, subject, Operation::Chown, 0)
}

/// Judges one name, and leaves the record.
#[inline(always)]
pub fn judge(subject: Subject, request: Request) -> i32 {
    let (policy, scratch) = match prepare::<NameScratch>(subject, request.operation) {
        Ok(prepared) => prepared,
        Err(refused) => return refused,
    };
    let result = judge_in(subject, request, policy, scratch);
    scratch::release(scratch);
    result
}

#[inline(always)]
fn judge_in(subject: Subject, request: Request, policy: Policy, scratch: *mut NameScratch) -> i32 {
    // SAFETY: this task owns the slot until it is released.
    unsafe {
        let (mount, dentry) = (request.mount as *const u8, request.dentry as *const u8);
        let way = if request.believed {
            folder::path_of(scratch, subject.task, mount, dentry, policy)
        } else {
            folder::path_up(scratch, subject.task, request.mount, request.dentry)
        };
        let len = way.len;
        let tail = &raw const (*scratch).tail as *const u8;
        let object = identity::of_typed(request.dentry as *const u8);
        let decision = if len < 0 {
            // Which name it is cannot be known: deny (path-unreadable).
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::PathUnreadable))
        } else {
            let decision = with_table!(policy, t => decide::file_labelled(t, way.label(t, tail), u32::from(request.wanted)));
            let decision = forget(&raw mut (*scratch).decision, decision);
            let how = match request.operation {
                Operation::Create => Use::Makes,
                Operation::Truncate => Use::Cuts,
                _ => Use::Whole,
            };
            if matches!(request.operation, Operation::Receive) {
                // What another process has opened is never granted.
                identity::guard(subject, decision, object, request.wanted)
            } else {
                let asked = Asked::path(request.wanted, how, tail, len as u32);
                let decision = approval::consult(subject, decision, asked);
                let decision = forget(&raw mut (*scratch).decision, decision);
                identity::guard_approved(subject, decision, object, request.wanted)
            }
        };
        let kept = &raw mut (*scratch).decision;
        let mut decision = forget(kept, decision);
        let len = forget((&raw mut (*scratch).lengths).cast(), len);
        let (mut operation, mut aux) = (request.operation, request.aux);
        if decision.is_allowed()
            && request.wanted & access::WRITE != 0
            && doors::is_settings_typed(request.dentry as *const u8)
        {
            let locked = with_table!(policy, t => decide::lock(t, Lock::Settings as u32));
            if !locked.is_allowed() {
                decision = locked;
                (operation, aux) = (Operation::Kernel, Lock::Settings as u32);
            }
        }
        let (decision, outcome) = emit::settle(kept, decision);
        if decision.is_unheard(flags::QUIET_OPENS) {
            return 0;
        }
        let header = &mut (*scratch).header;
        emit::fill(header, subject, operation, decision, outcome);
        header.access = request.wanted;
        header.aux = aux;
        header.inode = object.inode;
        header.device = object.device;
        let len = if len < 0 {
            header.errno = -len as u16;
            0
        } else {
            len as u32
        };
        header.target_len = len;
        send(scratch, len, outcome);
        crate::bound::verdict(outcome.refused)
    }
}

/// Sends what is in a slot.
///
/// # Safety
/// The caller owns the slot.
#[inline(always)]
pub unsafe fn send(scratch: *mut NameScratch, tail: u32, outcome: Outcome) {
    // SAFETY: the caller's promise.
    unsafe {
        emit::send::<{ 2 * PATH_BUFFER as u32 }>(&raw mut (*scratch).header, tail, outcome);
    }
}
