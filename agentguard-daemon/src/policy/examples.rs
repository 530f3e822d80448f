//! Inline tests: examples in a policy with the verdict that they must have.
//!
//! They are tried by `policy check` and `policy test` against the reference, never by the daemon.

use std::path::PathBuf;

use agentguard_common::record::Destination;
use agentguard_common::verdict::{Verdict, access};

use super::Policy;
use super::address::{Protocol, parse_destination};
use super::command::words;
use super::diagnostic::{PatternError, PolicyError, Source, Span};
use super::lower::verdict;
use super::names::{self, NamePattern, Shape};
use super::rule::{Action, Matcher, Rule, RuleExample};
use super::schema::{self, At};
use super::vars::Vars;

/// An action that owns its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedAction {
    /// Open a path.
    Path {
        /// The resolved path.
        path: Vec<u8>,
        /// Bits of [`access`].
        access: u8,
    },
    /// Run a program.
    Exec {
        /// The resolved path of the program.
        path: Vec<u8>,
        /// All arguments.
        argv: Vec<Vec<u8>>,
    },
    /// The decision about a program before its arguments are known.
    Program {
        /// The resolved path of the program.
        path: Vec<u8>,
    },
    /// Connect to an address.
    Network(Destination),
    /// Connect to a host by its name.
    Name {
        /// In its normal form.
        name: String,
        /// The port.
        port: u16,
        /// The protocol number.
        protocol: u8,
    },
    /// Listen at an address.
    Listen(Destination),
    /// Connect to a Unix-domain socket, or take an abstract name.
    Unix {
        /// Its path, or a NUL and its abstract name.
        name: Vec<u8>,
        /// Take the name.
        listen: bool,
    },
}

impl OwnedAction {
    /// Calls `f` with the action as the judges take it.
    pub fn with<R>(&self, f: impl FnOnce(&Action<'_>) -> R) -> R {
        match self {
            Self::Path { path, access } => f(&Action::Path {
                path,
                access: *access,
            }),
            Self::Exec { path, argv } => {
                let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
                f(&Action::Exec {
                    path,
                    argv: Some(&argv),
                })
            }
            Self::Program { path } => f(&Action::Exec { path, argv: None }),
            Self::Network(destination) => f(&Action::Network { destination }),
            Self::Name {
                name,
                port,
                protocol,
            } => f(&Action::Name {
                name,
                port: *port,
                protocol: *protocol,
            }),
            Self::Listen(at) => f(&Action::Listen { at }),
            Self::Unix { name, listen } => f(&Action::Unix {
                name,
                listen: *listen,
            }),
        }
    }

    /// A Unix-domain socket as records write it (`unix:/path`, `unix:@name`), or `unix` for one that no rule knows.
    pub fn unix(text: &str, listen: bool) -> Option<Self> {
        let name = match text.strip_prefix("unix")? {
            "" => Vec::new(),
            rest => socket_name(rest.strip_prefix(':')?)?,
        };
        Some(Self::Unix { name, listen })
    }

    /// One name, port and protocol: `NAME:PORT/PROTOCOL` (TCP where none is written).
    fn name(text: &str) -> Result<Self, PatternError> {
        let pattern = NamePattern::parse(text)?;
        let wrong = |message: &str| {
            PatternError::new(
                0,
                text.len(),
                message,
                "write one name, port and protocol: `api.example.com:443/tcp`",
            )
        };
        let Shape::Exact(name) = pattern.shape else {
            return Err(wrong("this is not a single name"));
        };
        let port = match (pattern.ports.as_deref(), pattern.protocol) {
            (None, Protocol::Icmp) => 0,
            (Some([(low, high)]), _) if low == high => *low,
            _ => return Err(wrong("this is not a single port")),
        };
        let protocol = match pattern.protocol {
            Protocol::Tcp | Protocol::Any => 6,
            Protocol::Udp => 17,
            Protocol::Icmp => 1,
        };
        Ok(Self::Name {
            name,
            port,
            protocol,
        })
    }

    /// An action of the kinds `connect` and `listen`.
    pub fn of_network(text: &str, listen: bool) -> Result<Self, PatternError> {
        if let Some(action) = Self::unix(text, listen) {
            return Ok(action);
        }
        if !listen && names::is_name(text) {
            return Self::name(text);
        }
        let destination = parse_destination(text)?;
        Ok(if listen {
            Self::Listen(destination)
        } else {
            Self::Network(destination)
        })
    }

    /// A command line as a person writes it: a bare program name stands for `/usr/bin/NAME`.
    pub fn command(text: &str) -> Option<Self> {
        let argv: Vec<Vec<u8>> = words(text)
            .into_iter()
            .map(|(_, word)| unescape(word))
            .collect();
        Self::argv(argv)
    }

    /// A command line whose words are already apart.
    pub fn argv(argv: Vec<Vec<u8>>) -> Option<Self> {
        let program = argv.first()?;
        let mut path = program.clone();
        if !path.contains(&b'/') {
            path.splice(0..0, *b"/usr/bin/");
        }
        Some(Self::Exec { path, argv })
    }
}

/// The kernel's form of a socket's name: a path, or a NUL and what follows the `@`.
fn socket_name(text: &str) -> Option<Vec<u8>> {
    match text.as_bytes() {
        [b'@', rest @ ..] => Some([b"\0", rest].concat()),
        path @ [b'/', ..] => Some(path.to_vec()),
        _ => None,
    }
}

fn unescape(word: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut escaped = false;
    for byte in word.bytes() {
        if byte == b'\\' && !escaped {
            escaped = true;
        } else {
            bytes.push(byte);
            escaped = false;
        }
    }
    bytes
}

/// An example of the policy's own list.
#[derive(Clone, Debug)]
pub struct Example {
    action: OwnedAction,
    text: String,
    expect: Verdict,
    rule: Option<String>,
    span: Span,
}

/// How one example went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestOutcome {
    /// The example, in a few words.
    pub description: String,
    /// The file that holds it.
    pub file: PathBuf,
    /// Its line, from 1.
    pub line: u32,
    /// `None` if it holds; else what was found instead.
    pub failure: Option<String>,
}

