//! Random policies, and random actions that lie near their rules, for comparing judges.
//!
//! Everything follows from the seed. What is made here is hostile on purpose: shared prefixes,
//! newlines, bytes that are not UTF-8, exceptions, prefixes that end inside a byte. Never used
//! outside of tests.

use std::fmt::Write as _;

use self::show::{quoted, show_command, show_path, show_pieces, show_range, show_target};
use super::examples::OwnedAction;

mod large;
mod sample;
mod show;

pub use large::large;

/// A small deterministic generator (`SplitMix64`).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound.max(1) as u64) as usize
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of the items.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Bytes that literals are made of; few, so that patterns collide.
const BYTES: &[u8] = b"aaabbbcx._-\n \xff\xc3*[{$~?";

/// What may be recorded.
const LEVELS: &[&str] = &["all", "decisions", "denied"];

/// A part of a pattern.
#[derive(Clone, Debug)]
enum Piece {
    Literal(u8),
    AnyByte,
    Star,
    Class { negated: bool, members: Vec<u8> },
    Either(Vec<Vec<Piece>>),
}

/// A component of a path pattern.
#[derive(Clone, Debug)]
enum Component {
    Deep,
    Name(Vec<Piece>),
}

#[derive(Clone, Debug)]
struct Command {
    program: Vec<Component>,
    bare: bool,
    /// `None` is `**`.
    arguments: Vec<Option<Vec<Piece>>>,
}

#[derive(Clone, Debug)]
struct Target {
    base: [u8; 16],
    bits: u8,
    v4: bool,
    any: bool,
    ports: Option<(u16, u16)>,
    protocol: &'static str,
}

/// Makes policies, and actions for the last policy that it made.
#[derive(Clone, Debug)]
pub struct Generator {
    random: Random,
    paths: Vec<Vec<Component>>,
    commands: Vec<Command>,
    targets: Vec<Target>,
    names: Vec<Vec<Piece>>,
}

