//! The record that a hook leaves in a ring buffer: a fixed header and a tail of bytes.
//!
//! Tail: `target_len` bytes of target, then `args_len` bytes of arguments. Target is the resolved
//! path (no NUL) or a [`Destination`] (connect, send, listen), behind which the name of a Unix-domain socket stands:
//! its path, or a NUL and its abstract name. Arguments are `argv` as the new program sees it,
//! each string with its NUL (exec), or the new path, without NUL (rename, link). Nothing in the tail may be trusted to be
//! UTF-8 or printable.

/// Size of [`RecordHeader`] in bytes.
pub const HEADER_LEN: usize = 96;

/// How long a thread's repeats of an act are counted, in nanoseconds from its record on.
pub const FOLD_WINDOW: u64 = 1_000_000_000;
/// How many different acts of a thread are known at a time.
pub const REPEATED_PLACES: usize = 8;

/// Bits of [`RecordHeader::flags`].
pub mod record_flags {
    /// The target is an object without a name on any file system (pipe, memfd, socket).
    pub const ANONYMOUS: u8 = 1;
    /// `args_len` bytes are not all of the arguments.
    pub const ARGS_TRUNCATED: u8 = 2;
    /// The task was killed because the action could no longer be refused.
    pub const KILLED: u8 = 4;
    /// The open is part of starting a program (program file or ELF interpreter).
    pub const FOR_EXEC: u8 = 8;
    /// receive: the target is a [`super::Destination`], not a path.
    pub const SOCKET: u8 = 16;
    /// Not an act of its own: `new_exec_id` says how often the thread did the same again, without a record for each.
    pub const REPEATED: u8 = 32;
}

shared! {
    /// The fixed part of a record. All numbers in the machine's byte order.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RecordHeader {
        /// Bytes of header and tail.
        pub len: u32,
        /// [`crate::verdict::Operation`] by number.
        pub operation: u8,
        /// [`crate::verdict::Verdict`] by number.
        pub verdict: u8,
        /// Bits of [`crate::verdict::access`].
        pub access: u8,
        /// Bits of [`record_flags`].
        pub flags: u8,
        /// `CLOCK_BOOTTIME`, in nanoseconds.
        pub time: u64,
        /// Agent slot.
        pub agent: u32,
        /// Session of the agent (a new one for each attach of the same name).
        pub session: u32,
        /// Generation of the policy that decided; 0 where none was consulted.
        pub generation: u32,
        /// [`crate::verdict::Reason`] by number.
        pub reason: u16,
        /// Positive errno of a helper that failed on the way; 0 if none. Where a budget is spent, the number of its
        /// meter; where an operator approved, the number of the approval.
        pub errno: u16,
        /// Process (thread group) id, in the initial pid namespace.
        pub pid: u32,
        /// Thread id.
        pub tid: u32,
        /// Process id of the parent.
        pub ppid: u32,
        /// User id, in the initial user namespace.
        pub uid: u32,
        /// Number of the exec record whose program the task runs; 0 if it was attached while running.
        pub exec_id: u64,
        /// Inode number of the target (open, exec).
        pub inode: u64,
        /// Device of the target's file system, as in the kernel (`major << 20 | minor`).
        pub device: u32,
        /// open: `f_flags`. fork: pid of the child. exit: status as for `waitpid`. exec: argc. mode of what is made or
        /// changed (mkdir, create, mknod, chmod). rename: flags. kernel: number of the [`crate::verdict::Lock`].
        /// socket: family (bits 0–15) and type (16–31).
        pub aux: u32,
        /// Bytes of target in the tail.
        pub target_len: u32,
        /// Bytes of arguments in the tail.
        pub args_len: u32,
        /// exec: the number that this exec gives its task's later records. fork: flags of clone. kernel: which
        /// capability, process, signal (`signal << 32 | pid`) or command. socket: protocol. With [`record_flags::REPEATED`]: how often (bits
        /// 0–31), and the microseconds from the first of these to the last, whose time `time` is (bits 32–63).
        pub new_exec_id: u64,
        /// Effective user id, in the initial user namespace.
        pub euid: u32,
        /// connect, send, receive: number of the name that opened the address; else zero.
        pub name: u32,
    }
}

