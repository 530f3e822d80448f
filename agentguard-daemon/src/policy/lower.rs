//! From the text of a policy's files to its rules: variables, patterns, defaults, examples.
//!
//! What is not understood is refused; no rule is ever dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentguard_common::verdict::{Verdict, access};

use super::diagnostic::{PolicyError, Source, Span};
use super::examples::{self, Example};
use super::glob::Glob;
use super::limits::Limits;
use super::load::Parts;
use super::locks::Locks;
use super::names::NameIndex;
use super::own;
use super::recording::Audit;
use super::rule::{Matcher, Rule};
use super::rules::Lowering;
use super::schema::{At, Choice, Document, FileRules, Mode, Switch, UnixSetting};
use super::vars::Vars;
use super::{Defaults, Policy};

/// Builds the policy.
pub fn lower(
    parts: Parts,
    set: &BTreeMap<String, String>,
    fallback_name: &str,
) -> Result<Policy, PolicyError> {
    let Parts { parts, files } = parts;
    let mut vars = Vars::new(set);
    for part in &parts {
        check_head(&part.source, &part.document)?;
        for (name, value) in part.document.vars.iter().flatten() {
            check_var(&part.source, name, value)?;
            vars.define(name, &value.value);
        }
    }
    let mut rules = Vec::new();
    let mut examples = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let mut lowering = Lowering {
            source: &part.source,
            index,
            vars: &vars,
            rules: &mut rules,
        };
        lowering.document(&part.document)?;
        if index == 0 {
            examples = examples::lower(
                &part.source,
                part.document.tests.as_deref().unwrap_or_default(),
                &vars,
            )?;
        }
    }
    let sources: Vec<Arc<Source>> = parts.iter().map(|part| part.source.clone()).collect();
    check_ids(&rules, &sources)?;
    spare_own_socket(&mut rules, &sources);
    let documents: Vec<(&Source, &Document)> =
        parts.iter().map(|p| (&*p.source, &p.document)).collect();
    build(
        &documents,
        sources.clone(),
        files,
        rules,
        examples,
        fallback_name,
        &vars,
    )
}

fn build(
    documents: &[(&Source, &Document)],
    sources: Vec<Arc<Source>>,
    files: Vec<PathBuf>,
    rules: Vec<Rule>,
    examples: Vec<Example>,
    fallback_name: &str,
    vars: &Vars,
) -> Result<Policy, PolicyError> {
    let defaults = defaults(documents);
    let outer = documents[0].1;
    let written = || documents.iter().filter_map(|(_, d)| d.audit.as_ref());
    let own = outer.audit.as_ref().map(|audit| audit.value);
    let level = own.and_then(|own| own.level);
    let repeats = own.and_then(|own| own.repeats);
    Ok(Policy {
        name: outer
            .name
            .as_ref()
            .map_or_else(|| fallback_name.to_owned(), |name| name.value.clone()),
        description: outer.description.clone(),
        mode: mode(documents)?,
        audit: level
            .or(written().filter_map(|audit| audit.value.level).max())
            .unwrap_or(Audit::All),
        repeats: repeats
            .or(written().filter_map(|audit| audit.value.repeats).max())
            .unwrap_or_default(),
        defaults,
        kernel: Locks::join(documents)?,
        limits: Arc::new(Limits::join(documents, &rules, defaults.network, vars)?),
        names: NameIndex::of(&rules),
        rules,
        sources,
        files,
        examples,
    })
}

fn check_head(source: &Source, document: &Document) -> Result<(), PolicyError> {
    let Some(version) = &document.version else {
        return Err(PolicyError::at(
            source,
            Span {
                offset: first_key(source.text()),
                len: 1,
            },
            "the policy does not say which version of the format it is written in",
            "add `version: 1` as its first line",
        ));
    };
    if version.value != 1 {
        return Err(PolicyError::at(
            source,
            version.span,
            format!(
                "version {} of the policy format is not known",
                version.value
            ),
            "this program reads `version: 1`",
        ));
    }
    if let Some(name) = &document.name
        && !is_name(&name.value)
    {
        return Err(PolicyError::at(
            source,
            name.span,
            format!(
                "`{}` cannot be the name of a policy",
                name.value.escape_debug()
            ),
            "use up to 64 letters, digits, `-`, `_` and `.`",
        ));
    }
    Ok(())
}

/// Whether a text can be the name of a policy.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(is_name_byte)
}

/// Bytes of the names of policies and rules.
pub fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

fn first_key(text: &str) -> usize {
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let blank = line.trim().is_empty() || line.starts_with('#') || line.starts_with("---");
        if !blank {
            break;
        }
        offset += line.len();
    }
    offset
}

