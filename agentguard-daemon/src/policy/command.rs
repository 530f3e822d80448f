//! Command patterns: a program and a glob for each argument.
//!
//! `git push ** --force **` means: a program named `git`, at any depth, whose arguments after
//! `argv[0]` are `push`, any number of arguments, `--force`, any number of arguments. `argv[0]` is
//! chosen by the caller: it is looked at only where a rule asks for it, and never in place of the path.

use super::diagnostic::PatternError;
use super::glob::{Glob, Subject};
use super::matcher::{matches_argument, matches_path};
use super::vars::Vars;

/// Arguments that one pattern may speak of.
const MAX_ARGUMENTS: usize = 64;

/// What one place of a command pattern matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgumentPattern {
    /// `**`: any number of arguments, also none.
    Any,
    /// One argument.
    One(Glob),
}

/// A parsed command pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandPattern {
    text: String,
    /// What `argv[0]` must be; anything where this is empty.
    pub argv0: Vec<Glob>,
    /// The resolved path of the program.
    pub program: Glob,
    /// The arguments after `argv[0]`.
    pub arguments: Vec<ArgumentPattern>,
}

impl CommandPattern {
    /// Parses `text`.
    pub fn parse(text: &str, vars: &Vars) -> Result<Self, PatternError> {
        let words = words(text);
        let Some(((at, first), rest)) = words.split_first() else {
            return Err(PatternError::new(
                0,
                1,
                "the pattern is empty",
                "write a program, then its arguments",
            ));
        };
        if rest.len() > MAX_ARGUMENTS {
            return Err(PatternError::new(
                0,
                text.len(),
                format!("the pattern has more than {MAX_ARGUMENTS} arguments"),
                "use `**` for any number of arguments",
            ));
        }
        let shift = |offset: usize| {
            move |error: PatternError| PatternError {
                at: error.at + offset,
                ..error
            }
        };
        let program = Glob::parse(first, Subject::Program, vars).map_err(shift(*at))?;
        let mut arguments: Vec<ArgumentPattern> = Vec::new();
        for (at, word) in rest {
            if *word != "**" {
                let glob = Glob::parse(word, Subject::Argument, vars).map_err(shift(*at))?;
                arguments.push(ArgumentPattern::One(glob));
            } else if arguments.last() == Some(&ArgumentPattern::Any) {
                return Err(PatternError::new(
                    *at,
                    2,
                    "`** **` says the same as `**`",
                    "write `**` once",
                ));
            } else {
                arguments.push(ArgumentPattern::Any);
            }
        }
        Ok(Self {
            text: text.to_owned(),
            argv0: Vec::new(),
            program,
            arguments,
        })
    }

    /// The pattern as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The pattern for programs that are called by one of these names only (programs that are many in one).
    #[must_use]
    pub fn called(mut self, argv0: &[Glob]) -> Self {
        self.argv0 = argv0.to_vec();
        self
    }

    /// Whether the pattern matches a program with these arguments, `argv[0]` included.
    pub fn matches(&self, path: &[u8], argv: &[&[u8]]) -> bool {
        let name = argv.first().copied().unwrap_or_default();
        (self.argv0.is_empty() || self.argv0.iter().any(|glob| matches_argument(glob, name)))
            && matches_path(&self.program, path)
            && match_arguments(&self.arguments, argv.get(1..).unwrap_or_default())
    }
}

/// Row by row: which numbers of arguments the patterns so far can have taken.
fn match_arguments(patterns: &[ArgumentPattern], arguments: &[&[u8]]) -> bool {
    let mut taken = vec![false; arguments.len() + 1];
    taken[0] = true;
    for pattern in patterns {
        match pattern {
            ArgumentPattern::Any => {
                let first = taken.iter().position(|t| *t).unwrap_or(taken.len());
                taken[first..].fill(true);
            }
            ArgumentPattern::One(glob) => {
                for count in (0..arguments.len()).rev() {
                    taken[count + 1] = taken[count] && matches_argument(glob, arguments[count]);
                }
                taken[0] = false;
            }
        }
    }
    taken[arguments.len()]
}

/// Words separated by white space, with their offsets. A backslash keeps the next byte in its word.
pub fn words(text: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let mut start = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if !escaped && c.is_ascii_whitespace() {
            if let Some(begin) = start.take() {
                words.push((begin, &text[begin..at]));
            }
        } else if start.is_none() {
            start = Some(at);
        }
        escaped = !escaped && c == '\\';
    }
    if let Some(begin) = start {
        words.push((begin, &text[begin..]));
    }
    words
}
