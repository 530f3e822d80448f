//! Hopcroft's algorithm: the smallest automaton with the same labels, its states numbered breadth
//! first (states that are visited one after the other lie near each other).

use std::collections::HashMap;

use super::subset::Dfa;

/// The smallest equivalent automaton.
pub fn minimise(dfa: &Dfa) -> Dfa {
    let mut partition = Partition::by_label(dfa);
    let inverse = Inverse::of(dfa);
    let mut waiting: Vec<u32> = (0..partition.starts.len() as u32).collect();
    let mut is_waiting = vec![true; waiting.len()];
    while let Some(block) = waiting.pop() {
        is_waiting[block as usize] = false;
        let members = partition.members(block).to_vec();
        for class in 0..dfa.classes {
            let touched = partition.mark(
                members
                    .iter()
                    .flat_map(|state| inverse.sources(*state, class)),
            );
            for old in touched {
                let Some(new) = partition.split(old) else {
                    continue;
                };
                let smaller = if partition.len(new) < partition.len(old) {
                    new
                } else {
                    old
                };
                let add = if is_waiting[old as usize] {
                    new
                } else {
                    smaller
                };
                is_waiting.push(false);
                is_waiting[add as usize] = true;
                waiting.push(add);
            }
        }
    }
    rebuild(dfa, &partition)
}

/// States in blocks; each block is a stretch of `states`, its marked states in front.
struct Partition {
    states: Vec<u32>,
    place: Vec<u32>,
    block: Vec<u32>,
    starts: Vec<u32>,
    ends: Vec<u32>,
    marked: Vec<u32>,
}

impl Partition {
    fn by_label(dfa: &Dfa) -> Self {
        let count = dfa.labels.len();
        let mut states: Vec<u32> = (0..count as u32).collect();
        states.sort_by_key(|state| dfa.labels[*state as usize]);
        let mut partition = Self {
            place: vec![0; count],
            block: vec![0; count],
            starts: Vec::new(),
            ends: Vec::new(),
            marked: Vec::new(),
            states,
        };
        let mut previous = None;
        for at in 0..count {
            let state = partition.states[at] as usize;
            if previous != Some(dfa.labels[state]) {
                previous = Some(dfa.labels[state]);
                partition.starts.push(at as u32);
                partition.ends.push(at as u32);
                partition.marked.push(0);
            }
            let block = partition.starts.len() - 1;
            partition.ends[block] += 1;
            partition.place[state] = at as u32;
            partition.block[state] = block as u32;
        }
        partition
    }

    fn members(&self, block: u32) -> &[u32] {
        &self.states[self.starts[block as usize] as usize..self.ends[block as usize] as usize]
    }

    fn len(&self, block: u32) -> u32 {
        self.ends[block as usize] - self.starts[block as usize]
    }

    /// Moves the states to the front of their blocks; gives the blocks concerned.
    fn mark<'a>(&mut self, states: impl Iterator<Item = &'a u32>) -> Vec<u32> {
        let mut touched = Vec::new();
        for state in states {
            let block = self.block[*state as usize] as usize;
            let place = self.place[*state as usize];
            let front = self.starts[block] + self.marked[block];
            if place < front {
                continue;
            }
            let other = self.states[front as usize];
            self.states.swap(front as usize, place as usize);
            self.place[other as usize] = place;
            self.place[*state as usize] = front;
            if self.marked[block] == 0 {
                touched.push(block as u32);
            }
            self.marked[block] += 1;
        }
        touched
    }

    /// Makes the marked states of a block a block of their own, unless that is all of it.
    fn split(&mut self, old: u32) -> Option<u32> {
        let marked = std::mem::take(&mut self.marked[old as usize]);
        if marked == self.len(old) {
            return None;
        }
        let new = self.starts.len() as u32;
        let start = self.starts[old as usize];
        self.starts.push(start);
        self.ends.push(start + marked);
        self.marked.push(0);
        self.starts[old as usize] = start + marked;
        for at in start..start + marked {
            self.block[self.states[at as usize] as usize] = new;
        }
        Some(new)
    }
}

/// Transitions backwards.
struct Inverse {
    classes: usize,
    starts: Vec<u32>,
    from: Vec<u32>,
}

impl Inverse {
    fn of(dfa: &Dfa) -> Self {
        let mut starts = vec![0u32; dfa.next.len() + 1];
        let slot = |at: usize| dfa.next[at] as usize * dfa.classes + at % dfa.classes;
        for at in 0..dfa.next.len() {
            starts[slot(at) + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut fill = starts.clone();
        let mut from = vec![0u32; dfa.next.len()];
        for at in 0..dfa.next.len() {
            let place = &mut fill[slot(at)];
            from[*place as usize] = (at / dfa.classes) as u32;
            *place += 1;
        }
        Self {
            classes: dfa.classes,
            starts,
            from,
        }
    }

    fn sources(&self, state: u32, class: usize) -> &[u32] {
        let slot = state as usize * self.classes + class;
        &self.from[self.starts[slot] as usize..self.starts[slot + 1] as usize]
    }
}

fn rebuild(dfa: &Dfa, partition: &Partition) -> Dfa {
    let mut numbers: HashMap<u32, u32> = HashMap::from([(partition.block[0], 0)]);
    let mut order = vec![partition.block[0]];
    let mut small = Dfa {
        classes: dfa.classes,
        next: Vec::new(),
        labels: Vec::new(),
    };
    let mut at = 0;
    while at < order.len() {
        let state = partition.members(order[at])[0] as usize;
        small.labels.push(dfa.labels[state]);
        for to in &dfa.next[state * dfa.classes..(state + 1) * dfa.classes] {
            let block = partition.block[*to as usize];
            let number = *numbers.entry(block).or_insert_with(|| {
                order.push(block);
                order.len() as u32 - 1
            });
            small.next.push(number);
        }
        at += 1;
    }
    small
}
