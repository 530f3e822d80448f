//! Starting programs. Threat: an agent runs a program, or a permitted program with arguments, that
//! its policy does not name. Choke points: `bprm_check_security` refuses with EPERM before the point
//! of no return, on the resolved file and on the arguments as far as they can be read there;
//! `bprm_committed_creds` judges the arguments that the new program will really see, which nobody
//! else can change any more, and kills before its first instruction.

use agentguard_common::budget::kind;
use agentguard_common::record::record_flags;
use agentguard_common::table::{MARKS, MAX_COMMAND, flags};
use agentguard_common::verdict::{Operation, Reason, Verdict, access};
use aya_ebpf::helpers::generated::{
    bpf_loop, bpf_probe_read_user, bpf_probe_read_user_str, bpf_send_signal, bpf_task_pt_regs,
};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use core::ffi::c_void;

use super::{identify, script, unlabelled};
use crate::approval::{self, Asked, Use};
use crate::bound::{self, at_most, forget};
use crate::budget;
use crate::decide::{self, Command, Decision, Policy, with_table};
use crate::emit::{self, DENIED_ERRNO};
use crate::folder;
use crate::label::{Standing, Subject, enter, load, peek, standing};
use crate::maps::{ExecScratch, PATH_BUFFER, Script, Walk, exec_ids};
use crate::offsets::{self as off, get};
use crate::scratch;

const SIGKILL: u32 = 9;
/// Arguments that the first check reads; longer lists are left to the second.
const FIRST_CHECK: u32 = 64;
/// Longest single argument that the first check reads.
const FIRST_CHECK_BYTES: u32 = 4096;
/// x86-64: `execve` and `execveat`, and where `struct pt_regs` keeps what they are given.
const EXECVE: u64 = 59;
const EXECVEAT: u64 = 322;
const REGS_ORIG_AX: u64 = 120;
const REGS_SI: u64 = 104;
const REGS_DX: u64 = 96;

/// `bprm_check_security(struct linux_binprm *bprm)`. Minimum kernel 5.7. Fails closed.
#[lsm(hook = "bprm_check_security")]
pub fn bprm_check_security(ctx: LsmContext) -> i32 {
    enter(&ctx, checking)
}

#[inline(never)]
unsafe extern "C" fn checking(ctx: *mut c_void, task: *const u8) -> i32 {
    let ctx = LsmContext::new(ctx);
    match standing(task) {
        Standing::Ungoverned => 0,
        Standing::Unlabelled(membership) => unlabelled(membership, Operation::Exec),
        Standing::Governed(subject) => {
            // SAFETY: the label is a live map value.
            let Some(policy) = decide::policy(unsafe { (*subject.label).agent }) else {
                // The agent is gone or was never installed: deny (no-policy).
                return emit::bare(
                    subject,
                    Operation::Exec,
                    Decision::failure(Reason::NoPolicy),
                );
            };
            let Some(scratch) = scratch::claim::<ExecScratch>() else {
                // Every slot is taken: deny (scratch-unavailable).
                let decision = with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::ScratchUnavailable));
                return emit::bare(subject, Operation::Exec, decision);
            };
            let result = emit::noted!(
                ctx,
                "bprm_check_security",
                check(subject, ctx.arg(0), policy, scratch)
            );
            scratch::release(scratch);
            result
        }
    }
}

/// `bprm_committed_creds(struct linux_binprm *bprm)`. Minimum kernel 5.7. Cannot refuse: kills.
#[lsm(hook = "bprm_committed_creds")]
pub fn bprm_committed_creds(ctx: LsmContext) -> i32 {
    enter(&ctx, committing)
}

#[inline(never)]
unsafe extern "C" fn committing(ctx: *mut c_void, task: *const u8) -> i32 {
    let ctx = LsmContext::new(ctx);
    match standing(task) {
        Standing::Ungoverned => {}
        Standing::Unlabelled(membership) => {
            unlabelled(membership, Operation::Exec);
            kill();
        }
        Standing::Governed(subject) => {
            // SAFETY: the label is a live map value.
            let failed = match decide::policy(unsafe { (*subject.label).agent }) {
                // The agent is gone: kill (no-policy).
                None => Decision::failure(Reason::NoPolicy),
                Some(policy) => match scratch::claim::<ExecScratch>() {
                    Some(scratch) => {
                        commit(subject, ctx.arg(0), policy, scratch);
                        scratch::release(scratch);
                        return 0;
                    }
                    // Every slot is taken: kill (scratch-unavailable).
                    None => {
                        with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::ScratchUnavailable))
                    }
                },
            };
            if emit::bare(subject, Operation::Exec, failed) != 0 {
                kill();
            }
        }
    }
    0
}

