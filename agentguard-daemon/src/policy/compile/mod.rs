//! The compiler: rules to the table that the kernel reads.
//!
//! Four automata: anchored and floating paths (over the same classes; made into one where their product
//! fits, stepped in lockstep otherwise), command lines, destinations. The meaning is that of `judge`; tests compare the two. A policy that does not
//! fit is a diagnostic that names what it is that costs so much, never a table with less in it.

mod build;
mod classes;
mod label;
mod minimise;
mod nfa;
mod product;
mod serialise;
mod subset;

use agentguard_common::table::{LARGE_TABLE, ROWS, SMALL_TABLE};

use self::build::Automata;
use self::classes::Classes;
use self::minimise::minimise;
use self::nfa::Nfa;
use self::subset::{Dfa, Limits, determinise};
use super::diagnostic::PolicyError;
use super::{Policy, Rule};

/// Transitions that one construction may hold, twice what a table can: minimising gains little.
const MAX_ENTRIES: usize = LARGE_TABLE / 2;
/// Open positions that one construction may hold (64 MiB).
const MAX_POSITIONS: usize = 16 << 20;

/// A compiled policy.
#[derive(Clone, Debug)]
pub struct Table {
    /// What the kernel gets.
    pub bytes: Vec<u8>,
    /// What it consists of.
    pub stats: TableStats,
}

/// Sizes of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TableStats {
    /// Bytes in use.
    pub bytes: usize,
    /// Rules anchored at the root.
    pub anchored: AutomatonStats,
    /// Rules that match at any depth.
    pub floating: AutomatonStats,
    /// Command lines.
    pub command: AutomatonStats,
    /// Destinations.
    pub network: AutomatonStats,
}

impl TableStats {
    /// States of all automata.
    pub fn states(&self) -> usize {
        self.anchored.states + self.floating.states + self.command.states + self.network.states
    }
}

/// Sizes of one automaton.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct AutomatonStats {
    /// States before minimising.
    pub built: usize,
    /// States in the table.
    pub states: usize,
    /// Byte classes: columns of the table.
    pub classes: usize,
}

/// One automaton on its way into the table.
struct Compiled {
    dfa: Dfa,
    stats: AutomatonStats,
    visits: Vec<u32>,
}

/// How the kernel is to walk paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walks {
    /// One automaton where it fits.
    Fewest,
    /// Always two.
    Two,
}

/// Bytes of rows that an automaton takes.
fn row_bytes(dfa: &Dfa) -> usize {
    4 * dfa.labels.len() * (1 + dfa.classes)
}

/// One automaton for all rules on paths, where it fits the table that the two need anyway.
fn single_walk([anchored, floating, command, network]: [&Dfa; 4]) -> Option<Dfa> {
    let others = ROWS + row_bytes(command) + row_bytes(network);
    let two = others + row_bytes(anchored) + row_bytes(floating);
    let room = if two <= SMALL_TABLE {
        SMALL_TABLE
    } else {
        LARGE_TABLE
    };
    // One silent row stays behind in the place of `floating`. Minimising gains some states back.
    let row = 4 * (1 + anchored.classes);
    let states = room.checked_sub(others + row)? / row;
    let one = minimise(&product::product(anchored, floating, 2 * states)?);
    (one.labels.len() <= states).then_some(one)
}

impl Policy {
    /// Compiles the policy. `generation` is stamped into every record that the table decides.
    pub fn compile(&self, generation: u32) -> Result<Table, PolicyError> {
        self.compile_for(generation, Walks::Fewest)
    }

    /// The same, with a say in how paths are walked. For comparing the two.
    #[doc(hidden)]
    pub fn compile_for(&self, generation: u32, walks: Walks) -> Result<Table, PolicyError> {
        let automata = Automata::of(self)?;
        let paths = Classes::of(&[&automata.anchored, &automata.floating]);
        let commands = Classes::of(&[&automata.command]);
        let destinations = Classes::of(&[&automata.network]);
        let anchored = self.determinise(&automata.anchored, &paths)?;
        let floating = self.determinise(&automata.floating, &paths)?;
        let command = self.determinise(&automata.command, &commands)?;
        let network = self.determinise(&automata.network, &destinations)?;
        let parts = [&anchored.dfa, &floating.dfa, &command.dfa, &network.dfa];
        let one = match walks {
            Walks::Fewest => single_walk(parts),
            Walks::Two => None,
        };
        let silent = product::silent(paths.count);
        let chosen = match &one {
            Some(one) => [one, &silent, parts[2], parts[3]],
            None => parts,
        };
        let bytes = serialise::serialise(
            self,
            generation,
            one.is_some(),
            [&paths, &commands, &destinations],
            chosen,
        );
        if bytes.len() > LARGE_TABLE {
            let size = |part: &Compiled| part.dfa.next.len();
            let parts = [
                (&automata.anchored, &anchored),
                (&automata.floating, &floating),
                (&automata.command, &command),
                (&automata.network, &network),
            ];
            let largest = parts.into_iter().max_by_key(|(_, part)| size(part));
            let (nfa, part) = largest.unwrap_or(parts[0]);
            return Err(self.too_large(nfa, &part.visits));
        }
        let stats = TableStats {
            bytes: bytes.len(),
            anchored: anchored.stats,
            floating: floating.stats,
            command: command.stats,
            network: network.stats,
        };
        Ok(Table { bytes, stats })
    }

    fn determinise(&self, nfa: &Nfa, classes: &Classes) -> Result<Compiled, PolicyError> {
        let limits = Limits {
            entries: MAX_ENTRIES,
            positions: MAX_POSITIONS,
        };
        let outcome = determinise(nfa, classes, limits);
        let Some(built) = outcome.dfa else {
            return Err(self.too_large(nfa, &outcome.visits));
        };
        let dfa = minimise(&built);
        let stats = AutomatonStats {
            built: built.labels.len(),
            states: dfa.labels.len(),
            classes: classes.count,
        };
        Ok(Compiled {
            dfa,
            stats,
            visits: outcome.visits,
        })
    }

    /// Names the rules that cost most.
    fn too_large(&self, nfa: &Nfa, visits: &[u32]) -> PolicyError {
        let mut costs: Vec<(usize, f64)> = nfa.cost_by_rule(visits).into_iter().collect();
        costs.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: f64 = costs.iter().map(|(_, cost)| cost).sum();
        let share = |cost: f64| (100.0 * cost / total.max(1.0)).round();
        let named = |rule: &Rule, cost: f64| {
            let place = self.rule_ref(rule);
            format!(
                "{} ({}:{}, {}%)",
                rule.id,
                place.file.display(),
                place.line,
                share(cost)
            )
        };
        let worst = costs
            .iter()
            .take(5)
            .map(|(rule, cost)| named(&self.rules[*rule], *cost))
            .collect::<Vec<_>>();
        let message = format!(
            "the policy is too large: compiled, it does not fit into {} MiB",
            LARGE_TABLE >> 20
        );
        let help = format!(
            "the costliest rules: {}. Patterns with several `*`, and `**/` in the middle of many patterns, cost most",
            worst.join(", ")
        );
        match costs.first() {
            Some((rule, _)) => {
                let rule = &self.rules[*rule];
                PolicyError::at(&self.sources[rule.source], rule.span, message, help)
                    .label("the costliest rule")
            }
            None => PolicyError::general(message, help),
        }
    }
}
