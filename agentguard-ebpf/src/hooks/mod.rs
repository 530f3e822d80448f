//! The hooks, one module for each family. A hook reads, asks `decide`, and emits; it holds no rules.

pub mod exec;
pub mod lineage;
pub mod network;
pub mod open;
mod script;

use agentguard_common::record::{RecordHeader, record_flags};
use aya_ebpf::helpers::generated::bpf_d_path;

use crate::offsets::{self as off, field, get};

/// `SB_NOUSER`: a file system that nobody can mount: pipes, sockets, memfd.
const SB_NOUSER: u64 = 1 << 31;

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
        if len == 0 { -2 } else { len }
    } else {
        len - 1
    }
}

/// Which object a file is.
#[derive(Clone, Copy, Default)]
pub struct Object {
    pub inode: u64,
    pub device: u32,
    /// It has no name on any file system.
    pub anonymous: bool,
}

/// Which object a file is; zeroes where it cannot be known.
///
/// # Safety
/// `file` must be a `struct file` that the verifier knows.
#[inline(always)]
pub unsafe fn object(file: *const u8) -> Object {
    let mut object = Object::default();
    // SAFETY: the caller's promise; typed loads along pointers that the verifier follows.
    unsafe {
        let inode = field!(file, OFF_FILE_INODE, u64) as *const u8;
        if inode.is_null() {
            return object;
        }
        object.inode = field!(inode, OFF_INODE_INO, u64);
        let sb = field!(inode, OFF_INODE_SB, u64) as *const u8;
        if sb.is_null() {
            return object;
        }
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
