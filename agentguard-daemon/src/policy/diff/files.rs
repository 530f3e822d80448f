//! Files, Unix-domain sockets and programs: a walk through the automata of paths, and on through those of command lines.

use agentguard_common::table::{
    COMMAND_CLASSES, PATH_CLASSES, flags, network_label, path_label, unpack,
};
use agentguard_common::verdict::{Verdict, access};

use super::Found;
use super::recorded::Ears;
use super::walk::{READABLE, Side, Walk, alphabet};
use crate::event::escape::escape;
use crate::policy::rule::Action;

/// Where in a name the walk is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    /// Before it.
    Start,
    /// Behind a slash of a path.
    Slash,
    /// Behind another byte of a path.
    Name,
    /// In an abstract name, which begins with a NUL.
    Abstract,
}

impl At {
    fn step(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Abstract, _) | (Self::Start, 0) => Self::Abstract,
            (Self::Start | Self::Name, b'/') => Self::Slash,
            (Self::Start, _) | (_, 0) | (Self::Slash, b'/') => return None,
            (Self::Slash | Self::Name, _) => Self::Name,
        })
    }
}

const PATH_ACCESS: [(u8, u32); 2] = [
    (access::READ, path_label::READ),
    (access::WRITE, path_label::WRITE),
];
const CONNECT: (u8, u32) = (access::CONNECT, path_label::CONNECT);

