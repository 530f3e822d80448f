//! What agents send and receive: bytes and packets, counted by destination in the kernel.

/// Rows that there can be at a time, of all agents together. They take about 5 MiB of kernel memory, from the start:
/// a packet must not go without its row because there was no memory in that moment.
pub const MAX_FLOWS: usize = 32_768;
/// Rows of one agent. What does not fit is counted in its [`Account`], so that sums are exact, and no agent can take
/// the rows of all others.
pub const FLOWS_EACH: u64 = 4_096;
/// [`Flow::protocol`] of a packet whose headers could not be read.
pub const UNREADABLE: u16 = u16::MAX;

shared! {
    /// Whom an agent exchanges packets with. One row for all sockets of the agent that do.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Flow {
        /// Agent slot.
        pub agent: u32,
        /// Session.
        pub session: u32,
        /// The other side, in IPv6 form.
        pub address: [u8; 16],
        /// Its port; 0 where the protocol has none, in later fragments, and where the agent's socket is the one that
        /// was called: callers pick their ports at random, and would fill the map.
        pub port: u16,
        /// Protocol number of IP, or [`UNREADABLE`].
        pub protocol: u16,
    }
}

shared! {
    /// Bytes and packets. Bytes are those of IP, headers included, as sockets hand them to the network layer and get
    /// them from it: what the kernel or the card cuts up later has one header here.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Counts {
        /// Bytes that sockets of the agent received.
        pub bytes_in: u64,
        /// Packets that they received.
        pub packets_in: u64,
        /// Bytes that they sent.
        pub bytes_out: u64,
        /// Packets that they sent.
        pub packets_out: u64,
    }
}

shared! {
    /// What was counted for a [`Flow`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Row {
        /// Bytes and packets.
        pub counts: Counts,
        /// Number of the name that had opened the address when the row was made; 0 for none.
        pub name: u32,
        /// Zero.
        pub reserved: u32,
    }
}

shared! {
    /// What an agent has besides its rows.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Account {
        /// Everything for which there was no row.
        pub rest: Counts,
        /// Rows that were made for it.
        pub rows: u64,
        /// Its session; 0 where the slot is free.
        pub session: u32,
        /// Zero.
        pub reserved: u32,
    }
}

/// What is known of a socket after its first packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The governed cgroup that the socket was made in, or below.
    pub cgroup: u64,
    /// 1 where others call this socket, 0 where it calls others.
    pub called: u32,
    /// Zero.
    pub reserved: u32,
}

impl Counts {
    /// These and others.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            bytes_in: self.bytes_in.saturating_add(other.bytes_in),
            packets_in: self.packets_in.saturating_add(other.packets_in),
            bytes_out: self.bytes_out.saturating_add(other.bytes_out),
            packets_out: self.packets_out.saturating_add(other.packets_out),
        }
    }

    /// Bytes in both directions.
    pub const fn bytes(&self) -> u64 {
        self.bytes_in.saturating_add(self.bytes_out)
    }

    /// Whether nothing was counted.
    pub const fn is_empty(&self) -> bool {
        self.packets_in == 0 && self.packets_out == 0
    }
}

const _: () = {
    assert!(size_of::<Flow>() == 28);
    assert!(size_of::<Counts>() == 32);
    assert!(size_of::<Row>() == 40);
    assert!(size_of::<Account>() == 48);
    assert!(size_of::<Owner>() == 16);
};
