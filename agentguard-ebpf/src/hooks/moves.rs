//! Second names. Threat: an agent gives an object another name, by which its rules permit more: a secret
//! moved or linked into the workspace, a parent folder moved away, a program replaced by a rename onto it.
//! Choke points: `path_rename` and `path_link`, with both names. A folder may go only to where the same
//! rules apply to everything below it, which the automaton's states tell at once.

use agentguard_common::table::flags;
use agentguard_common::verdict::{Lock, Operation, Reason, Verdict, access};

use super::doors;
use super::names::{send, typed_parts};
use super::prepare;
use crate::approval::{self, Asked, Use};
use crate::bound::{self, at_most, forget};
use crate::climb::climb;
use crate::decide::{self, Moved, Place, Policy, with_table};
use crate::emit;
use crate::identity;
use crate::label::Subject;
use crate::maps::{NameScratch, PATH_BUFFER};
use crate::offsets::field;
use crate::scratch;

const S_IFMT: u16 = 0o170_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFSOCK: u16 = 0o140_000;
const RENAME_EXCHANGE: u32 = 2;
const READ: u32 = access::READ as u32;
const WRITE: u32 = access::WRITE as u32;
const EXEC: u32 = access::EXEC as u32;

/// An object with two names.
#[derive(Clone, Copy)]
struct Move {
    operation: Operation,
    from: (u64, u64),
    to: (u64, u64),
    flags: u32,
}

hook! {
    /// `path_rename(const struct path *old_dir, struct dentry *old_dentry, const struct path *new_dir, struct dentry
    /// *new_dentry, unsigned int flags)`. Minimum kernel 5.19 (flags). Fails closed.
    path_rename, "path_rename", Operation::Rename, |ctx, subject| {
            let flags: u64 = ctx.arg(4);
            // SAFETY: the hook's arguments.
            let (from, to) = unsafe { (typed_parts(ctx.arg(0)).0, typed_parts(ctx.arg(2)).0) };
            governed(
                subject,
                Move {
                    operation: Operation::Rename,
                    from: (from, ctx.arg(1)),
                    to: (to, ctx.arg(3)),
                    flags: flags as u32,
                },
            )
        }
}

hook! {
    /// `path_link(struct dentry *old_dentry, const struct path *new_dir, struct dentry *new_dentry)`. Minimum kernel
    /// 5.7. Fails closed. The kernel has made sure that both are on one mount.
    path_link, "path_link", Operation::Link, |ctx, subject| {
            // SAFETY: the hook's argument.
            let (mount, _) = unsafe { typed_parts(ctx.arg(1)) };
            governed(
                subject,
                Move {
                    operation: Operation::Link,
                    from: (mount, ctx.arg(0)),
                    to: (mount, ctx.arg(2)),
                    flags: 0,
                },
            )
        }
}

#[inline(always)]
fn governed(subject: Subject, request: Move) -> i32 {
    let (policy, scratch) = match prepare::<NameScratch>(subject, request.operation) {
        Ok(prepared) => prepared,
        Err(refused) => return refused,
    };
    let result = judge(subject, request, policy, scratch);
    scratch::release(scratch);
    result
}

/// What is behind an entry.
///
/// # Safety
/// `dentry` must be a `struct dentry` that the verifier knows.
#[inline(always)]
unsafe fn what(dentry: *const u8) -> Moved {
    // SAFETY: the caller's promise.
    let mode = unsafe {
        let inode = field!(dentry, OFF_DENTRY_INODE, u64) as *const u8;
        if inode.is_null() {
            return Moved::Other;
        }
        field!(inode, OFF_INODE_MODE, u16)
    };
    match mode & S_IFMT {
        S_IFDIR => Moved::Folder,
        S_IFSOCK => Moved::Socket,
        _ => Moved::Other,
    }
}