impl Found<'_> {
    /// Tells what differs in one access to a name.
    pub(super) fn offer_access(&mut self, access: u8, name: &[u8]) {
        let mut example = String::new();
        let (section, action) = match access {
            access::CONNECT | access::LISTEN => {
                crate::audit::words::unix_text(&mut example, name);
                let listen = access == access::LISTEN;
                let section = if listen { "listen" } else { "unix" };
                (section, Action::Unix { name, listen })
            }
            access => {
                example = escape(name).into_owned();
                let is_read = access == access::READ;
                let section = if is_read { "read" } else { "write" };
                (section, Action::Path { path: name, access })
            }
        };
        self.offer(section, example, &action);
    }

    pub(super) fn paths(&mut self, a: &Side, b: &Side) {
        type State = ([u32; 4], At);
        let bytes = alphabet(a, b, &[PATH_CLASSES], READABLE);
        let start = [
            a.header.anchored.start,
            a.header.floating.start,
            b.header.anchored.start,
            b.header.floating.start,
        ];
        let mut walk: Walk<State> = Walk::from((start, At::Start));
        let mut ears = Ears::default();
        let label = |side: &Side, (one, other): (u32, u32), shift: u32| match unpack(one, shift)
            .strictest(unpack(other, shift))
        {
            Verdict::None => match shift {
                path_label::CONNECT => {
                    unpack(side.header.network_default, network_label::UNIX_CONNECT)
                }
                path_label::LISTEN => unpack(side.header.network_default, network_label::LISTEN),
                _ => unpack(side.header.path_default, shift),
            },
            verdict => verdict,
        };
        while let Some((at, (states, here))) = walk.next() {
            let accesses: &[(u8, u32)] = match here {
                At::Name => &[PATH_ACCESS[0], PATH_ACCESS[1], CONNECT],
                // No path but the root ends in a slash, and that is no socket.
                At::Slash if walk.states[at as usize].1 == 0 => &PATH_ACCESS,
                At::Abstract => &[CONNECT, (access::LISTEN, path_label::LISTEN)],
                At::Start | At::Slash => &[],
            };
            let before = (a.word(states[0]), a.word(states[1]));
            let after = (b.word(states[2]), b.word(states[3]));
            for &(bit, shift) in accesses {
                let (was, is) = (label(a, before, shift), label(b, after, shift));
                if was != is {
                    self.offer_access(bit, &walk.way(at));
                } else if was == Verdict::Allow {
                    let opens = bit & (access::READ | access::WRITE) != 0;
                    let was = a.heard(before.0 | before.1, shift, opens);
                    let is = b.heard(after.0 | after.1, shift, opens);
                    ears.compare(shift, was, is, || {
                        let told = self.changes.changes.len();
                        self.offer_access(bit, &walk.way(at));
                        self.changes.changes.len() > told
                    });
                }
            }
            for &byte in &bytes {
                let Some(there) = here.step(byte) else {
                    continue;
                };
                let next = [
                    a.step(states[0], PATH_CLASSES, byte),
                    a.step(states[1], PATH_CLASSES, byte),
                    b.step(states[2], PATH_CLASSES, byte),
                    b.step(states[3], PATH_CLASSES, byte),
                ];
                walk.go(at, byte, (next, there));
            }
        }
        if walk.full {
            self.changes.unfinished.push("read, write and unix");
        }
    }

    /// Programs, with their arguments: the walk goes through both path automata and the one of commands, and
    /// behind the path through the last alone.
    pub(super) fn commands(&mut self, a: &Side, b: &Side) {
        /// States of paths (labels, behind the path), of commands, how many separators were, and the last byte
        /// where it counts: a slash in the path, or a separator. An automaton may be in one state after a
        /// separator and after another byte, and only the former is the end of a command.
        type State = ([u32; 4], [u32; 2], u8, Option<u8>);
        // Both must agree on the bytes of paths and of commands.
        let bytes = alphabet(a, b, &[PATH_CLASSES, COMMAND_CLASSES], READABLE);
        let start = (
            [
                a.header.anchored.start,
                a.header.floating.start,
                b.header.anchored.start,
                b.header.floating.start,
            ],
            [a.header.command.start, b.header.command.start],
            0,
            None,
        );
        let verdict = |side: &Side, anchored: u32, floating: u32, command: u32| {
            let by_path =
                unpack(anchored, path_label::EXEC).strictest(unpack(floating, path_label::EXEC));
            let by_command = if side.header.flags & flags::HAS_COMMANDS == 0 {
                Verdict::None
            } else {
                unpack(side.word(command), 0)
            };
            match by_path.strictest(by_command) {
                Verdict::None => unpack(side.header.path_default, path_label::EXEC),
                verdict => verdict,
            }
        };
        let mut walk: Walk<State> = Walk::from(start);
        while let Some((at, (paths, commands, parts, last))) = walk.next() {
            let (slash, ended) = (last == Some(b'/'), last == Some(0));
            // With `argv[0]` at least, behind its separator.
            if ended && parts >= 2 {
                let was = verdict(a, paths[0], paths[1], commands[0]);
                let is = verdict(b, paths[2], paths[3], commands[1]);
                if was != is {
                    self.offer_command(&walk.way(at));
                }
            }
            for &byte in &bytes {
                let is_slash = byte == b'/';
                let in_path = parts == 0;
                if in_path
                    && ((is_slash && slash) || (at == 0 && !is_slash) || (byte == 0 && slash))
                {
                    continue;
                }
                let next_commands = [
                    a.step(commands[0], COMMAND_CLASSES, byte),
                    b.step(commands[1], COMMAND_CLASSES, byte),
                ];
                let next_paths = if !in_path {
                    paths
                } else if byte == 0 {
                    // From here on the labels are what counts.
                    [
                        a.word(paths[0]),
                        a.word(paths[1]),
                        b.word(paths[2]),
                        b.word(paths[3]),
                    ]
                } else {
                    [
                        a.step(paths[0], PATH_CLASSES, byte),
                        a.step(paths[1], PATH_CLASSES, byte),
                        b.step(paths[2], PATH_CLASSES, byte),
                        b.step(paths[3], PATH_CLASSES, byte),
                    ]
                };
                let parts = if byte == 0 { (parts + 1).min(2) } else { parts };
                let last = (byte == 0 || (in_path && is_slash)).then_some(byte);
                walk.go(at, byte, (next_paths, next_commands, parts, last));
            }
        }
        if walk.full {
            self.changes.unfinished.push("exec");
        }
    }

    pub(super) fn offer_command(&mut self, input: &[u8]) {
        let input = input.strip_suffix(b"\0").unwrap_or(input);
        let mut parts = input.split(|byte| *byte == 0);
        let path = parts.next().unwrap_or_default();
        let argv: Vec<&[u8]> = parts.collect();
        let mut example = escape(path).into_owned();
        let name = path.rsplit(|byte| *byte == b'/').next();
        if name != argv.first().copied() && argv.len() <= 1 {
            let nicer = [name.unwrap_or_default()];
            let action = Action::Exec {
                path,
                argv: Some(&nicer),
            };
            let before = self.changes.changes.len();
            self.offer("exec", example.clone(), &action);
            if self.changes.changes.len() > before {
                return;
            }
        }
        for argument in argv.iter().skip(1) {
            example.push(' ');
            if argument.is_empty() {
                example.push_str("\'\'");
            }
            example.push_str(&escape(argument));
        }
        let action = Action::Exec {
            path,
            argv: Some(&argv),
        };
        self.offer("exec", example, &action);
    }
}
