//! What is known of folders: a folder's path is kept with its inode, and an object in it needs no way up to the root.
//!
//! Must never give a path that the kernel itself would not give at this moment. A path changes by a rename or by a
//! mount, and the kernel counts both: `rename_lock` and `mount_lock` are written around each change, and their counts
//! are read last. While they are what they were when the folder's path was made, nothing on the way has moved, nothing
//! was mounted, and no mount has ended, so that one with the same address is the same. Kept is only what these counts
//! speak of: folders of file systems that no other machine changes and that have no names of their own making, below
//! roots that are the root of a mount.
//!
//! What is not known is found as without this: not to know is never an answer. x86-64: its loads are made in the
//! order of the program.

use agentguard_common::folder::Learning;
use agentguard_common::label::Label;
use agentguard_common::table::{TableHeader, flags};
use aya_ebpf::helpers::generated::{
    bpf_inode_storage_delete, bpf_inode_storage_get, bpf_jiffies64, bpf_probe_read_kernel,
};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use core::mem::offset_of;

use crate::bound::{NARROW, Table, at_most, at_most_64, forget, opaque};
use crate::climb::{self, climb};
use crate::decide::{self, Policy, with_table};
use crate::maps::{Entry, FOLDER_TEXT, FOLDERS, Folder, LEARNING, NameScratch, PATH_BUFFER};
use crate::offsets::{self as off, address, field, get};
use crate::scratch;

/// Longest name, and its end, of an object that is looked for here.
pub const SHORT_NAME: u64 = 64;
/// Bytes of a name, in whole words, that every kernel since 6.1 keeps in the entry itself, if it is that short.
const INLINE_NAME: u64 = 32;
/// How long a folder's path is kept: 10 to 100 seconds, as the kernel is built. A count has 31 bits for changes; it
/// takes minutes to bring it round.
const KEPT: u64 = 10_000;
/// `BPF_LOCAL_STORAGE_GET_F_CREATE`.
const CREATE: u64 = 1;
/// How many folders may become known in a time (of 2^`ERA` ticks, 4 to 44 minutes): their memory is nobody's but the kernel's.
const LEARNT_MAX: u64 = 1 << 16;
const ERA: u32 = 18;

/// ext2 to ext4, xfs, btrfs, tmpfs, ramfs, overlayfs.
const SETTLED: [u64; 6] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x0102_1994,
    0x8584_58f6,
    0x794c_7630,
];
/// `DCACHE_OP_HASH`, `DCACHE_OP_COMPARE`, `DCACHE_OP_REVALIDATE`: names that are equal though they differ, and entries
/// that are asked whether they are still there.
const UNSETTLED: u32 = 1 | 2 | 4;

/// What was found.
#[derive(Clone, Copy)]
pub struct Found {
    /// The folder; null where the path is not known.
    pub folder: *const Folder,
    /// Bytes of the folder's path, with its `/`: at most [`FOLDER_TEXT`].
    pub above: u64,
    /// Bytes of the name: less than [`SHORT_NAME`].
    pub name: u64,
    /// 1 where the folder may become known.
    pub learn: u64,
}

impl Found {
    #[inline(always)]
    const fn unknown(learn: u64) -> Self {
        Self {
            folder: core::ptr::null(),
            above: 0,
            name: 0,
            learn,
        }
    }

    /// Whether the path is known.
    #[inline(always)]
    pub fn is_known(self) -> bool {
        !self.folder.is_null()
    }

    /// Bytes of the path.
    #[inline(always)]
    pub const fn len(self) -> u64 {
        self.above + self.name
    }
}

