//! The reference: whether one pattern matches one subject, by plain backtracking.
//!
//! Every record is judged again with this code, and tests compare the compiled tables with it. It
//! must stay independent of `compile`: it knows tokens, and nothing of automata.

use super::glob::{Glob, Token, is_abstract};

/// Whether a path pattern matches a path, or the pattern of an abstract name that name (with its NUL in front).
pub fn matches_path(glob: &Glob, path: &[u8]) -> bool {
    glob.alternatives()
        .iter()
        .any(|tokens| Attempt::new(tokens, path, !is_abstract(tokens)).run())
}

/// Whether an argument pattern matches one argument.
pub fn matches_argument(glob: &Glob, argument: &[u8]) -> bool {
    glob.alternatives()
        .iter()
        .any(|tokens| Attempt::new(tokens, argument, false).run())
}

struct Attempt<'a> {
    tokens: &'a [Token],
    input: &'a [u8],
    star_stops_at_slash: bool,
    /// Pairs of token and position that were tried and failed; allocated at the first wildcard.
    failed: Vec<bool>,
}

impl<'a> Attempt<'a> {
    fn new(tokens: &'a [Token], input: &'a [u8], star_stops_at_slash: bool) -> Self {
        Self {
            tokens,
            input,
            star_stops_at_slash,
            failed: Vec::new(),
        }
    }

    fn run(&mut self) -> bool {
        self.from(0, 0)
    }

    fn from(&mut self, mut token: usize, mut at: usize) -> bool {
        while let Some(next) = self.tokens.get(token) {
            match next {
                Token::Byte(byte) => {
                    if self.input.get(at) != Some(byte) {
                        return false;
                    }
                    at += 1;
                }
                Token::Set(set) => {
                    if !self.input.get(at).is_some_and(|byte| set.contains(*byte)) {
                        return false;
                    }
                    at += 1;
                }
                Token::Tail => return at == self.input.len() || self.input[at] == b'/',
                Token::Star | Token::Deep => return self.wildcard(token, at),
            }
            token += 1;
        }
        at == self.input.len()
    }

    /// Tries every extent of the wildcard at `token`.
    fn wildcard(&mut self, token: usize, at: usize) -> bool {
        let width = self.input.len() + 1;
        if self.failed.is_empty() {
            self.failed = vec![false; self.tokens.len() * width];
        }
        if self.failed[token * width + at] {
            return false;
        }
        let deep = self.tokens[token] == Token::Deep;
        let mut end = at;
        loop {
            // `**/` ends where it began or behind a slash; `*` ends anywhere.
            let may_end = !deep || end == at || self.input[end - 1] == b'/';
            if may_end && self.from(token + 1, end) {
                return true;
            }
            let stop = !deep && self.star_stops_at_slash;
            match self.input.get(end) {
                Some(b'/') if stop => break,
                Some(_) => end += 1,
                None => break,
            }
        }
        self.failed[token * width + at] = true;
        false
    }
}