/// Ends the process before it returns to user space.
#[inline(always)]
fn kill() {
    // SAFETY: a helper; it can fail only for the init task, which is never governed.
    unsafe { bpf_send_signal(SIGKILL) };
}

/// The file that a new program is read from.
///
/// # Safety
/// `bprm` must be the hook's argument.
#[inline(always)]
unsafe fn file_of(bprm: *const u8) -> *const u8 {
    // SAFETY: the caller's promise.
    unsafe { load(bprm, get(&off::OFF_BPRM_FILE)) }
}

/// Copies the arguments of the system call behind the path, as far as they can be read; their number
/// and length are left in `walk`. False: leave them to the second check.
#[inline(always)]
fn read_arguments(subject: Subject, buffer: *mut u8, walk: *mut Walk) -> bool {
    // SAFETY: the current task has user registers: it is inside a system call.
    let regs = unsafe { bpf_task_pt_regs(subject.task as *mut _) } as u64;
    if regs == 0 {
        return false;
    }
    let list = match peek::<u64>(regs + REGS_ORIG_AX, 0) {
        EXECVE => peek::<u64>(regs + REGS_SI, 0),
        EXECVEAT => peek::<u64>(regs + REGS_DX, 0),
        _ => return false,
    };
    if list == 0 {
        return false;
    }
    let mut reading = Reading { list, buffer, walk };
    // SAFETY: the callback has the signature that the helper expects, and the context outlives the call; the caller
    // owns the walk.
    unsafe {
        (*walk).whole = 0;
        bpf_loop(
            FIRST_CHECK,
            read_argument as *mut c_void,
            core::ptr::from_mut(&mut reading).cast(),
            0,
        );
        core::ptr::read_volatile(&raw const (*walk).whole) != 0
    }
}

/// Copies the arguments of a program that nobody can change any more, from `start` on, behind `from` bytes of the
/// buffer; their length is left in `walk`. False: they are too many or too long for that, or cannot be read.
#[inline(always)]
fn copy_arguments(start: u64, count: u32, from: u32, buffer: *mut u8, walk: *mut Walk) -> bool {
    let mut reading = Reading {
        list: start,
        buffer,
        walk,
    };
    // SAFETY: as above.
    unsafe {
        (*walk).from = u64::from(from);
        (*walk).used = 0;
        (*walk).left = u64::from(count);
        bpf_loop(
            // Each takes a byte at least.
            at_most(count, MAX_COMMAND as u32),
            copy_argument as *mut c_void,
            core::ptr::from_mut(&mut reading).cast(),
            0,
        );
        core::ptr::read_volatile(&raw const (*walk).left) == 0
    }
}

/// What the loop over arguments is handed.
#[repr(C)]
struct Reading {
    /// Where a list of them is, or they themselves.
    list: u64,
    buffer: *mut u8,
    walk: *mut Walk,
}

/// Copies the next argument; at the end of the list, the walk is whole. Returns 1 to stop.
///
/// VERIFIER: all kernels: a loop helper; 64 rounds are otherwise verified one by one, for each way that leads to them.
unsafe extern "C" fn read_argument(i: u64, reading: *mut Reading) -> u64 {
    // SAFETY: the helper hands back the pointer that it was given; the caller owns the walk; the helper checks the
    // address.
    unsafe {
        let walk = (*reading).walk;
        let mut pointer = 0u64;
        let slot = (*reading).list.wrapping_add(i * 8) as *const _;
        if bpf_probe_read_user(core::ptr::from_mut(&mut pointer).cast(), 8, slot) != 0 {
            return 1;
        }
        if pointer == 0 {
            core::ptr::write_volatile(&raw mut (*walk).whole, (*walk).left);
            return 1;
        }
        let stop = append(reading, pointer);
        core::ptr::write_volatile(&raw mut (*walk).left, (*walk).left + 1 - stop);
        stop
    }
}

