//! Grants of operators. Threat: a grant permits more than what was granted: another object, another access, another
//! agent, once more than agreed, or later. So a grant is found by the object itself, byte for byte, and a use is taken
//! before the action happens. It is asked where a rule says `ask`, and nowhere else; every failure leaves it at that.

use agentguard_common::approval::{Grant, MAX_OBJECT, heir, kind};
use agentguard_common::record::Destination;
use agentguard_common::verdict::{Reason, Verdict, access};
use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, bpf_map_lookup_elem, bpf_probe_read_kernel,
    bpf_probe_read_kernel_str, bpf_task_storage_delete, bpf_task_storage_get,
};

use crate::bound::at_most_64;
use crate::decide::Decision;
use crate::label::Subject;
use crate::maps::{APPROVED, APPROVED_SCRIPTS, GrantScratch, Script, ZEROES};
use crate::scratch;

/// How a hook uses a grant.
#[derive(Clone, Copy)]
pub enum Use {
    /// The whole act.
    Whole = 0,
    /// A file is made; if an open does it, that comes next.
    Makes = 1,
    /// A file is opened, perhaps one that the thread has just made.
    Opens = 2,
    /// A file is opened to be cut, which comes next.
    OpensToCut = 3,
    /// A file is cut, perhaps one that the thread has just opened for that.
    Cuts = 4,
    /// The use was taken by an earlier check of the same act.
    Verifies = 5,
}

/// What is asked for: the bytes of an object, and how it is used.
#[derive(Clone, Copy)]
pub struct Asked {
    pub kind: u8,
    pub access: u8,
    pub how: Use,
    /// Where the bytes are, in kernel memory.
    pub object: u64,
    pub len: u32,
    /// Bytes of them that are the path of a program.
    pub split: u32,
}

impl Asked {
    /// A path, or what stands for one.
    #[inline(always)]
    pub fn path(access: u8, how: Use, path: *const u8, len: u32) -> Self {
        Self {
            kind: kind::PATH,
            access,
            how,
            object: path as u64,
            len,
            split: 0,
        }
    }

    /// An address, as it was given.
    #[inline(always)]
    pub fn address(access: u8, destination: &Destination) -> Self {
        Self {
            kind: kind::ADDRESS,
            access,
            how: Use::Whole,
            object: core::ptr::from_ref(destination) as u64,
            len: size_of::<Destination>() as u32,
            split: 0,
        }
    }

    /// A program with its arguments.
    #[inline(always)]
    pub fn command(how: Use, path: *const u8, path_len: u32, arguments: u32) -> Self {
        Self {
            kind: kind::COMMAND,
            access: access::EXEC,
            how,
            object: path as u64,
            len: path_len + arguments,
            split: path_len,
        }
    }
}

/// Permits what a rule asks about, where an operator has granted it.
#[inline(always)]
pub fn consult(subject: Subject, decision: Decision, asked: Asked) -> Decision {
    if decision.verdict != Verdict::Ask as u32 {
        return decision;
    }
    match number(subject, asked) {
        0 => decision,
        number => approved(decision, number),
    }
}

/// The decision that a grant turns an `ask` into.
#[inline(always)]
pub const fn approved(decision: Decision, number: u32) -> Decision {
    Decision {
        verdict: Verdict::Allow as u32,
        // The number of the grant travels with the reason into the record.
        reason: Reason::Approved as u32 | number << 16,
        ..decision
    }
}

/// Number of the grant that a decision rests on; 0 if it rests on none.
#[inline(always)]
pub const fn number_of(decision: Decision) -> u32 {
    if decision.reason & 0xffff == Reason::Approved as u32 {
        decision.reason >> 16
    } else {
        0
    }
}

/// Whether a decision is a grant's, or waits for one.
#[inline(always)]
pub const fn is_approved(decision: Decision) -> bool {
    let reason = decision.reason & 0xffff;
    reason == Reason::Approved as u32 || reason == Reason::AsksLater as u32
}

/// Number of the grant that permits what is asked for, a use of which is taken; 0 if there is none.
#[inline(always)]
pub fn number(subject: Subject, asked: Asked) -> u32 {
    // SAFETY: the label is a live map value.
    let label = unsafe { *subject.label };
    granted(
        u64::from(label.agent) << 32 | u64::from(label.session),
        u64::from(asked.kind)
            | u64::from(asked.access) << 8
            | u64::from(asked.how as u8) << 16
            | u64::from(asked.split) << 32,
        asked.object,
        u64::from(asked.len),
    ) as u32
}