impl Entry {
    /// Where a folder's entry is.
    ///
    /// # Safety
    /// The verifier must know the entry.
    #[inline(always)]
    unsafe fn of(entry: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let name = entry.add(get(&off::OFF_DENTRY_NAME));
            Self {
                address: entry as u64,
                above: field!(entry, OFF_DENTRY_PARENT, u64),
                hash: field!(name, OFF_QSTR_HASH, u32),
                len: field!(name, OFF_QSTR_LEN, u32),
                unsettled: u64::from(field!(entry, OFF_DENTRY_FLAGS, u32) & UNSETTLED),
            }
        }
    }
}

/// Both counts, or an odd number where something changes now, or where they cannot be read.
#[inline(always)]
fn counts() -> u64 {
    let (renames, mounts) = (
        count(address(&off::RENAME_LOCK)),
        count(address(&off::MOUNT_LOCK)),
    );
    renames << 32 | mounts | renames & 1
}

#[inline(always)]
fn count(address: u64) -> u64 {
    let mut count = 0u32;
    // SAFETY: the helper checks the address.
    let read = unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(&mut count).cast(),
            size_of::<u32>() as u32,
            address as *const _,
        )
    };
    if read != 0 { 1 } else { u64::from(count) }
}

/// The mount at whose root the task's own root is, or null.
///
/// # Safety
/// `task` must be a `struct task_struct` that the verifier knows.
#[inline(always)]
unsafe fn root_of(task: *const u8) -> *const u8 {
    // SAFETY: the caller's promise; typed loads along pointers that the verifier follows.
    unsafe {
        let fs = field!(task, OFF_TASK_FS, u64) as *const u8;
        if fs.is_null() {
            return core::ptr::null();
        }
        let root = fs.add(get(&off::OFF_FS_ROOT));
        let mount = field!(root, OFF_PATH_MNT, u64) as *const u8;
        if mount.is_null() {
            return core::ptr::null();
        }
        // With a root elsewhere, a path would depend on an entry that may end and whose address may be used again.
        if field!(mount, OFF_VFSMOUNT_ROOT, u64) != field!(root, OFF_PATH_DENTRY, u64) {
            return core::ptr::null();
        }
        mount
    }
}

/// The folder of an entry, as an entry; null where the way up leaves the mount there.
///
/// # Safety
/// The verifier must know both by their types, and believe that of `dentry`.
#[inline(always)]
unsafe fn above(mount: *const u8, dentry: *const u8) -> *const u8 {
    // SAFETY: the caller's promise.
    unsafe {
        if field!(mount, OFF_VFSMOUNT_ROOT, u64) == dentry as u64 {
            return core::ptr::null();
        }
        let parent = field!(dentry, OFF_DENTRY_PARENT, u64) as *const u8;
        if parent as u64 == dentry as u64 {
            return core::ptr::null();
        }
        parent
    }
}