/// Copies the next argument, which lies behind the last. Returns 1 to stop.
unsafe extern "C" fn copy_argument(_: u64, reading: *mut Reading) -> u64 {
    // SAFETY: as above.
    unsafe {
        let walk = (*reading).walk;
        let left = core::ptr::read_volatile(&raw const (*walk).left);
        if left == 0 {
            return 1;
        }
        let used = core::ptr::read_volatile(&raw const (*walk).used);
        let stop = append(reading, (*reading).list.wrapping_add(used));
        core::ptr::write_volatile(&raw mut (*walk).left, left - 1 + stop);
        stop
    }
}

/// Copies an argument behind those before. Returns 1 if it is too long or cannot be read; then nothing is there.
///
/// # Safety
/// The caller owns buffer and walk.
#[inline(always)]
unsafe fn append(reading: *const Reading, argument: u64) -> u64 {
    // SAFETY: the caller's promise; the helper checks the address; the offset is bounded before the read.
    unsafe {
        let walk = (*reading).walk;
        let used = core::ptr::read_volatile(&raw const (*walk).used);
        let at = core::ptr::read_volatile(&raw const (*walk).from) + used;
        if at > (PATH_BUFFER + MAX_COMMAND) as u64 - u64::from(FIRST_CHECK_BYTES) {
            return 1;
        }
        let to = (*reading).buffer.add(at as usize);
        let mut len = bpf_probe_read_user_str(to.cast(), FIRST_CHECK_BYTES, argument as *const _);
        if len < 0 || len >= i64::from(FIRST_CHECK_BYTES) {
            return 1;
        }
        if len == 0 {
            // An empty argument: older kernels forget its NUL.
            *to = 0;
            len = 1;
        }
        core::ptr::write_volatile(&raw mut (*walk).used, used + len as u64);
    }
    0
}

/// The first check. Allowed means no more than "go on to the second"; it leaves no record.
#[inline(always)]
fn check(subject: Subject, bprm: *const u8, policy: Policy, scratch: *mut ExecScratch) -> i32 {
    // SAFETY: this task owns the slot until it is released; `bprm` is the hook's argument.
    unsafe {
        let file = file_of(bprm);
        let tail = &raw mut (*scratch).tail as *mut u8;
        let len = if file.is_null() {
            -2
        } else {
            folder::path_of_file(subject.task, file, folder::entry_of(file), tail).0
        };
        let header = &mut (*scratch).header;
        header.flags = 0;
        let anonymous = !file.is_null() && identify(file, header);
        let (inode, device) = (header.inode, header.device);
        let path_len = bound::path_len(len);
        let (mut count, mut used) = (0, 0);
        let mut label = 0;
        let mut decision = if len < 0 {
            // The buffer holds somebody's earlier path: deny (path-unreadable).
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::PathUnreadable))
        } else if anonymous {
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::Anonymous))
        } else {
            label = with_table!(policy, t => decide::label_of(t, tail, path_len));
            with_table!(policy, t => decide::program_labelled(t, label))
        };
        let kept = &raw mut (*scratch).decision;
        decision = forget(kept, decision);
        // An interpreter is started with other arguments than the caller gave: leave them to the second check.
        let filename: u64 = load(bprm, get(&off::OFF_BPRM_FILENAME));
        let interpreter: u64 = load(bprm, get(&off::OFF_BPRM_INTERP));
        let first = filename == interpreter;
        if first {
            script::forget(subject.task);
        } else {
            script::settle(subject.task);
        }
        let asks = decision.verdict == Verdict::Ask as u32
            || decision.is_allowed()
                && decision.flags & flags::HAS_COMMANDS != 0
                && decide::asks_for_arguments(label);
        let mut argv0 = 0;
        if asks && first {
            let walk = &raw mut (*scratch).walk;
            (*walk).from = u64::from(path_len);
            (*walk).used = 0;
            (*walk).left = 0;
            if read_arguments(subject, tail, walk) {
                count = core::ptr::read_volatile(&raw const (*walk).left) as u32;
                used = at_most(
                    core::ptr::read_volatile(&raw const (*walk).used) as u32,
                    MAX_COMMAND as u32,
                );
                let command = Command {
                    buffer: tail,
                    path_len,
                    limit: used,
                    walk,
                };
                decision = with_table!(policy, t => decide::command(t, label, command));
                decision = forget(kept, decision);
                if decision.verdict == Verdict::Ask as u32 {
                    let asked = Asked::command(Use::Whole, tail, path_len, used);
                    decision = approval::consult(subject, decision, asked);
                    if decision.is_allowed() && script::is_script(bprm) {
                        let kept = approval::keep_script(
                            subject.task,
                            tail as u64,
                            u64::from(path_len),
                            u64::from(used),
                        );
                        argv0 = kept as u32;
                    }
                }
            }
        }
        if asks && decision.is_allowed() && (first || script::is_script(bprm)) {
            let walk = &raw mut (*scratch).walk;
            let state = with_table!(policy, t => decide::behind_path(t, tail, path_len, walk));
            let noted = script::note(
                subject.task,
                Script {
                    pending: 1,
                    generation: decision.generation,
                    label,
                    state,
                    count: load(bprm, get(&off::OFF_BPRM_ARGC)),
                    approved: approval::number_of(decision),
                    argv0,
                    deferred: 0,
                    inode: 0,
                    device: 0,
                    reserved: 0,
                },
            );
            if !noted {
                // No memory, or a script whose interpreter is a script with rules too: deny.
                decision = decision.with(Verdict::Deny, Reason::ArgumentsUnreadable);
            }
        }
        if first {
            // Its interpreter is part of it.
            decision.flags |= label & MARKS;
            decision = budget::charge(subject, decision, kind::EXECS);
        }
        let facts = i64::from(anonymous);
        let [len, facts] = forget(&raw mut (*scratch).facts, [len, facts]);
        let anonymous = facts != 0;
        let path_len = bound::path_len(len);
        let (decision, outcome) = emit::settle(kept, decision);
        if !outcome.refused {
            return 0;
        }
        emit::fill(header, subject, Operation::Exec, decision, outcome);
        header.access = access::EXEC;
        if len < 0 {
            header.errno = -len as u16;
        }
        header.inode = inode;
        header.device = device;
        if anonymous {
            header.flags |= record_flags::ANONYMOUS;
        }
        header.aux = count;
        header.target_len = path_len;
        header.args_len = used;
        let tail_len = path_len + used;
        emit::send::<{ (PATH_BUFFER + MAX_COMMAND) as u32 }>(header, tail_len, outcome);
        DENIED_ERRNO
    }
}

