//! The hooks, one module for each family. A hook reads, asks `decide`, and emits; it holds no rules.

pub mod code;
pub mod descriptors;
pub mod exec;
pub mod lineage;
pub mod locks;
pub mod moves;
pub mod names;
pub mod network;
pub mod open;
pub mod outsiders;
mod script;

use agentguard_common::record::{RecordHeader, record_flags};
use aya_ebpf::helpers::generated::bpf_d_path;

use crate::label::load;
use crate::offsets::{self as off, get};

/// `SB_NOUSER`: a file system that nobody can mount: pipes, sockets, memfd.
pub const SB_NOUSER: u64 = 1 << 31;

/// No memory for the label: deny (label-unavailable); counted, since a record needs the label.
#[inline(always)]
pub fn unlabelled() -> i32 {
    crate::emit::count_loss(agentguard_common::record::class::DENIED);
    crate::emit::DENIED_ERRNO
}

/// Resolves the path of a file into a buffer; its length without the NUL, or a negative errno.
///
/// # Safety
/// `file` must be a `struct file` that the verifier knows; `buffer` must be owned and hold 4,096 bytes.
#[inline(always)]
pub unsafe fn resolve(file: *const u8, buffer: *mut u8) -> i64 {
    // SAFETY: the caller's promise.
    let len = unsafe {
        bpf_d_path(
            file.add(get(&off::OFF_FILE_PATH)) as *mut _,
            buffer.cast(),
            crate::maps::PATH_BUFFER as u32,
        )
    };
    // A failure leaves the previous path in the buffer: nothing may be decided on it.
    if len <= 0 {
        if len == 0 { -2 } else { len }
    } else {
        len - 1
    }
}

/// Notes which object a file is; true if it has no name on any file system.
///
/// # Safety
/// `file` must be a `struct file` that the verifier knows.
#[inline(always)]
pub unsafe fn identify(file: *const u8, header: &mut RecordHeader) -> bool {
    // SAFETY: the caller's promise; typed loads along pointers that the verifier follows.
    unsafe {
        let inode: *const u8 = load(file, get(&off::OFF_FILE_INODE));
        if inode.is_null() {
            return false;
        }
        header.inode = load(inode, get(&off::OFF_INODE_INO));
        let sb: *const u8 = load(inode, get(&off::OFF_INODE_SB));
        if sb.is_null() {
            return false;
        }
        header.device = load(sb, get(&off::OFF_SB_DEV));
        let flags: u64 = load(sb, get(&off::OFF_SB_FLAGS));
        if flags & SB_NOUSER != 0 {
            header.flags |= record_flags::ANONYMOUS;
            return true;
        }
    }
    false
}