/// The path of an entry in a known folder, written to `to` by `copy` (the folder's part, of at most [`FOLDER_TEXT`]
/// bytes) and here. `to` has room for [`FOLDER_TEXT`] and [`SHORT_NAME`] bytes.
///
/// # Safety
/// The verifier must know `task`, `mount` and `dentry` by their types, and believe that of `dentry`.
#[inline(always)]
pub unsafe fn find(
    task: *const u8,
    mount: *const u8,
    dentry: *const u8,
    to: *mut u8,
    copy: impl FnOnce(*const Folder, u64, *mut u8),
) -> Found {
    // SAFETY: the caller's promise; a folder does not change, and is there for as long as this program runs.
    unsafe {
        if address(&off::RENAME_LOCK) == 0 || mount.is_null() || dentry.is_null() {
            return Found::unknown(1);
        }
        let parent = above(mount, dentry);
        if parent.is_null() {
            return Found::unknown(1);
        }
        let inode = field!(parent, OFF_DENTRY_INODE, u64) as *const u8;
        if inode.is_null() {
            return Found::unknown(1);
        }
        let folder = kept(inode);
        if folder.is_null() {
            return Found::unknown(u64::from(is_settled(parent)));
        }
        // What is kept may be younger than what led to it: all of that is read again, or for the first time, now.
        if field!(dentry, OFF_DENTRY_PARENT, u64) != parent as u64
            || field!(parent, OFF_DENTRY_INODE, u64) != inode as u64
            || Entry::of(parent) != (*folder).entry
        {
            return Found::unknown(1);
        }
        let root = root_of(task);
        if root.is_null()
            || (*folder).mount != mount as u64
            || (*folder).root != root as u64
            || !is_fresh(folder)
        {
            return Found::unknown(1);
        }
        let len = u64::from((*folder).len);
        if len == 0 || len > FOLDER_TEXT as u64 {
            return Found::unknown(0);
        }
        let len = at_most_64(len, FOLDER_TEXT as u64);
        let called = dentry.add(get(&off::OFF_DENTRY_NAME));
        let name = u64::from(field!(called, OFF_QSTR_LEN, u32));
        if name >= SHORT_NAME {
            return Found::unknown(0);
        }
        let name = at_most_64(name, SHORT_NAME - 1);
        copy(folder, len, to);
        let bytes = field!(called, OFF_QSTR_NAME, u64);
        let behind = to.add(len as usize);
        let inline = get(&off::DENTRY_INLINE_NAME);
        if name <= INLINE_NAME && inline != 0 && bytes == opaque(dentry as u64) + inline as u64 {
            // What lies behind a shorter name is copied as well, and nobody reads it.
            let own = dentry.add(inline);
            copy_word(own, behind);
            if name > 8 {
                copy_word(own.add(8), behind.add(8));
                copy_word(own.add(16), behind.add(16));
                copy_word(own.add(24), behind.add(24));
            }
        } else if bpf_probe_read_kernel(behind.cast(), name as u32, bytes as *const _) != 0 {
            return Found::unknown(1);
        }
        if counts() != (*folder).counts {
            return Found::unknown(1);
        }
        Found {
            folder,
            above: len,
            name,
            learn: 0,
        }
    }
}

/// Copies eight bytes of a kernel object.
///
/// # Safety
/// The verifier must know the object; the place must be owned.
#[inline(always)]
unsafe fn copy_word(from: *const u8, to: *mut u8) {
    // SAFETY: the caller's promise. x86-64: words may lie anywhere, and a volatile write of one stays one.
    unsafe {
        to.cast::<u64>()
            .write_volatile(from.cast::<u64>().read_volatile())
    };
}

/// Whether a folder is of a file system that only this kernel changes.
///
/// # Safety
/// The verifier must know the entry.
#[inline(always)]
unsafe fn is_settled(entry: *const u8) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let sb = field!(entry, OFF_DENTRY_SB, u64) as *const u8;
        !sb.is_null() && SETTLED.contains(&field!(sb, OFF_SB_MAGIC, u64))
    }
}

/// Whether it is not too long ago that a folder became known.
///
/// # Safety
/// What is kept with an inode.
#[inline(always)]
unsafe fn is_fresh(folder: *const Folder) -> bool {
    // SAFETY: the caller's promise; a helper without arguments.
    unsafe { bpf_jiffies64().wrapping_sub((*folder).since) <= KEPT }
}

/// What is kept with an inode.
#[inline(always)]
unsafe fn kept(inode: *const u8) -> *const Folder {
    // SAFETY: the map and a live inode.
    (unsafe { bpf_inode_storage_get(FOLDERS.as_ptr(), inode as *mut _, core::ptr::null_mut(), 0) })
        as *const Folder
}

/// The entry of a file, along a way on which the verifier believes its type; null where there is none.
///
/// # Safety
/// The verifier must know the file.
#[inline(always)]
pub unsafe fn entry_of(file: *const u8) -> *const u8 {
    if get(&off::FILE_PATH_SHARED) != 0 {
        return core::ptr::null();
    }
    // SAFETY: the caller's promise.
    unsafe { field!(file.add(get(&off::OFF_FILE_PATH)), OFF_PATH_DENTRY, u64) as *const u8 }
}