#[inline(always)]
fn judge(subject: Subject, request: Move, policy: Policy, scratch: *mut NameScratch) -> i32 {
    // SAFETY: this task owns the slot until it is released.
    unsafe {
        let task = subject.task;
        let from_len = climb(scratch, task, request.from.0, request.from.1, 0);
        let behind = bound::path_len(from_len);
        let to_len = climb(scratch, task, request.to.0, request.to.1, behind);
        let lengths = &raw mut (*scratch).lengths;
        let [from_len, to_len] = forget(lengths, [from_len, to_len]);
        let kept = &raw mut (*scratch).decision;
        let behind = bound::path_len(from_len);
        let first = &raw const (*scratch).tail as *const u8;
        let second = first.add(at_most(behind, PATH_BUFFER as u32 - 1) as usize);
        let (object, replaced) = (
            identity::of_typed(request.from.1 as *const u8),
            identity::of_typed(request.to.1 as *const u8),
        );
        let decision = if from_len < 0 || to_len < 0 {
            // Which names they are cannot be known: deny (path-unreadable).
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::PathUnreadable))
        } else {
            let old = with_table!(policy, t => decide::place_of(t, first, behind));
            let new = with_table!(policy, t => decide::place_of(t, second, at_most(to_len as u32, PATH_BUFFER as u32 - 1)));
            let [old, new] = forget(&raw mut (*scratch).places, [old, new]);
            let mut decision = with_table!(policy, t => decide::moved(t, (Place::new(t, old), Place::new(t, new)), what(request.from.1 as *const u8), 0, kept));
            decision = forget(kept, decision);
            let mut number = 0;
            if decision.verdict == Verdict::Ask as u32 {
                let leaves = with_table!(policy, t => decide::asks_to_write(t, Place::new(t, old)));
                let arrives =
                    with_table!(policy, t => decide::asks_to_write(t, Place::new(t, new)));
                let asks = [i64::from(leaves), i64::from(arrives)];
                let [leaves, arrives] = forget(lengths, asks).map(|asks| asks != 0);
                if leaves {
                    let asked = Asked::path(access::WRITE, Use::Whole, first, behind);
                    number = approval::number(subject, asked);
                }
                if arrives && (number != 0 || !leaves) {
                    let asked = Asked::path(access::WRITE, Use::Whole, second, to_len as u32);
                    number = approval::number(subject, asked);
                }
                number = forget(lengths.cast(), number);
                if number != 0 {
                    decision = with_table!(policy, t => decide::moved(t, (Place::new(t, old), Place::new(t, new)), what(request.from.1 as *const u8), number, kept));
                    decision = forget(kept, decision);
                }
            }
            if decision.is_allowed() && request.flags & RENAME_EXCHANGE != 0 {
                decision = with_table!(policy, t => decide::moved(t, (Place::new(t, new), Place::new(t, old)), what(request.to.1 as *const u8), number, kept));
            }
            let decision = forget(kept, decision);
            let decision =
                identity::guard_approved(subject, decision, object, (READ | WRITE | EXEC) as u8);
            let decision = forget(kept, decision);
            identity::guard_approved(subject, decision, replaced, (READ | WRITE) as u8)
        };
        let mut decision = forget(kept, decision);
        let (mut operation, mut aux) = (request.operation, request.flags);
        if decision.is_allowed() && doors::is_settings_typed(request.from.1 as *const u8) {
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
        header.access = access::WRITE;
        header.aux = aux;
        header.inode = object.inode;
        header.device = object.device;
        let mut tail = behind;
        if from_len < 0 {
            header.errno = -from_len as u16;
        }
        header.target_len = behind;
        if to_len < 0 {
            header.errno = -to_len as u16;
        } else if from_len >= 0 && !matches!(operation, Operation::Kernel) {
            let to_len = at_most(to_len as u32, PATH_BUFFER as u32 - 1);
            header.args_len = to_len;
            tail += to_len;
        }
        send(scratch, tail, outcome);
        crate::bound::verdict(outcome.refused)
    }
}
