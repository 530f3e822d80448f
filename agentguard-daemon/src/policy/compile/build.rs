//! From rules to the four trees of patterns.

use agentguard_common::table::COMMAND_SEPARATOR;
use agentguard_common::verdict::Verdict;

use super::label::{self, Label};
use super::nfa::{Dialect, Nfa, NodeId, Step};
use crate::policy::address::{NetworkPattern, Range};
use crate::policy::command::{ArgumentPattern, CommandPattern};
use crate::policy::diagnostic::PolicyError;
use crate::policy::glob::{ByteSet, Glob, Token, is_abstract, is_floating};
use crate::policy::limits::marks_of;
use crate::policy::{Audit, Matcher, Policy, Rule};

/// Ways through the braces of one command pattern.
const MAX_COMMAND_ENDS: usize = 4096;

/// Groups that the construction can tell apart.
const MAX_GROUPS: usize = 1 << 16;

/// The trees.
pub struct Automata {
    /// Paths from the root.
    pub anchored: Nfa,
    /// Paths at any depth.
    pub floating: Nfa,
    /// Command lines.
    pub command: Nfa,
    /// Destinations.
    pub network: Nfa,
}

impl Automata {
    /// Sorts the rules of a policy into the trees.
    pub fn of(policy: &Policy) -> Result<Self, PolicyError> {
        let mut automata = Self {
            anchored: Nfa::new(),
            floating: Nfa::new(),
            command: Nfa::new(),
            network: Nfa::new(),
        };
        for (index, rule) in policy.rules.iter().enumerate() {
            let marks = marks_of(&policy.limits.budgets, &rule.id);
            let level = |of: &dyn Fn(Audit) -> Label| rule.audit.map_or(0, of);
            match &rule.matcher {
                Matcher::Path {
                    access,
                    patterns,
                    except,
                } => {
                    let label = label::marked(label::of_path(rule.verdict, *access), marks)
                        | level(&|audit| audit.of_path(*access));
                    automata.paths(index, label, patterns, except);
                }
                Matcher::Command { patterns, except } => automata
                    .commands(index, rule.verdict, patterns, except)
                    .map_err(|()| too_many_ways(policy, rule))?,
                // Names are judged when they are resolved.
                Matcher::Name { .. } => {}
                Matcher::Network {
                    listen,
                    patterns,
                    except,
                } => {
                    let label = label::of_destination(rule.verdict, *listen);
                    let label =
                        label::marked(label, marks) | level(&|audit| audit.of_destination(*listen));
                    automata.destinations(index, label, patterns, except);
                }
            }
        }
        for nfa in [
            &mut automata.anchored,
            &mut automata.floating,
            &mut automata.command,
            &mut automata.network,
        ] {
            nfa.finish();
            if nfa.groups() > MAX_GROUPS {
                return Err(PolicyError::general(
                    format!("more than {MAX_GROUPS} different lists of exceptions"),
                    "let several rules have the same exceptions, or write fewer rules with some",
                ));
            }
        }
        Ok(automata)
    }

    fn paths(&mut self, rule: usize, label: Label, patterns: &[Glob], except: &[Glob]) {
        for (nfa, floating) in [(&mut self.anchored, false), (&mut self.floating, true)] {
            let mut tokens = patterns
                .iter()
                .flat_map(Glob::alternatives)
                .filter(|t| is_floating(t) == floating)
                .peekable();
            if tokens.peek().is_none() {
                continue;
            }
            let (group, new) = nfa.group(&signature(except));
            if new {
                // An exception counts in every tree that holds a pattern of the rule.
                for tokens in except.iter().flat_map(Glob::alternatives) {
                    add_path(
                        nfa,
                        nfa.root(group, true),
                        tokens,
                        label::join(label, 3),
                        rule,
                    );
                }
            }
            for tokens in tokens {
                add_path(nfa, nfa.root(group, false), tokens, label, rule);
            }
        }
    }