/// The same for a file that the current task opens. Where a file's own path is one of two names for the same memory, its
/// type is not believed, but the walk that led there has it too. Null where that leads elsewhere.
///
/// # Safety
/// Both must be known to the verifier by their types.
#[inline(always)]
pub unsafe fn opened_entry(task: *const u8, file: *const u8) -> *const u8 {
    // SAFETY: the caller's promise.
    unsafe {
        if get(&off::FILE_PATH_SHARED) == 0 {
            return entry_of(file);
        }
        let walk = field!(task, OFF_TASK_NAMEIDATA, u64) as *const u8;
        if walk.is_null() {
            return core::ptr::null();
        }
        let entry = field!(
            walk.add(get(&off::OFF_NAMEIDATA_PATH)),
            OFF_PATH_DENTRY,
            u64
        );
        let own = field!(file.add(get(&off::OFF_FILE_PATH)), OFF_PATH_DENTRY, u64);
        if opaque(entry) != own {
            return core::ptr::null();
        }
        entry as *const u8
    }
}

/// Keeps the path of the folder of what is opened, if nothing has changed anywhere since a task last asked for it: while
/// files are renamed all the time it is not worth it.
#[inline(never)]
pub unsafe extern "C" fn learn(task: *const u8, label: *const Label, file: *const u8) {
    let now = counts();
    if address(&off::RENAME_LOCK) == 0 || now & 1 != 0 {
        return;
    }
    let Some(learning) = LEARNING.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a live map value, whose words may be wrong without harm; typed loads along pointers that the verifier
    // follows; the slot is owned until it is released.
    unsafe {
        if core::ptr::read_volatile(&raw const (*learning).proved) == 0 {
            return;
        }
        if core::ptr::read_volatile(&raw const (*learning).counts) != now {
            core::ptr::write_volatile(&raw mut (*learning).counts, now);
            return;
        }
        let dentry = opened_entry(task, file);
        if dentry.is_null() {
            return;
        }
        let path = file.add(get(&off::OFF_FILE_PATH));
        let mount = field!(path, OFF_PATH_MNT, u64) as *const u8;
        if mount.is_null() {
            return;
        }
        let folder = above(mount, dentry);
        if folder.is_null() {
            return;
        }
        let inode = field!(folder, OFF_DENTRY_INODE, u64) as *const u8;
        let root = root_of(task);
        if inode.is_null() || root.is_null() || !is_settled(folder) {
            return;
        }
        let known = kept(inode);
        if !known.is_null()
            && (*known).counts == now
            && (*known).mount == mount as u64
            && (*known).root == root as u64
            && is_fresh(known)
        {
            // It has no path that can be kept, or somebody else was quicker.
            return;
        }
        // One that takes another's place takes no more memory.
        if known.is_null() && !may_learn(learning) {
            return;
        }
        let Some(slot) = scratch::claim::<NameScratch>() else {
            return;
        };
        let value = &raw mut (*slot).folder;
        (*value).entry = Entry::of(folder);
        (*value).since = bpf_jiffies64();
        (*value).counts = now;
        (*value).mount = mount as u64;
        (*value).root = root as u64;
        let settled = (*value).entry.unsettled == 0 && make(slot, task, label);
        // Last of all: whether all that was on the way was there at one time.
        if settled && counts() == now {
            bpf_inode_storage_delete(FOLDERS.as_ptr(), inode as *mut _);
            bpf_inode_storage_get(FOLDERS.as_ptr(), inode as *mut _, value.cast(), CREATE);
            if counts() != now {
                // The file may have left the folder, and so nothing may have held the folder's inode: the kernel would
                // not free what is kept with one that ended meanwhile. Until this program ends its memory is there.
                bpf_inode_storage_delete(FOLDERS.as_ptr(), inode as *mut _);
            }
        }
        scratch::release(slot);
    }
}

