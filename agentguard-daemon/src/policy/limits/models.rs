//! The section `models`: which providers an agent may call through the gateway, and what is reserved.

use std::fmt::Write as _;

use super::schema::UnknownPrice;
use crate::policy::diagnostic::{PatternError, PolicyError, Source};
use crate::policy::lower::is_name_byte;
use crate::policy::schema::{At, Document};

/// Reserved for an answer where neither request nor policy says how long it may be, in tokens.
const OUTPUT: u64 = 8192;
/// Reserved for each thing that a request only refers to, in tokens.
const OUTSIDE: u64 = 16_384;
/// More than any model reads or writes at once.
const MOST: u64 = 100_000_000;

/// Which models may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Models {
    /// Names of providers; in no case empty.
    pub providers: Vec<String>,
    /// Tokens reserved for an answer without a limit.
    pub output_tokens: u64,
    /// Tokens reserved for each thing outside of the request.
    pub outside_tokens: u64,
    /// What becomes of models without a price.
    pub unknown_price: UnknownPrice,
}

/// The strictest of all files: providers that all of them name, and the highest reservations.
pub fn join(documents: &[(&Source, &Document)]) -> Result<Option<Models>, PolicyError> {
    let mut joined: Option<Models> = None;
    for (source, document) in documents {
        let Some(rule) = &document.models else {
            continue;
        };
        let span = rule.span;
        let rule = &rule.value;
        for name in &rule.providers.0 {
            if name.value.is_empty() || !name.value.bytes().all(is_name_byte) {
                return Err(PolicyError::at(
                    source,
                    name.span,
                    format!(
                        "`{}` cannot be the name of a provider",
                        name.value.escape_debug()
                    ),
                    "use the name that the daemon's configuration has: `openai`, `anthropic`, `gemini`, …",
                ));
            }
        }
        let mut next = Models {
            providers: rule.providers.0.iter().map(|it| it.value.clone()).collect(),
            output_tokens: tokens(source, rule.output_tokens.as_ref())?.unwrap_or(0),
            outside_tokens: tokens(source, rule.outside_tokens.as_ref())?.unwrap_or(0),
            unknown_price: rule
                .unknown_price
                .as_ref()
                .map_or(UnknownPrice::Deny, |it| it.value),
        };
        if let Some(before) = &joined {
            next.providers
                .retain(|name| before.providers.contains(name));
            next.output_tokens = next.output_tokens.max(before.output_tokens);
            next.outside_tokens = next.outside_tokens.max(before.outside_tokens);
            if before.unknown_price == UnknownPrice::Deny {
                next.unknown_price = UnknownPrice::Deny;
            }
        }
        if next.providers.is_empty() {
            return Err(PolicyError::at(
                source,
                span,
                "the files of this policy have no provider in common",
                "every file with a section `models` must name the provider; or leave the section out of all but one",
            ));
        }
        joined = Some(next);
    }
    let or = |value: u64, default| if value == 0 { default } else { value };
    Ok(joined.map(|models| Models {
        output_tokens: or(models.output_tokens, OUTPUT),
        outside_tokens: or(models.outside_tokens, OUTSIDE),
        ..models
    }))
}

fn tokens(source: &Source, written: Option<&At<u64>>) -> Result<Option<u64>, PolicyError> {
    match written {
        Some(at) if at.value == 0 || at.value > MOST => Err(PolicyError::at(
            source,
            at.span,
            format!("{} tokens cannot be reserved", at.value),
            format!("write a number from 1 to {MOST}"),
        )),
        written => Ok(written.map(|at| at.value)),
    }
}

/// A glob over names of models: `*` is anything, `?` any one character. All else is itself.
pub fn glob_regex(glob: &str) -> Result<String, PatternError> {
    if glob.is_empty() {
        return Err(PatternError::new(
            0,
            1,
            "the name is empty",
            "write a name, or `*`",
        ));
    }
    let mut regex = String::from("(?s)^");
    for (at, c) in glob.char_indices() {
        match c {
            '*' => regex.push_str("(?:.*)"),
            '?' => regex.push('.'),
            '[' | ']' | '{' | '}' => {
                return Err(PatternError::new(
                    at,
                    1,
                    format!("`{c}` means nothing in names of models"),
                    "only `*` and `?` do; write a list instead",
                ));
            }
            c => {
                // Writing to a `String` cannot fail.
                let _ = write!(regex, "\\x{{{:x}}}", u32::from(c));
            }
        }
    }
    regex.push('$');
    Ok(regex)
}

#[cfg(test)]
mod tests {
    use regex_automata::meta::Regex;

    use super::*;

    #[test]
    fn globs_match_whole_names() {
        let fits = |glob: &str, name: &str| {
            Regex::new(&glob_regex(glob).unwrap())
                .unwrap()
                .is_match(name)
        };
        for (glob, good, bad) in [
            ("claude-*", "claude-sonnet-4-5", "x-claude-1"),
            ("gpt-4.1", "gpt-4.1", "gpt-4x1"),
            ("m?", "mé", "m"),
            ("*", "", "\u{0}never"),
        ] {
            assert!(fits(glob, good), "{glob} {good}");
            assert!(glob == "*" || !fits(glob, bad), "{glob} {bad}");
        }
        assert!(glob_regex("a[b]").is_err() && glob_regex("").is_err());
    }
}
