//! What operators have granted of what rules ask about. A grant belongs to one session of one agent and to one object,
//! byte for byte; the daemon makes and removes it, and programs count how often it is used.

/// Longest object that can be granted, in bytes: a path, or the path of a program and its arguments.
pub const MAX_OBJECT: usize = 2048;
/// Grants of one host.
pub const MAX_GRANTS: usize = 4096;

/// What the bytes of a [`Key`] are.
pub mod kind {
    /// A path; the path of a Unix-domain socket; a NUL and its abstract name.
    pub const PATH: u8 = 1;
    /// The path of a program (`split` bytes), and its arguments, each with its NUL.
    pub const COMMAND: u8 = 2;
    /// A [`crate::record::Destination`].
    pub const ADDRESS: u8 = 3;
}

shared! {
    /// What is granted.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Key {
        /// Agent slot.
        pub agent: u32,
        /// Session of the agent.
        pub session: u32,
        /// Bytes of the object.
        pub len: u32,
        /// Bytes of them that are the program's path ([`kind::COMMAND`]); else zero.
        pub split: u32,
        /// One of [`kind`].
        pub kind: u32,
        /// One bit of [`crate::verdict::access`].
        pub access: u32,
        /// The object; zeroes behind it.
        pub object: [u8; MAX_OBJECT],
    }
}

shared! {
    /// For how long, and how often it was used.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Grant {
        /// Its number, for records; never 0.
        pub number: u32,
        /// Zero.
        pub reserved: u32,
        /// `CLOCK_BOOTTIME` at which it ends, in nanoseconds; 0: with the session.
        pub until: u64,
        /// How often it may be used; 0: any number of times.
        pub most: u64,
        /// How often it was, or was tried to be.
        pub used: u64,
        /// Who may go on with what one use began, see [`heir`]; 0: nobody.
        pub heir: u64,
    }
}

/// One act can pass several hooks: an open that makes a file, or cuts it. The first hook takes a use, and leaves
/// the next one to the same thread.
pub mod heir {
    /// The thread may open what it has made.
    pub const OPENS: u64 = 1 << 32;
    /// The thread may cut what it has opened for that.
    pub const CUTS: u64 = 1 << 33;
}

const _: () = {
    assert!(size_of::<Key>() == 24 + MAX_OBJECT);
    assert!(size_of::<Grant>() == 40);
    assert!(MAX_GRANTS <= u16::MAX as usize);
};