/// Leaves the counts for the daemon, which lets folders become known when it has seen that they count. Attached to nothing.
#[classifier]
pub fn counting(_ctx: TcContext) -> i32 {
    if let Some(learning) = LEARNING.get_ptr_mut(0) {
        // SAFETY: a live map value.
        unsafe { core::ptr::write_volatile(&raw mut (*learning).counts, counts()) };
    }
    0
}

/// Whether one more may become known now.
///
/// # Safety
/// A live map value.
#[inline(always)]
unsafe fn may_learn(learning: *mut Learning) -> bool {
    // SAFETY: the caller's promise. Counts that two processors write at once are as good as any.
    unsafe {
        let era = bpf_jiffies64() >> ERA;
        let learnt = if core::ptr::read_volatile(&raw const (*learning).era) == era {
            core::ptr::read_volatile(&raw const (*learning).learnt)
        } else {
            core::ptr::write_volatile(&raw mut (*learning).era, era);
            0
        };
        core::ptr::write_volatile(&raw mut (*learning).learnt, learnt + 1);
        learnt < LEARNT_MAX
    }
}

/// Makes a folder's path, and the state of the policy's automaton behind it, in the slot's `folder`, whose place, mount
/// and root are known. A path that cannot be kept is one of no bytes. False where it is not even known that it cannot.
#[inline(always)]
unsafe fn make(slot: *mut NameScratch, task: *const u8, label: *const Label) -> bool {
    // SAFETY: the caller owns the slot.
    unsafe {
        let value = &raw mut (*slot).folder;
        (*value).len = 0;
        (*value).automata = 0;
        let len = climb(slot, task, (*value).mount, (*value).entry.address, 0);
        // The climb has read the task's root for itself, and another thread may have changed it.
        if (*slot).climb.root_mount != (*value).root
            || climb::root_of((*value).root) != (*slot).climb.root_dentry
        {
            return false;
        }
        if len <= 0 || len >= FOLDER_TEXT as i64 {
            return true;
        }
        let mut len = at_most(len as u32, FOLDER_TEXT as u32 - 1);
        let tail = &raw mut (*slot).tail as *mut u8;
        if len > 1 {
            *tail.add(len as usize) = b'/';
            len += 1;
        }
        let len = at_most(len, FOLDER_TEXT as u32);
        let text = &raw mut (*value).text as *mut u8;
        if bpf_probe_read_kernel(text.cast(), len, tail.cast()) != 0 {
            return false;
        }
        (*value).len = len;
        if let Some(policy) = decide::policy((*label).agent) {
            if policy.flags() & flags::NARROW != 0 {
                let head = policy.head();
                let start = head.field(offset_of!(TableHeader, anchored));
                (*value).state = with_table!(policy, t => t.walk_states::<NARROW, PATH_BUFFER>(tail, len, start, 0).0);
                (*value).automata = decide::automata(head);
            }
        }
        true
    }
}

/// A path in a buffer, and where the table's automaton stands on it.
#[derive(Clone, Copy)]
pub struct Way {
    /// Bytes of the path, or a negative errno.
    pub len: i64,
    /// Bytes that are walked already, and the state behind them; 0 where nothing is.
    above: u64,
    state: u64,
}

impl Way {
    /// In one number, of which nothing is known but its sign.
    #[inline(always)]
    const fn packed(found: Found, state: u32) -> i64 {
        (found.len() | found.above << 16 | (state as u64) << 32) as i64
    }

    #[inline(always)]
    const fn new(packed: i64) -> Self {
        let bits = packed as u64;
        Self {
            len: if packed < 0 { packed } else { packed & 0xffff },
            above: bits >> 16 & 0xffff,
            state: bits >> 32,
        }
    }