    fn commands(
        &mut self,
        rule: usize,
        verdict: Verdict,
        patterns: &[CommandPattern],
        except: &[CommandPattern],
    ) -> Result<(), ()> {
        for tokens in patterns
            .iter()
            .flat_map(|pattern| pattern.program.alternatives())
        {
            let nfa = if is_floating(tokens) {
                &mut self.floating
            } else {
                &mut self.anchored
            };
            add_path(nfa, nfa.root(0, false), tokens, label::BY_COMMAND, rule);
        }
        let (group, new) = self.command.group(&signature(except));
        if new {
            for pattern in except {
                add_command(&mut self.command, group, true, pattern, 3, rule)?;
            }
        }
        for pattern in patterns {
            add_command(
                &mut self.command,
                group,
                false,
                pattern,
                verdict as Label,
                rule,
            )?;
        }
        Ok(())
    }

    fn destinations(
        &mut self,
        rule: usize,
        label: Label,
        patterns: &[NetworkPattern],
        except: &[NetworkPattern],
    ) {
        let (group, new) = self.network.group(&signature(except));
        if new {
            for pattern in except {
                add_destination(&mut self.network, group, true, pattern, 3, rule);
            }
        }
        for pattern in patterns {
            add_destination(&mut self.network, group, false, pattern, label, rule);
        }
    }
}

/// Equal for equal exceptions; empty for none.
fn signature<T: std::fmt::Debug>(except: &[T]) -> String {
    if except.is_empty() {
        String::new()
    } else {
        format!("{except:?}")
    }
}

fn too_many_ways(policy: &Policy, rule: &Rule) -> PolicyError {
    PolicyError::at(
        &policy.sources[rule.source],
        rule.span,
        format!(
            "the braces of a command pattern amount to more than {MAX_COMMAND_ENDS} alternatives"
        ),
        "use wildcards, or split the rule",
    )
}

fn add_path(nfa: &mut Nfa, root: NodeId, tokens: &[Token], label: Label, rule: usize) {
    let dialect = if is_abstract(tokens) {
        Dialect::Abstract
    } else {
        Dialect::Path
    };
    let ends = nfa.walk(root, tokens, dialect);
    nfa.accept(ends.exact, label, rule);
    if let Some(below) = ends.below {
        nfa.accept_forever(below, label, rule);
    }
}

/// Input: the path, `argv[0]`, `argv[1]`, …, each with its separator.
fn add_command(
    nfa: &mut Nfa,
    group: u32,
    negative: bool,
    pattern: &CommandPattern,
    label: Label,
    rule: usize,
) -> Result<(), ()> {
    let not_separator = ByteSet::ALL.without(COMMAND_SEPARATOR);
    let root = nfa.root(group, negative);
    let mut ends = Vec::new();
    for tokens in pattern.program.alternatives() {
        let path = nfa.walk(root, tokens, Dialect::Program);
        ends.push(path.exact);
        if let Some(below) = path.below {
            ends.push(nfa.step(below, Step::Run(not_separator)));
        }
    }
    let may_be_empty = |tokens: &[Token]| tokens.iter().all(|token| *token == Token::Star);
    let nameless = pattern.argv0.is_empty()
        || pattern
            .argv0
            .iter()
            .flat_map(Glob::alternatives)
            .any(|tokens| may_be_empty(tokens));
    let optional = nameless
        && pattern
            .arguments
            .iter()
            .all(|argument| *argument == ArgumentPattern::Any);
    let mut after_argv0 = Vec::new();
    for end in ends {
        let after_path = nfa.step(end, Step::Byte(COMMAND_SEPARATOR));
        if optional {
            // An empty argument list is one that asks for nothing.
            nfa.accept(after_path, label, rule);
        }
        let mut names = Vec::new();
        if pattern.argv0.is_empty() {
            names.push(nfa.step(after_path, Step::Run(not_separator)));
        }
        for tokens in pattern.argv0.iter().flat_map(Glob::alternatives) {
            names.push(nfa.walk(after_path, tokens, Dialect::Argument).exact);
        }
        let after = names
            .into_iter()
            .map(|name| nfa.step(name, Step::Byte(COMMAND_SEPARATOR)));
        after_argv0.extend(after);
    }
    let mut ends = after_argv0;
    for (index, argument) in pattern.arguments.iter().enumerate() {
        match argument {
            ArgumentPattern::Any if index + 1 == pattern.arguments.len() => {
                for end in &ends {
                    nfa.accept_forever(*end, label, rule);
                }
                return Ok(());
            }
            ArgumentPattern::Any => {
                let step = Step::Deep {
                    within: ByteSet::ALL,
                    exit: COMMAND_SEPARATOR,
                };
                for end in &mut ends {
                    *end = nfa.step(*end, step);
                }
            }
            ArgumentPattern::One(glob) => {
                if ends.len() * glob.alternatives().len() > MAX_COMMAND_ENDS {
                    return Err(());
                }
                let mut next = Vec::new();
                for end in &ends {
                    for tokens in glob.alternatives() {
                        let argument = nfa.walk(*end, tokens, Dialect::Argument).exact;
                        next.push(nfa.step(argument, Step::Byte(COMMAND_SEPARATOR)));
                    }
                }
                ends = next;
            }
        }
    }
    for end in ends {
        nfa.accept(end, label, rule);
    }
    Ok(())
}