fn check_var(source: &Source, name: &str, value: &At<String>) -> Result<(), PolicyError> {
    let valid = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !valid {
        return Err(PolicyError::at(
            source,
            value.span,
            format!("`{}` cannot be the name of a variable", name.escape_debug()),
            "use letters, digits and `_`",
        ));
    }
    if value.value.len() > super::MAX_VALUE {
        let message = format!(
            "the value of `{name}` is longer than {} bytes",
            super::MAX_VALUE
        );
        return Err(PolicyError::at(
            source,
            value.span,
            message,
            "no path that can be judged is that long",
        ));
    }
    Ok(())
}

fn check_ids(rules: &[Rule], sources: &[Arc<Source>]) -> Result<(), PolicyError> {
    let mut seen: BTreeMap<&str, &Rule> = BTreeMap::new();
    for rule in rules {
        if let Some(first) = seen.insert(&rule.id, rule) {
            let source = &sources[first.source];
            let place = format!(
                "{}:{}",
                source.path().display(),
                source.line(first.span.offset)
            );
            return Err(PolicyError::at(
                &sources[rule.source],
                rule.id_span,
                format!("the rule id `{}` is used twice", rule.id),
                format!("records name rules by id; the other one is at {place}"),
            ));
        }
    }
    Ok(())
}

/// `shadow` only where the outermost file says so, and no other file insists on `enforce`.
fn mode(documents: &[(&Source, &Document)]) -> Result<Mode, PolicyError> {
    let Some(written) = &documents[0].1.mode else {
        return Ok(Mode::Enforce);
    };
    if written.value == Mode::Shadow
        && let Some((other, _)) = documents[1..].iter().find(|(_, d)| {
            d.mode
                .as_ref()
                .is_some_and(|mode| mode.value == Mode::Enforce)
        })
    {
        return Err(PolicyError::at(
            documents[0].0,
            written.span,
            "`mode: shadow` loosens a policy that must be enforced",
            format!(
                "`{}` says `mode: enforce`; remove one of the two",
                other.path().display()
            ),
        ));
    }
    Ok(written.value)
}

/// The strictest default that any file writes; deny where none does.
fn defaults(documents: &[(&Source, &Document)]) -> Defaults {
    let strictest = |pick: &dyn Fn(&Document) -> Option<Choice>| {
        documents
            .iter()
            .filter_map(|(_, document)| pick(document))
            .map(verdict)
            .fold(Verdict::None, Verdict::strictest)
    };
    let or_deny = |v: Verdict| if v == Verdict::None { Verdict::Deny } else { v };
    let value = |choice: &Option<At<Choice>>| choice.as_ref().map(|choice| choice.value);
    let file = |rules: &Option<FileRules>| rules.as_ref().and_then(|rules| value(&rules.default));
    Defaults {
        read: or_deny(strictest(&|d| {
            d.files
                .as_ref()
                .and_then(|f| file(&f.read).or(value(&f.default)))
        })),
        write: or_deny(strictest(&|d| {
            d.files
                .as_ref()
                .and_then(|f| file(&f.write).or(value(&f.default)))
        })),
        exec: or_deny(strictest(&|d| {
            d.exec.as_ref().and_then(|e| value(&e.default))
        })),
        network: or_deny(strictest(&|d| {
            d.network.as_ref().and_then(|n| value(&n.default))
        })),
        listen: or_deny(strictest(&|d| {
            let network = d.network.as_ref()?;
            let own = network.listen.as_ref().and_then(|l| value(&l.default));
            own.or(value(&network.default))
        })),
        unix: or_deny(strictest(
            &|d| match &d.network.as_ref()?.unix.as_ref()?.value {
                UnixSetting::Switch(Switch::Allow) => Some(Choice::Allow),
                UnixSetting::Switch(Switch::Deny) => Some(Choice::Deny),
                UnixSetting::Rules(rules) => value(&rules.default),
            },
        )),
    }
}

/// AgentGuard's own socket stays within reach, whatever a policy denies: the daemon answers an agent's
/// questions about itself, and no others.
fn spare_own_socket(rules: &mut [Rule], sources: &[Arc<Source>]) {
    let own: Vec<Glob> = rules
        .iter()
        .filter(|rule| sources[rule.source].path() == Path::new(own::PATH))
        .filter(|rule| rule.verdict == Verdict::Allow)
        .filter_map(|rule| match &rule.matcher {
            Matcher::Path {
                access: access::CONNECT,
                patterns,
                ..
            } => Some(patterns.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    for rule in rules {
        if rule.verdict != Verdict::Allow
            && let Matcher::Path {
                access: access::CONNECT,
                except,
                ..
            } = &mut rule.matcher
        {
            except.extend(own.iter().cloned());
        }
    }
}

/// The verdict of a choice.
pub fn verdict(choice: Choice) -> Verdict {
    match choice {
        Choice::Allow => Verdict::Allow,
        Choice::Ask => Verdict::Ask,
        Choice::Deny => Verdict::Deny,
    }
}
