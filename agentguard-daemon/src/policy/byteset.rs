//! Sets of bytes.

/// A set of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSet([u64; 4]);

impl ByteSet {
    /// The empty set.
    pub const EMPTY: Self = Self([0; 4]);
    /// Every byte.
    pub const ALL: Self = Self([u64::MAX; 4]);

    /// Whether `byte` is in the set.
    pub const fn contains(&self, byte: u8) -> bool {
        self.0[(byte >> 6) as usize] >> (byte & 63) & 1 == 1
    }

    /// The set with `byte` added.
    #[must_use]
    pub const fn with(mut self, byte: u8) -> Self {
        self.0[(byte >> 6) as usize] |= 1 << (byte & 63);
        self
    }

    /// The set with `byte` removed.
    #[must_use]
    pub const fn without(mut self, byte: u8) -> Self {
        self.0[(byte >> 6) as usize] &= !(1 << (byte & 63));
        self
    }

    /// The set with every byte from `low` to `high`.
    #[must_use]
    pub fn with_range(self, low: u8, high: u8) -> Self {
        (low..=high).fold(self, Self::with)
    }

    /// Every byte that is not in the set.
    #[must_use]
    pub const fn inverted(self) -> Self {
        Self([!self.0[0], !self.0[1], !self.0[2], !self.0[3]])
    }

    /// Whether no byte is in the set.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }
}