/// Replaces `~` and variables in an example.
pub fn insert_vars(source: &Source, item: &At<String>, vars: &Vars) -> Result<String, PolicyError> {
    let mut out = String::new();
    let mut rest = item.value.as_str();
    let value = |name: &str| vars.value_at(name, source, item.span);
    if rest == "~" || rest.starts_with("~/") {
        out = value("home")?;
        rest = &rest[1..];
    }
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, tail)) = after.split_once('}') else {
            break;
        };
        out.push_str(before);
        out.push_str(&value(name)?);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

/// Gives an error inside a pattern its place in the file.
pub fn pattern_error(source: &Source, span: Span, text: &str, error: PatternError) -> PolicyError {
    let written = source.text().get(span.offset..).unwrap_or_default();
    let exact = |skip: usize| {
        !text.is_empty()
            && written
                .get(skip..)
                .is_some_and(|rest| rest.starts_with(text))
    };
    let quoted = written.starts_with(['"', '\'']) && exact(1);
    let span = if exact(0) || quoted {
        Span {
            offset: span.offset + usize::from(quoted) + error.at,
            len: error.len,
        }
    } else {
        span
    };
    PolicyError::at(source, span, error.message, error.help)
}

/// Understands the examples of a policy's `tests`.
pub fn lower(
    source: &Source,
    tests: &[At<schema::Example>],
    vars: &Vars,
) -> Result<Vec<Example>, PolicyError> {
    let mut examples: Vec<Example> = Vec::new();
    for test in tests {
        let fields = [
            ("read", &test.value.read),
            ("write", &test.value.write),
            ("exec", &test.value.exec),
            ("connect", &test.value.connect),
            ("listen", &test.value.listen),
        ];
        let mut written = fields
            .iter()
            .filter_map(|(kind, list)| list.as_ref().map(|list| (*kind, list)));
        let (Some((kind, list)), None) = (written.next(), written.next()) else {
            return Err(PolicyError::at(
                source,
                test.span,
                "a test has exactly one of `read`, `write`, `exec`, `connect` and `listen`",
                "write one test for each action",
            ));
        };
        for item in &list.0 {
            let example = one(source, kind, item, &test.value, vars)?;
            let other = examples
                .iter()
                .find(|other| other.action == example.action && other.expect != example.expect);
            if let Some(other) = other {
                return Err(PolicyError::at(
                    source,
                    item.span,
                    "contradictory tests: the same action must have two verdicts",
                    format!(
                        "remove one of the two; the other is in line {}",
                        source.line(other.span.offset)
                    ),
                ));
            }
            examples.push(example);
        }
    }
    Ok(examples)
}

