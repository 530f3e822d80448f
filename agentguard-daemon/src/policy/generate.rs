//! Random policies, and random actions that lie near their rules, for comparing judges.
//!
//! Everything follows from the seed. What is made here is hostile on purpose: shared prefixes,
//! newlines, bytes that are not UTF-8, exceptions, prefixes that end inside a byte. Never used
//! outside of tests.

use std::fmt::Write as _;

use agentguard_common::record::Destination;

use super::examples::OwnedAction;

/// A small deterministic generator (SplitMix64).
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
}

impl Generator {
    /// Begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            paths: Vec::new(),
            commands: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// The text of a policy.
    pub fn policy(&mut self) -> String {
        self.paths.clear();
        self.commands.clear();
        self.targets.clear();
        let mut text = String::from("version: 1\nfiles:\n");
        for section in ["read", "write", "read_write"] {
            let _ = writeln!(text, "  {section}:");
            if section != "read_write" {
                self.default(&mut text);
            }
            self.lists(&mut text, Self::path_rule);
        }
        text.push_str("exec:\n");
        self.default(&mut text);
        self.lists(&mut text, Self::exec_rule);
        text.push_str("network:\n");
        self.default(&mut text);
        if self.random.chance(50) {
            let switch = *self.random.pick(&["allow", "deny"]);
            let _ = writeln!(text, "    unix: {switch}");
        }
        self.lists(&mut text, Self::network_rule);
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
            16..=18 => OwnedAction::Network(self.destination()),
            _ => OwnedAction::Unix,
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

    fn lists(&mut self, text: &mut String, rule: fn(&mut Self) -> String) {
        for list in ["allow", "ask", "deny"] {
            let many = if self.random.chance(3) { 8 } else { 3 };
            let count = self.random.below(many);
            let _ = writeln!(text, "    {list}:{}", if count == 0 { " []" } else { "" });
            for _ in 0..count {
                let _ = writeln!(text, "      - {}", rule(self));
            }
        }
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

    fn path(&mut self) -> Vec<u8> {
        let pattern = self.known_path();
        let mut path = self.sample_path(&pattern);
        self.mutate(&mut path, b"/");
        path
    }

    fn program(&mut self) -> Vec<u8> {
        if self.commands.is_empty() || self.random.chance(20) {
            return self.path();
        }
        let at = self.random.below(self.commands.len());
        let pattern = self.commands[at].program.clone();
        let mut path = self.sample_path(&pattern);
        self.mutate(&mut path, b"/");
        path
    }

    fn command(&mut self) -> OwnedAction {
        let path = self.program();
        let pattern = if self.commands.is_empty() {
            Vec::new()
        } else {
            let at = self.random.below(self.commands.len());
            if self.random.chance(70) {
                let program = self.commands[at].program.clone();
                let path = self.sample_path(&program);
                let arguments = self.commands[at].arguments.clone();
                return self.with_arguments(path, &arguments);
            }
            self.commands[at].arguments.clone()
        };
        self.with_arguments(path, &pattern)
    }

    fn with_arguments(&mut self, path: Vec<u8>, pattern: &[Option<Vec<Piece>>]) -> OwnedAction {
        let mut argv = Vec::new();
        if self.random.chance(97) {
            argv.push(self.pick_bytes(3));
            for argument in pattern {
                match argument {
                    Some(pieces) => argv.push(self.sample(pieces, true)),
                    None => {
                        for _ in 0..self.random.below(3) {
                            let argument = self.pick_bytes(3);
                            argv.push(argument);
                        }
                    }
                }
            }
            match self.random.below(8) {
                0 => drop(argv.pop()),
                1 => argv.push(self.pick_bytes(2)),
                2 => {
                    let at = self.random.below(argv.len());
                    self.mutate(&mut argv[at], b"");
                }
                3 => {
                    let at = self.random.below(argv.len());
                    let copy = argv[at].clone();
                    argv.insert(at, copy);
                }
                _ => {}
            }
        }
        OwnedAction::Exec { path, argv }
    }

    fn destination(&mut self) -> Destination {
        let target = if self.targets.is_empty() {
            self.target()
        } else {
            self.random_target()
        };
        let mut address = target.base;
        for (index, byte) in address.iter_mut().enumerate() {
            let free = 0xffu8
                .checked_shr((u32::from(target.bits)).saturating_sub(8 * index as u32))
                .unwrap_or(0);
            *byte |= self.random.bits() as u8 & free;
        }
        if self.random.chance(30) {
            // Just outside of the range, or far.
            let near = usize::from(target.bits).saturating_sub(1);
            let bit = if self.random.chance(60) {
                near
            } else {
                self.random.below(128)
            };
            address[bit / 8] ^= 0x80 >> (bit % 8);
        }
        if self.random.chance(10) {
            address = [0; 16];
            if self.random.chance(50) {
                address[10..12].fill(0xff);
            }
        }
        let (low, high) = target.ports.unwrap_or((0, u16::MAX));
        let port = match self.random.below(6) {
            0 => low.wrapping_sub(1),
            1 => low,
            2 => high,
            3 => high.wrapping_add(1),
            _ => low + (self.random.bits() % (u64::from(high - low) + 1)) as u16,
        };
        let protocol = *self.random.pick(&[6, 6, 6, 17, 17, 1, 58, 132, 0, 255]);
        Destination {
            family: if target.v4 { 2 } else { 10 },
            protocol,
            port,
            kind: 1,
            address,
        }
    }

    fn random_target(&mut self) -> Target {
        let at = self.random.below(self.targets.len());
        self.targets[at].clone()
    }

    fn sample_path(&mut self, components: &[Component]) -> Vec<u8> {
        let mut path = Vec::new();
        for component in components {
            match component {
                Component::Deep => {
                    for _ in 0..self.random.below(3) {
                        path.push(b'/');
                        let name = self.pick_bytes(2);
                        path.extend(name);
                    }
                }
                Component::Name(pieces) => {
                    path.push(b'/');
                    let name = self.sample(pieces, false);
                    path.extend(name);
                }
            }
        }
        if path.is_empty() {
            path.push(b'/');
        }
        path
    }

    /// Bytes that the pieces match.
    fn sample(&mut self, pieces: &[Piece], argument: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Literal(byte) => out.push(*byte),
                Piece::AnyByte => out.push(*self.random.pick(BYTES)),
                Piece::Star => {
                    out.extend(self.pick_bytes(3));
                    if argument && self.random.chance(20) {
                        out.push(b'/');
                    }
                }
                Piece::Class {
                    negated: false,
                    members,
                } => out.push(*self.random.pick(members)),
                Piece::Class { .. } => out.push(*self.random.pick(BYTES)),
                Piece::Either(alternatives) => {
                    let alternative = self.random.pick(alternatives).clone();
                    out.extend(self.sample(&alternative, argument));
                }
            }
        }
        out
    }

