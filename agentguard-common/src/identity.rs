//! Protected objects: what the daemon tells the kernel programs about the inodes behind denied paths.

shared! {
    /// Key of the map of protected objects. Its value is the accesses that are refused, as bits of
    /// [`crate::verdict::access`], and shifted by [`DENIED`] those of them that a rule denies and nobody can approve.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Object {
        /// Inode number.
        pub inode: u64,
        /// Device as in the kernel (`major << 20 | minor`).
        pub device: u32,
        /// Agent slot.
        pub agent: u32,
    }
}

/// See [`Object`].
pub const DENIED: u32 = 8;

/// Objects that can be protected at a time, over all agents.
pub const MAX_OBJECTS: usize = 65_536;

/// Words of the filter in front of the map: a power of two. One bit for inode numbers alike in their last 15 bits.
pub const FILTER_WORDS: usize = 512;

/// Where the bit of an inode is.
#[inline(always)]
pub const fn filter_word(inode: u64) -> u32 {
    ((inode >> 6) as u32) & (FILTER_WORDS as u32 - 1)
}

/// The bit of an inode in its word.
#[inline(always)]
pub const fn filter_bit(inode: u64) -> u64 {
    1 << (inode & 63)
}

const _: () = {
    assert!(size_of::<Object>() == 16);
    assert!(FILTER_WORDS.is_power_of_two());
};