/// See [`number`]. `who` is slot and session, `what` the parts of [`Asked`].
#[inline(never)]
extern "C" fn granted(who: u64, what: u64, object: u64, len: u64) -> u64 {
    if len == 0 || len > MAX_OBJECT as u64 {
        // Longer than can be granted: it stays at `ask`.
        return 0;
    }
    let Some(scratch) = scratch::claim::<GrantScratch>() else {
        // Every slot is taken: it stays at `ask`.
        return 0;
    };
    // SAFETY: this task owns the slot until it is released.
    let number = unsafe {
        let key = &raw mut (*scratch).key;
        (*key).agent = (who >> 32) as u32;
        (*key).session = who as u32;
        (*key).kind = what as u32 & 0xff;
        (*key).split = (what >> 32) as u32;
        if write_object(scratch, 0, object, len) {
            look(scratch, what)
        } else {
            0
        }
    };
    scratch::release(scratch);
    number
}

/// Writes an object into the key, behind `kept` bytes that stay; false if it cannot be read.
///
/// # Safety
/// The caller owns the slot.
#[inline(always)]
unsafe fn write_object(scratch: *mut GrantScratch, kept: u64, object: u64, len: u64) -> bool {
    // SAFETY: the caller's promise; bounded just before each write.
    unsafe {
        let key = &raw mut (*scratch).key;
        let to = (&raw mut (*key).object).cast::<u8>();
        if kept == 0 {
            let Some(zeroes) = ZEROES.get_ptr(0) else {
                return false;
            };
            if bpf_probe_read_kernel(to.cast(), MAX_OBJECT as u32, zeroes.cast()) != 0 {
                return false;
            }
        }
        // VERIFIER: 6.12: added up before they are bounded; a bounded number with a constant added to it, and then
        // compared, has no bounds any more.
        let whole = kept + len;
        if whole > MAX_OBJECT as u64 {
            return false;
        }
        core::ptr::write_volatile(&raw mut (*key).len, whole as u32);
        let kept = at_most_64(kept, MAX_OBJECT as u64 - 1);
        let len = at_most_64(len, MAX_OBJECT as u64);
        bpf_probe_read_kernel(to.add(kept as usize).cast(), len as u32, object as *const _) == 0
    }
}

/// Looks for a grant for each access that is asked for, and takes a use of each.
///
/// # Safety
/// The caller owns the slot.
#[inline(always)]
unsafe fn look(scratch: *mut GrantScratch, what: u64) -> u64 {
    let wanted = (what >> 8) as u32 & 0xff;
    let how = (what >> 16) as u32 & 0xff;
    let mut number = 0;
    let mut bit = 1;
    while bit <= u32::from(access::LISTEN) {
        if wanted & bit != 0 {
            // SAFETY: the caller's promise; the value is live.
            let taken = unsafe {
                let key = &raw mut (*scratch).key;
                (*key).access = bit;
                let map = core::ptr::from_ref(&APPROVED).cast_mut().cast();
                let grant: *mut Grant = bpf_map_lookup_elem(map, key.cast()).cast();
                if grant.is_null() { 0 } else { take(grant, how) }
            };
            if taken == 0 {
                return 0;
            }
            number = taken;
        }
        bit <<= 1;
    }
    number
}

/// Takes a use; the grant's number, or 0 where it is over or used up.
///
/// # Safety
/// The grant must be a live map value.
#[inline(always)]
unsafe fn take(grant: *mut Grant, how: u32) -> u64 {
    // SAFETY: the caller's promise; helpers without arguments.
    unsafe {
        let number = u64::from(core::ptr::read_volatile(&raw const (*grant).number));
        if how == Use::Verifies as u32 {
            return number;
        }
        let until = core::ptr::read_volatile(&raw const (*grant).until);
        if until != 0 && bpf_ktime_get_boot_ns() >= until {
            return 0;
        }
        let thread = bpf_get_current_pid_tgid() & 0xffff_ffff;
        let heir = &raw mut (*grant).heir;
        let opens = how == Use::Opens as u32 || how == Use::OpensToCut as u32;
        // What was just made is not cut by its open.
        if opens && crate::atomic::replace(heir, thread | heir::OPENS, 0) {
            return number;
        }
        if how == Use::Cuts as u32 && crate::atomic::replace(heir, thread | heir::CUTS, 0) {
            return number;
        }
        let most = core::ptr::read_volatile(&raw const (*grant).most);
        if most != 0 && crate::atomic::add(&raw mut (*grant).used, 1) >= most {
            return 0;
        }
        if most == 0 {
            crate::atomic::add(&raw mut (*grant).used, 1);
        }
        if how == Use::Makes as u32 {
            core::ptr::write_volatile(heir, thread | heir::OPENS);
        } else if how == Use::OpensToCut as u32 {
            core::ptr::write_volatile(heir, thread | heir::CUTS);
        }
        number
    }
}

