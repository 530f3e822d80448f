//! Files that are doors into the kernel. Threat: a disk or the machine's memory is read and written below
//! all paths; a setting turns another program into a helper of the kernel, or a cgroup, a pinned program or a
//! probe into somebody else's. They are known by what they are (kind of inode, kind of file system), not by
//! where they are mounted, and need a switch of the `kernel` section besides their path.

use agentguard_common::verdict::{Lock, access};

use super::Object;
use crate::label::{Subject, peek};
use crate::offsets::{self as off, field, get};

const S_IFMT: u16 = 0o170_000;
const S_IFCHR: u16 = 0o020_000;
const S_IFBLK: u16 = 0o060_000;
/// What tells devices from all other kinds of inode.
const DEVICE_BITS: u16 = 0o130_000;
/// Major number of /dev/mem, /dev/kmem and /dev/port, and of harmless ones: their minors tell.
const MEMORY: u32 = 1;
/// Commands to disks (`/dev/sg*`), and flash memory without its blocks (`/dev/mtd*`).
const SCSI: u32 = 21;
const FLASH: u32 = 90;
const PROC: u64 = 0x9fa0;
/// sysfs, cgroup 2 and 1, bpf, debugfs, tracefs, securityfs, configfs, efivarfs, `binfmt_misc`, selinuxfs,
/// fusectl, nfsd, resctrl.
const SETTINGS: [u64; 14] = [
    0x6265_6572,
    0x6367_7270,
    0x0027_e0eb,
    0xcafe_4a11,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x6265_6570,
    0xde5e_81e4,
    0x4249_4e4d,
    0xf97c_ff8c,
    0x6573_5543,
    0x6e66_7364,
    0x0765_5821,
];
/// Folders between the root of proc and a setting.
const DEPTH: u32 = 12;

/// Whether an open may need a switch: a quick look that is wrong only in one direction.
///
/// # Safety
/// The verifier must know what the object points to by its type.
#[inline(always)]
pub unsafe fn maybe(object: Object, wanted: u8) -> bool {
    // SAFETY: the caller's promise; typed loads along pointers that the verifier follows.
    unsafe {
        if object.node.is_null() || object.sb.is_null() {
            return true;
        }
        if field!(object.node, OFF_INODE_MODE, u16) & DEVICE_BITS == S_IFCHR {
            return true;
        }
        if wanted & access::WRITE == 0 {
            return false;
        }
        let magic = field!(object.sb, OFF_SB_MAGIC, u64);
        magic == PROC || SETTINGS.contains(&magic)
    }
}

/// The switch that an open needs.
#[inline(always)]
pub fn lock_of(subject: Subject, file: u64, wanted: u8) -> Option<Lock> {
    let inode: u64 = peek(file + get(&off::OFF_FILE_INODE) as u64, 0);
    let mode: u16 = peek(inode + get(&off::OFF_INODE_MODE) as u64, S_IFBLK);
    match mode & S_IFMT {
        S_IFBLK => return Some(Lock::RawDevices),
        S_IFCHR => {
            // The kernel's own form: 20 bits of minor below 12 bits of major.
            let device: u32 = peek(inode + get(&off::OFF_INODE_RDEV) as u64, 0);
            let (major, minor) = (device >> 20, device & 0xf_ffff);
            if matches!(major, SCSI | FLASH) || major == MEMORY && matches!(minor, 1 | 2 | 4) {
                return Some(Lock::RawDevices);
            }
        }
        _ => {}
    }
    if wanted & access::WRITE == 0 {
        return None;
    }
    let path = file + get(&off::OFF_FILE_PATH) as u64;
    let dentry = peek(path + get(&off::OFF_PATH_DENTRY) as u64, 0);
    if is_score(dentry) && magic_of(dentry) == PROC && !is_own(subject, inode) {
        return Some(Lock::Priorities);
    }
    is_settings(dentry).then_some(Lock::Settings)
}

/// The kind of file system that an entry is on.
#[inline(always)]
fn magic_of(dentry: u64) -> u64 {
    let sb: u64 = peek(dentry + get(&off::OFF_DENTRY_SB) as u64, 0);
    peek(sb + get(&off::OFF_SB_MAGIC) as u64, PROC)
}

/// Whether an entry is one of the kernel's settings. Making and removing entries there changes them too.
#[inline(always)]
pub fn is_settings(dentry: u64) -> bool {
    is_settings_on(magic_of(dentry), dentry)
}

/// The same for an entry that the verifier knows by its type.
///
/// # Safety
/// `dentry` must be a `struct dentry` that the verifier knows.
#[inline(always)]
pub unsafe fn is_settings_typed(dentry: *const u8) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let sb = field!(dentry, OFF_DENTRY_SB, u64) as *const u8;
        sb.is_null() || is_settings_on(field!(sb, OFF_SB_MAGIC, u64), dentry as u64)
    }
}

#[inline(always)]
fn is_settings_on(magic: u64, dentry: u64) -> bool {
    SETTINGS.contains(&magic) || (magic == PROC && is_setting(dentry))
}

/// Whether an entry of proc says who dies first when memory is short: `oom_score_adj`, `oom_adj`.
#[inline(always)]
fn is_score(dentry: u64) -> bool {
    let name = dentry + get(&off::OFF_DENTRY_NAME) as u64;
    let bytes: u64 = peek(name + get(&off::OFF_QSTR_NAME) as u64, 0);
    peek(bytes, *b"oom_") == *b"oom_"
}

/// Whether an inode of proc is about the current process. The kernel's own object for it is compared, so
/// that numbers in another namespace of processes have no say.
#[inline(always)]
fn is_own(subject: Subject, inode: u64) -> bool {
    /// Index of the process among the identities of a `signal_struct`.
    const PROCESS: u64 = 1;
    let proc = inode - get(&off::OFF_PROC_INODE) as u64;
    let theirs: u64 = peek(proc + get(&off::OFF_PROC_PID) as u64, 0);
    let signal: u64 = peek(subject.task as u64 + get(&off::OFF_TASK_SIGNAL) as u64, 0);
    let own: u64 = peek(signal + get(&off::OFF_SIGNAL_PIDS) as u64 + 8 * PROCESS, 0);
    theirs != 0 && theirs == own
}

/// Whether an entry of proc is `/sys`, something below it, or `/sysrq-trigger`. Where it cannot be known, it is.
#[inline(always)]
fn is_setting(mut dentry: u64) -> bool {
    let mut level = 0;
    while level < DEPTH {
        let parent: u64 = peek(dentry + get(&off::OFF_DENTRY_PARENT) as u64, 0);
        let above: u64 = peek(parent + get(&off::OFF_DENTRY_PARENT) as u64, 0);
        if parent == dentry {
            // The root of proc itself.
            return false;
        }
        if parent == above {
            let name = dentry + get(&off::OFF_DENTRY_NAME) as u64;
            let bytes: u64 = peek(name + get(&off::OFF_QSTR_NAME) as u64, 0);
            let len: u32 = peek(name + get(&off::OFF_QSTR_LEN) as u64, 0);
            return peek(bytes, *b"sys") == *b"sys" && (len == 3 || len == 13);
        }
        dentry = parent;
        level += 1;
    }
    true
}
