//! The product of the two path automata: one walk where two would be needed. It must mean exactly what
//! both mean together, or not be made at all.

use std::collections::HashMap;

use agentguard_common::table::path_label::{CONNECT, EXEC_BY_COMMAND, LISTEN};
use agentguard_common::table::{MARKS, level};

use super::label::Label;
use super::subset::Dfa;

/// Both labels as one, the way the kernel joins them: the strictest for each access.
fn joined(a: Label, b: Label) -> Label {
    let bit = EXEC_BY_COMMAND | MARKS | level::PATHS;
    [3, 0xc, 0x30, 3 << CONNECT, 3 << LISTEN]
        .into_iter()
        .fold((a | b) & bit, |all, field| all | (a & field).max(b & field))
}

/// The product of two automata over the same classes, or `None` beyond `limit` states.
pub fn product(a: &Dfa, b: &Dfa, limit: usize) -> Option<Dfa> {
    let mut numbers = HashMap::from([((0u32, 0u32), 0u32)]);
    let mut pairs = vec![(0u32, 0u32)];
    let mut next = Vec::new();
    let mut at = 0;
    while let Some(&(from_a, from_b)) = pairs.get(at) {
        let (row_a, row_b) = (from_a as usize * a.classes, from_b as usize * b.classes);
        for class in 0..a.classes {
            let pair = (a.next[row_a + class], b.next[row_b + class]);
            let number = *numbers.entry(pair).or_insert_with(|| {
                pairs.push(pair);
                pairs.len() as u32 - 1
            });
            next.push(number);
        }
        if pairs.len() > limit {
            return None;
        }
        at += 1;
    }
    let label = |&(a_state, b_state): &(u32, u32)| {
        joined(a.labels[a_state as usize], b.labels[b_state as usize])
    };
    Some(Dfa {
        classes: a.classes,
        next,
        labels: pairs.iter().map(label).collect(),
    })
}

/// The automaton that has nothing to say, over so many classes.
pub fn silent(classes: usize) -> Dfa {
    Dfa {
        classes,
        next: vec![0; classes],
        labels: vec![0],
    }
}
