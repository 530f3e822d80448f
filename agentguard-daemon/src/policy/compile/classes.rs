//! Byte classes: bytes that no pattern tells apart share a column of the table.

use super::nfa::Nfa;
use crate::policy::glob::ByteSet;

/// A partition of the 256 bytes.
#[derive(Clone, Debug)]
pub struct Classes {
    /// The class of each byte.
    pub of: [u8; 256],
    /// Number of classes.
    pub count: usize,
}

impl Classes {
    /// The coarsest partition that tells apart what the automata tell apart.
    pub fn of(automata: &[&Nfa]) -> Self {
        let mut classes = Self {
            of: [0; 256],
            count: 1,
        };
        let mut singles = ByteSet::EMPTY;
        let mut sets = std::collections::BTreeSet::new();
        for node in automata.iter().flat_map(|nfa| &nfa.nodes) {
            singles = node
                .bytes
                .iter()
                .chain(&node.exit)
                .fold(singles, |set, (byte, _)| set.with(*byte));
            sets.extend(node.sets.iter().map(|(set, _)| *set));
            sets.insert(node.stay);
        }
        for byte in (0..=255u8).filter(|byte| singles.contains(*byte)) {
            classes.split(&ByteSet::EMPTY.with(byte));
        }
        for set in &sets {
            classes.split(set);
        }
        classes
    }

    /// Splits every class into its bytes inside and outside of `set`.
    fn split(&mut self, set: &ByteSet) {
        let mut inside = [0u16; 256];
        let mut total = [0u16; 256];
        for byte in 0..=255u8 {
            let class = usize::from(self.of[usize::from(byte)]);
            total[class] += 1;
            inside[class] += u16::from(set.contains(byte));
        }
        let mut renamed = [None; 256];
        for byte in 0..=255u8 {
            let class = usize::from(self.of[usize::from(byte)]);
            if set.contains(byte) && inside[class] < total[class] {
                let new = *renamed[class].get_or_insert_with(|| {
                    self.count += 1;
                    (self.count - 1) as u8
                });
                self.of[usize::from(byte)] = new;
            }
        }
    }

    /// The class of a byte.
    pub fn class(&self, byte: u8) -> usize {
        usize::from(self.of[usize::from(byte)])
    }

    /// The classes that a set consists of.
    pub fn of_set(&self, set: &ByteSet) -> Vec<u8> {
        let mut seen = [false; 256];
        for byte in (0..=255u8).filter(|byte| set.contains(*byte)) {
            seen[self.class(byte)] = true;
        }
        (0..self.count)
            .filter(|class| seen[*class])
            .map(|class| class as u8)
            .collect()
    }
}
