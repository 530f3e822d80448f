//! The parser's part: text to a document, its errors in the words of people who write policies.
//!
//! Depth, aliases and size are bounded here, before anything else sees the text.

use serde::de::DeserializeOwned;
use serde_saphyr::{
    Error as YamlError, MergeKeyPolicy, MessageFormatter as _, UserMessageFormatter,
};

use super::diagnostic::{PolicyError, Source, Span};
use super::schema::{Document, span_of};
use super::suggest::closest;

/// Where the format of policies is described.
const POLICIES: &str = "`agentguard policy schema`";

/// Parses the text of one file.
pub fn parse(source: &Source) -> Result<Document, PolicyError> {
    if is_empty(source) {
        return Err(PolicyError::at(
            source,
            Span::default(),
            "the policy is empty",
            "begin with `version: 1`; `agentguard policy schema` describes the rest",
        ));
    }
    parse_as(source, POLICIES)
}

/// Whether there is nothing but comments.
pub fn is_empty(source: &Source) -> bool {
    source
        .text()
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
}

/// Parses a text that is not empty, within the bounds of policies. `format` is where its format is described.
pub fn parse_as<T: DeserializeOwned>(source: &Source, format: &str) -> Result<T, PolicyError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 16,
            max_aliases: 256,
            max_anchors: 64,
            max_documents: 2,
            max_nodes: 500_000,
            max_events: 1_000_000,
            flow_nesting_limit: 16,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 20_000,
            max_replay_stack_depth: 4,
        },
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
    };
    serde_saphyr::from_str_with_options(source.text(), options)
        .map_err(|error| yaml_error(source, &error, format))
}

fn yaml_error(source: &Source, error: &YamlError, format: &str) -> PolicyError {
    let bare = match error.without_snippet() {
        YamlError::AliasError { error, .. } => error.without_snippet(),
        other => other,
    };
    let span = error
        .location()
        .map_or_else(Span::default, |location| place(source, &location));
    let message = in_words(&UserMessageFormatter.format_message(bare));
    let help = help_for(source, span, &message, format);
    PolicyError::at(source, span, message, help)
}

/// The parser's words for what it expected, in those of people who write policies.
fn in_words(message: &str) -> String {
    match message {
        "expected mapping start" => "this should be a mapping: `key: value`".to_owned(),
        "expected sequence start" => "this should be a list".to_owned(),
        "expected string scalar" => "this should be a text".to_owned(),
        _ if message.starts_with("YAML document too large") => {
            "the policy is nested too deeply, or has too many aliases or too many parts".to_owned()
        }
        _ => message.to_owned(),
    }
}

/// The bytes of a location; where the parser knows only line and column, those.
fn place(source: &Source, location: &serde_saphyr::Location) -> Span {
    let span = span_of(location);
    if location.span().byte_offset().is_some() {
        return span;
    }
    let line = usize::try_from(location.line()).unwrap_or(1).max(1);
    let start: usize = source
        .text()
        .split_inclusive('\n')
        .take(line - 1)
        .map(str::len)
        .sum();
    let column = usize::try_from(location.column()).unwrap_or(1).max(1);
    let offset = source.text()[start..]
        .chars()
        .take(column - 1)
        .map(char::len_utf8)
        .sum::<usize>();
    Span {
        offset: start + offset,
        len: 1,
    }
}

/// What a user can do about an error of the parser.
fn help_for(source: &Source, span: Span, message: &str, format: &str) -> String {
    let lower = message.to_lowercase();
    let rest = source.text().get(span.offset..).unwrap_or_default();
    if lower.contains("unknown field") || lower.contains("unknown variant") {
        let wrong = message.split('`').nth(1).unwrap_or_default();
        let listed = message
            .split_once("expected")
            .map_or("", |(_, listed)| listed);
        let listed = listed.replace('`', "").replace(" or ", ", ");
        let known: Vec<&str> = listed
            .trim()
            .trim_start_matches("one of ")
            .split(", ")
            .collect();
        return match closest(wrong, &known) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
    }
    if lower.contains("duplicate") {
        return "merge the two, or remove one; the second would silently replace the first".into();
    }
    if lower.contains("should be a list") {
        return "write `[a, b]`, or one item a line, each behind `- `".into();
    }
    if lower.contains("multiple") && lower.contains("document") {
        return "write one policy a file; `extends` brings in others".into();
    }
    if lower.contains("budget")
        || lower.contains("limit")
        || lower.contains("depth")
        || lower.contains("nest")
        || lower.contains("recursion")
    {
        return "policies are shallow and small: write the rules out, without deep nesting or chains of aliases".into();
    }
    if rest.starts_with('*') || lower.contains("alias") || lower.contains("anchor") {
        return "a pattern that begins with `*` must be quoted: \"**/.env\"".into();
    }
    if lower.contains("merge key") {
        return "write the keys out, or put the shared rules into a file of their own and use `extends`".into();
    }
    if lower.contains("tab") {
        return "YAML is indented with spaces".into();
    }
    if lower.contains("missing field") {
        return format!("add the key; {format} describes the format");
    }
    format!(
        "see {format} for the format; quote text that holds any of `: # {{ }} [ ] & * ! | > ' \" %`"
    )
}
