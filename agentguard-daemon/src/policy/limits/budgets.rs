//! From a budget as it is written to one that can be charged. What makes no sense is refused.

use std::borrow::Cow;

use regex_automata::meta::Regex;

use super::amount::{parse_count, parse_duration, parse_size, parse_usd};
use super::schema::{AtLimit, BudgetRule, Per, WindowKind, WithoutModels};
use super::{Budget, Quantity};
use crate::policy::diagnostic::{PatternError, PolicyError, Source, Span};
use crate::policy::examples::pattern_error;
use crate::policy::lower::is_name_byte;
use crate::policy::schema::{At, OneOrMany};
use crate::policy::vars::Vars;

/// Warnings where none are written, in per cent.
const WARN: [u8; 3] = [50, 80, 95];

/// The budget that a rule means.
pub fn lower(
    source: &Source,
    rule: &At<BudgetRule>,
    number: usize,
    vars: &Vars,
) -> Result<Budget, PolicyError> {
    let (span, rule) = (rule.span, &rule.value);
    let (quantity, limit, at) = amount(source, span, rule, vars)?;
    let per = per(source, span, rule, quantity)?;
    let sliding = match &rule.window {
        Some(kind) if kind.value == WindowKind::Sliding && per.length().is_none() => {
            return Err(PolicyError::at(
                source,
                kind.span,
                format!("`per: {}` has no window that could slide", per.name()),
                "`sliding` goes with `per: second`, `minute`, `hour` or `day`",
            ));
        }
        kind => kind
            .as_ref()
            .is_some_and(|it| it.value == WindowKind::Sliding),
    };
    if limit == 0 && quantity.is_time() {
        return Err(PolicyError::at(
            source,
            at,
            "no time at all",
            "write a stretch of time",
        ));
    }
    let (models, matcher) = models(source, rule.models.as_ref(), quantity)?;
    if let Some(written) = &rule.without_models
        && !quantity.is_of_calls()
    {
        return Err(PolicyError::at(
            source,
            written.span,
            format!("`{}` is not counted by the gateway", quantity.name()),
            "remove `without_models`",
        ));
    }
    Ok(Budget {
        id: id(source, rule.id.as_ref(), number)?,
        reason: rule.reason.clone(),
        quantity,
        limit,
        per,
        sliding,
        models,
        matcher,
        rules: Vec::new(),
        marks: 0,
        may_sleep: rule
            .without_models
            .as_ref()
            .is_some_and(|it| it.value == WithoutModels::Ignore),
        warn: warn(source, rule.warn.as_deref())?,
        at_limit: at_limit(source, rule, quantity)?,
        place: format!("{}:{}", source.path().display(), source.line(span.offset)),
    })
}

type Parse = fn(&str) -> Result<u64, PatternError>;

/// The one quantity, its amount and its place.
fn amount(
    source: &Source,
    span: Span,
    rule: &BudgetRule,
    vars: &Vars,
) -> Result<(Quantity, u64, Span), PolicyError> {
    let counts = [
        (Quantity::Requests, &rule.requests),
        (Quantity::Tokens, &rule.tokens),
        (Quantity::InputTokens, &rule.input_tokens),
        (Quantity::OutputTokens, &rule.output_tokens),
        (Quantity::CachedTokens, &rule.cached_tokens),
        (Quantity::Execs, &rule.execs),
        (Quantity::Opens, &rule.opens),
        (Quantity::Connects, &rule.connects),
        (Quantity::Processes, &rule.processes),
        (Quantity::Denials, &rule.denials),
    ];
    let times = [
        (Quantity::WallTime, &rule.wall_time),
        (Quantity::CpuTime, &rule.cpu_time),
        (Quantity::IdleTime, &rule.idle_time),
    ];
    let sizes = [
        (Quantity::Bytes, &rule.bytes),
        (Quantity::BytesSent, &rule.bytes_sent),
        (Quantity::BytesReceived, &rule.bytes_received),
    ];
    let written: Vec<(Quantity, &str, Span, Parse)> = counts
        .into_iter()
        .filter_map(|(kind, it)| Some((kind, it.as_ref()?)))
        .map(|(kind, it)| (kind, it.value.0.as_str(), it.span, parse_count as Parse))
        .chain(
            sizes
                .into_iter()
                .filter_map(|(kind, it)| Some((kind, it.as_ref()?)))
                .map(|(kind, it)| (kind, it.value.0.as_str(), it.span, parse_size as Parse)),
        )
        .chain(rule.usd.iter().map(|it| {
            (
                Quantity::Money,
                it.value.0.as_str(),
                it.span,
                parse_usd as Parse,
            )
        }))
        .chain(
            times
                .into_iter()
                .filter_map(|(kind, it)| Some((kind, it.as_ref()?)))
                .map(|(kind, it)| (kind, it.value.0.as_str(), it.span, parse_duration as Parse)),
        )
        .collect();
    match written.as_slice() {
        [(quantity, text, at, parse)] => {
            let text = variable(source, *at, text, vars)?;
            let limit = parse(&text).map_err(|error| pattern_error(source, *at, &text, error))?;
            Ok((*quantity, limit, *at))
        }
        [] => {
            let known = Quantity::ALL.map(Quantity::name).join(", ");
            Err(PolicyError::at(
                source,
                span,
                "the budget does not say what it counts",
                format!("write one of: {known}"),
            ))
        }
        [_, (_, _, at, _), ..] => Err(PolicyError::at(
            source,
            *at,
            "a budget counts one thing",
            "write two budgets: both hold",
        )),
    }
}