    fn pick_bytes(&mut self, up_to: usize) -> Vec<u8> {
        (0..self.random.below(up_to + 1))
            .map(|_| *self.random.pick(BYTES))
            .collect()
    }

    /// Changes a byte or two, in half of the cases.
    fn mutate(&mut self, bytes: &mut Vec<u8>, extra: &[u8]) {
        let alphabet = [BYTES, extra, b"/\x01\x7f"].concat();
        while self.random.chance(35) {
            let at = self.random.below(bytes.len() + 1);
            let byte = *self.random.pick(&alphabet);
            match self.random.below(5) {
                0 => bytes.insert(at, byte),
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 if at < bytes.len() => bytes[at] = byte,
                3 => bytes.truncate(at),
                _ => bytes.extend([b'/', byte]),
            }
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

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn show_path(components: &[Component], bare: bool) -> String {
    let mut text = String::new();
    for (index, component) in components.iter().enumerate() {
        let floats = index == 0 && components.len() > 1 && matches!(component, Component::Deep);
        if bare && index == 0 {
            continue;
        }
        if !floats && !bare {
            text.push('/');
        }
        match component {
            Component::Deep => text.push_str("**"),
            Component::Name(pieces) => show_pieces(pieces, &mut text),
        }
        if floats {
            // The next component brings its own slash.
            continue;
        }
    }
    text
}

fn show_command(command: &Command) -> String {
    let mut text = show_path(&command.program, command.bare);
    for argument in &command.arguments {
        text.push(' ');
        match argument {
            Some(pieces) => show_pieces(pieces, &mut text),
            None => text.push_str("**"),
        }
    }
    text
}

fn show_pieces(pieces: &[Piece], text: &mut String) {
    for piece in pieces {
        match piece {
            Piece::Literal(byte) => show_byte(*byte, text),
            Piece::AnyByte => text.push('?'),
            Piece::Star => text.push('*'),
            Piece::Class { negated, members } => {
                text.push_str(if *negated { "[!" } else { "[" });
                members.iter().for_each(|byte| show_byte(*byte, text));
                text.push(']');
            }
            Piece::Either(alternatives) => {
                text.push('{');
                for (index, alternative) in alternatives.iter().enumerate() {
                    if index > 0 {
                        text.push(',');
                    }
                    show_pieces(alternative, text);
                }
                text.push('}');
            }
        }
    }
}

fn show_byte(byte: u8, text: &mut String) {
    match byte {
        b'/' => text.push('/'),
        b'a'..=b'z' | b'.' | b'_' => text.push(char::from(byte)),
        b'-' | b' ' | b'*' | b'[' | b'{' | b'$' | b'~' | b'?' => {
            text.extend(['\\', char::from(byte)])
        }
        _ => {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
}

fn show_range(target: &Target) -> String {
    if target.any {
        return "any".into();
    }
    if target.v4 {
        let [.., a, b, c, d] = target.base;
        format!("{a}.{b}.{c}.{d}/{}", target.bits - 96)
    } else {
        format!("{}/{}", std::net::Ipv6Addr::from(target.base), target.bits)
    }
}

fn show_target(target: &Target) -> String {
    let range = show_range(target);
    let ports = target
        .ports
        .map_or(String::new(), |(low, high)| format!(":{low}-{high}"));
    if target.v4 || target.any {
        format!("{range}{ports}/{}", target.protocol)
    } else {
        format!("[{range}]{ports}/{}", target.protocol)
    }
}

/// Words that the names of large policies are made of.
const WORDS: &[&str] = &[
    "alpha", "billing", "cache", "data", "export", "feeds", "gateway", "history", "images",
    "journal", "keys", "ledger", "models", "notes", "orders", "public", "queue", "reports",
    "search", "tenant", "users", "vault", "web",
];

/// A policy of `anchored` rules from the root and `floating` rules at any depth, half of those with
/// `/**` at their end: the size that the project promises to carry. No two rules are alike; their
/// names are words with numbers, as names of projects, tenants and users are.
pub fn large(anchored: usize, floating: usize) -> String {
    let mut random = Random::new(0x6c61_7267_6500);
    let mut lists = [const { String::new() }; 4];
    let mut add = |random: &mut Random, pattern: String| {
        let list = random.below(4);
        let _ = writeln!(lists[list], "      - {}", quoted(&pattern));
    };
    for number in 0..anchored {
        let root = random.pick(&["srv", "home", "opt", "var/lib", "data", "usr/share"]);
        let (team, project) = (random.pick(WORDS), random.pick(WORDS));
        let file = random.pick(WORDS);
        let ending = random.pick(&["log", "conf", "rs", "json", "md"]);
        let pattern = match number % 4 {
            0 => format!("/{root}/{team}/{project}{number}/**"),
            1 => format!("/{root}/{team}/{project}{number}/{file}.{ending}"),
            2 => format!("/{root}/{team}/{project}{number}/*.{ending}"),
            _ => format!("/{root}/{team}/{project}{number}/{file}/**"),
        };
        add(&mut random, pattern);
    }
    for number in 0..floating {
        let (name, ending) = (random.pick(WORDS), random.pick(WORDS));
        let pattern = if number % 2 == 0 {
            format!("**/{name}{number}/**")
        } else {
            format!("**/{name}{number}.{ending}")
        };
        add(&mut random, pattern);
    }
    let [read, hidden, write, kept] = lists;
    format!(
        "version: 1\nfiles:\n  read:\n    allow:\n{read}    deny:\n{hidden}  write:\n    allow:\n{write}    deny:\n{kept}"
    )
}
