//! Budgets that kernel programs charge: what may be done, and what was.
//!
//! Limits belong to an agent and come from the daemon as a whole ([`Limits`]); counts belong to a meter, which
//! several agents of one account may share, and only programs change them ([`Meter`]).

/// Meters of one host.
pub const MAX_METERS: u32 = 1024;
/// Budgets of one agent that programs charge.
pub const PER_AGENT: usize = 16;
/// Cells of a sliding window: a power of two, and enough for [`LIVE`] parts.
pub const CELLS: usize = 64;
/// Parts of a sliding window that count: the present one, and sixty before it.
pub const LIVE: u64 = 61;
/// A refused action's number of a meter where there was none to ask.
pub const NO_METER: u16 = u16::MAX;

/// What is counted, as bits of [`Charge::kinds`].
pub mod kind {
    /// Programs started.
    pub const EXECS: u32 = 1;
    /// Files opened, but not those by which a program is started.
    pub const OPENS: u32 = 2;
    /// Internet addresses connected to, and messages sent to one without connecting.
    pub const CONNECTS: u32 = 4;
    /// Processes made; threads are none.
    pub const PROCESSES: u32 = 8;
    /// Bytes of internet packets sent.
    pub const SENT: u32 = 16;
    /// Bytes of internet packets received.
    pub const RECEIVED: u32 = 32;
}

shared! {
    /// One budget of an agent.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Charge {
        /// Bits of [`kind`].
        pub kinds: u32,
        /// Index of the [`Meter`].
        pub meter: u32,
        /// Where not zero, only actions are counted whose label has one of these marks.
        pub marks: u32,
        /// 1: a sliding window, whose parts are `length` long. 0: a fixed one.
        pub sliding: u32,
        /// Nanoseconds of a window, or of a part of a sliding one. 0: nothing is ever forgotten.
        pub length: u64,
        /// How much there is.
        pub limit: u64,
        /// How far the meter may rise in the window `ceiling_window`: what the disk has as spent.
        pub ceiling: u64,
        /// Number of that window.
        pub ceiling_window: u64,
        /// How far it may rise in any other window.
        pub chunk: u64,
        /// A meter with a lower number begins anew, with `base` in the window `base_window`.
        pub epoch: u64,
        /// See `epoch`.
        pub base: u64,
        /// See `epoch`.
        pub base_window: u64,
    }
}

shared! {
    /// All budgets of an agent that programs charge.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Limits {
        /// The daemon's time at boot: added to `CLOCK_BOOTTIME`.
        pub offset: u64,
        /// How many there are.
        pub count: u32,
        /// Zero.
        pub reserved: u32,
        /// The budgets; those behind `count` are zeroes.
        pub charges: [Charge; PER_AGENT],
    }
}

shared! {
    /// The kernel's lock; its name is what the verifier knows it by. Four bytes that only helpers touch.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct bpf_spin_lock {
        /// The kernel's own.
        pub val: u32,
    }
}

shared! {
    /// What was charged. Read with the lock held (`BPF_F_LOCK`), never written from user space.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Meter {
        /// Held while anything here is changed.
        pub lock: bpf_spin_lock,
        /// The amount of the last charge, where it was refused; else 0.
        pub refused: u32,
        /// [`Charge::epoch`] since it counts.
        pub epoch: u64,
        /// Number of the window, or of the part of a sliding one, that was charged last.
        pub window: u64,
        /// What was spent in it; in a sliding one, in all parts that count.
        pub sum: u64,
        /// What was spent in each part of a sliding window; part `n` in cell `n % CELLS`.
        pub cells: [u64; CELLS],
    }
}

impl Meter {
    /// One that never counted.
    pub const EMPTY: Self = Self {
        lock: bpf_spin_lock { val: 0 },
        refused: 0,
        epoch: 0,
        window: 0,
        sum: 0,
        cells: [0; CELLS],
    };
}

const _: () = {
    assert!(size_of::<Charge>() == 80);
    assert!(size_of::<Limits>() == 16 + 80 * PER_AGENT);
    assert!(size_of::<Meter>() == 32 + 8 * CELLS);
    assert!(CELLS.is_power_of_two() && CELLS as u64 > LIVE);
    assert!(MAX_METERS < NO_METER as u32);
    // Kinds and marks travel in one word.
    assert!((2 * kind::RECEIVED - 1) & crate::table::MARKS == 0);
};