/// The second check, and the record of the exec.
#[inline(always)]
fn commit(subject: Subject, bprm: *const u8, policy: Policy, scratch: *mut ExecScratch) {
    // SAFETY: this task owns the slot until it is released; `bprm` is the hook's argument.
    unsafe {
        let file = file_of(bprm);
        let tail = &raw mut (*scratch).tail as *mut u8;
        let len = if file.is_null() {
            -2
        } else {
            folder::path_of_file(subject.task, file, folder::entry_of(file), tail).0
        };
        let header = &mut (*scratch).header;
        header.flags = 0;
        let anonymous = !file.is_null() && identify(file, header);
        let (inode, device) = (header.inode, header.device);
        let path_len = bound::path_len(len);
        let count: u32 = load(bprm, get(&off::OFF_BPRM_ARGC));
        let start: u64 = load(bprm, get(&off::OFF_BPRM_P));
        let end: u64 = load(bprm, get(&off::OFF_BPRM_EXEC));
        // Everything from here to the program's own name is mapped: arguments, then environment.
        let there = if end > start { end - start } else { 0 };
        let limit = if there > MAX_COMMAND as u64 {
            MAX_COMMAND as u32
        } else {
            there as u32
        };
        let mut limit = at_most(limit, MAX_COMMAND as u32);
        let walk = &raw mut (*scratch).walk;
        let behind = at_most(path_len, PATH_BUFFER as u32 - 1);
        let copied = copy_arguments(start, count, behind, tail, walk)
            && core::ptr::read_volatile(&raw const (*walk).used) <= u64::from(limit);
        let fault = if copied {
            limit == 0
        } else {
            let to = tail.add(behind as usize);
            limit == 0 || bpf_probe_read_user(to.cast(), limit, start as *const _) != 0
        };
        if copied {
            limit = core::ptr::read_volatile(&raw const (*walk).used) as u32;
        }
        // VERIFIER: 6.1: the ways of getting there are one from here on.
        let bits = i64::from(copied) | i64::from(fault) << 1;
        let [limit, bits] = forget(&raw mut (*scratch).facts, [i64::from(limit), bits]);
        let (copied, fault) = (bits & 1 != 0, bits & 2 != 0);
        let limit = at_most(limit as u32, MAX_COMMAND as u32);
        let kept = &raw mut (*scratch).decision;
        let mut used = 0;
        let mut cut = false;
        let decision = if len < 0 {
            // The buffer holds somebody's earlier path: kill (path-unreadable).
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::PathUnreadable))
        } else if anonymous {
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::Anonymous))
        } else if fault {
            // What will run cannot be known: kill (arguments-unreadable).
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::ArgumentsUnreadable))
        } else {
            let command = Command {
                buffer: tail,
                path_len,
                limit,
                walk,
            };
            let label = with_table!(policy, t => decide::label_of(t, tail, path_len));
            let asks =
                policy.flags() & flags::HAS_COMMANDS != 0 && decide::asks_for_arguments(label);
            let decision = if copied && !asks {
                with_table!(policy, t => decide::started(t, label))
            } else {
                (*walk).left = u64::from(count);
                with_table!(policy, t => decide::command(t, label, command))
            };
            let mut decision = forget(kept, decision);
            used = at_most(
                core::ptr::read_volatile(&raw const (*walk).used) as u32,
                MAX_COMMAND as u32,
            );
            cut = core::ptr::read_volatile(&raw const (*walk).left) != 0;
            // Started through an interpreter: the script has rules of its own.
            let filename: u64 = load(bprm, get(&off::OFF_BPRM_FILENAME));
            let interpreter: u64 = load(bprm, get(&off::OFF_BPRM_INTERP));
            let note = script::noted(subject.task);
            if decision.verdict == Verdict::Ask as u32 && !cut {
                // The first check may have taken the use; then it is the same grant that must be found.
                let before = match note {
                    Some(note) if filename == interpreter => note.approved,
                    _ => 0,
                };
                let how = if before != 0 {
                    Use::Verifies
                } else {
                    Use::Whole
                };
                let asked = Asked::command(how, tail, path_len, used);
                let number = approval::number(subject, asked);
                if number != 0 && (before == 0 || before == number) {
                    decision = approval::approved(decision, number);
                }
            }
            let decision = forget(kept, decision);
            match note {
                Some(script) if decision.is_allowed() && filename != interpreter => {
                    let judged =
                        with_table!(policy, t => decide::script(t, script, command, count));
                    let judged = forget(kept, judged);
                    if judged.verdict == Verdict::Ask as u32 {
                        let from = core::ptr::read_volatile(&raw const (*walk).from) as u32;
                        let own = core::ptr::read_volatile(&raw const (*walk).used) as u32;
                        if approval::holds(subject, script, tail.add(at_most(from, (PATH_BUFFER + MAX_COMMAND) as u32 - 1) as usize), own) {
                            approval::approved(judged, script.approved)
                        } else {
                            judged.with(Verdict::Deny, Reason::ArgumentsChanged)
                        }
                    } else {
                        judged
                    }
                }
                _ => decision,
            }
        };
        let mut decision = forget(kept, decision);
        if decision.is_allowed() && script::is_deferred(subject.task) {
            // A loader that a rule asks about: nothing has judged what it is started with. Kill.
            decision = decision.with(Verdict::Deny, Reason::AsksLater);
        }
        let decision = forget(kept, decision);
        script::forget(subject.task);
        if approval::number_of(decision) != 0 {
            script::runs(subject.task, inode, device);
            approval::forget_script(subject.task);
        }
        let facts = i64::from(anonymous) | i64::from(cut) << 1;
        let [len, facts] = forget(&raw mut (*scratch).facts, [len, facts]);
        let (anonymous, cut) = (facts & 1 != 0, facts & 2 != 0);
        let path_len = bound::path_len(len);
        let (decision, outcome) = emit::settle(kept, decision);
        emit::fill(header, subject, Operation::Exec, decision, outcome);
        header.access = access::EXEC;
        if len < 0 {
            header.errno = -len as u16;
        }
        header.inode = inode;
        header.device = device;
        if anonymous {
            header.flags |= record_flags::ANONYMOUS;
        }
        if outcome.refused {
            header.flags |= record_flags::KILLED;
        }
        if cut {
            header.flags |= record_flags::ARGS_TRUNCATED;
        }
        header.aux = count;
        header.target_len = path_len;
        header.args_len = used;
        let id = crate::atomic::add(exec_ids(), 1) + 1;
        header.new_exec_id = id;
        (*subject.label).exec_id = id;
        let tail_len = path_len + used;
        emit::send::<{ (PATH_BUFFER + MAX_COMMAND) as u32 }>(header, tail_len, outcome);
        if outcome.refused {
            kill();
        }
    }
}
