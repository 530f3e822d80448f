//! Addresses that a name opened for an agent, and where the agent's resolver listens.

/// Addresses that can be open at a time, of all agents together. Each takes about 300 bytes of kernel memory while
/// it is there, 40 MiB where all are; beyond it nothing is opened.
pub const MAX_OPENED: usize = 131_072;
/// Openings of one address: names, and ranges of ports of each.
pub const GRANTS: usize = 8;
/// [`Grant::protocol`] of every protocol that policies can permit.
pub const EVERY_PROTOCOL: u16 = u16::MAX;
/// The port of name servers.
pub const DNS_PORT: u16 = 53;
/// Words of the set of ports that resolvers listen at.
pub const PORT_WORDS: usize = 65_536 / 64;

shared! {
    /// Whose address it is.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Address {
        /// Agent slot.
        pub agent: u32,
        /// Session.
        pub session: u32,
        /// In IPv6 form.
        pub address: [u8; 16],
    }
}

shared! {
    /// One opening of an address.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Grant {
        /// `CLOCK_BOOTTIME` in nanoseconds from which on it does not hold any more; 0 for none.
        pub deadline: u64,
        /// Number of the name that opened it; never 0.
        pub name: u32,
        /// First port.
        pub low: u16,
        /// Last port.
        pub high: u16,
        /// Protocol number, or [`EVERY_PROTOCOL`].
        pub protocol: u16,
        /// Bits of [`crate::table::MARKS`]: budgets that count connections by the rules behind this opening.
        pub marks: u16,
        /// 1 where it stands for other names as well, for which there was no room. The kernel does not ask.
        pub shared: u16,
        /// Zero.
        pub reserved: u16,
    }
}

shared! {
    /// What is open at an address. The key is in it once more: memory of the map may be used again while a program
    /// reads it, and then whose it is has changed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Opened {
        /// Whose it is.
        pub key: Address,
        /// The openings.
        pub grants: [Grant; GRANTS],
    }
}

shared! {
    /// Where the resolver of an agent listens: at one port of loopback, for both versions of IP and both protocols.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Resolver {
        /// Session of the agent that it listens for.
        pub session: u32,
        /// Inode of its network namespace.
        pub namespace: u32,
        /// The port; 0 for none.
        pub port: u32,
        /// Zero.
        pub reserved: u32,
    }
}

/// A socket whose questions go to the resolver: what the program asked, and where it is sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    /// The server that was asked, in IPv6 form: replies come from there.
    pub server: [u8; 16],
    /// The resolver's port; 0 for none.
    pub port: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<Address>() == 24);
    assert!(size_of::<Grant>() == 24);
    assert!(size_of::<Opened>() == 24 + 24 * GRANTS);
    assert!(size_of::<Resolver>() == 16);
    assert!(size_of::<Redirect>() == 24);
};
