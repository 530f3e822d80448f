//! Policies: reading them, judging by them plainly, and compiling them for the kernel.
//!
//! The order of the rooms: `load` reads files into `schema`, `lower` gives them meaning (`rule`,
//! `glob`, `command`, `address`), `judge` is the plain reference, `compile` makes the kernel's table,
//! `table` walks such a table in user space. Nothing here touches the kernel, and nothing here ever
//! repairs a policy: what is not understood is refused with a [`PolicyError`].

pub mod address;
mod builtin;
mod byteset;
pub mod command;
mod compile;
mod diagnostic;
pub mod diff;
mod examples;
pub mod explain;
mod flatten;
#[doc(hidden)]
pub mod generate;
pub mod glob;
mod judge;
pub mod limits;
mod load;
mod locks;
mod lower;
mod matcher;
pub mod names;
pub mod own;
pub mod places;
pub mod protected;
mod pseudo;
mod reach;
mod recording;
mod rule;
mod rules;
pub mod schema;
mod search;
mod suggest;
pub mod table;
mod vars;
pub(crate) mod yaml;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentguard_common::verdict::Verdict;

pub use builtin::NAMES as BUILT_IN_NAMES;
pub use compile::{Table, TableStats, Walks};
pub use diagnostic::{PatternError, PolicyError, Source, Span};
pub use examples::{Example, OwnedAction, TestOutcome};
pub use limits::Limits;
pub use load::{LoadOptions, MAX_FILE};
pub use locks::Locks;
pub use lower::is_name;
pub use recording::{Audit, RepeatedActs};
pub use rule::{Action, Judgement, Matcher, Rule, RuleExample, RuleRef};
pub use schema::Mode;

/// Longest value of a variable, in bytes.
pub(crate) const MAX_VALUE: usize = 4096;

/// Verdicts where no rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Opening for reading.
    pub read: Verdict,
    /// Opening for writing.
    pub write: Verdict,
    /// Running a program.
    pub exec: Verdict,
    /// Connecting.
    pub network: Verdict,
    /// Listening, also at abstract names.
    pub listen: Verdict,
    /// Connecting to Unix-domain sockets.
    pub unix: Verdict,
}

/// A policy that was read, understood and checked.
#[derive(Clone, Debug)]
pub struct Policy {
    name: String,
    description: Option<String>,
    mode: Mode,
    audit: Audit,
    repeats: RepeatedActs,
    defaults: Defaults,
    kernel: Locks,
    limits: Arc<Limits>,
    rules: Vec<Rule>,
    names: names::NameIndex,
    sources: Vec<Arc<Source>>,
    files: Vec<PathBuf>,
    examples: Vec<Example>,
}

/// Reads a policy, by name or by path, with all that it extends.
pub fn load(name_or_path: &str, options: &LoadOptions) -> Result<Policy, PolicyError> {
    let stem = Path::new(name_or_path)
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    lower::lower(load::read(name_or_path, options)?, &options.vars, &stem)
}

/// Reads a policy from text. `path` stands for it in diagnostics.
pub fn load_text(path: &Path, text: &str, options: &LoadOptions) -> Result<Policy, PolicyError> {
    let stem = path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    lower::lower(load::read_text(path, text, options)?, &options.vars, &stem)
}

/// Makes a policy of the files that it once was read from (see [`Policy::sources`]). `name` is what it is
/// called if they do not say.
pub fn load_sources(
    name: &str,
    sources: &[(PathBuf, String)],
    files: &[PathBuf],
    vars: &BTreeMap<String, String>,
) -> Result<Policy, PolicyError> {
    lower::lower(load::read_sources(sources, files)?, vars, name)
}

impl Policy {
    /// The text of each of its files, with the path that it is known by, the outermost first.
    pub fn sources(&self) -> Vec<(PathBuf, String)> {
        self.sources
            .iter()
            .map(|source| (source.path().to_owned(), source.text().to_owned()))
            .collect()
    }

    /// Its name: `name:`, or that of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is for.
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// Whether denials are carried out.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What is recorded of what is permitted, where no rule says otherwise.
    pub fn audit(&self) -> Audit {
        self.audit
    }

    /// What becomes of acts that a thread repeats.
    pub fn repeats(&self) -> RepeatedActs {
        self.repeats
    }

    /// Verdicts where no rule matches.
    pub fn defaults(&self) -> Defaults {
        self.defaults
    }

    /// What the `kernel` section permits, as the table has it.
    pub(crate) fn kernel_permits(&self) -> u32 {
        self.kernel.bits()
    }

    /// How much, and when: what user space holds.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// The rules: the outermost file's first.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Every file that was read, for watching. Built-in policies have none.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}
