//! Opening files. Threat: an agent reads or changes what its policy does not name.
//! Choke point: `file_open`, after the kernel resolved the path, for every open by every syscall.

use agentguard_common::budget::kind;
use agentguard_common::label::Label;
use agentguard_common::record::record_flags;
use agentguard_common::table::flags;
use agentguard_common::verdict::{Operation, Reason, Verdict, access};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use core::ffi::c_void;

use super::{Object, doors, object, prepare, resolve_within, script, unlabelled};
use crate::approval::{self, Asked, Use};
use crate::bound::{at_most_64, forget};
use crate::budget;
use crate::decide::{self, Decision, Policy, with_table};
use crate::emit::{self, Facts};
use crate::folder::{self, Found};
use crate::identity::{self, Identity};
use crate::label::{Standing, Subject, enter, standing};
use crate::maps::{FOLDER_TEXT, Folder, PATH_BUFFER, PathScratch, SHORT_PATH};
use crate::offsets::{self as off, field, get};
use crate::scratch;

/// `FMODE_READ`, `FMODE_WRITE` of `f_mode`: the same bits as those of `access`.
const FMODE_READ: u32 = access::READ as u32;
const FMODE_WRITE: u32 = access::WRITE as u32;
const _: () = assert!(FMODE_READ == 1 && FMODE_WRITE == 2);
/// `__FMODE_EXEC` of `f_flags`: set by the kernel alone, when it opens a program or its interpreter.
const FMODE_EXEC: u32 = 0x20;
/// `O_TRUNC` of `f_flags`: changes the file even where it is opened for reading.
const O_TRUNC: u32 = 0o1000;

/// `file_open(struct file *file)`. Minimum kernel 5.7. Fails closed.
#[lsm(hook = "file_open")]
pub fn file_open(ctx: LsmContext) -> i32 {
    enter(&ctx, opening)
}

#[inline(never)]
unsafe extern "C" fn opening(ctx: *mut c_void, task: *const u8) -> i32 {
    let ctx = LsmContext::new(ctx);
    match standing(task) {
        Standing::Ungoverned => 0,
        Standing::Unlabelled(membership) => unlabelled(membership, Operation::Open),
        Standing::Governed(subject) => {
            let file = ctx.arg(0);
            let came = match in_place(subject, file) {
                Some(came) => came,
                None => governed(task, subject.label, file),
            };
            if came & UNKNOWN != 0 {
                // SAFETY: the verifier knows all three; the label is a live map value.
                unsafe { folder::learn(task, subject.label, file) };
            }
            emit::noted!(ctx, "file_open", crate::bound::verdict(came & REFUSED != 0))
        }
    }
}

/// What an open came to, in bits: whether it is refused, and whether its folder may become known.
const REFUSED: u32 = 1;
const UNKNOWN: u32 = 2;

/// What it came to, put together.
#[inline(always)]
const fn came(refused: bool, unknown: bool) -> u32 {
    refused as u32 * REFUSED | unknown as u32 * UNKNOWN
}