/// Keeps what was granted to a script, for the second check; the bytes of its `argv[0]`, or 0 if that failed.
#[inline(never)]
pub extern "C" fn keep_script(task: *const u8, path: u64, path_len: u64, arguments: u64) -> u64 {
    let Some(scratch) = scratch::claim::<GrantScratch>() else {
        return 0;
    };
    // SAFETY: this task owns the slot until it is released; the value is live.
    let argv0 = unsafe {
        let object = (&raw mut (*scratch).key.object).cast::<u8>();
        let from = (path + path_len) as *const _;
        let argv0 = bpf_probe_read_kernel_str(object.cast(), MAX_OBJECT as u32, from);
        let key = &raw mut (*scratch).key;
        (*key).split = path_len as u32;
        (*key).kind = u32::from(kind::COMMAND);
        (*key).access = u32::from(access::EXEC);
        let whole = path_len + arguments;
        let written = argv0 > 0
            && whole <= MAX_OBJECT as u64
            && write_object(scratch, 0, path, whole)
            && !(bpf_task_storage_get(APPROVED_SCRIPTS.as_ptr(), task as *mut _, key.cast(), 1))
                .is_null();
        if written { argv0 as u64 } else { 0 }
    };
    scratch::release(scratch);
    argv0
}

/// Forgets it.
#[inline(always)]
pub fn forget_script(task: *const u8) {
    // SAFETY: the map and the current task.
    unsafe { bpf_task_storage_delete(APPROVED_SCRIPTS.as_ptr(), task as *mut _) };
}

/// Whether the arguments behind `argv[0]` that a script is really given are those of its grant. The first check took the
/// use.
#[inline(always)]
pub fn holds(subject: Subject, script: &Script, arguments: *const u8, len: u32) -> bool {
    // SAFETY: the label is a live map value.
    let label = unsafe { *subject.label };
    let found = script_granted(
        subject.task,
        u64::from(label.agent) << 32 | u64::from(label.session),
        u64::from(script.argv0),
        arguments as u64,
        u64::from(len),
    );
    found != 0 && found == u64::from(script.approved)
}

#[inline(never)]
extern "C" fn script_granted(
    task: *const u8,
    who: u64,
    argv0: u64,
    arguments: u64,
    len: u64,
) -> u64 {
    let Some(scratch) = scratch::claim::<GrantScratch>() else {
        return 0;
    };
    // SAFETY: this task owns the slot until it is released; what was kept is a live map value.
    let number = unsafe {
        let kept = bpf_task_storage_get(
            APPROVED_SCRIPTS.as_ptr(),
            task as *mut _,
            core::ptr::null_mut(),
            0,
        )
        .cast::<agentguard_common::approval::Key>();
        let size = size_of::<agentguard_common::approval::Key>() as u32;
        let key = &raw mut (*scratch).key;
        if kept.is_null()
            || bpf_probe_read_kernel(key.cast(), size, kept.cast()) != 0
            || u64::from((*key).split) + argv0 + len != u64::from((*key).len)
        {
            0
        } else {
            (*key).agent = (who >> 32) as u32;
            (*key).session = who as u32;
            let before = u64::from((*key).split) + argv0;
            let what = u64::from(access::EXEC) << 8 | (Use::Verifies as u64) << 16;
            // Without arguments of its own there is nothing that could have changed.
            if len == 0 || write_object(scratch, before, arguments, len) {
                look(scratch, what)
            } else {
                0
            }
        }
    };
    scratch::release(scratch);
    number
}
