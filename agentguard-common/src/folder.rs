//! What the daemon and the programs tell each other about folders whose paths are remembered.

shared! {
    /// When folders become known.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Learning {
        /// How often anything had been renamed (upper half) and mounted when a folder last could have become known.
        pub counts: u64,
        /// How many did, in which time.
        pub era: u64,
        /// See `era`.
        pub learnt: u64,
        /// 1 if the daemon has seen that renames and mounts are counted. Before that, none becomes known.
        pub proved: u64,
    }
}

const _: () = assert!(size_of::<Learning>() == 32);
