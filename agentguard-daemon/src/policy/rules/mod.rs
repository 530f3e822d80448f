//! From the rules of one file, as they are written, to rules that can be judged by.

mod network;

use agentguard_common::verdict::{Verdict, access};

use crate::policy::command::CommandPattern;
use crate::policy::diagnostic::{PatternError, PolicyError, Source, Span};
use crate::policy::examples;
use crate::policy::glob::{Glob, Subject};
use crate::policy::lower::is_name_byte;
use crate::policy::recording::Audit;
use crate::policy::rule::{Matcher, Rule, RuleExample};
use crate::policy::schema::{
    At, Document, Exec, ExecRule, FileRules, Item, Items, OneOrMany, PathRule, RuleTests,
};
use crate::policy::vars::Vars;

/// What the three kinds of rules have in common.
#[derive(Clone, Copy)]
struct Head<'a> {
    section: &'a str,
    number: usize,
    verdict: Verdict,
    span: Span,
    audit: Option<At<Audit>>,
}

/// The rules of one file on their way.
pub struct Lowering<'a> {
    /// The file.
    pub source: &'a Source,
    /// Its number among the policy's files.
    pub index: usize,
    /// Values of variables.
    pub vars: &'a Vars,
    /// Where the rules go.
    pub rules: &'a mut Vec<Rule>,
}

impl Lowering<'_> {
    /// All rules of the file.
    pub fn document(&mut self, document: &Document) -> Result<(), PolicyError> {
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
                    self.files(section, rules, access, Subject::Path)?;
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

    fn files(
        &mut self,
        section: &str,
        rules: &FileRules,
        access: u8,
        subject: Subject,
    ) -> Result<(), PolicyError> {
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
                audit: None,
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
                patterns: this.globs(&rule.path, subject)?,
                except: this.globs_opt(rule.except.as_ref(), subject)?,
            };
            let head = Head {
                audit: rule.audit,
                ..*head
            };
            this.push(&head, &rule.path, rule.id, rule.reason, rule.tests, matcher)
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
                    audit: None,
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
        if let Some(audit) = head.audit
            && head.verdict == Verdict::Deny
        {
            return Err(self.error(
                audit.span,
                "a refusal is always recorded",
                "remove `audit`: it says whether what a rule permits is recorded",
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
            audit: head.audit.map(|audit| audit.value),
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
        self.parsed_opt(list, |text| Glob::parse(text, subject, self.vars))
    }

    fn parsed_opt<P>(
        &self,
        list: Option<&OneOrMany<String>>,
        parse: impl Fn(&str) -> Result<P, PatternError>,
    ) -> Result<Vec<P>, PolicyError> {
        list.map_or_else(|| Ok(Vec::new()), |list| self.parsed(list, parse))
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