fn one(
    source: &Source,
    kind: &str,
    item: &At<String>,
    test: &schema::Example,
    vars: &Vars,
) -> Result<Example, PolicyError> {
    let text = insert_vars(source, item, vars)?;
    let path = |access| -> Result<OwnedAction, PolicyError> {
        if !text.starts_with('/') {
            return Err(PolicyError::at(
                source,
                item.span,
                "the path of a test is absolute, as the kernel resolved it",
                "begin with `/`, `~/` or a variable that holds an absolute path",
            ));
        }
        Ok(OwnedAction::Path {
            path: text.clone().into_bytes(),
            access,
        })
    };
    let action = match kind {
        "read" => path(access::READ)?,
        "write" => path(access::WRITE)?,
        "exec" => OwnedAction::command(&text).ok_or_else(|| {
            PolicyError::at(
                source,
                item.span,
                "the command is empty",
                "write a program and its arguments",
            )
        })?,
        _ => OwnedAction::of_network(&text, kind == "listen")
            .map_err(|error| pattern_error(source, item.span, &item.value, error))?,
    };
    Ok(Example {
        action,
        text: format!("{kind} {text}"),
        expect: verdict(test.expect.value),
        rule: test.rule.as_ref().map(|rule| rule.value.clone()),
        span: item.span,
    })
}

impl Policy {
    /// Tries every example of the policy, and of the rules that it inherits, against the reference.
    pub fn run_inline_tests(&self) -> Vec<TestOutcome> {
        let of_rules = self.rules.iter().flat_map(|rule| {
            rule.examples.iter().map(move |example| TestOutcome {
                description: format!(
                    "rule {} {} {}",
                    rule.id,
                    if example.matching {
                        "matches"
                    } else {
                        "does not match"
                    },
                    example.text.escape_debug()
                ),
                file: self.sources[rule.source].path().to_path_buf(),
                line: self.sources[rule.source].line(example.span.offset),
                failure: try_rule(rule, example),
            })
        });
        let own = self.examples.iter().map(|example| TestOutcome {
            description: format!(
                "{} is {}",
                example.text.escape_debug(),
                example.expect.name()
            ),
            file: self.sources[0].path().to_path_buf(),
            line: self.sources[0].line(example.span.offset),
            failure: self.try_example(example),
        });
        of_rules.chain(own).collect()
    }

    fn try_example(&self, example: &Example) -> Option<String> {
        let judgement = example.action.with(|action| self.judge(action));
        let winner = judgement.rule.as_ref().map(|rule| rule.id.as_str());
        let right = judgement.verdict == example.expect
            && example
                .rule
                .as_deref()
                .is_none_or(|wanted| winner == Some(wanted));
        (!right).then(|| match &judgement.rule {
            Some(rule) => format!(
                "it is {}, by the rule {} ({}:{})",
                judgement.verdict.name(),
                rule.id,
                rule.file.display(),
                rule.line
            ),
            None => format!("it is {}, by default", judgement.verdict.name()),
        })
    }
}

fn try_rule(rule: &Rule, example: &RuleExample) -> Option<String> {
    let bytes = example.text.as_bytes();
    let action = match &rule.matcher {
        Matcher::Path { access, .. } if *access & (access::CONNECT | access::LISTEN) != 0 => {
            socket_name(&example.text).map(|name| OwnedAction::Unix {
                name,
                listen: *access == access::LISTEN,
            })
        }
        Matcher::Path { access, .. } if *access != access::EXEC => Some(OwnedAction::Path {
            path: bytes.to_vec(),
            access: *access,
        }),
        Matcher::Path { .. } | Matcher::Command { .. } => OwnedAction::command(&example.text),
        Matcher::Name { .. } => {
            // Without a port the example is about the name.
            let name = NamePattern::parse(&example.text).ok();
            if let Some(NamePattern {
                shape: Shape::Exact(name),
                ports: None,
                ..
            }) = name
            {
                let matched = names::matches_name(rule, &name);
                return outcome(matched, example);
            }
            OwnedAction::of_network(&example.text, false).ok()
        }
        Matcher::Network { listen, .. } => {
            let of = if *listen {
                OwnedAction::Listen
            } else {
                OwnedAction::Network
            };
            parse_destination(&example.text).ok().map(of)
        }
    };
    let Some(action) = action else {
        return Some("the example is not an action that the rule could speak of".into());
    };
    let matched = action.with(|action| super::judge::rule_matches(rule, action));
    outcome(matched, example)
}

fn outcome(matched: bool, example: &RuleExample) -> Option<String> {
    (matched != example.matching).then(|| {
        if matched {
            "it matches".into()
        } else {
            "it does not match".into()
        }
    })
}
