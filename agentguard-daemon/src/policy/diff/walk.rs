//! The walk through the tables of two policies, side by side.

use std::collections::{HashMap, VecDeque};

use agentguard_common::table::TableHeader;

use crate::policy::{Policy, PolicyError, table};

/// Pairs of states that are walked in one comparison. More would take gigabytes.
const MAX_STATES: usize = 4_000_000;
/// Longest path of an example.
const MAX_DEPTH: u32 = 4096;

/// A table on the walk.
pub struct Side {
    bytes: Vec<u8>,
    /// Its header.
    pub header: TableHeader,
}

impl Side {
    pub fn of(policy: &Policy) -> Result<Self, PolicyError> {
        let bytes = policy.compile(1)?.bytes;
        let header = table::header(&bytes).unwrap_or_default();
        Ok(Self { bytes, header })
    }

    pub fn word(&self, at: u32) -> u32 {
        let at = at as usize;
        self.bytes.get(at..at + 4).map_or(0, |word| {
            u32::from_le_bytes([word[0], word[1], word[2], word[3]])
        })
    }

    fn class(&self, classes: usize, byte: u8) -> u16 {
        let at = classes + 2 * usize::from(byte);
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    pub fn step(&self, state: u32, classes: usize, byte: u8) -> u32 {
        self.word(state + u32::from(self.class(classes, byte)))
    }
}

/// Bytes that are readable in examples, the best first.
pub const READABLE: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ/._-";

/// Bytes of which both tables think alike, by all of these maps of classes, each by the first of `nice` that is
/// among them, or by the lowest.
pub fn alphabet(a: &Side, b: &Side, maps: &[usize], nice: &[u8]) -> Vec<u8> {
    let others = (0..=255_u8).filter(|byte| !nice.contains(byte));
    let mut seen = std::collections::HashSet::new();
    let mut bytes = Vec::new();
    for byte in nice.iter().copied().chain(others) {
        let classes: Vec<(u16, u16)> = maps
            .iter()
            .map(|map| (a.class(*map, byte), b.class(*map, byte)))
            .collect();
        // Slash and NUL have meanings of their own, whatever the tables think of them.
        if seen.insert((classes, byte == b'/', byte == 0)) {
            bytes.push(byte);
        }
    }
    bytes
}

/// A walk through pairs of states, breadth first: the first way to a state is a shortest one.
pub struct Walk<S> {
    /// Each with the one before it and the byte between.
    pub states: Vec<(S, u32, u8)>,
    known: HashMap<S, u32>,
    todo: VecDeque<u32>,
    /// Whether there were more than can be walked.
    pub full: bool,
}

impl<S: Copy + Eq + std::hash::Hash> Walk<S> {
    pub fn from(start: S) -> Self {
        Self {
            states: vec![(start, 0, 0)],
            known: HashMap::from([(start, 0)]),
            todo: VecDeque::from([0]),
            full: false,
        }
    }

    pub fn next(&mut self) -> Option<(u32, S)> {
        let at = self.todo.pop_front()?;
        Some((at, self.states[at as usize].0))
    }

    pub fn go(&mut self, from: u32, byte: u8, to: S) {
        if self.states.len() >= MAX_STATES {
            self.full = true;
            return;
        }
        let number = self.states.len() as u32;
        if let std::collections::hash_map::Entry::Vacant(entry) = self.known.entry(to) {
            entry.insert(number);
            self.states.push((to, from, byte));
            self.todo.push_back(number);
        }
    }

    /// The bytes that led to a state.
    pub fn way(&self, mut at: u32) -> Vec<u8> {
        let mut way = Vec::new();
        while at != 0 && way.len() < MAX_DEPTH as usize * 16 {
            let (_, from, byte) = self.states[at as usize];
            way.push(byte);
            at = from;
        }
        way.reverse();
        way
    }
}
