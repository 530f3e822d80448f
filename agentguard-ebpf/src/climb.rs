//! The name of an object, from its mount and its directory entry: the way up to the task's own root, as
//! `d_path` goes it. For hooks in which `bpf_d_path` may not be called (all of those that change names
//! before 6.8, and some of every kernel), or that are handed an entry and not a file.
//!
//! Must never give a path that is not whole: a race, a loop or an end elsewhere is a failure, and the
//! caller denies. Each entry is read between two readings of its sequence count, which a rename changes.
//! Entries above it may move meanwhile; that takes nothing away, because a governed task can move a
//! folder only to where the same rules apply below it (`rules-differ`).

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel};

use crate::bound::at_most;
use crate::label::peek;
use crate::maps::{Climb, ENTRY, NameScratch, PATH_BUFFER};
use crate::offsets::{self as off, field, get};

/// Components and mounts on one way; a path of 4,095 bytes has at most 2,048 components.
const STEPS: u32 = 2304;
/// Longest name of one entry.
const NAME_MAX: u32 = 255;

const ARRIVED: u64 = 1;
const TOO_LONG: u64 = 2;
const UNREACHABLE: u64 = 3;
const RACED: u64 = 4;

const ENAMETOOLONG: i64 = -36;
const ENOENT: i64 = -2;
const EAGAIN: i64 = -11;

/// What the loop is handed: pointers only, so that a spill keeps its type.
#[repr(C)]
struct Context {
    climb: *mut Climb,
    build: *mut u8,
}

/// Writes the path of an object behind `from` bytes of the slot's tail; its length, or a negative errno.
/// `from` is at most one path.
///
/// # Safety
/// The caller owns the slot; `task` must be a `struct task_struct` that the verifier knows.
#[inline(never)]
pub unsafe fn climb(
    scratch: *mut NameScratch,
    task: *const u8,
    mount: u64,
    dentry: u64,
    from: u32,
) -> i64 {
    // SAFETY: the caller owns the slot; offsets are bounded before use.
    unsafe {
        let climb = &raw mut (*scratch).climb;
        let fs = field!(task, OFF_TASK_FS, u64) as *const u8;
        if fs.is_null() {
            return ENOENT;
        }
        let root = fs.add(get(&off::OFF_FS_ROOT));
        (*climb).dentry = dentry;
        (*climb).mount = mount;
        (*climb).root_dentry = field!(root, OFF_PATH_DENTRY, u64);
        (*climb).root_mount = field!(root, OFF_PATH_MNT, u64);
        (*climb).mount_root = root_of(mount);
        (*climb).at = PATH_BUFFER as u64;
        (*climb).end = 0;
        let mut context = Context {
            climb,
            build: &raw mut (*scratch).build as *mut u8,
        };
        bpf_loop(
            STEPS,
            step as *mut core::ffi::c_void,
            core::ptr::from_mut(&mut context).cast(),
            0,
        );
        match core::ptr::read_volatile(&raw const (*climb).end) {
            ARRIVED => {}
            TOO_LONG | 0 => return ENAMETOOLONG,
            RACED => return EAGAIN,
            _ => return ENOENT,
        }
        let at = at_most(
            core::ptr::read_volatile(&raw const (*climb).at) as u32,
            PATH_BUFFER as u32,
        );
        let len = at_most(PATH_BUFFER as u32 - at, PATH_BUFFER as u32 - 1);
        let from = at_most(from, PATH_BUFFER as u32 - 1);
        let to = (&raw mut (*scratch).tail as *mut u8).add(from as usize);
        if len == 0 {
            *to = b'/';
            return 1;
        }
        let source = (&raw const (*scratch).build as *const u8).add(at as usize);
        if bpf_probe_read_kernel(to.cast(), len, source.cast()) != 0 {
            return ENOENT;
        }
        i64::from(len)
    }
}

/// The entry at the root of a mount.
#[inline(always)]
pub fn root_of(mount: u64) -> u64 {
    peek(mount + get(&off::OFF_VFSMOUNT_ROOT) as u64, 0)
}

/// A field of the entry, from what was read of it at once where that reaches so far. The loader has set the offset, so
/// that only one of the ways is there.
#[inline(always)]
fn part<T: Copy>(climb: &Climb, offset: usize, zero: T) -> T {
    if offset + size_of::<T>() <= ENTRY {
        // SAFETY: bounded just above; the kernel aligns its fields, and `entry` as a word.
        unsafe {
            core::ptr::read_volatile((&raw const climb.entry).cast::<u8>().add(offset).cast())
        }
    } else {
        peek(climb.dentry + offset as u64, zero)
    }
}

/// One entry, or one mount, further up. Returns 1 to stop.
unsafe extern "C" fn step(_i: u64, context: *mut Context) -> u64 {
    // SAFETY: the helper hands back the pointer that it was given; the caller owns what it points to.
    let (climb, build) = unsafe { (&mut *(*context).climb, (*context).build) };
    let (dentry, mount) = (climb.dentry, climb.mount);
    if dentry == climb.root_dentry && mount == climb.root_mount {
        climb.end = ARRIVED;
        return 1;
    }
    if dentry == climb.mount_root {
        // The root of a mount: go on where it is mounted.
        let whole = mount - get(&off::OFF_MOUNT_MNT) as u64;
        let parent: u64 = peek(whole + get(&off::OFF_MOUNT_PARENT) as u64, 0);
        if parent == 0 || parent == whole {
            climb.end = UNREACHABLE;
            return 1;
        }
        climb.dentry = peek(whole + get(&off::OFF_MOUNT_MOUNTPOINT) as u64, 0);
        climb.mount = parent + get(&off::OFF_MOUNT_MNT) as u64;
        climb.mount_root = root_of(climb.mount);
        return 0;
    }
    let to = (&raw mut climb.entry).cast();
    // SAFETY: a buffer of this length; the helper checks the address.
    if unsafe { bpf_probe_read_kernel(to, ENTRY as u32, dentry as *const _) } != 0 {
        climb.end = RACED;
        return 1;
    }
    let sequence = get(&off::OFF_DENTRY_SEQ);
    let above = get(&off::OFF_DENTRY_PARENT);
    let name = get(&off::OFF_DENTRY_NAME);
    // The helper copies words from the first to the last: what stands before the others was read before them.
    let before: u32 = if sequence < above && sequence < name {
        part(climb, sequence, 1)
    } else {
        peek(dentry + sequence as u64, 1)
    };
    let parent: u64 = part(climb, above, 0);
    let len: u32 = part(climb, name + get(&off::OFF_QSTR_LEN), 0);
    let bytes: u64 = part(climb, name + get(&off::OFF_QSTR_NAME), 0);
    if parent == 0 || parent == dentry {
        climb.end = UNREACHABLE;
        return 1;
    }
    let at = climb.at;
    if len > NAME_MAX || at > PATH_BUFFER as u64 || at < u64::from(len) + 2 {
        climb.end = TOO_LONG;
        return 1;
    }
    let len = at_most(len, NAME_MAX);
    let begin = at_most((at as u32).wrapping_sub(len + 1), PATH_BUFFER as u32 - 1);
    // SAFETY: bounded just above; `build` holds twice as much as the longest path.
    let fault = unsafe {
        let to = build.add(begin as usize);
        *to = b'/';
        bpf_probe_read_kernel(to.add(1).cast(), len, bytes as *const _) != 0
    };
    if fault || before & 1 != 0 || before != peek::<u32>(dentry + sequence as u64, 1) {
        climb.end = RACED;
        return 1;
    }
    climb.at = u64::from(begin);
    climb.dentry = parent;
    0
}