    /// The label of the path, whose length is not negative.
    #[inline(always)]
    pub fn label<const BYTES: usize>(self, table: Table<BYTES>, path: *const u8) -> u32 {
        if self.state == 0 {
            return decide::label_of(table, path, self.len as u32);
        }
        let above = at_most_64(self.above, FOLDER_TEXT as u64);
        // SAFETY: inside the buffer, which holds a path.
        let name = unsafe { path.add(above as usize) };
        let left = (self.len as u64).wrapping_sub(above);
        table.walk_up_to::<SHORT_NAME>(name, left, self.state as u32)
    }
}
const _: () = assert!(PATH_BUFFER <= 0xffff && agentguard_common::table::LARGE_TABLE <= 1 << 31);

/// The path of an entry in a known folder, with one copy of the folder's part: its [`Way`] in one number, with a state if
/// it is one of these automata. 0 where it is not known but may become so, or a negative number.
///
/// # Safety
/// As for [`find`].
#[inline(never)]
unsafe fn path_in(
    task: *const u8,
    mount: *const u8,
    dentry: *const u8,
    to: *mut u8,
    automata: u64,
) -> i64 {
    // SAFETY: the caller's promise.
    unsafe {
        let found = find(task, mount, dentry, to, |folder, len, to| {
            let text = &raw const (*folder).text as *const u8;
            bpf_probe_read_kernel(to.cast(), len as u32, text.cast());
        });
        if !found.is_known() {
            return found.learn as i64 - 1;
        }
        let state = if (*found.folder).automata == automata {
            (*found.folder).state
        } else {
            0
        };
        Way::packed(found, state)
    }
}

/// The path of a file, from what is known or as the kernel tells it: its length without the NUL, or a negative errno; and
/// whether its folder may become known. `entry` is the file's, or null.
///
/// # Safety
/// The verifier must know `task`, `file` and `entry` by their types, and believe that of `entry`; the buffer must be owned
/// and hold a path.
#[inline(always)]
pub unsafe fn path_of_file(
    task: *const u8,
    file: *const u8,
    entry: *const u8,
    buffer: *mut u8,
) -> (i64, bool) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut learn = false;
        if !entry.is_null() {
            let mount = field!(file.add(get(&off::OFF_FILE_PATH)), OFF_PATH_MNT, u64) as *const u8;
            // No table has these automata.
            let way = path_in(task, mount, entry, buffer, 0);
            if way > 0 {
                return (
                    i64::from(at_most(way as u16 as u32, PATH_BUFFER as u32 - 1)),
                    false,
                );
            }
            learn = way == 0;
        }
        (crate::hooks::resolve(file, buffer), learn)
    }
}

/// The path of an entry in the slot's tail, from what is known or by the way up.
///
/// # Safety
/// The caller owns the slot; the verifier must know `task`, `mount` and `dentry` by their types, and believe that of
/// `dentry`.
#[inline(always)]
pub unsafe fn path_of(
    slot: *mut NameScratch,
    task: *const u8,
    mount: *const u8,
    dentry: *const u8,
    policy: Policy,
) -> Way {
    // SAFETY: the caller's promise.
    unsafe {
        let to = &raw mut (*slot).tail as *mut u8;
        let mut way = path_in(task, mount, dentry, to, decide::automata(policy.head()));
        if way <= 0 {
            way = climb(slot, task, mount as u64, dentry as u64, 0);
        }
        // VERIFIER: 6.1: both ways are one from here on.
        Way::new(forget((&raw mut (*slot).lengths).cast(), way))
    }
}

/// The same for an entry whose type the verifier does not believe.
///
/// # Safety
/// The caller owns the slot.
#[inline(always)]
pub unsafe fn path_up(slot: *mut NameScratch, task: *const u8, mount: u64, dentry: u64) -> Way {
    // SAFETY: the caller's promise.
    let len = unsafe { climb(slot, task, mount, dentry, 0) };
    Way {
        len,
        above: 0,
        state: 0,
    }
}