/// An amount as it is written, or the value of the variable that stands for it.
fn variable<'a>(
    source: &Source,
    at: Span,
    text: &'a str,
    vars: &Vars,
) -> Result<Cow<'a, str>, PolicyError> {
    let inner = text.strip_prefix("${").and_then(|it| it.strip_suffix('}'));
    let Some(name) = inner else {
        return Ok(Cow::Borrowed(text));
    };
    vars.value_at(name, source, at).map(Cow::Owned)
}

fn per(
    source: &Source,
    span: Span,
    rule: &BudgetRule,
    quantity: Quantity,
) -> Result<Per, PolicyError> {
    match (&rule.per, quantity) {
        (None, Quantity::IdleTime) => Ok(Per::Session),
        (Some(per), Quantity::IdleTime) => Err(PolicyError::at(
            source,
            per.span,
            "idle time is no sum: it has no `per`",
            "remove `per`",
        )),
        (Some(per), _) if quantity.is_time() && matches!(per.value, Per::Second | Per::Minute) => {
            Err(PolicyError::at(
                source,
                per.span,
                format!("`{}` is counted once a second", quantity.name()),
                "write `per: hour`, `day`, `session` or `total`",
            ))
        }
        (Some(per), _) => Ok(per.value),
        (None, _) => Err(PolicyError::at(
            source,
            span,
            "the budget does not say how long it must last",
            "add `per: second`, `minute`, `hour`, `day`, `session` or `total`",
        )),
    }
}

fn models(
    source: &Source,
    written: Option<&OneOrMany<String>>,
    quantity: Quantity,
) -> Result<(Vec<String>, Option<Regex>), PolicyError> {
    let Some(list) = written else {
        return Ok((Vec::new(), None));
    };
    let span = list.0.first().map(|it| it.span).unwrap_or_default();
    if !quantity.is_of_calls() {
        return Err(PolicyError::at(
            source,
            span,
            format!("`{}` is not counted by models", quantity.name()),
            "remove `models`",
        ));
    }
    let mut patterns = Vec::new();
    for glob in &list.0 {
        let pattern = super::models::glob_regex(&glob.value)
            .map_err(|error| pattern_error(source, glob.span, &glob.value, error))?;
        patterns.push(pattern);
    }
    if patterns.is_empty() {
        return Err(PolicyError::at(
            source,
            span,
            "the budget speaks of no model",
            "name models, or remove `models`: then it speaks of all",
        ));
    }
    let matcher = Regex::new_many(&patterns).map_err(|error| {
        PolicyError::at(
            source,
            span,
            format!("these globs are too large: {error}"),
            "write fewer",
        )
    })?;
    let models = list.0.iter().map(|it| it.value.clone()).collect();
    Ok((models, Some(matcher)))
}

fn warn(source: &Source, written: Option<&[At<u8>]>) -> Result<Vec<u8>, PolicyError> {
    let Some(written) = written else {
        return Ok(WARN.to_vec());
    };
    for at in written {
        if !(1..=99).contains(&at.value) {
            return Err(PolicyError::at(
                source,
                at.span,
                format!("a warning at {} % says nothing", at.value),
                "write per cents from 1 to 99",
            ));
        }
    }
    let mut warn: Vec<u8> = written.iter().map(|it| it.value).collect();
    warn.sort_unstable();
    warn.dedup();
    Ok(warn)
}

fn at_limit(
    source: &Source,
    rule: &BudgetRule,
    quantity: Quantity,
) -> Result<AtLimit, PolicyError> {
    match &rule.at_limit {
        Some(act) if act.value == AtLimit::Deny && quantity.is_time() => Err(PolicyError::at(
            source,
            act.span,
            "time cannot be denied",
            "write `deny-network`, `freeze` or `kill`",
        )),
        Some(act) if act.value == AtLimit::Deny && quantity == Quantity::Denials => {
            Err(PolicyError::at(
                source,
                act.span,
                "what is counted was denied already",
                "write `deny-network`, `freeze` or `kill`",
            ))
        }
        Some(act) => Ok(act.value),
        None if quantity.is_time() || quantity == Quantity::Denials => Ok(AtLimit::Freeze),
        None => Ok(AtLimit::Deny),
    }
}

fn id(source: &Source, written: Option<&At<String>>, number: usize) -> Result<String, PolicyError> {
    let Some(id) = written else {
        let stem = source.path().file_stem().unwrap_or_default();
        return Ok(format!("{}:budgets/{number}", stem.to_string_lossy()));
    };
    let text = &id.value;
    if text.is_empty() || text.len() > 64 || !text.bytes().all(is_name_byte) {
        return Err(PolicyError::at(
            source,
            id.span,
            format!("`{}` cannot be the id of a budget", text.escape_debug()),
            "use up to 64 letters, digits, `-`, `_` and `.`",
        ));
    }
    Ok(text.clone())
}
