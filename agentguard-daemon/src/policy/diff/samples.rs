//! What each rule speaks of, by a sample of each of its patterns: states of an automaton know verdicts and no
//! rules, so that the walk alone names one rule where several decide alike.

use agentguard_common::record::Destination;
use agentguard_common::verdict::access;

use super::Found;
use super::walk::READABLE;
use crate::policy::address::{NetworkPattern, Protocol};
use crate::policy::command::{ArgumentPattern, CommandPattern};
use crate::policy::glob::{Glob, Token};
use crate::policy::rule::Matcher;

/// Samples of one pattern; braces can make very many.
const MOST: usize = 16;

/// Names that a pattern matches.
fn samples(glob: &Glob) -> impl Iterator<Item = Vec<u8>> + '_ {
    glob.alternatives().iter().take(MOST).map(|tokens| {
        let mut sample = Vec::new();
        for token in tokens {
            match token {
                Token::Byte(byte) => sample.push(*byte),
                Token::Set(set) => {
                    let readable = READABLE.iter().copied().chain(1..=255);
                    sample.extend(readable.into_iter().find(|byte| set.contains(*byte)));
                }
                Token::Star => sample.push(b'x'),
                Token::Deep | Token::Tail => {}
            }
        }
        sample
    })
}

/// The arguments, `argv[0]` first.
fn arguments(pattern: &CommandPattern, program: &[u8]) -> Vec<Vec<u8>> {
    let name = program.rsplit(|byte| *byte == b'/').next();
    let argv0 = pattern.argv0.first().and_then(|glob| samples(glob).next());
    let mut argv = vec![argv0.unwrap_or_else(|| name.unwrap_or_default().to_vec())];
    for argument in &pattern.arguments {
        if let ArgumentPattern::One(glob) = argument {
            argv.extend(samples(glob).next());
        }
    }
    argv
}

fn destination(pattern: &NetworkPattern) -> Destination {
    let mut address = pattern.range.as_ref().map_or([0; 16], |range| range.first);
    if pattern.range.is_none() {
        // One that is kept for documentation.
        address[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
    }
    let is_v4 = address[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    Destination {
        family: if is_v4 { 2 } else { 10 },
        protocol: match pattern.protocol {
            Protocol::Any | Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Icmp => 1,
        },
        port: match &pattern.ports {
            Some(ports) => ports.first().map_or(443, |(low, _)| *low),
            None => 443,
        },
        kind: 0,
        address,
    }
}

impl Found<'_> {
    pub(super) fn samples(&mut self) {
        let (a, b) = (self.a, self.b);
        for rule in a.rules().iter().chain(b.rules()) {
            match &rule.matcher {
                Matcher::Path {
                    access, patterns, ..
                } => {
                    for path in patterns.iter().flat_map(samples) {
                        self.offer_path(*access, &path);
                    }
                }
                Matcher::Command { patterns, .. } => {
                    for pattern in patterns {
                        for path in samples(&pattern.program) {
                            let mut input = path.clone();
                            for argument in arguments(pattern, &path) {
                                input.push(0);
                                input.extend_from_slice(&argument);
                            }
                            input.push(0);
                            self.offer_command(&input);
                        }
                    }
                }
                Matcher::Network {
                    listen, patterns, ..
                } => {
                    for pattern in patterns {
                        self.offer_destination(&destination(pattern), *listen);
                    }
                }
                // All names of all rules are compared anyway.
                Matcher::Name { .. } => {}
            }
        }
    }

    fn offer_path(&mut self, access: u8, path: &[u8]) {
        for bit in [access::READ, access::WRITE, access::CONNECT, access::LISTEN] {
            if access & bit != 0 {
                self.offer_access(bit, path);
            }
        }
        if access & access::EXEC != 0 {
            let name = path.rsplit(|byte| *byte == b'/').next();
            self.offer_command(&[path, b"\0", name.unwrap_or_default(), b"\0"].concat());
        }
    }
}
