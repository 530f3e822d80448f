//! Why an action has the verdict that it has, and what would change it.
//!
//! An explanation comes from the reference; it never changes a policy.

use std::fmt::Write as _;
use std::net::Ipv6Addr;

use agentguard_common::record::Destination;
use agentguard_common::verdict::{Reason, Verdict, access};
use serde::Serialize;

use super::examples::OwnedAction;
use super::{Action, Policy, Rule};

/// A verdict with its causes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The action, in words.
    pub action: String,
    /// `allow`, `ask` or `deny`.
    pub verdict: &'static str,
    /// `rule`, `default` or `unix-socket`.
    pub cause: &'static str,
    /// The rule that won.
    pub rule: Option<Matched>,
    /// Every rule that matches, in the order of the policy.
    pub matching: Vec<Matched>,
    /// What to write so that the action is allowed; all of it is needed.
    pub to_allow: Vec<String>,
}

/// A rule that matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Matched {
    /// Its id.
    pub id: String,
    /// What it says.
    pub verdict: &'static str,
    /// Its patterns.
    pub patterns: String,
    /// Why.
    pub reason: Option<String>,
    /// Its file.
    pub file: String,
    /// Its line.
    pub line: u32,
}

impl Policy {
    /// Explains the verdict on an action.
    pub fn explain(&self, action: &OwnedAction) -> Explanation {
        action.with(|view| {
            let judgement = self.judge(view);
            let matching = self.matching_rules(view);
            Explanation {
                action: describe(action),
                verdict: judgement.verdict.name(),
                cause: judgement.reason.name(),
                rule: judgement
                    .rule
                    .and_then(|winner| matching.iter().find(|rule| rule.id == winner.id))
                    .map(|rule| self.matched(rule)),
                to_allow: if judgement.verdict == Verdict::Allow {
                    Vec::new()
                } else {
                    self.to_allow(action, view, judgement.reason, &matching)
                },
                matching: matching
                    .into_iter()
                    .map(|rule| self.matched(rule))
                    .collect(),
            }
        })
    }

    fn matched(&self, rule: &Rule) -> Matched {
        let place = self.rule_ref(rule);
        Matched {
            id: place.id,
            verdict: rule.verdict.name(),
            patterns: rule.text.clone(),
            reason: place.reason,
            file: place.file.display().to_string(),
            line: place.line,
        }
    }

    fn to_allow(
        &self,
        action: &OwnedAction,
        view: &Action<'_>,
        reason: Reason,
        matching: &[&Rule],
    ) -> Vec<String> {
        if reason == Reason::UnixSocket
            && matches!(action, OwnedAction::Unix { name, .. } if name.is_empty())
        {
            return vec!["write `network: unix: allow`".into()];
        }
        let pattern = pattern_for(action);
        let mut steps: Vec<String> = matching
            .iter()
            .filter(|rule| rule.verdict != Verdict::Allow)
            .map(|rule| {
                let place = self.rule_ref(rule);
                let file = place.file.display();
                format!(
                    "narrow the rule `{}` ({file}:{}) with `except: [{pattern}]`",
                    rule.id, place.line
                )
            })
            .collect();
        for (section, default, bit) in self.sections(view) {
            let single = bit.map_or(*view, |bit| match *view {
                Action::Path { path, .. } => Action::Path { path, access: bit },
                other => other,
            });
            let permitted = self
                .matching_rules(&single)
                .iter()
                .any(|rule| rule.verdict == Verdict::Allow);
            if default != Verdict::Allow && !permitted {
                steps.push(format!("add {pattern} to `{section}: allow:`"));
            }
        }
        steps
    }

    /// The sections that have a say in an action, with their defaults and accesses.
    fn sections(&self, action: &Action<'_>) -> Vec<(&'static str, Verdict, Option<u8>)> {
        let defaults = self.defaults();
        match *action {
            Action::Path { access, .. } => [
                ("files: read", defaults.read, access::READ),
                ("files: write", defaults.write, access::WRITE),
                ("exec", defaults.exec, access::EXEC),
            ]
            .into_iter()
            .filter(|(_, _, bit)| access & bit != 0)
            .map(|(section, default, bit)| (section, default, Some(bit)))
            .collect(),
            Action::Exec { .. } => vec![("exec", defaults.exec, None)],
            Action::Network { .. } | Action::Name { .. } => {
                vec![("network", defaults.network, None)]
            }
            Action::Listen { .. } | Action::Unix { listen: true, .. } => {
                vec![("network: listen", defaults.listen, None)]
            }
            Action::Unix { .. } => vec![("network: unix", defaults.unix, None)],
            Action::Kernel { .. } => Vec::new(),
        }
    }
}

