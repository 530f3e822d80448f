//! All patterns of one automaton as a shared tree of steps: patterns that begin alike share nodes.
//!
//! Rules without exceptions are in group 0. Rules with the same exceptions share a group, which has a
//! second tree for the exceptions ("negative" nodes). No verdict is decided here.

use std::collections::HashMap;

use super::label::{Label, join};
use crate::policy::glob::{ByteSet, Token};

/// Index of a node.
pub type NodeId = u32;

/// One step between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// This byte.
    Byte(u8),
    /// One byte of this set.
    Set(ByteSet),
    /// Any run of bytes of this set.
    Run(ByteSet),
    /// Nothing, or any bytes of this set that end with `exit`.
    Deep {
        /// The bytes.
        within: ByteSet,
        /// The byte that ends them.
        exit: u8,
    },
}

/// A place in patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Node {
    /// Where a byte leads.
    pub bytes: Vec<(u8, NodeId)>,
    /// Where a set leads.
    pub sets: Vec<(ByteSet, NodeId)>,
    /// Nodes that are entered together with this one.
    pub also: Vec<NodeId>,
    /// Bytes on which this node stays.
    pub stay: ByteSet,
    /// The byte on which a deep run ends.
    pub exit: Option<(u8, NodeId)>,
    /// Group; 0 has no exceptions.
    pub group: u32,
    /// Whether the node belongs to the exceptions of its group.
    pub negative: bool,
    /// What an input that ends here gets.
    pub accept: Label,
    /// What every input that comes here gets, however it goes on.
    pub forever: Label,
    /// Everything that can be got from here on.
    pub reach: Label,
    parent: NodeId,
}

impl Node {
    /// Replaces the nodes that this one leads to by those that stand for them.
    fn lead_to(&mut self, same: &[NodeId]) {
        let replace = |to: &mut NodeId| *to = same[*to as usize];
        self.bytes.iter_mut().for_each(|(_, to)| replace(to));
        self.sets.iter_mut().for_each(|(_, to)| replace(to));
        self.also.iter_mut().for_each(replace);
        self.exit.iter_mut().for_each(|(_, to)| replace(to));
        self.bytes.sort_unstable();
        self.sets.sort_unstable();
        self.also.sort_unstable();
        self.also.dedup();
    }

    /// Whether no input goes on from here.
    pub fn is_leaf(&self) -> bool {
        self.bytes.is_empty()
            && self.sets.is_empty()
            && self.also.is_empty()
            && self.stay.is_empty()
            && self.exit.is_none()
    }
}

/// How the tokens of a pattern are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// A path, and nothing after it.
    Path,
    /// A path, and arguments after it.
    Program,
    /// One argument.
    Argument,
    /// An abstract name, which may hold any byte.
    Abstract,
}

/// The tree.
#[derive(Debug, Default)]
pub struct Nfa {
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// Where inputs begin.
    pub roots: Vec<NodeId>,
    children: HashMap<(NodeId, Step), NodeId>,
    /// Trees of each group: patterns, exceptions.
    groups: Vec<(NodeId, NodeId)>,
    named: HashMap<String, u32>,
    /// The node that stands for each node.
    same: Vec<NodeId>,
    /// Rules and the nodes where their patterns end, for measuring cost.
    ends: Vec<(usize, NodeId)>,
}

impl Nfa {
    /// A tree with group 0 only.
    pub fn new() -> Self {
        let mut nfa = Self::default();
        nfa.add_group();
        nfa
    }

    fn add_group(&mut self) -> u32 {
        let group = self.groups.len() as u32;
        let mut root = |negative| {
            let id = self.nodes.len() as NodeId;
            self.nodes.push(Node {
                group,
                negative,
                parent: id,
                ..Node::default()
            });
            self.roots.push(id);
            id
        };
        let trees = (root(false), root(true));
        self.groups.push(trees);
        group
    }

