//! From the rules of one file, as they are written, to rules that can be judged by.

use agentguard_common::verdict::{Verdict, access};

use super::address::{NetworkPattern, Protocol, Range, parse_ports};
use super::command::CommandPattern;
use super::diagnostic::{PatternError, PolicyError, Source, Span};
use super::examples;
use super::glob::{Glob, Subject};
use super::lower::is_name_byte;
use super::names::{self, NamePattern};
use super::rule::{Matcher, Rule, RuleExample};
use super::schema::{
    At, Document, Exec, ExecRule, FileRules, Item, Items, Network, NetworkRule, OneOrMany,
    PathRule, RuleTests, UnixSetting,
};
use super::vars::Vars;

/// What the three kinds of rules have in common.
struct Head<'a> {
    section: &'a str,
    number: usize,
    verdict: Verdict,
    span: Span,
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
        self.addresses("network", lists, false)?;
        if let Some(At {
            value: UnixSetting::Rules(rules),
            ..
        }) = &network.unix
        {
            self.files("network.unix", rules, access::CONNECT, Subject::Socket)?;
        }
        if let Some(listen) = &network.listen {
            let lists = [
                (&listen.allow, Verdict::Allow),
                (&listen.ask, Verdict::Ask),
                (&listen.deny, Verdict::Deny),
            ];
            self.addresses("network.listen", lists, true)?;
        }
        Ok(())
    }

    fn addresses(
        &mut self,
        section: &str,
        lists: [(&Items<NetworkRule>, Verdict); 3],
        listen: bool,
    ) -> Result<(), PolicyError> {
        self.each(section, lists, |this, head, item| {
            if this.abstract_names(head, item, listen)? || this.names(head, item, listen)? {
                return Ok(());
            }
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
            let matcher = Matcher::Network {
                listen,
                patterns,
                except,
            };
            let (id, reason, tests) = rule.map_or((None, None, None), |rule| {
                (rule.id.clone(), rule.reason.clone(), rule.tests.clone())
            });
            this.push(head, &OneOrMany(text), id, reason, tests, matcher)
        })
    }

    /// A rule about names of hosts; false if it is another one.
    fn names(
        &mut self,
        head: &Head<'_>,
        item: &At<Item<NetworkRule>>,
        listen: bool,
    ) -> Result<bool, PolicyError> {
        let short = NetworkRule::default();
        let (names, rule, patterns) = match &item.value {
            Item::Pattern(text) if names::is_name(text) => {
                let one = At {
                    value: text.clone(),
                    span: item.span,
                };
                let pattern = self.pattern(text, item.span, NamePattern::parse)?;
                (OneOrMany(vec![one]), &short, vec![pattern])
            }
            Item::Rule(rule) if rule.name.is_some() => {
                let names = rule.name.clone().unwrap_or(OneOrMany(Vec::new()));
                let patterns = self.named(&names, rule)?;
                (names, &**rule, patterns)
            }
            _ => return Ok(false),
        };
        if listen {
            return Err(self.error(
                head.span,
                "nobody listens at a name",
                "write the address, for example `127.0.0.1:8000`",
            ));
        }
        if rule.cidr.is_some() || rule.address.is_some() || rule.unix.is_some() {
            return Err(self.error(
                head.span,
                "a rule is about names or about addresses",
                "write two rules",
            ));
        }
        let narrowed =
            |pattern: &NamePattern| pattern.ports.is_some() || pattern.protocol != Protocol::Any;
        if head.verdict != Verdict::Allow && patterns.iter().any(narrowed) {
            return Err(self.error(
                head.span,
                "a name is denied as a whole, because it is judged when it is resolved, and no port is known then",
                "remove the port and the protocol; a name that no rule permits needs no denial",
            ));
        }
        let except = match &rule.except {
            Some(list) => self.parsed(list, NamePattern::parse)?,
            None => Vec::new(),
        };
        if except.iter().any(narrowed) {
            return Err(self.error(
                head.span,
                "exceptions of a name have no port and no protocol",
                "remove them; ports are written on the rule",
            ));
        }
        let matcher = Matcher::Name { patterns, except };
        let (id, reason, tests) = (rule.id.clone(), rule.reason.clone(), rule.tests.clone());
        self.push(head, &names, id, reason, tests, matcher)?;
        Ok(true)
    }

    /// The patterns of a long rule about names: each name, with the rule's ports and protocol.
    fn named(
        &self,
        names: &OneOrMany<String>,
        rule: &NetworkRule,
    ) -> Result<Vec<NamePattern>, PolicyError> {
        let protocol = match &rule.protocol {
            Some(name) => self.pattern(&name.value.0, name.span, Protocol::parse)?,
            None => Protocol::Any,
        };
        let mut ports = None;
        for port in rule.port.iter().flat_map(|list| &list.0) {
            ports.get_or_insert_with(Vec::new).extend(self.pattern(
                &port.value.0,
                port.span,
                parse_ports,
            )?);
        }
        let mut patterns = Vec::new();
        for name in &names.0 {
            let mut pattern = self.pattern(&name.value, name.span, NamePattern::parse)?;
            if ports.is_some() || rule.protocol.is_some() {
                if pattern.ports.is_some() || pattern.protocol != Protocol::Any {
                    return Err(self.error(
                        name.span,
                        "the port stands both in the name and in the rule",
                        "write it once",
                    ));
                }
                (pattern.ports, pattern.protocol) = (ports.clone(), protocol);
            }
            if pattern.protocol == Protocol::Icmp && pattern.ports.is_some() {
                return Err(self.error(name.span, "ICMP has no ports", "remove the port"));
            }
            patterns.push(pattern);
        }
        Ok(patterns)
    }

    /// A rule about taking abstract names; false if it is another one.
    fn abstract_names(
        &mut self,
        head: &Head<'_>,
        item: &At<Item<NetworkRule>>,
        listen: bool,
    ) -> Result<bool, PolicyError> {
        let short = NetworkRule::default();
        let (names, rule) = match &item.value {
            Item::Pattern(text) if text.starts_with('@') => {
                let one = At {
                    value: text.clone(),
                    span: item.span,
                };
                (OneOrMany(vec![one]), &short)
            }
            Item::Rule(rule) if rule.unix.is_some() => {
                (rule.unix.clone().unwrap_or(OneOrMany(Vec::new())), &**rule)
            }
            _ => return Ok(false),
        };
        if !listen {
            return Err(self.error(
                head.span,
                "Unix-domain sockets have a section of their own",
                "write it under `network: unix: allow:` or `deny:`",
            ));
        }
        let alone = rule.cidr.is_none() && rule.address.is_none() && rule.port.is_none();
        if let Some(path) = names.0.iter().find(|name| !name.value.starts_with('@')) {
            return Err(self.error(
                path.span,
                "only abstract names (`@name`) are listened at by a rule",
                "a socket with a path is a file that is made: write its path under `files: write:`",
            ));
        }
        if !alone || rule.protocol.is_some() {
            return Err(self.error(
                head.span,
                "a rule about abstract names has no address, port or protocol",
                "write two rules",
            ));
        }
        let matcher = Matcher::Path {
            access: access::LISTEN,
            patterns: self.globs(&names, Subject::Socket)?,
            except: self.globs_opt(rule.except.as_ref(), Subject::Socket)?,
        };
        let (id, reason, tests) = (rule.id.clone(), rule.reason.clone(), rule.tests.clone());
        self.push(head, &names, id, reason, tests, matcher)?;
        Ok(true)
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
                "a rule about destinations needs `cidr`, `address` or `name`",
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
