//! Destinations, and addresses to listen at: a walk through the automata of their keys.

use agentguard_common::record::Destination;
use agentguard_common::table::{NETWORK_CLASSES, network_label, unpack};
use agentguard_common::verdict::Verdict;

use super::Found;
use super::recorded::Ears;
use super::walk::{READABLE, Side, Walk, alphabet};
use crate::policy::rule::Action;

impl Found<'_> {
    pub(super) fn network(&mut self, a: &Side, b: &Side) {
        const LENGTH: usize = agentguard_common::record::DESTINATION_KEY;
        // NUL is one by itself here, and others of its class are, too: only zeros are the unspecified address.
        let bytes = alphabet(a, b, &[NETWORK_CLASSES], READABLE);
        // The same classes, by protocols that have names.
        let protocols = alphabet(a, b, &[NETWORK_CLASSES], &[6, 17, 1, 58, 132]);
        let start = (
            [a.header.network.start, b.header.network.start],
            0_u8,
            ZEROS,
        );
        let mut walk = Walk::from(start);
        let mut ears = Ears::default();
        let verdict = |side: &Side, state: u32, shift: u32| match unpack(side.word(state), shift) {
            Verdict::None => unpack(side.header.network_default, shift),
            verdict => verdict,
        };
        while let Some((at, (states, depth, zero))) = walk.next() {
            if usize::from(depth) == LENGTH {
                for shift in [network_label::CONNECT, network_label::LISTEN] {
                    let listen = shift == network_label::LISTEN;
                    // Connecting to the unspecified address is judged as connecting to loopback.
                    if zero != OTHER && !listen {
                        continue;
                    }
                    let was = verdict(a, states[0], shift);
                    if was != verdict(b, states[1], shift) {
                        self.offer_destination(&destination(&walk.way(at)), listen);
                    } else if was == Verdict::Allow {
                        let was = a.heard(a.word(states[0]), shift, false);
                        let is = b.heard(b.word(states[1]), shift, false);
                        ears.compare(shift, was, is, || {
                            let told = self.changes.changes.len();
                            self.offer_destination(&destination(&walk.way(at)), listen);
                            self.changes.changes.len() > told
                        });
                    }
                }
                continue;
            }
            let choices: &[u8] = if depth == 16 { &protocols } else { &bytes };
            for &byte in choices {
                let next = [
                    a.step(states[0], NETWORK_CLASSES, byte),
                    b.step(states[1], NETWORK_CLASSES, byte),
                ];
                walk.go(at, byte, (next, depth + 1, unspecified(zero, depth, byte)));
            }
        }
        if walk.full {
            self.changes.unfinished.push("network");
        }
    }

    pub(super) fn offer_destination(&mut self, destination: &Destination, listen: bool) {
        let (section, action) = if listen {
            ("listen", Action::Listen { at: destination })
        } else {
            ("network", Action::Network { destination })
        };
        self.offer(section, text_of(destination), &action);
    }
}

/// Of an address so far: only zeros; zeros and then ones as IPv4 addresses have them; another.
const ZEROS: u8 = 0;
const MAPPED: u8 = 1;
const OTHER: u8 = 2;

/// Whether an address can still be the unspecified one, of IPv6 or of IPv4.
fn unspecified(so_far: u8, depth: u8, byte: u8) -> u8 {
    match (so_far, depth, byte) {
        (ZEROS, 10, 0xff) | (MAPPED, 11, 0xff) | (MAPPED, 12..=15, 0) => MAPPED,
        (ZEROS, 0..=15, 0) => ZEROS,
        (so_far, 16.., _) => so_far,
        _ => OTHER,
    }
}

/// The destination that has this key.
fn destination(key: &[u8]) -> Destination {
    let mut address = [0; 16];
    address.copy_from_slice(&key[..16]);
    Destination {
        family: if address[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] {
            2
        } else {
            10
        },
        protocol: u16::from(key[16]),
        port: u16::from_be_bytes([key[17], key[18]]),
        kind: 0,
        address,
    }
}

fn text_of(destination: &Destination) -> String {
    let mut text = String::new();
    crate::audit::words::destination_text(&mut text, destination);
    let protocol = crate::audit::words::protocol_name(destination.protocol);
    match protocol {
        Some(protocol) => format!("{text}/{protocol}"),
        None => format!("{text}/{}", destination.protocol),
    }
}
