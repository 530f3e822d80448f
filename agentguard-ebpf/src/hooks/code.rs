//! Executable memory. Threat: a program that may not be started is mapped and run all the same: by the
//! dynamic loader, by a library call, or written by the agent and loaded into a permitted program.
//! Choke points: `mmap_file` and `file_mprotect` with `PROT_EXEC`. Libraries that the agent cannot write
//! are no programs of its own and stay free. What is permitted leaves no record: the file was opened.

use agentguard_common::table::flags::QUIET;
use agentguard_common::verdict::{Lock, Operation, Reason, Verdict, access};

use super::locks;
use super::names::{send, typed_parts};
use super::{object, policy_of, script, slot_of};
use crate::bound::at_most_64;
use crate::decide::{self, Policy, with_table};
use crate::emit;
use crate::folder;
use crate::identity;
use crate::label::Subject;
use crate::maps::{FOLDER_TEXT, NameScratch};
use crate::offsets::{self as off, field, get};
use crate::scratch;

const PROT_EXEC: u64 = 4;

hook! {
    /// `mmap_file(struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags)`. Minimum kernel
    /// 5.7. Fails closed. `file` is null for anonymous memory.
    mmap_file, "mmap_file", Operation::Map, where |ctx| ctx.arg::<u64>(2) & PROT_EXEC != 0,
    |ctx, subject| governed(subject, ctx.arg(0))
}

hook! {
    /// `file_mprotect(struct vm_area_struct *vma, unsigned long reqprot, unsigned long prot)`. Minimum kernel 5.7.
    /// Fails closed.
    file_mprotect, "file_mprotect", Operation::Map, where |ctx| ctx.arg::<u64>(2) & PROT_EXEC != 0,
    // SAFETY: the hook's argument.
    |ctx, subject| governed(subject, unsafe { field!(ctx.arg::<*const u8>(0), OFF_VMA_FILE, u64) } as *const u8)
}

#[inline(always)]
fn governed(subject: Subject, file: *const u8) -> i32 {
    let policy = match policy_of(subject, Operation::Map) {
        Ok(policy) => policy,
        Err(refused) => return refused,
    };
    // SAFETY: the verifier knows the file by its type.
    if file.is_null() || unsafe { object(file).anonymous } {
        return locks::decide_quietly(subject, policy, Lock::AnonymousCode);
    }
    let scratch = match slot_of::<NameScratch>(subject, Operation::Map, policy) {
        Ok(scratch) => scratch,
        Err(refused) => return refused,
    };
    // SAFETY: this task owns the slot until it is released; the verifier knows the file by its type.
    let result = if unsafe { is_known_library(subject.task, file, policy, scratch) } {
        0
    } else {
        judge(subject, file, policy, scratch)
    };
    scratch::release(scratch);
    result
}

/// Whether a file in a known folder is a library like any other: its label is found without its path, which nobody asks
/// for. False says nothing.
///
/// # Safety
/// The caller owns the slot; the verifier must know `task` and `file` by their types.
#[inline(never)]
unsafe fn is_known_library(
    task: *const u8,
    file: *const u8,
    policy: Policy,
    scratch: *mut NameScratch,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let entry = folder::entry_of(file);
        if entry.is_null() {
            return false;
        }
        let tail = &raw mut (*scratch).tail as *mut u8;
        let mount = field!(file.add(get(&off::OFF_FILE_PATH)), OFF_PATH_MNT, u64) as *const u8;
        let found = folder::find(task, mount, entry, tail, |_, _, _| {});
        if !found.is_known() || (*found.folder).automata != decide::automata(policy.head()) {
            return false;
        }
        let state = (*found.folder).state;
        if state == 0 {
            return false;
        }
        let name = tail.add(at_most_64(found.above, FOLDER_TEXT as u64) as usize);
        let label = with_table!(policy, t => t.walk_up_to::<{ folder::SHORT_NAME }>(name, found.name, state));
        decide::mapped(policy.head(), label).is_none()
    }
}

#[inline(always)]
fn judge(subject: Subject, file: *const u8, policy: Policy, scratch: *mut NameScratch) -> i32 {
    // SAFETY: this task owns the slot until it is released.
    unsafe {
        let (mount, dentry) = typed_parts(file.add(get(&off::OFF_FILE_PATH)));
        let entry = folder::entry_of(file);
        let way = if entry.is_null() {
            folder::path_up(scratch, subject.task, mount, dentry)
        } else {
            folder::path_of(scratch, subject.task, mount as *const u8, entry, policy)
        };
        let len = way.len;
        let tail = &raw const (*scratch).tail as *const u8;
        let object = identity::of_typed(dentry as *const u8);
        let decision = if len < 0 {
            // Which file it is cannot be known: deny (path-unreadable).
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::PathUnreadable))
        } else {
            let judged = with_table!(policy, t => decide::mapped(t, way.label(t, tail)));
            let Some(decision) = judged else {
                return 0;
            };
            if decision.verdict == Verdict::Ask as u32
                && script::is_running(subject.task, object.inode, object.device)
            {
                // The kernel maps the program whose start was granted.
                return 0;
            }
            decision
        };
        let (decision, outcome) = emit::settle(&raw mut (*scratch).decision, decision);
        if decision.is_unheard(QUIET) {
            return 0;
        }
        let header = &mut (*scratch).header;
        emit::fill(header, subject, Operation::Map, decision, outcome);
        header.access = access::EXEC;
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