impl Generator {
    /// Begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            paths: Vec::new(),
            commands: Vec::new(),
            targets: Vec::new(),
            names: Vec::new(),
        }
    }

    /// The text of a policy.
    pub fn policy(&mut self) -> String {
        self.paths.clear();
        self.commands.clear();
        self.targets.clear();
        self.names.clear();
        let mut text = String::from("version: 1\n");
        if self.random.chance(50) {
            let _ = writeln!(text, "audit: {}", self.random.pick(LEVELS));
        }
        text.push_str("files:\n");
        for section in ["read", "write", "read_write"] {
            let _ = writeln!(text, "  {section}:");
            if section != "read_write" {
                self.default(&mut text);
            }
            self.lists(&mut text, Self::path_rule, true);
        }
        text.push_str("exec:\n");
        self.default(&mut text);
        self.lists(&mut text, Self::exec_rule, false);
        text.push_str("network:\n");
        self.default(&mut text);
        if self.random.chance(50) {
            let switch = *self.random.pick(&["allow", "deny"]);
            let _ = writeln!(text, "    unix: {switch}");
        } else {
            text.push_str("    unix:\n");
            self.nested(&mut text, Self::socket_rule);
        }
        self.lists(&mut text, Self::network_rule, true);
        text.push_str("    listen:\n");
        self.nested(&mut text, |this| {
            if this.random.chance(30) {
                quoted(&this.abstract_pattern())
            } else {
                this.network_rule()
            }
        });
        text
    }

    /// An action near one of the policy's rules.
    pub fn action(&mut self) -> OwnedAction {
        match self.random.below(20) {
            0..=9 => {
                let path = self.path();
                OwnedAction::Path {
                    path,
                    access: self.random.below(8) as u8,
                }
            }
            10..=14 => self.command(),
            15 => OwnedAction::Program {
                path: self.program(),
            },
            16 | 17 => OwnedAction::Network(self.destination()),
            18 => OwnedAction::Listen(self.destination()),
            _ => self.socket(),
        }
    }

    fn default(&mut self, text: &mut String) {
        if self.random.chance(60) {
            let _ = writeln!(
                text,
                "    default: {}",
                self.random.pick(&["allow", "ask", "deny"])
            );
        }
    }

    /// Rules; with `levels`, some of those that permit say whether that is recorded.
    fn lists(&mut self, text: &mut String, rule: fn(&mut Self) -> String, levels: bool) {
        for list in ["allow", "ask", "deny"] {
            let many = if self.random.chance(3) { 8 } else { 3 };
            let count = self.random.below(many);
            let _ = writeln!(text, "    {list}:{}", if count == 0 { " []" } else { "" });
            for _ in 0..count {
                let mut rule = rule(self);
                if levels && list != "deny" && rule.ends_with('}') && self.random.chance(30) {
                    rule.pop();
                    let _ = write!(rule, ", audit: {}}}", self.random.pick(LEVELS));
                }
                let _ = writeln!(text, "      - {rule}");
            }
        }
    }

    /// A default and lists, one level deeper.
    fn nested(&mut self, text: &mut String, rule: fn(&mut Self) -> String) {
        let mut inner = String::new();
        self.default(&mut inner);
        self.lists(&mut inner, rule, true);
        for line in inner.lines() {
            let _ = writeln!(text, "  {line}");
        }
    }

    fn socket_rule(&mut self) -> String {
        if self.random.chance(60) {
            return self.path_rule();
        }
        let patterns = self.several(Self::abstract_pattern);
        let except = self.exceptions(Self::abstract_pattern);
        format!("{{path: [{patterns}]{except}}}")
    }

    fn abstract_pattern(&mut self) -> String {
        let pieces = self.name(true);
        self.names.push(pieces.clone());
        let mut text = String::from("@");
        show_pieces(&pieces, &mut text);
        text
    }

    /// A socket near one of the patterns.
    fn socket(&mut self) -> OwnedAction {
        let listen = self.random.chance(40);
        let mut name = if self.random.chance(50) {
            self.path()
        } else {
            vec![0]
        };
        if name == [0] {
            if !self.names.is_empty() {
                let at = self.random.below(self.names.len());
                let pieces = self.names[at].clone();
                let sampled = self.sample(&pieces, true);
                name.extend(sampled);
            }
            if self.random.chance(20) {
                name.push(*self.random.pick(b"\0a/"));
            }
        }
        OwnedAction::Unix { name, listen }
    }

    fn path_rule(&mut self) -> String {
        let patterns = self.several(|this| {
            let pattern = this.path_pattern();
            this.paths.push(pattern.clone());
            show_path(&pattern, false)
        });
        let except = self.exceptions(|this| {
            let pattern = if this.random.chance(50) {
                this.known_path()
            } else {
                this.path_pattern()
            };
            this.paths.push(pattern.clone());
            show_path(&pattern, false)
        });
        format!("{{path: [{patterns}]{except}}}")
    }

    fn exec_rule(&mut self) -> String {
        if self.random.chance(40) {
            return self.path_rule();
        }
        let show = |this: &mut Self| {
            let command = this.command_pattern();
            this.commands.push(command.clone());
            show_command(&command)
        };
        let patterns = self.several(show);
        let except = self.exceptions(show);
        let argv0 = if self.random.chance(15) {
            let mut text = String::new();
            show_pieces(&self.name(true), &mut text);
            format!(", argv0: {}", quoted(&text))
        } else {
            String::new()
        };
        format!("{{command: [{patterns}]{argv0}{except}}}")
    }

    fn network_rule(&mut self) -> String {
        let show = |this: &mut Self| {
            let target = this.target();
            this.targets.push(target.clone());
            show_target(&target)
        };
        if self.random.chance(50) {
            return quoted(&show(self));
        }
        let target = self.target();
        self.targets.push(target.clone());
        let ports = target
            .ports
            .map_or(String::new(), |(low, high)| format!(", port: {low}-{high}"));
        let except = self.exceptions(show);
        let key = if target.any { "address" } else { "cidr" };
        format!(
            "{{{key}: [{}], protocol: {}{ports}{except}}}",
            quoted(&show_range(&target)),
            target.protocol
        )
    }

    /// One to three patterns, quoted and separated.
    fn several(&mut self, mut make: impl FnMut(&mut Self) -> String) -> String {
        let count = 1 + self.random.below(3) * usize::from(self.random.chance(30));
        (0..count)
            .map(|_| quoted(&make(self)))
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn exceptions(&mut self, make: impl FnMut(&mut Self) -> String) -> String {
        if self.random.chance(65) {
            return String::new();
        }
        format!(", except: [{}]", self.several(make))
    }

    fn path_pattern(&mut self) -> Vec<Component> {
        let mut components: Vec<Component> = Vec::new();
        if !self.paths.is_empty() && self.random.chance(40) {
            // Share a prefix with an earlier pattern.
            let other = self.known_path();
            let keep = self.random.below(other.len() + 1);
            components.extend(other[..keep].iter().cloned());
        }
        let wanted = components.len().min(3) + 1 + self.random.below(2);
        while components.len() < wanted {
            let deep =
                self.random.chance(25) && !matches!(components.last(), Some(Component::Deep));
            components.push(if deep {
                Component::Deep
            } else {
                Component::Name(self.name(false))
            });
        }
        if let [Component::Deep] = components.as_slice()
            && self.random.chance(80)
        {
            components.push(Component::Name(self.name(false)));
        }
        components
    }

    fn known_path(&mut self) -> Vec<Component> {
        if self.paths.is_empty() {
            return vec![Component::Name(vec![Piece::Literal(b'a')])];
        }
        let at = self.random.below(self.paths.len());
        self.paths[at].clone()
    }

    /// A component, or an argument (where `/` may occur). Never empty, never only dots.
    fn name(&mut self, argument: bool) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for _ in 0..=self.random.below(3) {
            let piece = self.piece(argument, 0);
            let star_after_star =
                matches!((pieces.last(), &piece), (Some(Piece::Star), Piece::Star));
            if !star_after_star {
                pieces.push(piece);
            }
        }
        let safe = |piece: &Piece| match piece {
            Piece::Literal(byte) => *byte != b'.',
            Piece::Either(_) => false,
            _ => true,
        };
        if !pieces.iter().any(safe) {
            pieces.push(Piece::Literal(b'a'));
        }
        pieces
    }

    fn piece(&mut self, argument: bool, depth: usize) -> Piece {
        match self.random.below(if depth < 2 { 14 } else { 12 }) {
            0 => Piece::AnyByte,
            1 => Piece::Star,
            3 => {
                let members = (0..=self.random.below(3))
                    .map(|_| *self.random.pick(b"abcx.\n\xff\x01"))
                    .collect();
                Piece::Class {
                    negated: self.random.chance(40),
                    members,
                }
            }
            4 if argument => Piece::Literal(b'/'),
            12 | 13 => Piece::Either(
                (0..2 + self.random.below(2))
                    .map(|_| {
                        (0..self.random.below(3))
                            .map(|_| self.piece(argument, depth + 1))
                            .collect::<Vec<_>>()
                    })
                    .map(separate_stars)
                    .collect(),
            ),
            _ => Piece::Literal(*self.random.pick(BYTES)),
        }
    }

    fn command_pattern(&mut self) -> Command {
        if !self.commands.is_empty() && self.random.chance(40) {
            let at = self.random.below(self.commands.len());
            let mut command = self.commands[at].clone();
            let keep = self.random.below(command.arguments.len() + 1);
            command.arguments.truncate(keep);
            self.arguments(&mut command.arguments);
            return command;
        }
        let bare = self.random.chance(50);
        let program = if bare {
            vec![Component::Deep, Component::Name(self.name(false))]
        } else {
            self.path_pattern()
        };
        let mut arguments = Vec::new();
        self.arguments(&mut arguments);
        Command {
            program,
            bare,
            arguments,
        }
    }

    fn arguments(&mut self, arguments: &mut Vec<Option<Vec<Piece>>>) {
        for _ in 0..self.random.below(4) {
            let any = self.random.chance(35) && !matches!(arguments.last(), Some(None));
            let argument = if any { None } else { Some(self.name(true)) };
            arguments.push(argument);
        }
    }

    fn target(&mut self) -> Target {
        let v4 = self.random.chance(50);
        let mut base = [0; 16];
        if v4 {
            base[10..12].fill(0xff);
            for byte in &mut base[12..] {
                *byte = *self.random.pick(&[0, 10, 127, 169, 254, 255]);
            }
        } else if self.random.chance(80) {
            for byte in &mut base {
                *byte = *self.random.pick(&[0, 0, 0, 0x20, 0xfd, 0xff]);
            }
        }
        let bits = if v4 {
            96 + self.random.below(33)
        } else {
            self.random.below(129)
        } as u8;
        mask(&mut base, bits);
        let low = *self
            .random
            .pick(&[0u16, 1, 22, 80, 255, 256, 443, 8000, 65535]);
        let high = low.saturating_add(*self.random.pick(&[0u16, 0, 1, 255, 256, 1000, 65535]));
        let protocol = *self.random.pick(&["any", "tcp", "udp", "icmp"]);
        let ports = (protocol != "icmp" && self.random.chance(60)).then_some((low, high));
        Target {
            base,
            bits,
            v4,
            any: self.random.chance(10),
            ports,
            protocol,
        }
    }
}

fn separate_stars(mut pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.dedup_by(|a, b| matches!((a, b), (Piece::Star, Piece::Star)));
    pieces
}

fn mask(base: &mut [u8; 16], bits: u8) {
    for (index, byte) in base.iter_mut().enumerate() {
        let kept = usize::from(bits).saturating_sub(index * 8).min(8);
        *byte &= (0xff00u16 >> kept) as u8;
    }
}
