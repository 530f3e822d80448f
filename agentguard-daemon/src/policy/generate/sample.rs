//! Actions that lie near the rules of a random policy.

use agentguard_common::record::Destination;

use super::{BYTES, Component, Generator, Piece, Target};
use crate::policy::examples::OwnedAction;

impl Generator {
    pub(super) fn path(&mut self) -> Vec<u8> {
        let pattern = self.known_path();
        let mut path = self.sample_path(&pattern);
        self.mutate(&mut path, b"/");
        path
    }

    pub(super) fn program(&mut self) -> Vec<u8> {
        if self.commands.is_empty() || self.random.chance(20) {
            return self.path();
        }
        let at = self.random.below(self.commands.len());
        let pattern = self.commands[at].program.clone();
        let mut path = self.sample_path(&pattern);
        self.mutate(&mut path, b"/");
        path
    }

    pub(super) fn command(&mut self) -> OwnedAction {
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

    pub(super) fn destination(&mut self) -> Destination {
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
    pub(super) fn sample(&mut self, pieces: &[Piece], argument: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Literal(byte) => out.push(*byte),
                Piece::AnyByte | Piece::Class { negated: true, .. } => {
                    out.push(*self.random.pick(BYTES));
                }
                Piece::Star => {
                    out.extend(self.pick_bytes(3));
                    if argument && self.random.chance(20) {
                        out.push(b'/');
                    }
                }
                Piece::Class { members, .. } => out.push(*self.random.pick(members)),
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
