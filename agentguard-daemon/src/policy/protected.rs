//! From the rules of a policy to the objects behind the paths that they deny.
//!
//! Patterns only say where to look. What is denied is asked of the reference, path by path, and nothing is
//! protected that a rule does not deny. Symbolic links are never followed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentguard_common::verdict::{Verdict, access};

use super::Policy;
use super::glob::Glob;
use super::reach::{Pattern, Progress};
use super::rule::{Matcher, Rule, RuleRef};
use super::search::Search;

/// Accesses that are judged apart, in the order of [`Object::rules`].
pub const ACCESSES: [u8; 3] = [access::READ, access::WRITE, access::EXEC];

/// Accesses to files.
const FILES: u8 = access::READ | access::WRITE | access::EXEC;

/// The part of the entries that is left to rules of any depth: they are looked for by the way.
const FLOATING: usize = 4;

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of folders.
    pub entries: usize,
    /// Objects.
    pub objects: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 20_000,
            objects: 8_192,
        }
    }
}

/// What is denied about one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// Bits of [`access`]; shifted by [`agentguard_common::identity::DENIED`], those that a rule denies. The others a rule
    /// asks about.
    pub accesses: u32,
    /// The rule for each of [`ACCESSES`].
    pub rules: [Option<Arc<RuleRef>>; 3],
}

/// What a search found.
#[derive(Debug, Default)]
pub struct Found {
    /// By inode and device, the latter as in the kernel (`major << 20 | minor`).
    pub objects: BTreeMap<(u64, u32), Object>,
    /// Rules whose folders were not looked through to the end.
    pub cut: BTreeSet<String>,
    /// Whether rules that match at any depth were not looked for everywhere below the places.
    pub floating_cut: bool,
}

/// What would be news in a folder.
#[derive(Debug)]
pub enum Interest {
    /// This entry: it leads to what is looked for.
    Entry(Vec<u8>),
    /// What a pattern may match, or lead to.
    Patterns(Arc<Vec<Pattern>>, Vec<(usize, Progress)>),
}

impl Interest {
    /// Whether an entry of the folder that comes or goes is of interest.
    pub fn wants(&self, name: &[u8], is_folder: bool) -> bool {
        match self {
            Self::Entry(entry) => entry == name,
            Self::Patterns(all, here) => here.iter().any(|(index, progress)| {
                let pattern = &all[*index];
                let there = pattern.read(progress, name);
                pattern.matches(&there) || (is_folder && !pattern.read(&there, b"/").is_empty())
            }),
        }
    }
}

impl Policy {
    /// Searches the file system for what the rules deny by path. Rules that match at any depth are looked for
    /// below `places`. `enter` is told of each folder of the others, before it is read.
    pub fn protected(
        &self,
        places: &[PathBuf],
        limits: Limits,
        enter: &mut dyn FnMut(&Path, Interest),
    ) -> Found {
        let patterns = Arc::new(self.path_patterns());
        let mut search = Search::new(self, patterns.clone(), limits, enter);
        let mut roots: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
        let mut floating = Vec::new();
        for (index, pattern) in patterns.iter().enumerate() {
            if pattern.is_floating() {
                floating.push(index);
            } else {
                roots.entry(pattern.root()).or_default().push(index);
            }
        }
        for (root, patterns) in &roots {
            search.root(root, patterns);
        }
        search.run();
        search.float(limits.entries / FLOATING);
        if !floating.is_empty() {
            for place in places {
                search.root(place.as_os_str().as_bytes(), &floating);
            }
            search.run();
        }
        search.found()
    }

    /// The patterns of rules that deny paths, AgentGuard's own first.
    fn path_patterns(&self) -> Vec<Pattern> {
        let refuses = |rule: &Rule| matches!(rule.verdict, Verdict::Deny | Verdict::Ask);
        let rules = self.rules.iter().enumerate().rev();
        rules
            .filter(|(_, rule)| refuses(rule))
            .filter_map(|(index, rule)| match &rule.matcher {
                // Sockets are reached by the name that they are bound to, and by no other.
                Matcher::Path {
                    access, patterns, ..
                } if access & FILES != 0 => Some((index, patterns)),
                _ => None,
            })
            .flat_map(|(index, patterns)| {
                let flat = patterns.iter().flat_map(Glob::alternatives);
                flat.map(move |tokens| Pattern::new(tokens, index))
            })
            .collect()
    }
}

#[cfg(test)]
#[path = "protected_tests.rs"]
mod tests;
