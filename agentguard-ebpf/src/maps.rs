//! Every map, with its key, value, writer, reader and lifetime. No map here evicts.

use core::cell::UnsafeCell;
use core::ffi::c_void;

use crate::decide::Decision;
use agentguard_common::approval::{Grant, Key, MAX_GRANTS, MAX_OBJECT};
use agentguard_common::budget::{Limits, MAX_METERS, Meter};
use agentguard_common::folder::Learning;
use agentguard_common::identity::{FILTER_WORDS, MAX_OBJECTS, Object};
use agentguard_common::label::{Control, Label, Membership, State};
use agentguard_common::opened::{Address, MAX_OPENED, Opened, PORT_WORDS, Redirect, Resolver};
use agentguard_common::record::{
    ALLOWED_RING, DENIED_RING, HEADER_LEN, REPEATED_PLACES, RecordHeader, class, folding,
};
use agentguard_common::table::{LARGE_TABLE, MAX_AGENTS, MAX_COMMAND, SMALL_TABLE};
use agentguard_common::traffic::{Account, Flow, MAX_FLOWS, Owner, Row};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, RingBuf};
use aya_ebpf::macros::btf_map;

/// Storage that goes with an object of the kernel. aya-ebpf 0.2 has no such maps, but the loader only reads these
/// five fields.
#[repr(C)]
pub struct LocalStorage<T, const KIND: usize, const FLAGS: usize = NO_PREALLOC> {
    r#type: *const [i32; KIND],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

/// `BPF_MAP_TYPE_INODE_STORAGE`.
pub type InodeStorage<T> = LocalStorage<T, 28>;
/// `BPF_MAP_TYPE_TASK_STORAGE`.
pub type TaskStorage<T> = LocalStorage<T, 29>;
/// `BPF_MAP_TYPE_SK_STORAGE`.
pub type SocketStorage<T> = LocalStorage<T, 24>;
/// The same, where a listening socket hands what it has on to those that are accepted (`BPF_F_CLONE`).
pub type InheritedStorage<T> = LocalStorage<T, 24, { NO_PREALLOC | 1 << 9 }>;

// SAFETY: the fields are placeholders for the loader and are never read.
unsafe impl<T, const KIND: usize, const FLAGS: usize> Sync for LocalStorage<T, KIND, FLAGS> {}

impl<T, const KIND: usize, const FLAGS: usize> LocalStorage<T, KIND, FLAGS> {
    /// A definition for the loader to fill in.
    pub const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// What the helpers take for the map.
    #[inline(always)]
    pub const fn as_ptr(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// Bytes of a path buffer: the longest path and its NUL.
pub const PATH_BUFFER: usize = 4096;

/// Owned memory for one decision on a path: the record is built in place.
#[repr(C)]
pub struct PathScratch {
    /// 0 when free; claimed by compare-and-swap.
    pub owner: u64,
    pub decision: Decision,
    /// The length of the path or an error, and other facts.
    pub facts: [i64; 2],
    pub header: RecordHeader,
    pub tail: [u8; PATH_BUFFER],
    /// What a walk may read behind the longest path.
    pub margin: [u8; crate::bound::STRIDE],
}

/// Longest path, with its NUL, whose record is built in the ring.
pub const SHORT_PATH: usize = 256;

/// A record that is built where the daemon will read it: reserved space of [`ALLOWED`], which belongs
/// to the program that reserved it until it is submitted or discarded.
#[repr(C)]
pub struct Chunk {
    pub header: RecordHeader,
    pub tail: [u8; SHORT_PATH],
}

/// An act of a thread, and how often it was repeated.
#[repr(C)]
pub struct Place {
    /// How often (lower half), and the number of what is kept here (upper half). Changed atomically.
    pub word: u64,
    /// When the record of the act was made.
    pub first: u64,
    /// When the first and the last of the repeats happened.
    pub since: u64,
    pub last: u64,
    /// The record, until its repeats are told.
    pub record: Chunk,
}

/// What a thread repeats. Changed by itself alone, but for the counts.
#[repr(C)]
pub struct Repeats {
    /// 1 when the thread ends.
    pub closed: u64,
    pub places: [Place; REPEATED_PLACES],
}

/// Owned memory for one decision on an exec.
#[repr(C)]
pub struct ExecScratch {
    /// 0 when free; claimed by compare-and-swap.
    pub owner: u64,
    pub walk: Walk,
    pub decision: Decision,
    /// The length of the path or an error, and other facts.
    pub facts: [i64; 2],
    pub header: RecordHeader,
    /// The path, and right behind it the arguments.
    pub tail: [u8; PATH_BUFFER + MAX_COMMAND],
}

/// Where a walk over arguments stands.
///
/// VERIFIER: 6.12: kept in a map's value, because values read from one are unknown scalars: on the
/// stack the verifier follows each count through the loop and never sees the same state twice.
#[repr(C)]
pub struct Walk {
    /// Offset of the first argument in the tail.
    pub from: u64,
    /// State of the automaton.
    pub state: u64,
    /// Arguments that are still to come.
    pub left: u64,
    /// Bytes of arguments so far, with their NULs.
    pub used: u64,
    /// How many there were in a list that was read to its end.
    pub whole: u64,
}

/// Owned memory for one decision on one or two names: built backwards by `crate::climb`.
#[repr(C)]
pub struct NameScratch {
    /// 0 when free; claimed by compare-and-swap.
    pub owner: u64,
    pub climb: Climb,
    pub folder: Folder,
    pub decision: Decision,
    /// Places of both names, and their lengths.
    pub places: [u64; 2],
    pub lengths: [i64; 2],
    pub header: RecordHeader,
    /// One path, and right behind it perhaps a second one.
    pub tail: [u8; 2 * PATH_BUFFER],
    /// What a walk may read behind the longest path.
    pub margin: [u8; crate::bound::STRIDE],
    /// Where a path is put together, from its end to its beginning.
    pub build: [u8; 2 * PATH_BUFFER],
}

/// Where the way from an object up to the task's root stands.
///
/// VERIFIER: 6.12: in a map's value, for the same reason as [`Walk`].
#[repr(C)]
pub struct Climb {
    pub dentry: u64,
    pub mount: u64,
    pub root_dentry: u64,
    pub root_mount: u64,
    /// The entry at the root of `mount`.
    pub mount_root: u64,
    /// Where the path begins in `build`.
    pub at: u64,
    /// 0 on the way, else how it ended.
    pub end: u64,
    /// The beginning of the entry.
    pub entry: [u8; ENTRY],
}

/// Longest path of a folder that is kept, with its `/`.
pub const FOLDER_TEXT: usize = 192;

/// Where a folder's entry is: which it is, in which folder and by which name (its hash and length), and whether it is of a
/// kind that is not kept.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub address: u64,
    pub above: u64,
    pub hash: u32,
    pub len: u32,
    pub unsettled: u64,
}

/// The path of a folder, and when it was that. Never changed: a new one takes its place.
#[repr(C)]
pub struct Folder {
    /// How often anything had been renamed and mounted.
    pub counts: u64,
    /// Addresses of the mount through which it was reached, and of the one at whose root the task's root is.
    pub mount: u64,
    pub root: u64,
    pub entry: Entry,
    /// When, in the kernel's ticks.
    pub since: u64,
    /// [`TableHeader::automata`](agentguard_common::table::TableHeader::automata) of the table that `state` is of, or 0.
    pub automata: u64,
    /// Where its automaton stands behind the text.
    pub state: u32,
    /// Bytes of text.
    pub len: u32,
    pub text: [u8; FOLDER_TEXT],
}

/// Bytes of a `struct dentry` that are read at once: its sequence count, its parent and its name.
pub const ENTRY: usize = 48;

/// A script that command rules may speak of, between the first and the second check of its exec. The
/// second sees the interpreter's command line, in which the script's own arguments are the last ones.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Script {
    /// 1 while there is something to judge.
    pub pending: u32,
    /// Generation of the policy whose states these are.
    pub generation: u32,
    /// Label of the script's path.
    pub label: u32,
    /// State of the command automaton behind the script's path.
    pub state: u32,
    /// Its arguments, `argv[0]` included.
    pub count: u32,
    /// Number of the grant that permits it; 0 if none was needed.
    pub approved: u32,
    /// Bytes of `argv[0]`, with its NUL, where there is a grant.
    pub argv0: u32,
    /// 1 while a program that a rule asks about was opened to be started, and nothing has judged it since.
    pub deferred: u32,
    /// Device and inode of the program that the task runs under a grant; zero if none.
    pub inode: u64,
    pub device: u32,
    pub reserved: u32,
}

/// Owned memory for looking for one grant.
#[repr(C)]
pub struct GrantScratch {
    /// 0 when free; claimed by compare-and-swap.
    pub owner: u64,
    pub key: Key,
    /// What a write behind the longest part that stays may reach, as far as the verifier knows.
    pub margin: [u8; MAX_OBJECT],
}

/// Slots of scratch memory; a power of two. A program owns one from claim to release and cannot
/// migrate; more than one for a CPU is needed only where programs can be preempted.
pub const SCRATCH_SLOTS: usize = 64;

#[repr(C)]
pub struct SmallTable(pub [u32; SMALL_TABLE / 4]);
#[repr(C)]
pub struct LargeTable(pub [u32; LARGE_TABLE / 4]);

/// `BPF_F_NO_PREALLOC`: memory is taken when an entry is made.
const NO_PREALLOC: usize = 1;
/// `BPF_F_RDONLY_PROG`: programs can never write a policy.
const RDONLY_PROG: usize = 1 << 7;

/// task → its lineage label. Written by the hooks of lineage; freed with the task.
#[btf_map]
pub static LABELS: TaskStorage<Label> = TaskStorage::new();

/// task → the script that it is starting. Written by the first check of an exec, read by the second; freed
/// with the task.
#[btf_map]
pub static SCRIPTS: TaskStorage<Script> = TaskStorage::new();

/// task → what it repeats, under a policy that wants this counted. Written by the hooks; freed with the task, after its end
/// has told what was counted.
#[btf_map]
pub static REPEATS: TaskStorage<Repeats> = TaskStorage::new();

/// See [`folding`].
#[btf_map]
pub static FOLDING: Array<u64, { folding::COUNT as usize }> = Array::new();

/// cgroup id → who is governed there. Written by the daemon, read when a task enters a cgroup.
#[btf_map]
pub static CGROUPS: HashMap<u64, Membership, 4096> = HashMap::new();

/// agent slot → its policy, when it fits [`SMALL_TABLE`]. Written by the daemon in one step.
#[btf_map]
pub static POLICIES_SMALL: ArrayOfMaps<Array<SmallTable, 1, RDONLY_PROG>, { MAX_AGENTS as usize }> =
    ArrayOfMaps::new();

/// agent slot → its policy, when it is larger. Consulted after [`POLICIES_SMALL`].
#[btf_map]
pub static POLICIES_LARGE: ArrayOfMaps<Array<LargeTable, 1, RDONLY_PROG>, { MAX_AGENTS as usize }> =
    ArrayOfMaps::new();

/// agent slot → its budgets that programs charge. Written by the daemon in one step; there before a policy that has
/// such budgets, and gone after it.
#[btf_map]
pub static LIMITS: ArrayOfMaps<Array<Limits, 1, RDONLY_PROG>, { MAX_AGENTS as usize }> =
    ArrayOfMaps::new();

/// number of a meter → what was charged. Changed by programs alone, under its lock; read by the daemon.
#[btf_map]
pub static METERS: Array<Meter, { MAX_METERS as usize }> = Array::new();

/// object of an agent → the grant for it. Made and removed by the daemon, counted up by the programs that use it.
#[btf_map]
pub static APPROVED: HashMap<Key, Grant, MAX_GRANTS, NO_PREALLOC> = HashMap::new();

/// task → what was granted to the script that it is starting. Written by the first check of an exec, read by the second;
/// freed with the task.
#[btf_map]
pub static APPROVED_SCRIPTS: TaskStorage<Key> = TaskStorage::new();

/// Zeroes, to copy.
#[btf_map]
pub static ZEROES: Array<[u8; MAX_OBJECT], 1, RDONLY_PROG> = Array::new();

/// Scratch memory for looking for grants.
#[btf_map]
pub static GRANT_SCRATCH: Array<GrantScratch, SCRATCH_SLOTS> = Array::new();

/// Scratch memory for opens and for what has no arguments.
#[btf_map]
pub static PATH_SCRATCH: Array<PathScratch, SCRATCH_SLOTS> = Array::new();

/// Scratch memory for execs.
#[btf_map]
pub static EXEC_SCRATCH: Array<ExecScratch, SCRATCH_SLOTS> = Array::new();

/// Scratch memory for changes of names.
#[btf_map]
pub static NAME_SCRATCH: Array<NameScratch, SCRATCH_SLOTS> = Array::new();

/// protected object → accesses that are denied to an agent. Written by the daemon, read by the hooks on files.
#[btf_map]
pub static OBJECTS: HashMap<Object, u32, MAX_OBJECTS> = HashMap::new();

/// Which inode numbers may be in [`OBJECTS`]. Written by the daemon before the entry, cleared after it.
#[btf_map]
pub static OBJECT_FILTER: Array<u64, FILTER_WORDS> = Array::new();

/// folder → its path. Written and read by the programs; freed with the inode.
#[btf_map]
pub static FOLDERS: InodeStorage<Folder> = InodeStorage::new();

/// When folders become known. Written and read by the programs; the daemon only says once that they may.
#[btf_map]
pub static LEARNING: Array<Learning, 1> = Array::new();

/// agent and address → what names opened it for. Written by the daemon before an answer leaves; entries end by
/// their deadlines and are removed by the daemon. A full map takes no more, and what is not in it is not open.
#[btf_map]
pub static OPENED: HashMap<Address, Opened, MAX_OPENED, NO_PREALLOC> = HashMap::new();

/// Number of a name → the name, for records. Written and read by the daemon alone.
#[btf_map]
pub static NAMES: HashMap<u32, [u8; 256], MAX_OPENED, NO_PREALLOC> = HashMap::new();

/// agent slot → where its resolver listens. Written by the daemon when it does, cleared before it does not.
#[btf_map]
pub static RESOLVERS: Array<Resolver, { MAX_AGENTS as usize }> = Array::new();

/// The ports of all resolvers as a set of bits. Written by the daemon.
#[btf_map]
pub static RESOLVER_PORTS: Array<u64, PORT_WORDS> = Array::new();

/// socket → where its questions go. Written by the hooks of the security module, read by the programs of the
/// agent's cgroup; freed with the socket.
#[btf_map]
pub static REDIRECTS: SocketStorage<Redirect> = SocketStorage::new();

/// socket → whose it is, and whether it is called. A TCP socket that called in the agent's very cgroup needs none. Written
/// and read by the programs that count traffic; freed with the socket, and handed on to those that are accepted from it.
#[btf_map]
pub static OWNERS: InheritedStorage<Owner> = InheritedStorage::new();

/// agent and destination → bytes and packets. Rows are made and counted up by the programs that count traffic, read by
/// the daemon, and removed by it when their numbers are in the log and no program counts for the agent any more. A
/// full map takes no more: what has no row is counted in [`ACCOUNTS`].
#[btf_map]
pub static FLOWS: HashMap<Flow, Row, MAX_FLOWS> = HashMap::new();

/// agent slot → what was counted without a row. Cleared by the daemon when an agent comes and when it has gone,
/// counted up by the programs that count traffic.
#[btf_map]
pub static ACCOUNTS: Array<Account, { MAX_AGENTS as usize }> = Array::new();

/// Records of allowed actions and of life cycles, to the daemon.
#[btf_map]
pub static ALLOWED: RingBuf<[u8; HEADER_LEN], ALLOWED_RING> = RingBuf::new();

/// Records of denials, to the daemon.
#[btf_map]
pub static DENIED: RingBuf<[u8; HEADER_LEN], DENIED_RING> = RingBuf::new();

/// class → records lost because its ring was full. Only ever counts up.
#[btf_map]
pub static LOSSES: Array<u64, { class::COUNT as usize }> = Array::new();

/// What the daemon tells the task iterator, and hears from it.
#[btf_map]
pub static CONTROL: Array<Control, 1> = Array::new();

/// A global that programs change atomically.
#[repr(transparent)]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: every access goes through `crate::atomic`.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Where it is.
    #[inline(always)]
    pub const fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}

/// Written by the hooks, read by the daemon. The only variable of `.bss`.
#[unsafe(no_mangle)]
pub static STATE: Shared<State> = Shared(UnsafeCell::new(State {
    unsettled: 0,
    exec_ids: 0,
}));

/// The word that counts tasks which may lack their label.
#[inline(always)]
pub fn unsettled() -> *mut u64 {
    // SAFETY: a field of a static.
    unsafe { &raw mut (*STATE.as_ptr()).unsettled }
}

/// The word that numbers execs.
#[inline(always)]
pub fn exec_ids() -> *mut u64 {
    // SAFETY: a field of a static.
    unsafe { &raw mut (*STATE.as_ptr()).exec_ids }
}
