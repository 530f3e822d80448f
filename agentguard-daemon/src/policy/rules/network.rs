//! Rules about destinations: addresses, names of hosts, Unix-domain sockets, and where an agent listens.

use agentguard_common::verdict::{Verdict, access};

use super::{Head, Lowering};
use crate::policy::address::{NetworkPattern, Ports, Protocol, Range, parse_ports};
use crate::policy::diagnostic::{PolicyError, Span};
use crate::policy::glob::Subject;
use crate::policy::names::{self, NamePattern};
use crate::policy::rule::Matcher;
use crate::policy::schema::{At, Item, Items, Network, NetworkRule, OneOrMany, UnixSetting};

impl Lowering<'_> {
    pub(super) fn network(&mut self, network: &Network) -> Result<(), PolicyError> {
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
            let short = NetworkRule::default();
            let (text, rule, patterns) = match &item.value {
                Item::Pattern(text) => {
                    let pattern = this.pattern(text, item.span, NetworkPattern::parse)?;
                    (one(text, item.span), &short, vec![pattern])
                }
                Item::Rule(rule) => {
                    let written = addresses_of(rule).cloned().collect();
                    let patterns = this.destinations(rule, head.span)?;
                    (OneOrMany(written), &**rule, patterns)
                }
            };
            let matcher = Matcher::Network {
                listen,
                patterns,
                except: this.parsed_opt(rule.except.as_ref(), NetworkPattern::parse)?,
            };
            this.push_rule(head, &text, rule, matcher)
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
                let pattern = self.pattern(text, item.span, NamePattern::parse)?;
                (one(text, item.span), &short, vec![pattern])
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
        let except = self.parsed_opt(rule.except.as_ref(), NamePattern::parse)?;
        if except.iter().any(narrowed) {
            return Err(self.error(
                head.span,
                "exceptions of a name have no port and no protocol",
                "remove them; ports are written on the rule",
            ));
        }
        let matcher = Matcher::Name { patterns, except };
        self.push_rule(head, &names, rule, matcher)?;
        Ok(true)
    }

    /// The patterns of a long rule about names: each name, with the rule's ports and protocol.
    fn named(
        &self,
        names: &OneOrMany<String>,
        rule: &NetworkRule,
    ) -> Result<Vec<NamePattern>, PolicyError> {
        let (ports, protocol) = self.ports_of(rule)?;
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
            Item::Pattern(text) if text.starts_with('@') => (one(text, item.span), &short),
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
        self.push_rule(head, &names, rule, matcher)?;
        Ok(true)
    }

    /// The patterns of a long rule: each range, with the rule's ports and protocol.
    fn destinations(
        &self,
        rule: &NetworkRule,
        span: Span,
    ) -> Result<Vec<NetworkPattern>, PolicyError> {
        let (ports, protocol) = self.ports_of(rule)?;
        let mut patterns = Vec::new();
        for address in addresses_of(rule) {
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

    /// Ports and protocol of a long rule.
    fn ports_of(&self, rule: &NetworkRule) -> Result<(Option<Ports>, Protocol), PolicyError> {
        let protocol = match &rule.protocol {
            Some(name) => self.pattern(&name.value.0, name.span, Protocol::parse)?,
            None => Protocol::Any,
        };
        let Some(list) = &rule.port else {
            return Ok((None, protocol));
        };
        let mut ports = Vec::new();
        for port in &list.0 {
            ports.extend(self.pattern(&port.value.0, port.span, parse_ports)?);
        }
        Ok((Some(ports), protocol))
    }

    fn push_rule(
        &mut self,
        head: &Head<'_>,
        text: &OneOrMany<String>,
        rule: &NetworkRule,
        matcher: Matcher,
    ) -> Result<(), PolicyError> {
        let (id, reason, tests) = (rule.id.clone(), rule.reason.clone(), rule.tests.clone());
        let head = Head {
            audit: rule.audit,
            ..*head
        };
        self.push(&head, text, id, reason, tests, matcher)
    }
}

/// The short form of a rule, as the list that a long one has.
fn one(text: &str, span: Span) -> OneOrMany<String> {
    let value = text.to_owned();
    OneOrMany(vec![At { value, span }])
}

fn addresses_of(rule: &NetworkRule) -> impl Iterator<Item = &At<String>> {
    let lists = rule.cidr.iter().chain(&rule.address);
    lists.flat_map(|list| &list.0)
}
