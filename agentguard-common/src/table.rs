//! The compiled policy as the kernel reads it: one flat, immutable block of bytes.
//!
//! A table is the single value of an inner array map; an outer map from agent slot to table is
//! written once to swap a policy, so no decision ever sees a mixture of two policies.
//!
//! Layout: [`TableHeader`] at offset 0, then one class map for each automaton family, then rows.
//! A row is `1 + classes` little-endian `u32` words: word 0 is the state's [`label`](self::path_label);
//! word `1 + class` is the **byte offset in the table** of the next state's row. A class map has 256
//! `u16` entries that already hold `4 * (1 + class)` (that of paths is there again as bytes, if they fit), so one step of the walk is
//! `state = word[(state + class_map[byte]) & mask]`, with no multiplication. Offsets are masked with
//! the table size: a damaged table can give a wrong row of the same table, never leave it.

use crate::verdict::Verdict;

/// First word of every table.
pub const MAGIC: u32 = 0x4147_5431; // "1TGA"

/// Table sizes in bytes. A policy goes into the smallest that holds it. Powers of two.
pub const SMALL_TABLE: usize = 4 << 20;
/// See [`SMALL_TABLE`].
pub const LARGE_TABLE: usize = 16 << 20;

/// Agents that one host can govern at a time; slots are numbered from 1 (0 means "not governed").
pub const MAX_AGENTS: u32 = 1024;

/// Longest path that can be judged, in bytes, without a terminating NUL. Longer ones are denied.
pub const MAX_PATH: usize = 4095;
/// Longest input of the command automaton, in bytes. Longer command lines are denied.
pub const MAX_COMMAND: usize = 32 << 10;

shared! {
    /// Where one automaton begins.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Automaton {
        /// Byte offset of the start state's row.
        pub start: u32,
        /// Number of classes (row length is `4 * (1 + classes)` bytes).
        pub classes: u32,
        /// Number of states. For people and for the checks in user space; the kernel does not read it.
        pub states: u32,
        /// Zero.
        pub reserved: u32,
    }
}

shared! {
    /// The head of a table.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct TableHeader {
        /// [`MAGIC`].
        pub magic: u32,
        /// Bytes in use.
        pub len: u32,
        /// Generation of the policy: stamped into each record, and never used twice by one daemon.
        pub generation: u32,
        /// Bits of [`flags`].
        pub flags: u32,
        /// Verdicts where no rule matches, packed like a path label (read, write, exec).
        pub path_default: u32,
        /// Verdicts where no network rule matches, packed as [`network_label`] says.
        pub network_default: u32,
        /// What the `kernel` section permits: bit `n` for [`crate::verdict::Lock`] number `n`.
        pub kernel: u32,
        /// Where `network` stands behind [`MAPPED`](crate::record::MAPPED), with which every address of IPv4 begins.
        pub mapped: u32,
        /// Rules anchored at the root: `/usr/bin/*`. All rules on paths where [`flags::ONE_WALK`] is set.
        pub anchored: Automaton,
        /// Rules that match at any depth: `**/.env`. Stepped in lockstep with `anchored`, over the same classes.
        pub floating: Automaton,
        /// Command lines. Input: see [`COMMAND_SEPARATOR`].
        pub command: Automaton,
        /// Socket destinations. Input: the 19 bytes of [`crate::record::Destination::key`].
        pub network: Automaton,
        /// A digest of all that follows the header, and never 0: tables with the same one have the same states.
        pub automata: u64,
    }
}

/// Header flags.
pub mod flags {
    /// Decide and record, but let everything go ahead (`mode: shadow`).
    pub const SHADOW: u32 = 1;
    /// Of what is allowed, record programs only (`audit: denied`). In a decision: do not record it if it is allowed.
    pub const QUIET: u32 = 2;
    /// Do not record allowed opens and changes of names (`audit: decisions`, `audit: denied`). In a decision about these: do
    /// not record it if it is allowed.
    pub const QUIET_OPENS: u32 = 4;
    /// `anchored` alone decides on paths: it is the product of both, and `floating` has nothing to say.
    /// Set where the product fits, because one walk costs half of two.
    pub const ONE_WALK: u32 = 16;
    /// [`ONE_WALK`], and every column of a row of `anchored` fits a byte: [`NARROW_CLASSES`](super::NARROW_CLASSES) may be
    /// used in place of [`PATH_CLASSES`](super::PATH_CLASSES). An open of a path saves an instruction for each byte of it.
    pub const NARROW: u32 = 32;
    /// The policy has rules on command lines; without it the command automaton is not walked.
    pub const HAS_COMMANDS: u32 = 8;
    /// The policy has rules about names: addresses may be open by name, and questions go to the resolver.
    pub const HAS_NAMES: u32 = 64;
    /// Count what a thread does again, in place of a record for each (`audit: {repeats: fold}`).
    pub const FOLD: u32 = 128;
    /// Where the kinds of [`crate::budget::kind`] begin for which the policy has budgets: what is permitted of these is
    /// charged first.
    pub const BUDGETS: u32 = 16;
}