shared! {
    /// A socket destination in the one form that rules and records use.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    // Read and copied by words.
    #[repr(align(8))]
    pub struct Destination {
        /// Address family as the caller gave it (`AF_INET` 2, `AF_INET6` 10, `AF_UNIX` 1, …).
        pub family: u16,
        /// Protocol of the socket (6 TCP, also for MPTCP; 17 UDP; 1 and 58 ICMP; …), as the kernel has it.
        pub protocol: u16,
        /// Port in host byte order; 0 where the protocol has none.
        pub port: u16,
        /// Type of the socket (`SOCK_STREAM` 1, `SOCK_DGRAM` 2, `SOCK_RAW` 3, …).
        pub kind: u16,
        /// The address **as given**, in IPv6 form: an IPv4 address is `::ffff:a.b.c.d`.
        pub address: [u8; 16],
    }
}

/// Length of the network automaton's input.
pub const DESTINATION_KEY: usize = 19;

/// The lower half of the second word of an IPv4 address in IPv6 form, as it lies in memory; the first word is 0. They are
/// the first [`MAPPED_LEN`] bytes of the network automaton's input.
pub const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
/// See [`MAPPED`].
pub const MAPPED_LEN: usize = 12;
/// `127.0.0.1`, as it lies in memory.
const LOOPBACK_V4: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
/// The second word of `0.0.0.0` in IPv6 form.
const UNSPECIFIED_V4: u64 = MAPPED as u64;
/// The second word of `::1`, as it lies in memory; the first word is 0.
pub const LOOPBACK_V6: u64 = u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, 1]);

/// The address that a connection to another one reaches, both as words as they lie in memory: what [`Destination::key`]
/// replaces.
#[inline(always)]
pub const fn reached([first, second]: [u64; 2]) -> [u64; 2] {
    let second = match (first, second) {
        (0, 0) => LOOPBACK_V6,
        (0, UNSPECIFIED_V4) => UNSPECIFIED_V4 | (LOOPBACK_V4 as u64) << 32,
        _ => second,
    };
    [first, second]
}

impl Destination {
    /// The automaton's input: address (16), protocol (1), port (2, big-endian).
    ///
    /// The unspecified address is replaced by loopback (`0.0.0.0` by `127.0.0.1`, `::` by `::1`),
    /// which is where Linux sends it.
    #[inline(always)]
    pub const fn key(&self) -> [u8; DESTINATION_KEY] {
        let mut key = self.listen_key();
        let mut zero = true;
        let mut i = 0;
        while i < 10 {
            zero &= key[i] == 0;
            i += 1;
        }
        let low = key[12] | key[13] | key[14] | key[15];
        if zero && low == 0 {
            if key[10] == 0xff && key[11] == 0xff {
                key[12] = 127;
                key[15] = 1;
            } else if key[10] == 0 && key[11] == 0 {
                key[15] = 1;
            }
        }
        key
    }

    /// The automaton's input for listening: the unspecified address stands for itself, which is every
    /// address of the host.
    #[inline(always)]
    pub const fn listen_key(&self) -> [u8; DESTINATION_KEY] {
        let mut key = [0u8; DESTINATION_KEY];
        let mut i = 0;
        while i < 16 {
            key[i] = self.address[i];
            i += 1;
        }
        key[16] = self.protocol as u8;
        key[17] = (self.port >> 8) as u8;
        key[18] = self.port as u8;
        key
    }
}

/// What programs and daemon tell each other of repeats, by number.
pub mod folding {
    /// Acts whose repeats are counted and not told yet. Changed by programs.
    pub const PENDING: u32 = 0;
    /// 1: the daemon's walk tells all; 0: those whose window is over. Written by the daemon.
    pub const ALL: u32 = 1;
    /// How many numbers there are.
    pub const COUNT: u32 = 2;
}

/// Classes of records, each with its own counter of losses.
pub mod class {
    /// Allowed actions and life-cycle records.
    pub const ALLOWED: u32 = 0;
    /// Denials (their own ring buffer: a flood of allowed actions cannot push them out).
    pub const DENIED: u32 = 1;
    /// Number of classes.
    pub const COUNT: u32 = 2;
}

/// Bytes of the ring buffer for allowed actions.
pub const ALLOWED_RING: usize = 16 << 20;
/// Bytes of the ring buffer for denials.
pub const DENIED_RING: usize = 4 << 20;

const _: () = {
    assert!(size_of::<RecordHeader>() == HEADER_LEN);
    assert!(align_of::<RecordHeader>() == 8);
    assert!(core::mem::offset_of!(RecordHeader, time) == 8);
    assert!(core::mem::offset_of!(RecordHeader, exec_id) == 48);
    assert!(core::mem::offset_of!(RecordHeader, new_exec_id) == 80);
    assert!(size_of::<Destination>() == 24);
};