/// Input: address (16 bytes), protocol (1), port (2).
fn add_destination(
    nfa: &mut Nfa,
    group: u32,
    negative: bool,
    pattern: &NetworkPattern,
    label: Label,
    rule: usize,
) {
    let protocols = pattern.protocol.numbers().map_or(ByteSet::ALL, |list| {
        list.iter().fold(ByteSet::EMPTY, |s, n| s.with(*n))
    });
    let ports = pattern.ports.as_deref().unwrap_or(&[(0, u16::MAX)]);
    for address in addresses(pattern.range) {
        let root = nfa.root(group, negative);
        let after_address = address
            .iter()
            .fold(root, |at, set| nfa.step(at, Step::Set(*set)));
        let after_protocol = nfa.step(after_address, Step::Set(protocols));
        for (high, low) in ports
            .iter()
            .flat_map(|(first, last)| port_bytes(*first, *last))
        {
            let at = nfa.step(after_protocol, Step::Set(high));
            let end = nfa.step(at, Step::Set(low));
            nfa.accept(end, label, rule);
        }
    }
}

/// The addresses of a range, as sequences of byte sets.
fn addresses(range: Option<Range>) -> Vec<[ByteSet; 16]> {
    let Some(range) = range else {
        return vec![[ByteSet::ALL; 16]];
    };
    let mut sets = [ByteSet::ALL; 16];
    for (index, set) in sets.iter_mut().enumerate() {
        let fixed = usize::from(range.bits).saturating_sub(index * 8).min(8);
        let free = (0xffu16 >> fixed) as u8;
        *set = ByteSet::EMPTY.with_range(range.first[index], range.first[index] | free);
    }
    if !range.excludes_mapped() {
        return vec![sets];
    }
    // All of the range that leaves ::ffff:0:0/96 at one of its twelve bytes.
    (0..12)
        .filter_map(|leave| {
            let mapped = |index: usize| if index < 10 { 0 } else { 0xff };
            let mut part = sets;
            for (index, set) in part.iter_mut().enumerate().take(leave) {
                *set = ByteSet::EMPTY.with(mapped(index));
            }
            part[leave] = part[leave].without(mapped(leave));
            (!part[leave].is_empty()).then_some(part)
        })
        .collect()
}

/// A range of ports as pairs of sets for the high and the low byte.
fn port_bytes(first: u16, last: u16) -> Vec<(ByteSet, ByteSet)> {
    let [first_high, first_low] = first.to_be_bytes();
    let [last_high, last_low] = last.to_be_bytes();
    let range = |low, high| ByteSet::EMPTY.with_range(low, high);
    if first_high == last_high {
        return vec![(range(first_high, first_high), range(first_low, last_low))];
    }
    let mut pairs = vec![
        (range(first_high, first_high), range(first_low, 0xff)),
        (range(last_high, last_high), range(0, last_low)),
    ];
    if last_high - first_high > 1 {
        pairs.push((range(first_high + 1, last_high - 1), ByteSet::ALL));
    }
    pairs
}
