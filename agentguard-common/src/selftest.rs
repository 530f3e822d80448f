//! The input of the bulk test of the kernel's decide code. Used by tests alone.

use crate::table::MAX_COMMAND;

/// What a case is decided as.
pub mod kind {
    /// Reading or writing a path.
    pub const FILE: u32 = 1;
    /// Starting a program, before its arguments are known.
    pub const PROGRAM: u32 = 2;
    /// Starting a program with arguments.
    pub const COMMAND: u32 = 3;
    /// Connecting to a [`crate::record::Destination`].
    pub const NETWORK: u32 = 4;
    /// Something that the `kernel` section speaks of; `access` is the lock's number.
    pub const LOCK: u32 = 5;
    /// Giving a folder another name: the old path, and behind it the new one.
    pub const MOVE: u32 = 6;
    /// Connecting to the Unix-domain socket of a name.
    pub const UNIX: u32 = 7;
    /// Taking an abstract name.
    pub const ABSTRACT: u32 = 8;
    /// Listening at a [`crate::record::Destination`].
    pub const LISTEN: u32 = 9;
    /// Charging `count` of the kinds in `access`, with the marks in `args_len`: 0, or one more than the number of the
    /// meter that had not enough.
    pub const CHARGE: u32 = 10;
    /// The record of a permitted open of a path of `path_len` bytes, from the space in the ring to its delivery; what it
    /// says is nothing.
    pub const RECORD: u32 = 11;
}

/// One case.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Case {
    /// See [`kind`].
    pub kind: u32,
    /// Access bits, for files.
    pub access: u32,
    /// Bytes of path.
    pub path_len: u32,
    /// Bytes of arguments behind the path.
    pub args_len: u32,
    /// Number of arguments.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
    /// Path, then arguments; or a destination.
    pub bytes: [u8; 4096 + MAX_COMMAND],
}
