//! From the text of a policy's files to its rules: variables, patterns, defaults, examples.
//!
//! What is not understood is refused; no rule is ever dropped.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use agentguard_common::verdict::{Verdict, access};

use super::address::{NetworkPattern, Protocol, Range, parse_ports};
use super::command::CommandPattern;
use super::diagnostic::{PatternError, PolicyError, Source, Span};
use super::examples::{self, Example};
use super::glob::{Glob, Subject};
use super::load::Parts;
use super::rule::{Matcher, Rule, RuleExample};
use super::schema::{
    At, Audit, Choice, Document, Exec, ExecRule, FileRules, Item, Items, Mode, Network,
    NetworkRule, OneOrMany, PathRule, RuleTests, Switch,
};
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
    let documents: Vec<(&Source, &Document)> =
        parts.iter().map(|p| (&*p.source, &p.document)).collect();
    build(
        &documents,
        sources.clone(),
        files,
        rules,
        examples,
        fallback_name,
    )
}

fn build(
    documents: &[(&Source, &Document)],
    sources: Vec<Arc<Source>>,
    files: Vec<PathBuf>,
    rules: Vec<Rule>,
    examples: Vec<Example>,
    fallback_name: &str,
) -> Result<Policy, PolicyError> {
    let outer = documents[0].1;
    let audit = outer.audit.as_ref().map(|audit| audit.value);
    let inherited = documents
        .iter()
        .filter_map(|(_, d)| d.audit.as_ref())
        .map(|audit| audit.value)
        .max();
    Ok(Policy {
        name: outer
            .name
            .as_ref()
            .map_or_else(|| fallback_name.to_owned(), |name| name.value.clone()),
        description: outer.description.clone(),
        mode: mode(documents)?,
        audit: audit.or(inherited).unwrap_or(Audit::All),
        defaults: defaults(documents),
        unix_allowed: unix_allowed(documents),
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
        && (name.value.is_empty() || name.value.len() > 64 || !name.value.bytes().all(is_name_byte))
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
    let reserved = [
        ("kernel", &document.kernel),
        ("budgets", &document.budgets),
        ("schedule", &document.schedule),
    ];
    for (section, value) in reserved {
        if let Some(value) = value {
            return Err(PolicyError::at(
                source,
                key_before(source, value.span, section),
                format!("the section `{section}` is not supported by this version"),
                "remove it; a section that is not enforced must not look as if it were",
            )
            .label("not enforced by this version"));
        }
    }
    Ok(())
}

fn is_name_byte(byte: u8) -> bool {
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

/// The place of a top-level key, given that of its value.
fn key_before(source: &Source, value: Span, key: &str) -> Span {
    let before = &source.text()[..value.offset.min(source.text().len())];
    before.rfind(key).map_or(value, |offset| Span {
        offset,
        len: key.len(),
    })
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
    }
}

/// Only where it is written, and nowhere denied.
fn unix_allowed(documents: &[(&Source, &Document)]) -> bool {
    let mut written = documents
        .iter()
        .filter_map(|(_, d)| d.network.as_ref()?.unix.as_ref())
        .peekable();
    written.peek().is_some() && written.all(|switch| switch.value == Switch::Allow)
}

/// The verdict of a choice.
pub fn verdict(choice: Choice) -> Verdict {
    match choice {
        Choice::Allow => Verdict::Allow,
        Choice::Ask => Verdict::Ask,
        Choice::Deny => Verdict::Deny,
    }
}

/// What the three kinds of rules have in common.
struct Head<'a> {
    section: &'a str,
    number: usize,
    verdict: Verdict,
    span: Span,
}

struct Lowering<'a> {
    source: &'a Source,
    index: usize,
    vars: &'a Vars,
    rules: &'a mut Vec<Rule>,
}

