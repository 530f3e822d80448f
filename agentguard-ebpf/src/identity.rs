//! The second identity of what a policy protects: its inode. Threat: a protected file is reached by another
//! name, a hard link or a mount that the path rules do not know. The daemon enters the inodes behind the
//! paths that a policy denies; whatever the name, they stay denied.

use agentguard_common::identity::{DENIED, FILTER_WORDS, Object, filter_bit, filter_word};
use agentguard_common::verdict::{Reason, Verdict};

use crate::approval;
use crate::decide::Decision;
use crate::label::{Subject, peek};
use crate::maps::{OBJECT_FILTER, OBJECTS};
use crate::offsets::{self as off, field, get};

/// Inode and device of an entry; zeroes where there is none yet.
#[derive(Clone, Copy)]
pub struct Identity {
    pub inode: u64,
    pub device: u32,
}

/// The identity behind a directory entry.
#[inline(always)]
pub fn of(dentry: u64) -> Identity {
    let inode: u64 = peek(dentry + get(&off::OFF_DENTRY_INODE) as u64, 0);
    if inode == 0 {
        return Identity {
            inode: 0,
            device: 0,
        };
    }
    let sb: u64 = peek(inode + get(&off::OFF_INODE_SB) as u64, 0);
    Identity {
        inode: peek(inode + get(&off::OFF_INODE_INO) as u64, 0),
        device: peek(sb + get(&off::OFF_SB_DEV) as u64, 0),
    }
}

/// The same for an entry that the verifier knows by its type: loads, and no calls.
///
/// # Safety
/// `dentry` must be a `struct dentry` that the verifier knows.
#[inline(always)]
pub unsafe fn of_typed(dentry: *const u8) -> Identity {
    let mut identity = Identity {
        inode: 0,
        device: 0,
    };
    // SAFETY: the caller's promise; typed loads along pointers that the verifier follows.
    unsafe {
        let inode = field!(dentry, OFF_DENTRY_INODE, u64) as *const u8;
        if inode.is_null() {
            return identity;
        }
        identity.inode = field!(inode, OFF_INODE_INO, u64);
        let sb = field!(dentry, OFF_DENTRY_SB, u64) as *const u8;
        if !sb.is_null() {
            identity.device = field!(sb, OFF_SB_DEV, u32);
        }
    }
    identity
}

/// What an agent may not do to an object, as access bits. Most objects are nobody's: one load and a test.
#[inline(always)]
pub fn denied(agent: u32, object: Identity) -> u32 {
    let word = filter_word(object.inode) & (FILTER_WORDS as u32 - 1);
    let Some(filter) = OBJECT_FILTER.get_ptr(word) else {
        return 0;
    };
    // SAFETY: a live map value; an aligned word is read in one go.
    if unsafe { core::ptr::read_volatile(filter) } & filter_bit(object.inode) == 0 {
        return 0;
    }
    look_up(agent, object)
}

#[inline(never)]
fn look_up(agent: u32, object: Identity) -> u32 {
    let key = Object {
        inode: object.inode,
        device: object.device,
        agent,
    };
    // SAFETY: the entry is copied before anything else happens.
    unsafe { OBJECTS.get(&key) }.copied().unwrap_or(0)
}

/// Turns an allowance into a denial where the object itself is protected.
#[inline(always)]
pub fn guard(subject: Subject, decision: Decision, object: Identity, wanted: u8) -> Decision {
    guarded(subject, decision, object, u32::from(wanted))
}

/// The same where an operator may have approved: that is good for what is asked about under its own name, and not for
/// what another rule denies under another.
#[inline(always)]
pub fn guard_approved(
    subject: Subject,
    decision: Decision,
    object: Identity,
    wanted: u8,
) -> Decision {
    let shift = if approval::is_approved(decision) {
        DENIED
    } else {
        0
    };
    guarded(subject, decision, object, u32::from(wanted) << shift)
}

#[inline(always)]
fn guarded(subject: Subject, decision: Decision, object: Identity, wanted: u32) -> Decision {
    // SAFETY: the label is a live map value.
    let agent = unsafe { (*subject.label).agent };
    if decision.is_allowed() && denied(agent, object) & wanted != 0 {
        decision.with(Verdict::Deny, Reason::ProtectedObject)
    } else {
        decision
    }
}