    /// The group of the rules with these exceptions, and whether it is new (its exceptions are still to be added).
    pub fn group(&mut self, exceptions: &str) -> (u32, bool) {
        if exceptions.is_empty() {
            return (0, false);
        }
        if let Some(group) = self.named.get(exceptions) {
            return (*group, false);
        }
        let group = self.add_group();
        self.named.insert(exceptions.to_owned(), group);
        (group, true)
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Where patterns of a group begin.
    pub fn root(&self, group: u32, negative: bool) -> NodeId {
        let (positive, exceptions) = self.groups[group as usize];
        if negative { exceptions } else { positive }
    }

    /// Goes one step, adding the node if it is new.
    pub fn step(&mut self, from: NodeId, step: Step) -> NodeId {
        if let Some(to) = self.children.get(&(from, step)) {
            return *to;
        }
        let to = match step {
            Step::Byte(byte) => {
                let to = self.child(from);
                self.nodes[from as usize].bytes.push((byte, to));
                to
            }
            Step::Set(set) => {
                let to = self.child(from);
                self.nodes[from as usize].sets.push((set, to));
                to
            }
            Step::Run(set) => {
                let to = self.child(from);
                self.nodes[to as usize].stay = set;
                self.nodes[from as usize].also.push(to);
                to
            }
            Step::Deep { within, exit } => {
                let inside = self.child(from);
                let to = self.child(inside);
                self.nodes[inside as usize].stay = within;
                self.nodes[inside as usize].exit = Some((exit, to));
                self.nodes[from as usize].also.extend([inside, to]);
                to
            }
        };
        self.children.insert((from, step), to);
        to
    }

    fn child(&mut self, parent: NodeId) -> NodeId {
        let Node {
            group, negative, ..
        } = self.nodes[parent as usize];
        self.nodes.push(Node {
            group,
            negative,
            parent,
            ..Node::default()
        });
        self.nodes.len() as NodeId - 1
    }

    /// Walks the tokens from `from`. A path that ends in `/**` ends in two places: at the directory
    /// itself and below it.
    pub fn walk(&mut self, from: NodeId, tokens: &[Token], dialect: Dialect) -> Ends {
        let any = ByteSet::ALL.without(0);
        let mut at = from;
        for token in tokens {
            let step = match token {
                Token::Byte(byte) => Step::Byte(*byte),
                Token::Set(set) => Step::Set(**set),
                Token::Star if dialect == Dialect::Argument => Step::Run(any),
                Token::Star if dialect == Dialect::Abstract => Step::Run(ByteSet::ALL),
                Token::Star => Step::Run(any.without(b'/')),
                Token::Deep => Step::Deep {
                    within: any,
                    exit: b'/',
                },
                Token::Tail => {
                    let below = self.step(at, Step::Byte(b'/'));
                    return Ends {
                        exact: at,
                        below: Some(below),
                    };
                }
            };
            at = self.step(at, step);
        }
        Ends {
            exact: at,
            below: None,
        }
    }

    /// An input that ends at `node` gets `label`.
    pub fn accept(&mut self, node: NodeId, label: Label, rule: usize) {
        let place = &mut self.nodes[node as usize].accept;
        *place = join(*place, label);
        self.ends.push((rule, node));
    }

    /// An input that comes to `node` gets `label`, however it goes on.
    pub fn accept_forever(&mut self, node: NodeId, label: Label, rule: usize) {
        let place = &mut self.nodes[node as usize].forever;
        *place = join(*place, label);
        self.ends.push((rule, node));
    }

    /// Works out what can be got from each node, and replaces nodes with the same future by one of them:
    /// the branches of braces then end in common nodes. Children have higher numbers than their parents.
    pub fn finish(&mut self) {
        self.same = (0..self.nodes.len() as NodeId).collect();
        let mut known: HashMap<Node, NodeId> = HashMap::new();
        for id in (0..self.nodes.len()).rev() {
            let mut node = std::mem::take(&mut self.nodes[id]);
            node.reach = join(node.reach, join(node.accept, node.forever));
            let parent = std::mem::take(&mut node.parent);
            self.nodes[parent as usize].reach = join(self.nodes[parent as usize].reach, node.reach);
            node.lead_to(&self.same);
            self.same[id] = *known.entry(node.clone()).or_insert(id as NodeId);
            node.parent = parent;
            self.nodes[id] = node;
        }
        for root in &mut self.roots {
            *root = self.same[*root as usize];
        }
    }

    /// What each rule costs: visits of its nodes, shared nodes split among their rules.
    pub fn cost_by_rule(&self, visits: &[u32]) -> HashMap<usize, f64> {
        let mut shares = vec![0u32; self.nodes.len()];
        let same = |node: NodeId| self.same[node as usize] as usize;
        for (_, end) in &self.ends {
            self.upwards(*end, |node| shares[same(node)] += 1);
        }
        let mut costs = HashMap::new();
        for (rule, end) in &self.ends {
            let cost: &mut f64 = costs.entry(*rule).or_default();
            self.upwards(*end, |node| {
                *cost += f64::from(visits[same(node)]) / f64::from(shares[same(node)]);
            });
        }
        costs
    }

    fn upwards(&self, mut node: NodeId, mut f: impl FnMut(NodeId)) {
        loop {
            f(node);
            let parent = self.nodes[node as usize].parent;
            if parent == node {
                return;
            }
            node = parent;
        }
    }
}

/// Where a pattern ends.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The end of the pattern.
    pub exact: NodeId,
    /// For `dir/**`: behind the `/` that follows the directory.
    pub below: Option<NodeId>,
}