/// Bits of a label, of paths and of destinations, that say which budgets count it: those of certain rules only.
pub const MARKS: u32 = 0xf000;
/// Different marks of one policy.
pub const MAX_MARKS: u32 = MARKS.count_ones();

/// What the rules that matched say of recording what they allow: 2 bits for each access. Of several, all bits together: whoever
/// wants a record wins.
pub mod level {
    /// Nothing: the policy's own level decides.
    pub const UNSAID: u32 = 0;
    /// It is not recorded.
    pub const QUIET: u32 = 1;
    /// It is recorded.
    pub const LOUD: u32 = 3;
    /// How far above the verdict of an access its level is, in labels of paths (reading, writing, connecting, listening) and
    /// of destinations (connecting, listening).
    pub const ABOVE: u32 = 16;
    /// All of them, in a label of a path.
    pub const PATHS: u32 = 3 << (super::path_label::READ + ABOVE)
        | 3 << (super::path_label::WRITE + ABOVE)
        | 3 << (super::path_label::CONNECT + ABOVE)
        | 3 << (super::path_label::LISTEN + ABOVE);
}

/// Byte offset of the class map that `anchored` and `floating` share: 256 `u16`.
pub const PATH_CLASSES: usize = 128;
/// Byte offset of the class map of `command`.
pub const COMMAND_CLASSES: usize = PATH_CLASSES + 512;
/// Byte offset of the class map of `network`.
pub const NETWORK_CLASSES: usize = COMMAND_CLASSES + 512;
/// Byte offset of the same class map as at [`PATH_CLASSES`] in one byte for each: 256 `u8`, where
/// [`flags::NARROW`] is set; else zeroes.
pub const NARROW_CLASSES: usize = NETWORK_CLASSES + 512;
/// Byte offset of the first row.
pub const ROWS: usize = NARROW_CLASSES + 256;

/// Between and after the parts of the command automaton's input: the resolved path of the program,
/// then `argv[0]`, `argv[1]`, …, **each** followed by this byte. Neither can contain it.
pub const COMMAND_SEPARATOR: u8 = 0;

/// A path label packs one [`Verdict`] (2 bits: none, allow, ask, deny) for each access.
pub mod path_label {
    /// Bit position of the verdict for reading.
    pub const READ: u32 = 0;
    /// Bit position of the verdict for writing.
    pub const WRITE: u32 = 2;
    /// Bit position of the verdict for executing.
    pub const EXEC: u32 = 4;
    /// A command rule may permit this program: where the path alone says nothing (not: denies),
    /// wait for the arguments before applying the default.
    pub const EXEC_BY_COMMAND: u32 = 1 << 6;
    /// Bit position of the verdict for connecting to the Unix-domain socket of that name.
    pub const CONNECT: u32 = 8;
    /// Bit position of the verdict for taking that abstract name. The input of an abstract name is a NUL, which
    /// no path has, and the name.
    pub const LISTEN: u32 = 10;
}

/// A label of the network automaton packs one verdict for connecting and one for listening; the header's
/// defaults have the same two, and those for Unix-domain sockets behind them.
pub mod network_label {
    /// Bit position of the verdict for connecting and sending.
    pub const CONNECT: u32 = 0;
    /// Bit position of the verdict for listening.
    pub const LISTEN: u32 = 2;
    /// In the defaults: connecting to Unix-domain sockets.
    pub const UNIX_CONNECT: u32 = 4;
}

/// Unpacks the 2-bit verdict at `shift` of a label. `Verdict::WouldDeny` never occurs in labels.
#[inline(always)]
pub const fn unpack(label: u32, shift: u32) -> Verdict {
    match (label >> shift) & 3 {
        0 => Verdict::None,
        1 => Verdict::Allow,
        2 => Verdict::Ask,
        _ => Verdict::Deny,
    }
}

const _: () = {
    assert!(size_of::<Automaton>() == 16);
    assert!(size_of::<TableHeader>() == 104);
    assert!(size_of::<TableHeader>() <= PATH_CLASSES);
    assert!(core::mem::offset_of!(TableHeader, anchored) == 32);
    assert!(core::mem::offset_of!(TableHeader, floating) == 48);
    assert!(core::mem::offset_of!(TableHeader, command) == 64);
    assert!(core::mem::offset_of!(TableHeader, network) == 80);
    assert!(MARKS.trailing_zeros() + MAX_MARKS == 16 && MARKS & 3 << path_label::LISTEN == 0);
    assert!(MARKS >> flags::BUDGETS == 0 && flags::FOLD < MARKS);
    assert!(crate::budget::kind::RECEIVED < 1 << (32 - flags::BUDGETS));
    assert!(ROWS.is_multiple_of(4));
    assert!(SMALL_TABLE.is_power_of_two() && LARGE_TABLE.is_power_of_two());
};
