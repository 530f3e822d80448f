//! What the kernel recorded, as typed values. Decoding must never panic, guess or drop: bytes that
//! do not make sense are an error that the audit log records.

pub(crate) mod bytes;
mod decode;
pub mod escape;
#[cfg(test)]
pub(crate) mod sample;

pub use decode::{Malformed, decode};

use agentguard_common::record::{Destination, record_flags};
use agentguard_common::verdict::{Operation, Reason, Verdict};

/// One record of a governed task, borrowed from the bytes it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// What the task did or tried to do.
    pub operation: Operation,
    /// What the kernel decided. `Verdict::None` for life-cycle records.
    pub verdict: Verdict,
    /// Why it was decided.
    pub reason: Reason,
    /// Bits of [`agentguard_common::verdict::access`].
    pub access: u8,
    /// Bits of [`record_flags`].
    pub flags: u8,
    /// `CLOCK_BOOTTIME`, in nanoseconds.
    pub time: u64,
    /// Agent slot.
    pub agent: u32,
    /// Session of the agent.
    pub session: u32,
    /// Generation of the policy that decided; 0 where none was consulted.
    pub generation: u32,
    /// Errno of a helper that failed on the way; 0 if none.
    pub errno: u16,
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Process id of the parent.
    pub ppid: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Effective user id in the initial user namespace.
    pub euid: u32,
    /// The exec record whose program the task runs; 0 if it was attached while running.
    pub exec_id: u64,
    /// exec: the number given to the task's later records. fork: flags of clone. Repeats: how often, and for how long.
    pub new_exec_id: u64,
    /// Inode number of the target (open, exec).
    pub inode: u64,
    /// Device of the target's file system, as in the kernel (`major << 20 | minor`).
    pub device: u32,
    /// Number of the name that opened the address; 0 if none did.
    pub name: u32,
    /// open: `f_flags`. fork: pid of the child. exit: wait status. exec: argc.
    pub aux: u32,
    /// What was acted on.
    pub target: Target<'a>,
    /// exec: the arguments, each with its NUL (the last without, if cut off). rename, link: the new path.
    pub arguments: &'a [u8],
}

/// What an action was aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// Nothing is named: a life-cycle record, or a target that could not be read.
    Unnamed,
    /// The path that the kernel resolved. Any bytes but NUL.
    Path(&'a [u8]),
    /// A socket destination.
    Socket(Destination),
    /// A Unix-domain socket and its name as the caller gave it: a path, or a NUL and an abstract name.
    Unix(Destination, &'a [u8]),
}

impl<'a> Event<'a> {
    /// The path acted on, if the target has one.
    pub fn path(&self) -> Option<&'a [u8]> {
        match self.target {
            Target::Path(path) => Some(path),
            Target::Unnamed | Target::Socket(_) | Target::Unix(..) => None,
        }
    }

    /// The second path of a rename or link.
    pub fn second_path(&self) -> Option<&'a [u8]> {
        let two = matches!(self.operation, Operation::Rename | Operation::Link);
        (two && !self.arguments.is_empty()).then_some(self.arguments)
    }

    /// Whether a bit of [`record_flags`] is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// For how many acts it stands.
    pub fn acts(&self) -> u64 {
        if self.has(record_flags::REPEATED) {
            self.new_exec_id & u64::from(u32::MAX)
        } else {
            1
        }
    }

    /// When the first of several happened, on the same clock as `time`.
    pub fn since(&self) -> Option<u64> {
        self.has(record_flags::REPEATED)
            .then(|| self.time.saturating_sub((self.new_exec_id >> 32) * 1000))
    }

    /// The arguments of an exec, `argv[0]` first, without their NULs.
    pub fn argv(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.arguments.strip_suffix(b"\0");
        let empty = self.arguments.is_empty();
        bytes
            .unwrap_or(self.arguments)
            .split(|byte| *byte == 0)
            .filter(move |_| !empty)
    }

    /// Whether [`Event::argv`] is all that the program was given.
    pub fn argv_is_complete(&self) -> bool {
        self.operation == Operation::Exec
            && !self.has(record_flags::ARGS_TRUNCATED)
            && self.argv().count() == self.aux as usize
    }

    /// Whether the action was refused (or the process killed for it).
    pub fn is_denied(&self) -> bool {
        matches!(self.verdict, Verdict::Deny | Verdict::Ask)
    }
}
