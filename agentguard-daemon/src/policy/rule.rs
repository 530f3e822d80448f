//! Rules after their text is understood: what the reference matcher reads and the compiler compiles.

use std::path::PathBuf;

use agentguard_common::record::Destination;
use agentguard_common::verdict::{Reason, Verdict};

use super::address::NetworkPattern;
use super::command::CommandPattern;
use super::diagnostic::Span;
use super::glob::Glob;
use super::names::NamePattern;
use super::recording::Audit;

/// What a rule speaks of. A rule matches where one of its patterns does and none of its exceptions.
#[derive(Clone, Debug)]
pub enum Matcher {
    /// Resolved paths, for the accesses in `access` (bits of [`agentguard_common::verdict::access`]), and names of
    /// Unix-domain sockets.
    Path {
        /// Which accesses.
        access: u8,
        /// What matches.
        patterns: Vec<Glob>,
        /// What does not, all the same.
        except: Vec<Glob>,
    },
    /// Programs with their arguments.
    Command {
        /// What matches.
        patterns: Vec<CommandPattern>,
        /// What does not, all the same.
        except: Vec<CommandPattern>,
    },
    /// Destinations, or addresses to listen at.
    Network {
        /// Listening, not connecting.
        listen: bool,
        /// What matches.
        patterns: Vec<NetworkPattern>,
        /// What does not, all the same.
        except: Vec<NetworkPattern>,
    },
    /// Names of hosts.
    Name {
        /// What matches.
        patterns: Vec<NamePattern>,
        /// What does not, all the same.
        except: Vec<NamePattern>,
    },
}

/// An example that a rule carries.
#[derive(Clone, Debug)]
pub struct RuleExample {
    /// The example, with its variables replaced.
    pub text: String,
    /// Where it is written.
    pub span: Span,
    /// Whether the rule must match it.
    pub matching: bool,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name in records.
    pub id: String,
    /// Why, for people and agents.
    pub reason: Option<String>,
    /// Allow, ask or deny.
    pub verdict: Verdict,
    /// Whether what it permits is recorded, whatever the level of the policy.
    pub audit: Option<Audit>,
    /// What it speaks of.
    pub matcher: Matcher,
    /// Its patterns as they were written.
    pub text: String,
    /// Index of its file in the policy's sources.
    pub source: usize,
    /// Its place in that file.
    pub span: Span,
    /// The place of its id, or again its own.
    pub id_span: Span,
    /// Its examples.
    pub examples: Vec<RuleExample>,
}

/// An action, as the kernel sees it.
#[derive(Clone, Copy, Debug)]
pub enum Action<'a> {
    /// Open a file.
    Path {
        /// The resolved path.
        path: &'a [u8],
        /// Bits of [`agentguard_common::verdict::access`]; none at all is judged as reading and writing.
        access: u8,
    },
    /// Run a program.
    Exec {
        /// The resolved path of the program.
        path: &'a [u8],
        /// All arguments; `None` for the decision that is taken before they are known.
        argv: Option<&'a [&'a [u8]]>,
    },
    /// Connect or send to an address.
    Network {
        /// Where to.
        destination: &'a Destination,
    },
    /// Connect or send to a host by its name: what resolving it opens.
    Name {
        /// In its normal form.
        name: &'a str,
        /// The port.
        port: u16,
        /// The protocol number.
        protocol: u8,
    },
    /// Listen at an address.
    Listen {
        /// Where.
        at: &'a Destination,
    },
    /// Connect or send to a Unix-domain socket, or take an abstract name.
    Unix {
        /// Its path, or a NUL and its abstract name. Empty for a socket that no rule knows.
        name: &'a [u8],
        /// Take the name.
        listen: bool,
    },
    /// Something that the `kernel` section speaks of.
    Kernel {
        /// Number of the [`agentguard_common::verdict::Lock`].
        lock: u32,
    },
}

/// What was judged, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict. [`Verdict::None`] only for a program whose arguments must be seen first.
    pub verdict: Verdict,
    /// [`Reason::Rule`], [`Reason::Default`], [`Reason::UnixSocket`] or [`Reason::Locked`]; [`Reason::None`] with
    /// [`Verdict::None`].
    pub reason: Reason,
    /// The rule that won.
    pub rule: Option<RuleRef>,
}

/// A rule, for records and people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRef {
    /// Its id.
    pub id: String,
    /// Its reason.
    pub reason: Option<String>,
    /// The file that holds it.
    pub file: PathBuf,
    /// Its line in that file, from 1.
    pub line: u32,
}