impl Lowering<'_> {
    fn document(&mut self, document: &Document) -> Result<(), PolicyError> {
        if let Some(files) = &document.files {
            let both = access::READ | access::WRITE;
            if let Some(rules) = &files.read_write
                && let Some(default) = &rules.default
            {
                return Err(PolicyError::at(
                    self.source,
                    default.span,
                    "`read_write` has no default of its own",
                    "write `files: default:` for both, or a default under `read` and `write`",
                ));
            }
            for (section, rules, access) in [
                ("files.read", &files.read, access::READ),
                ("files.write", &files.write, access::WRITE),
                ("files.read_write", &files.read_write, both),
            ] {
                if let Some(rules) = rules {
                    self.files(section, rules, access)?;
                }
            }
        }
        if let Some(exec) = &document.exec {
            self.exec(exec)?;
        }
        if let Some(network) = &document.network {
            self.network(network)?;
        }
        Ok(())
    }

    fn files(&mut self, section: &str, rules: &FileRules, access: u8) -> Result<(), PolicyError> {
        let lists = [
            (&rules.allow, Verdict::Allow),
            (&rules.ask, Verdict::Ask),
            (&rules.deny, Verdict::Deny),
        ];
        self.each(section, lists, |this, head, item| {
            let pattern = |span, text: &String| PathRule {
                path: OneOrMany(vec![At {
                    value: text.clone(),
                    span,
                }]),
                id: None,
                reason: None,
                except: None,
                tests: None,
            };
            let rule = match &item.value {
                Item::Pattern(text) => pattern(item.span, text),
                Item::Rule(rule) => (**rule).clone(),
            };
            let matcher = Matcher::Path {
                access,
                patterns: this.globs(&rule.path, Subject::Path)?,
                except: this.globs_opt(rule.except.as_ref(), Subject::Path)?,
            };
            this.push(head, &rule.path, rule.id, rule.reason, rule.tests, matcher)
        })
    }

    fn exec(&mut self, exec: &Exec) -> Result<(), PolicyError> {
        let lists = [
            (&exec.allow, Verdict::Allow),
            (&exec.ask, Verdict::Ask),
            (&exec.deny, Verdict::Deny),
        ];
        self.each("exec", lists, |this, head, item| {
            let rule = match &item.value {
                Item::Rule(rule) => (**rule).clone(),
                Item::Pattern(text) => {
                    let one = OneOrMany(vec![At { value: text.clone(), span: item.span }]);
                    let command = super::command::words(text).len() > 1;
                    let (path, command) = if command { (None, Some(one)) } else { (Some(one), None) };
                    ExecRule { path, command, argv0: None, id: None, reason: None, except: None, tests: None }
                }
            };
            let (text, matcher) = match (&rule.path, &rule.command) {
                (Some(path), None) if rule.argv0.is_none() => (path, Matcher::Path {
                    access: access::EXEC,
                    patterns: this.globs(path, Subject::Program)?,
                    except: this.globs_opt(rule.except.as_ref(), Subject::Program)?,
                }),
                (None, Some(command)) => (command, this.command(command, &rule)?),
                _ => {
                    return Err(this.error(
                        head.span,
                        "a rule about programs has either `path` or `command`, and `argv0` only with `command`",
                        "`path` speaks of the program whatever its arguments, `command` of program and arguments",
                    ));
                }
            };
            this.push(head, text, rule.id.clone(), rule.reason.clone(), rule.tests.clone(), matcher)
        })
    }

    fn command(
        &self,
        command: &OneOrMany<String>,
        rule: &ExecRule,
    ) -> Result<Matcher, PolicyError> {
        let argv0 = self.globs_opt(rule.argv0.as_ref(), Subject::Argument)?;
        let parse = |text: &str| CommandPattern::parse(text, self.vars);
        let patterns = self.parsed(command, parse)?;
        let except = match &rule.except {
            Some(except) => self.parsed(except, parse)?,
            None => Vec::new(),
        };
        let patterns = patterns
            .into_iter()
            .map(|pattern| pattern.called(&argv0))
            .collect();
        Ok(Matcher::Command { patterns, except })
    }

    fn network(&mut self, network: &Network) -> Result<(), PolicyError> {
        let lists = [
            (&network.allow, Verdict::Allow),
            (&network.ask, Verdict::Ask),
            (&network.deny, Verdict::Deny),
        ];
        self.each("network", lists, |this, head, item| {
            let (patterns, rule) = match &item.value {
                Item::Pattern(text) => (
                    vec![this.pattern(text, item.span, NetworkPattern::parse)?],
                    None,
                ),
                Item::Rule(rule) => (this.destinations(rule, head.span)?, Some(rule)),
            };
            let except = rule.and_then(|rule| rule.except.as_ref());
            let except = except
                .map(|list| this.parsed(list, NetworkPattern::parse))
                .transpose()?
                .unwrap_or_default();
            let text = match &item.value {
                Item::Pattern(text) => vec![At {
                    value: text.clone(),
                    span: item.span,
                }],
                Item::Rule(rule) => rule
                    .cidr
                    .iter()
                    .chain(&rule.address)
                    .flat_map(|list| list.0.clone())
                    .collect(),
            };
            let matcher = Matcher::Network { patterns, except };
            let (id, reason, tests) = rule.map_or((None, None, None), |rule| {
                (rule.id.clone(), rule.reason.clone(), rule.tests.clone())
            });
            this.push(head, &OneOrMany(text), id, reason, tests, matcher)
        })
    }

    /// The patterns of a long rule: each range, with the rule's ports and protocol.
    fn destinations(
        &self,
        rule: &NetworkRule,
        span: Span,
    ) -> Result<Vec<NetworkPattern>, PolicyError> {
        let protocol = match &rule.protocol {
            Some(name) => self.pattern(&name.value.0, name.span, Protocol::parse)?,
            None => Protocol::Any,
        };
        let ports = match &rule.port {
            Some(list) => {
                let mut ports = Vec::new();
                for port in &list.0 {
                    ports.extend(self.pattern(&port.value.0, port.span, parse_ports)?);
                }
                Some(ports)
            }
            None => None,
        };
        let mut patterns = Vec::new();
        for address in rule
            .cidr
            .iter()
            .chain(&rule.address)
            .flat_map(|list| &list.0)
        {
            let range = match address.value.as_str() {
                "any" => None,
                text => Some(self.pattern(text, address.span, Range::parse)?),
            };
            patterns.push(NetworkPattern {
                range,
                ports: ports.clone(),
                protocol,
            });
        }
        if patterns.is_empty() {
            return Err(self.error(
                span,
                "a rule about destinations needs `cidr` or `address`",
                "write `address: any` for every address",
            ));
        }
        self.pattern("", span, |text| patterns[0].check(text))?;
        Ok(patterns)
    }

    fn each<R>(
        &mut self,
        section: &str,
        lists: [(&Items<R>, Verdict); 3],
        mut rule: impl FnMut(&mut Self, &Head<'_>, &At<Item<R>>) -> Result<(), PolicyError>,
    ) -> Result<(), PolicyError> {
        for (items, verdict) in lists {
            let section = format!("{section}.{}", verdict.name());
            for (number, item) in items.iter().flatten().enumerate() {
                let head = Head {
                    section: &section,
                    number: number + 1,
                    verdict,
                    span: item.span,
                };
                rule(self, &head, item)?;
            }
        }
        Ok(())
    }

    fn push(
        &mut self,
        head: &Head<'_>,
        text: &OneOrMany<String>,
        id: Option<At<String>>,
        reason: Option<String>,
        tests: Option<RuleTests>,
        matcher: Matcher,
    ) -> Result<(), PolicyError> {
        if text.0.is_empty() {
            return Err(self.error(
                head.span,
                "the rule has no pattern",
                "write at least one pattern, or remove the rule",
            ));
        }
        let span = id.as_ref().map_or(head.span, |id| id.span);
        let id = match id {
            Some(id)
                if !id.value.is_empty()
                    && id.value.len() <= 64
                    && id.value.bytes().all(is_name_byte) =>
            {
                id.value
            }
            Some(id) => {
                let message = format!("`{}` cannot be the id of a rule", id.value.escape_debug());
                return Err(self.error(
                    id.span,
                    message,
                    "use up to 64 letters, digits, `-`, `_` and `.`",
                ));
            }
            None => {
                let stem = self
                    .source
                    .path()
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy();
                format!("{stem}:{}/{}", head.section, head.number)
            }
        };
        let examples = self.examples(tests.unwrap_or_default())?;
        self.rules.push(Rule {
            id,
            reason,
            verdict: head.verdict,
            matcher,
            text: text
                .0
                .iter()
                .map(|t| t.value.as_str())
                .collect::<Vec<_>>()
                .join(", "),
            source: self.index,
            span: head.span,
            id_span: span,
            examples,
        });
        Ok(())
    }

    fn examples(&self, tests: RuleTests) -> Result<Vec<RuleExample>, PolicyError> {
        let mut examples: Vec<RuleExample> = Vec::new();
        for (list, matching) in [(tests.matching, true), (tests.not_match, false)] {
            for item in list.into_iter().flat_map(|list| list.0) {
                let text = examples::insert_vars(self.source, &item, self.vars)?;
                if let Some(other) = examples
                    .iter()
                    .find(|e| e.text == text && e.matching != matching)
                {
                    let message =
                        "contradictory tests: the same example must match and must not match";
                    let line = self.source.line(other.span.offset);
                    return Err(self.error(
                        item.span,
                        message,
                        format!("remove one of the two; the other is in line {line}"),
                    ));
                }
                examples.push(RuleExample {
                    text,
                    span: item.span,
                    matching,
                });
            }
        }
        Ok(examples)
    }

    fn globs(&self, list: &OneOrMany<String>, subject: Subject) -> Result<Vec<Glob>, PolicyError> {
        self.parsed(list, |text| Glob::parse(text, subject, self.vars))
    }

    fn globs_opt(
        &self,
        list: Option<&OneOrMany<String>>,
        subject: Subject,
    ) -> Result<Vec<Glob>, PolicyError> {
        list.map_or_else(|| Ok(Vec::new()), |list| self.globs(list, subject))
    }

    fn parsed<P>(
        &self,
        list: &OneOrMany<String>,
        parse: impl Fn(&str) -> Result<P, PatternError>,
    ) -> Result<Vec<P>, PolicyError> {
        list.0
            .iter()
            .map(|text| self.pattern(&text.value, text.span, &parse))
            .collect()
    }

    fn pattern<P>(
        &self,
        text: &str,
        span: Span,
        parse: impl Fn(&str) -> Result<P, PatternError>,
    ) -> Result<P, PolicyError> {
        parse(text).map_err(|error| examples::pattern_error(self.source, span, text, error))
    }

    fn error(
        &self,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> PolicyError {
        PolicyError::at(self.source, span, message, help)
    }
}