/// The short way, which nearly every open takes: the record is built where the daemon will read it.
/// Some: what the open came to, and there is a record of it. None: nothing has happened, and the long way
/// decides. Every failure takes the long way, which says what it is.
#[inline(always)]
fn in_place(subject: Subject, file: *const u8) -> Option<u32> {
    // SAFETY: the label is a live map value; the chunk is this program's until it is sent or discarded;
    // `file` is the hook's argument.
    unsafe {
        let policy = decide::policy((*subject.label).agent)?;
        if policy.flags() & flags::QUIET_OPENS != 0 {
            return None;
        }
        let chunk = emit::reserve()?;
        let tail = &raw mut (*chunk).tail as *mut u8;
        let found = known(subject, file, tail);
        let mut start = Start {
            len: found.len() as i64,
            at: found.above,
            state: 0,
            unknown: found.learn,
        };
        if !found.is_known() {
            start.len = resolve_within::<SHORT_PATH>(file, tail);
        } else if (*found.folder).automata == decide::automata(policy.head()) {
            // Where the table's automaton stood when the folder became known.
            start.state = u64::from((*found.folder).state);
        }
        let Start {
            len,
            at,
            state,
            unknown,
        } = forget((&raw mut (*chunk).header).cast(), start);
        let unknown = unknown != 0;
        if len < 0 {
            emit::discard(chunk);
            return None;
        }
        let len = crate::bound::at_most_64(len as u64, SHORT_PATH as u64 - 1);
        let label = if state == 0 {
            with_table!(policy, t => decide::label_of_short(t, tail, len))
        } else {
            let at = at_most_64(at, FOLDER_TEXT as u64);
            let (name, left) = (tail.add(at as usize), len.wrapping_sub(at));
            with_table!(policy, t => t.walk_up_to::<{ folder::SHORT_NAME }>(name, left, state as u32))
        };
        // VERIFIER: 6.1: behind the walk, which would be another one for all that is known before.
        let (wanted, file_flags) = wanted(file);
        let object = object(file);
        if object.anonymous || doors::maybe(object, wanted) {
            emit::discard(chunk);
            return None;
        }
        let for_exec = wanted == access::EXEC;
        let (decision, wanted) = if for_exec {
            to_start(policy, label)
        } else {
            let decision = decide::file_aloud(policy.head(), label, u32::from(wanted));
            (decision, wanted)
        };
        if decision.verdict == Verdict::Ask as u32 {
            // Somebody may have granted it.
            emit::discard(chunk);
            return None;
        }
        let decision = identity::guard(subject, decision, identity_of(object), wanted);
        let decision = if for_exec {
            // Each is told.
            let flags = decision.flags & !flags::FOLD;
            Decision { flags, ..decision }
        } else {
            budget::charge(subject, decision, kind::OPENS)
        };
        let outcome = emit::outcome(decision);
        if wanted != access::EXEC
            && decision.is_allowed()
            && decide::is_hushed(label, u32::from(wanted))
        {
            emit::discard(chunk);
            return Some(came(false, unknown));
        }
        let facts = Facts {
            access: wanted,
            flags: if for_exec { record_flags::FOR_EXEC } else { 0 },
            inode: object.inode,
            device: object.device,
            aux: file_flags,
            target_len: len,
            ..Facts::default()
        };
        let header = &mut (*chunk).header;
        emit::complete(header, subject, Operation::Open, decision, outcome, facts);
        emit::deliver(chunk, len, decision, outcome);
        Some(came(outcome.refused, unknown))
    }
}

/// Decides on opening a program to start it, and what that is an access to.
///
/// Where no rule speaks of starting it, a program or a script's interpreter is refused by `bprm_check_security`, which
/// always follows; the loader that a program names is opened here alone, and is read like a library. So nobody has to
/// permit it as a program.
#[inline(always)]
fn to_start(policy: Policy, label: u32) -> (Decision, u8) {
    let decision = decide::program_labelled(policy.head(), label);
    if decision.is_allowed() || decision.reason != Reason::Default as u32 {
        return (decision, access::EXEC);
    }
    let read = access::READ;
    (
        decide::file_labelled(policy.head(), label, u32::from(read)),
        read,
    )
}

/// Where the walk of a path begins, and what is left of it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Start {
    /// Bytes of the whole path, or a negative errno.
    len: i64,
    /// Bytes that are walked already, and the state behind them, or 0.
    at: u64,
    state: u64,
    /// Whether the folder may become known.
    unknown: u64,
}
const _: () = assert!(size_of::<Start>() <= agentguard_common::record::HEADER_LEN);

/// The path of a file in a known folder.
///
/// # Safety
/// The verifier must know the file; the buffer must be owned and hold [`SHORT_PATH`] bytes, aligned as words.
#[inline(always)]
unsafe fn known(subject: Subject, file: *const u8, buffer: *mut u8) -> Found {
    // SAFETY: the caller's promise.
    unsafe {
        let mount = field!(file.add(get(&off::OFF_FILE_PATH)), OFF_PATH_MNT, u64) as *const u8;
        let entry = folder::opened_entry(subject.task, file);
        folder::find(subject.task, mount, entry, buffer, |folder, len, to| {
            words::<0>(folder, to);
            if len > 64 {
                words::<64>(folder, to);
                if len > 128 {
                    words::<128>(folder, to);
                }
            }
        })
    }
}

/// 64 bytes of a folder's path, from `FROM` on.
#[inline(always)]
unsafe fn words<const FROM: usize>(folder: *const Folder, to: *mut u8) {
    let mut at = FROM;
    while at < FROM + 64 {
        // SAFETY: inside both.
        unsafe {
            let word = (&raw const (*folder).text)
                .cast::<u8>()
                .add(at)
                .cast::<u64>();
            to.add(at)
                .cast::<u64>()
                .write_volatile(word.read_volatile());
        }
        at += 8;
    }
}

#[inline(always)]
const fn identity_of(object: Object) -> Identity {
    Identity {
        inode: object.inode,
        device: object.device,
    }
}

/// What an open is for, and the flags that say so.
///
/// # Safety
/// `file` must be a `struct file` that the verifier knows.
#[inline(always)]
unsafe fn wanted(file: *const u8) -> (u8, u32) {
    // SAFETY: the caller's promise.
    let (file_flags, mode) = unsafe {
        (
            field!(file, OFF_FILE_FLAGS, u32),
            field!(file, OFF_FILE_MODE, u32),
        )
    };
    if file_flags & FMODE_EXEC != 0 {
        return (access::EXEC, file_flags);
    }
    let mut wanted = (mode & (FMODE_READ | FMODE_WRITE)) as u8;
    if file_flags & O_TRUNC != 0 {
        wanted |= access::WRITE;
    }
    (wanted, file_flags)
}

