//! The hooks, one module for each family. A hook reads, asks `decide`, and emits; it holds no rules.

/// Makes a program of a hook that does nothing for an ungoverned task: its body is given the hook's context
/// and the governed subject. What it judges is named for a task that cannot have its label. `where` is tested
/// before anything else, for hooks that most processes pass often and that seldom have something to judge.
macro_rules! hook {
    ($(#[$doc:meta])* $name:ident, $hook:literal, $act:expr, $(where |$context:ident| $test:expr,)? |$ctx:ident, $subject:ident| $body:expr) => {
        $(#[$doc])*
        #[aya_ebpf::macros::lsm(hook = $hook)]
        pub fn $name(ctx: aya_ebpf::programs::LsmContext) -> i32 {
            #[inline(never)]
            unsafe extern "C" fn rest(ctx: *mut core::ffi::c_void, task: *const u8) -> i32 {
                let $ctx = aya_ebpf::programs::LsmContext::new(ctx);
                match $crate::label::standing(task) {
                    $crate::label::Standing::Ungoverned => 0,
                    $crate::label::Standing::Unlabelled(membership) => {
                        $crate::hooks::unlabelled(membership, $act)
                    }
                    $crate::label::Standing::Governed($subject) => $body,
                }
            }
            $({
                let $context = &ctx;
                if !$test {
                    return 0;
                }
            })?
            $crate::label::enter(&ctx, rest)
        }
    };
}

pub mod code;
pub mod descriptors;
mod doors;
pub mod exec;
pub mod lineage;
pub mod listen;
pub mod locks;
pub mod moves;
pub mod names;
pub mod network;
pub mod open;
pub mod outsiders;
pub mod redirect;
mod script;
mod sockets;
pub mod traffic;
pub mod unix;

use agentguard_common::label::{Label, Membership};
use agentguard_common::record::{RecordHeader, record_flags};
use agentguard_common::verdict::{Lock, Operation, Reason, Verdict};
use aya_ebpf::helpers::generated::{bpf_d_path, bpf_get_current_task_btf};

use crate::decide::{self, Decision, Policy, with_table};
use crate::emit;
use crate::label::{Subject, peek};
use crate::offsets::{self as off, field, get};
use crate::scratch::{self, Slot};

/// `SB_NOUSER`: a file system that nobody can mount: pipes, sockets, memfd.
pub const SB_NOUSER: u64 = 1 << 31;

/// The policy that a subject is under; or the verdict, and its record, where there is none.
#[inline(always)]
pub fn policy_of(subject: Subject, operation: Operation) -> Result<Policy, i32> {
    // SAFETY: the label is a live map value.
    decide::policy(unsafe { (*subject.label).agent }).ok_or_else(|| {
        // The agent is gone or was never installed: deny (no-policy).
        emit::bare(subject, operation, Decision::failure(Reason::NoPolicy))
    })
}

/// A slot to work in; or the verdict, and its record, where every one is taken.
#[inline(always)]
pub fn slot_of<S: Slot>(
    subject: Subject,
    operation: Operation,
    policy: Policy,
) -> Result<*mut S, i32> {
    scratch::claim::<S>().ok_or_else(|| {
        // Every slot is taken: deny (scratch-unavailable).
        let decision =
            with_table!(policy, t => decide::fixed(t, Verdict::Deny, Reason::ScratchUnavailable));
        emit::bare(subject, operation, decision)
    })
}

/// Both.
#[inline(always)]
pub fn prepare<S: Slot>(subject: Subject, operation: Operation) -> Result<(Policy, *mut S), i32> {
    let policy = policy_of(subject, operation)?;
    Ok((policy, slot_of(subject, operation, policy)?))
}

/// What a hook judges: an operation, or a lock.
pub trait Act {
    /// The operation, and what its record says besides.
    fn parts(self) -> (Operation, u32);
}

impl Act for Operation {
    #[inline(always)]
    fn parts(self) -> (Operation, u32) {
        (self, 0)
    }
}

impl Act for Lock {
    #[inline(always)]
    fn parts(self) -> (Operation, u32) {
        (Operation::Kernel, self as u32)
    }
}

/// No memory for the label: deny (label-unavailable). The record names the agent of the task's cgroup.
#[inline(always)]
pub fn unlabelled(membership: Membership, act: impl Act) -> i32 {
    let (operation, aux) = act.parts();
    nameless(membership, operation, aux)
}

#[inline(never)]
fn nameless(membership: Membership, operation: Operation, aux: u32) -> i32 {
    let mut label = Label {
        agent: membership.agent,
        session: membership.session,
        exec_id: 0,
    };
    let subject = Subject {
        // SAFETY: a helper without arguments.
        task: unsafe { bpf_get_current_task_btf() } as *const u8,
        label: &raw mut label,
    };
    let decision = Decision::failure(Reason::LabelUnavailable);
    emit::event(subject, operation, decision, aux, 0);
    emit::DENIED_ERRNO
}

/// Resolves the path of a file into a buffer; its length without the NUL, or a negative errno.
///
/// # Safety
/// `file` must be a `struct file` that the verifier knows; `buffer` must be owned and hold 4,096 bytes.
#[inline(always)]
pub unsafe fn resolve(file: *const u8, buffer: *mut u8) -> i64 {
    // SAFETY: the caller's promise.
    unsafe { resolve_within::<{ crate::maps::PATH_BUFFER }>(file, buffer) }
}

/// The same with a buffer of another size.
///
/// # Safety
/// As above, but `buffer` must hold `SIZE` bytes.
#[inline(always)]
pub unsafe fn resolve_within<const SIZE: usize>(file: *const u8, buffer: *mut u8) -> i64 {
    // SAFETY: the caller's promise.
    let len = unsafe {
        bpf_d_path(
            file.add(get(&off::OFF_FILE_PATH)) as *mut _,
            buffer.cast(),
            SIZE as u32,
        )
    };
    // A failure leaves the previous path in the buffer: nothing may be decided on it.
    if len <= 0 {
        return if len == 0 { -2 } else { len };
    }
    let len = len - 1;
    if len <= 2 && !is_mount_root(file as u64) {
        // Opened by a handle, and not connected to any folder: its name is none (path-unreadable).
        return -2;
    }
    // SAFETY: masked by the size of the buffer, which is a power of two.
    let last = unsafe { *buffer.add((len - 1) as usize & (SIZE - 1)) };
    if last == b')' && is_removed(file as u64, buffer as u64, len) {
        len - REMOVED_LEN
    } else {
        len
    }
}

/// Whether a file is the root of its mount, as the one file is whose path may be `/`.
#[inline(never)]
extern "C" fn is_mount_root(file: u64) -> bool {
    let path = file + get(&off::OFF_FILE_PATH) as u64;
    let mount: u64 = peek(path + get(&off::OFF_PATH_MNT) as u64, 0);
    let dentry: u64 = peek(path + get(&off::OFF_PATH_DENTRY) as u64, 0);
    let parent: u64 = peek(dentry + get(&off::OFF_DENTRY_PARENT) as u64, 0);
    parent != dentry || peek::<u64>(mount + get(&off::OFF_VFSMOUNT_ROOT) as u64, 0) == dentry
}

/// What the kernel writes behind the name of a file that was removed, ` (deleted)`: its length, and its first and
/// its last eight bytes.
const REMOVED_LEN: i64 = 10;
const REMOVED: (u64, u64) = (
    u64::from_le_bytes(*b" (delete"),
    u64::from_le_bytes(*b"deleted)"),
);

/// Whether the end of a path says that its file was removed, and is no part of its name. Such a file is judged
/// by the name that it had: otherwise no rule on names would speak of it, and who held a handle could open it.
#[inline(never)]
extern "C" fn is_removed(file: u64, buffer: u64, len: i64) -> bool {
    if len <= REMOVED_LEN {
        return false;
    }
    // VERIFIER: 7.3: the buffer is a pointer, whatever its type here, and takes no unbounded number.
    let len = crate::bound::at_most(len as u32, crate::maps::PATH_BUFFER as u32);
    let end = buffer + u64::from(len);
    let words = (peek(end - REMOVED_LEN as u64, 0u64), peek(end - 8, 0u64));
    let dentry: u64 = peek(
        file + get(&off::OFF_FILE_PATH) as u64 + get(&off::OFF_PATH_DENTRY) as u64,
        0,
    );
    // An entry that is in no bucket of the cache's table has no name any more.
    let unhashed = peek::<u64>(dentry + get(&off::OFF_DENTRY_HASH) as u64 + 8, 1) == 0;
    words == REMOVED && unhashed
}

/// Which object a file is.
#[derive(Clone, Copy)]
pub struct Object {
    pub inode: u64,
    pub device: u32,
    /// It has no name on any file system.
    pub anonymous: bool,
    /// Its `struct inode` and `struct super_block`, which the verifier knows, or null.
    pub node: *const u8,
    pub sb: *const u8,
}

/// Which object a file is; zeroes where it cannot be known.
///
/// # Safety
/// `file` must be a `struct file` that the verifier knows.
#[inline(always)]
pub unsafe fn object(file: *const u8) -> Object {
    let mut object = Object {
        inode: 0,
        device: 0,
        anonymous: false,
        node: core::ptr::null(),
        sb: core::ptr::null(),
    };
    // SAFETY: the caller's promise; typed loads along pointers that the verifier follows.
    unsafe {
        let inode = field!(file, OFF_FILE_INODE, u64) as *const u8;
        if inode.is_null() {
            return object;
        }
        object.node = inode;
        object.inode = field!(inode, OFF_INODE_INO, u64);
        let sb = field!(inode, OFF_INODE_SB, u64) as *const u8;
        if sb.is_null() {
            return object;
        }
        object.sb = sb;
        object.device = field!(sb, OFF_SB_DEV, u32);
        let flags = field!(sb, OFF_SB_FLAGS, u64);
        object.anonymous = flags & SB_NOUSER != 0;
    }
    object
}

/// Notes which object a file is; true if it has no name on any file system.
///
/// # Safety
/// `file` must be a `struct file` that the verifier knows.
#[inline(always)]
pub unsafe fn identify(file: *const u8, header: &mut RecordHeader) -> bool {
    // SAFETY: the caller's promise.
    let object = unsafe { object(file) };
    header.inode = object.inode;
    header.device = object.device;
    if object.anonymous {
        header.flags |= record_flags::ANONYMOUS;
    }
    object.anonymous
}
