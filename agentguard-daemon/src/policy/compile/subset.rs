//! Subset construction: from trees of patterns to a deterministic automaton whose states are labelled
//! with verdicts.
//!
//! A state never remembers which rules matched, only the strictest verdicts so far (`sticky`), so
//! rules that stay matched for ever do not multiply. What can no longer change any verdict is dropped.
//! The construction is bounded; it must never take memory in proportion to what a policy would need.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use super::classes::Classes;
use super::label::{Label, absorbs, join, published};
use super::nfa::{Nfa, Node, NodeId};
use crate::policy::glob::ByteSet;

/// Bounds of one construction.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of the transition table.
    pub entries: usize,
    /// Positions kept in all states.
    pub positions: usize,
}

/// A deterministic automaton. State 0 is the start.
#[derive(Clone, Debug)]
pub struct Dfa {
    /// Number of classes.
    pub classes: usize,
    /// `next[state * classes + class]`.
    pub next: Vec<u32>,
    /// The verdicts of each state, as the kernel reads them.
    pub labels: Vec<Label>,
}

/// What came of a construction.
pub struct Outcome {
    /// The automaton, or `None` if it went beyond its limits.
    pub dfa: Option<Dfa>,
    /// How often each node took part in a state.
    pub visits: Vec<u32>,
}

/// A state: what matched for ever, and the places in patterns that are still open.
#[derive(Clone, Default)]
struct Draft {
    /// Verdicts that hold however the input goes on.
    sticky: Label,
    /// Verdicts that hold if the input ends here, of patterns that cannot go on.
    now: Label,
    /// Verdicts that hold for ever unless an exception of the group matches.
    grouped: Vec<(u32, Label)>,
    /// Nodes, ascending.
    positions: Vec<NodeId>,
}

/// Builds the automaton.
pub fn determinise(nfa: &Nfa, classes: &Classes, limits: Limits) -> Outcome {
    let mut builder = Builder::new(nfa, classes);
    let start = Draft {
        positions: nfa
            .roots
            .iter()
            .flat_map(|r| builder.closures[*r as usize].clone())
            .collect(),
        ..Draft::default()
    };
    builder.intern(start);
    let mut next = Vec::new();
    let mut buckets = vec![Vec::new(); classes.count];
    let mut state = 0;
    while state < builder.keys.len() {
        let key = builder.keys[state].clone();
        builder.spread(&key, &mut buckets);
        let (sticky, grouped) = key.matched();
        for bucket in &mut buckets {
            let to = if bucket.is_empty() && grouped.is_empty() {
                builder.settled(sticky)
            } else {
                builder.intern(Draft {
                    sticky,
                    now: 0,
                    grouped: grouped.clone(),
                    positions: std::mem::take(bucket),
                })
            };
            next.push(to);
        }
        state += 1;
        if builder.keys.len() * classes.count > limits.entries || builder.held > limits.positions {
            return Outcome {
                dfa: None,
                visits: builder.visits,
            };
        }
    }
    let dfa = Dfa {
        classes: classes.count,
        next,
        labels: builder.labels,
    };
    Outcome {
        dfa: Some(dfa),
        visits: builder.visits,
    }
}

/// A draft in the form that is compared: sticky, now, number of groups, each group with its label, positions.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key(Rc<[u32]>);

/// Words before the groups.
const HEAD: usize = 3;

impl Key {
    fn of(draft: &Draft) -> Self {
        let head = [draft.sticky, draft.now, draft.grouped.len() as u32];
        let grouped = draft
            .grouped
            .iter()
            .flat_map(|(group, label)| [*group, *label]);
        Self(
            head.into_iter()
                .chain(grouped)
                .chain(draft.positions.iter().copied())
                .collect(),
        )
    }

    /// Where the positions begin.
    fn open(&self) -> usize {
        HEAD + 2 * self.0[2] as usize
    }

    fn matched(&self) -> (Label, Vec<(u32, Label)>) {
        let groups = self.0[HEAD..self.open()].chunks_exact(2);
        (self.0[0], groups.map(|pair| (pair[0], pair[1])).collect())
    }

    fn positions(&self) -> &[NodeId] {
        &self.0[self.open()..]
    }
}

/// A fast hash for keys that are made here, from bounded input.
#[derive(Clone, Copy, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

struct Builder<'a> {
    nfa: &'a Nfa,
    classes: &'a Classes,
    /// For each node: itself and the nodes entered with it.
    closures: Vec<Vec<NodeId>>,
    class_sets: HashMap<ByteSet, Vec<u8>>,
    ids: HashMap<Key, u32, BuildHasherDefault<KeyHasher>>,
    keys: Vec<Key>,
    labels: Vec<Label>,
    visits: Vec<u32>,
    /// The states with nothing open, by their label.
    settled: HashMap<Label, u32>,
    held: usize,
}

impl<'a> Builder<'a> {
    fn new(nfa: &'a Nfa, classes: &'a Classes) -> Self {
        let mut class_sets = HashMap::new();
        for node in &nfa.nodes {
            for set in node.sets.iter().map(|(set, _)| set).chain([&node.stay]) {
                class_sets
                    .entry(*set)
                    .or_insert_with(|| classes.of_set(set));
            }
        }
        let closures = (0..nfa.nodes.len() as NodeId)
            .map(|id| closure(nfa, id))
            .collect();
        Self {
            nfa,
            classes,
            closures,
            class_sets,
            ids: HashMap::default(),
            keys: Vec::new(),
            labels: Vec::new(),
            visits: vec![0; nfa.nodes.len()],
            settled: HashMap::new(),
            held: 0,
        }
    }