/// The long way: any path, any object, starting a program, a full ring.
#[inline(never)]
extern "C" fn governed(task: *const u8, label: *mut Label, file: *const u8) -> u32 {
    let subject = Subject { task, label };
    let (policy, scratch) = match prepare::<PathScratch>(subject, Operation::Open) {
        Ok(prepared) => prepared,
        Err(refused) => return came(refused != 0, false),
    };
    let result = judged(subject, file, policy, scratch);
    scratch::release(scratch);
    result
}

#[inline(always)]
fn judged(subject: Subject, file: *const u8, policy: Policy, scratch: *mut PathScratch) -> u32 {
    // SAFETY: this task owns the slot until it is released; `file` is the hook's argument.
    unsafe {
        let header = &mut (*scratch).header;
        let (mut wanted, file_flags) = wanted(file);
        let for_exec = wanted == access::EXEC;
        let tail = &raw mut (*scratch).tail as *mut u8;
        let entry = folder::opened_entry(subject.task, file);
        let (len, unknown) = folder::path_of_file(subject.task, file, entry, tail);
        let Object {
            inode,
            device,
            anonymous,
            ..
        } = object(file);
        let decision = if len < 0 {
            // The buffer holds somebody's earlier path: deny (path-unreadable).
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::PathUnreadable))
        } else if anonymous {
            let verdict = if for_exec {
                Verdict::Deny
            } else {
                Verdict::Allow
            };
            with_table!(policy, t => decide::fixed(t, verdict, Reason::Anonymous))
        } else {
            let label = with_table!(policy, t => decide::label_of(t, tail, len as u32));
            if for_exec {
                let (decision, access) = to_start(policy, label);
                wanted = access;
                decision
            } else {
                decide::file_labelled(policy.head(), label, u32::from(wanted))
            }
        };
        let kept = &raw mut (*scratch).decision;
        let mut decision = forget(kept, decision);
        if decision.verdict == Verdict::Ask as u32 {
            if wanted != access::EXEC {
                let how = if file_flags & O_TRUNC != 0 {
                    Use::OpensToCut
                } else {
                    Use::Opens
                };
                let asked = Asked::path(wanted, how, tail, len as u32);
                decision = forget(kept, approval::consult(subject, decision, asked));
            } else if script::defer(subject.task) {
                decision = decision.with(Verdict::Allow, Reason::AsksLater);
            }
        }
        let mut operation = Operation::Open;
        let mut aux = file_flags;
        if decision.is_allowed() && !anonymous {
            let identity = Identity { inode, device };
            decision = forget(
                kept,
                identity::guard_approved(subject, decision, identity, wanted),
            );
            // VERIFIER: 6.1: it is looked at again, and not kept meanwhile: the stack is full.
            if doors::maybe(object(file), wanted)
                && let Some(lock) = doors::lock_of(subject, file as u64, wanted)
            {
                let locked = with_table!(policy, t => decide::lock(t, lock as u32));
                if !locked.is_allowed() {
                    decision = locked;
                    operation = Operation::Kernel;
                    aux = lock as u32;
                }
            }
        }
        if !anonymous && !for_exec && operation == Operation::Open {
            decision = budget::charge(subject, decision, kind::OPENS);
        }
        let bits = i64::from(anonymous) | i64::from(for_exec) << 1 | i64::from(unknown) << 2;
        let [len, bits] = forget(&raw mut (*scratch).facts, [len, bits]);
        let (anonymous, for_exec, unknown) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let (decision, outcome) = emit::settle(kept, decision);
        if decision.is_unheard(flags::QUIET_OPENS) {
            return came(false, unknown);
        }
        emit::fill(header, subject, operation, decision, outcome);
        header.access = wanted;
        if len < 0 {
            header.errno = -len as u16;
        }
        header.inode = inode;
        header.device = device;
        header.aux = aux;
        if anonymous {
            header.flags |= record_flags::ANONYMOUS;
        }
        if for_exec {
            header.flags |= record_flags::FOR_EXEC;
        }
        let len = if len < 0 { 0 } else { len as u32 };
        header.target_len = len;
        if for_exec {
            emit::send::<{ PATH_BUFFER as u32 - 1 }>(header, len, outcome);
        } else {
            emit::send_or_count::<{ PATH_BUFFER as u32 - 1 }>(header, len, decision, outcome);
        }
        came(outcome.refused, unknown)
    }
}
