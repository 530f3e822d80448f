//! Variables of a policy: `${workspace}`, `${home}` and what `vars:` and `--set` define.
//!
//! A value is plain text. It is never parsed as a pattern.

use std::collections::{BTreeMap, BTreeSet};

use super::diagnostic::{PolicyError, Source, Span};

/// Depth of variables that refer to variables.
const MAX_DEPTH: usize = 8;

/// Why a variable has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VarError {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

/// The variables that a policy's patterns may use. Values that were set from outside win over those in files.
#[derive(Clone, Debug, Default)]
pub struct Vars {
    set: BTreeMap<String, String>,
    written: BTreeMap<String, String>,
}

impl Vars {
    /// Variables given by the caller (`--set`, the session's workspace and home).
    pub fn new(set: &BTreeMap<String, String>) -> Self {
        Self {
            set: set.clone(),
            written: BTreeMap::new(),
        }
    }

    /// Adds one of a file's `vars:`. The first one stands: outer files are read first.
    pub fn define(&mut self, name: &str, value: &str) {
        self.written
            .entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
    }

    /// The value of `name`, with the variables in it replaced.
    pub fn value(&self, name: &str) -> Result<String, VarError> {
        self.resolve(name, 0)
    }

    /// The same, where a policy refers to it.
    pub fn value_at(&self, name: &str, source: &Source, at: Span) -> Result<String, PolicyError> {
        self.value(name)
            .map_err(|problem| PolicyError::at(source, at, problem.message, problem.help))
    }

    fn resolve(&self, name: &str, depth: usize) -> Result<String, VarError> {
        if let Some(value) = self.set.get(name) {
            return Ok(value.clone());
        }
        let Some(text) = self.written.get(name) else {
            return Err(self.unknown(name));
        };
        if depth == MAX_DEPTH {
            return Err(VarError {
                message: format!("the variable `{name}` refers to itself"),
                help: format!(
                    "break the circle; variables may refer to each other {MAX_DEPTH} levels deep"
                ),
            });
        }
        let mut value = String::new();
        let mut rest = text.as_str();
        if rest == "~" || rest.starts_with("~/") {
            value = self.resolve("home", depth + 1)?;
            rest = &rest[1..];
        }
        while let Some((before, after)) = rest.split_once("${") {
            let Some((inner, tail)) = after.split_once('}') else {
                break;
            };
            value.push_str(before);
            value.push_str(&self.resolve(inner, depth + 1)?);
            rest = tail;
            if value.len() > super::MAX_VALUE {
                return Err(VarError {
                    message: format!("the value of `{name}` is too long"),
                    help: format!("at most {} bytes", super::MAX_VALUE),
                });
            }
        }
        value.push_str(rest);
        Ok(value)
    }

    fn unknown(&self, name: &str) -> VarError {
        let known: BTreeSet<&str> = self
            .set
            .keys()
            .chain(self.written.keys())
            .map(String::as_str)
            .collect();
        let known = known
            .into_iter()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known
        };
        VarError {
            message: format!("unknown variable `{name}`"),
            help: format!(
                "define it under `vars:` or with `--set {name}=VALUE`; known here: {known}"
            ),
        }
    }
}