    /// Sorts the successors of a state's positions by class.
    fn spread(&self, key: &Key, buckets: &mut [Vec<NodeId>]) {
        buckets.iter_mut().for_each(Vec::clear);
        let mut enter = |class: usize, to: NodeId| {
            buckets[class].extend_from_slice(&self.closures[to as usize]);
        };
        for id in key.positions() {
            let node = &self.nfa.nodes[*id as usize];
            for (byte, to) in node.bytes.iter().chain(&node.exit) {
                enter(self.classes.class(*byte), *to);
            }
            for (set, to) in &node.sets {
                self.class_sets[set]
                    .iter()
                    .for_each(|class| enter(usize::from(*class), *to));
            }
            if !node.stay.is_empty() {
                self.class_sets[&node.stay]
                    .iter()
                    .for_each(|class| enter(usize::from(*class), *id));
            }
        }
    }

    fn settled(&mut self, sticky: Label) -> u32 {
        if let Some(&state) = self.settled.get(&sticky) {
            return state;
        }
        let state = self.intern(Draft {
            sticky,
            ..Draft::default()
        });
        self.settled.insert(sticky, state);
        state
    }

    /// The number of the state, adding it if it is new.
    fn intern(&mut self, mut draft: Draft) -> u32 {
        draft.positions.sort_unstable();
        draft.positions.dedup();
        self.settle(&mut draft);
        let key = Key::of(&draft);
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let id = self.keys.len() as u32;
        for position in &draft.positions {
            self.visits[*position as usize] += 1;
        }
        self.held += key.0.len();
        self.labels.push(published(self.label(&draft)));
        self.ids.insert(key.clone(), id);
        self.keys.push(key);
        id
    }

    /// Takes over what matched for ever, and drops what can no longer matter.
    fn settle(&self, draft: &mut Draft) {
        let nodes = &self.nfa.nodes;
        let node = |id: &NodeId| &nodes[*id as usize];
        let mut blocked = Vec::new();
        for id in &draft.positions {
            let node = node(id);
            match (node.forever, node.group, node.negative) {
                (0, ..) => {}
                (label, 0, _) => draft.sticky = join(draft.sticky, label),
                (_, group, true) => blocked.push(group),
                (label, group, false) => add(&mut draft.grouped, group, label),
            }
        }
        if !blocked.is_empty() {
            blocked.sort_unstable();
            draft.positions.retain(|id| !has(&blocked, node(id).group));
            draft.grouped.retain(|(group, _)| !has(&blocked, *group));
        }
        loop {
            let sticky = draft.sticky;
            draft.grouped.retain(|(_, label)| !absorbs(sticky, *label));
            draft
                .positions
                .retain(|id| node(id).negative || !absorbs(sticky, node(id).reach));
            // Exceptions of groups of which nothing is left.
            let alive = alive(draft, nodes);
            draft
                .positions
                .retain(|id| !node(id).negative || has(&alive, node(id).group));
            // Groups whose exceptions cannot match any more.
            let guarded = sorted(
                draft
                    .positions
                    .iter()
                    .map(node)
                    .filter(|node| node.negative)
                    .map(|node| node.group),
            );
            let free = |(group, _): &(u32, Label)| !has(&guarded, *group);
            let freed = draft
                .grouped
                .iter()
                .filter(|entry| free(entry))
                .fold(0, |label, (_, other)| join(label, *other));
            draft.grouped.retain(|entry| !free(entry));
            draft.sticky = join(draft.sticky, freed);
            if freed == 0 {
                break;
            }
        }
        let mut now = 0;
        draft.positions.retain(|id| {
            let node = node(id);
            let ends = node.group == 0 && node.is_leaf();
            if ends {
                now = join(now, node.accept);
            }
            !ends
        });
        draft.now = join(now, draft.sticky);
    }

    /// The verdicts for an input that ends in this state.
    fn label(&self, draft: &Draft) -> Label {
        let node = |id: &NodeId| &self.nfa.nodes[*id as usize];
        let ends = |node: &&Node| node.negative && node.accept != 0;
        let excepted = sorted(
            draft
                .positions
                .iter()
                .map(node)
                .filter(ends)
                .map(|node| node.group),
        );
        let open = draft
            .positions
            .iter()
            .map(node)
            .filter(|node| !node.negative)
            .map(|node| (node.group, node.accept));
        draft
            .grouped
            .iter()
            .copied()
            .chain(open)
            .filter(|(group, _)| !has(&excepted, *group))
            .fold(draft.now, |label, (_, other)| join(label, other))
    }
}

/// Groups that have a pattern open or matched.
fn alive(draft: &Draft, nodes: &[Node]) -> Vec<u32> {
    let open = draft
        .positions
        .iter()
        .map(|id| &nodes[*id as usize])
        .filter(|node| !node.negative);
    sorted(
        open.map(|node| node.group)
            .chain(draft.grouped.iter().map(|(group, _)| *group)),
    )
}

/// The groups, without group 0, which has no exceptions.
fn sorted(groups: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut groups: Vec<u32> = groups.filter(|group| *group != 0).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn has(sorted: &[u32], group: u32) -> bool {
    sorted.binary_search(&group).is_ok()
}

fn add(grouped: &mut Vec<(u32, Label)>, group: u32, label: Label) {
    match grouped.binary_search_by_key(&group, |(group, _)| *group) {
        Ok(at) => grouped[at].1 = join(grouped[at].1, label),
        Err(at) => grouped.insert(at, (group, label)),
    }
}

fn closure(nfa: &Nfa, id: NodeId) -> Vec<NodeId> {
    let mut all = vec![id];
    let mut at = 0;
    while at < all.len() {
        for also in &nfa.nodes[all[at] as usize].also {
            if !all.contains(also) {
                all.push(*also);
            }
        }
        at += 1;
    }
    all
}