/// The action in words.
fn describe(action: &OwnedAction) -> String {
    match action {
        OwnedAction::Path { path, access } => {
            let verbs = [
                (access::READ, "read"),
                (access::WRITE, "write"),
                (access::EXEC, "execute"),
            ];
            let verbs: Vec<&str> = verbs
                .iter()
                .filter(|(bit, _)| access & bit != 0)
                .map(|(_, verb)| *verb)
                .collect();
            format!("{} {}", verbs.join(" and "), path.escape_ascii())
        }
        OwnedAction::Exec { path, argv } => {
            let mut text = format!("run {}", path.escape_ascii());
            for argument in argv.iter().skip(1) {
                let _ = write!(text, " {}", argument.escape_ascii());
            }
            text
        }
        OwnedAction::Program { path } => format!("run {}", path.escape_ascii()),
        OwnedAction::Network(destination) => {
            format!("connect to {}", show_destination(destination))
        }
        OwnedAction::Name {
            name,
            port,
            protocol,
        } => format!("connect to {}", show_name(name, *port, *protocol)),
        OwnedAction::Listen(at) => format!("listen at {}", show_destination(at)),
        OwnedAction::Unix { name, .. } if name.is_empty() => "connect to a Unix socket".into(),
        OwnedAction::Unix { name, listen } => {
            let verb = if *listen { "listen at" } else { "connect to" };
            format!("{verb} unix:{}", show_socket(name).escape_ascii())
        }
    }
}

/// A destination as policies write it: `10.1.2.3:443/tcp`, `[::1]:53/udp`.
pub fn show_destination(destination: &Destination) -> String {
    let address = Ipv6Addr::from(destination.address);
    let address = address
        .to_ipv4_mapped()
        .map_or_else(|| format!("[{address}]"), |v4| v4.to_string());
    match destination.protocol {
        6 => format!("{address}:{}/tcp", destination.port),
        17 => format!("{address}:{}/udp", destination.port),
        1 | 58 => format!("{address}/icmp"),
        _ => format!("{address}:{}", destination.port),
    }
}

/// A name as policies write it.
fn show_name(name: &str, port: u16, protocol: u8) -> String {
    match protocol {
        6 => format!("{name}:{port}/tcp"),
        17 => format!("{name}:{port}/udp"),
        _ => format!("{name}/icmp"),
    }
}

/// The name of a socket as policies write it.
fn show_socket(name: &[u8]) -> Vec<u8> {
    match name.split_first() {
        Some((0, rest)) => [b"@", rest].concat(),
        _ => name.to_vec(),
    }
}

/// A quoted pattern that matches this action and no other.
fn pattern_for(action: &OwnedAction) -> String {
    let text = match action {
        OwnedAction::Path { path, .. } | OwnedAction::Program { path } => literal(path),
        OwnedAction::Exec { path, argv } => std::iter::once(path)
            .chain(argv.iter().skip(1))
            .map(|word| literal(word))
            .collect::<Vec<_>>()
            .join(" "),
        OwnedAction::Network(destination) | OwnedAction::Listen(destination) => {
            show_destination(destination)
        }
        OwnedAction::Name {
            name,
            port,
            protocol,
        } => show_name(name, *port, *protocol),
        OwnedAction::Unix { name, .. } => match name.split_first() {
            Some((0, rest)) => format!("@{}", literal(rest)),
            _ => literal(name),
        },
    };
    serde_json::Value::from(text).to_string()
}

/// A pattern that matches these bytes only.
pub fn literal(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '*' | '?' | '[' | ']' | '{' | '}' | '\\' | '$' | '~' | ' ' | '\'' | '"' | ',' => {
                    out.extend(['\\', c]);
                }
                c if c.is_ascii_control() => {
                    let _ = write!(out, "\\x{:02x}", c as u32);
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}
