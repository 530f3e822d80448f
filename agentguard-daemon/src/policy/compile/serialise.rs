//! The table's bytes. The layout is that of `agentguard_common::table`; nothing else knows it here.

use agentguard_common::record::{MAPPED, MAPPED_LEN};
use agentguard_common::table::network_label;
use agentguard_common::table::{
    Automaton, COMMAND_CLASSES, MAGIC, NARROW_CLASSES, NETWORK_CLASSES, PATH_CLASSES, ROWS,
    TableHeader, flags,
};
use agentguard_common::verdict::access;
use sha2::Digest as _;
use zerocopy::IntoBytes as _;

use super::classes::Classes;
use super::label;
use super::subset::Dfa;
use crate::policy::{Matcher, Mode, Policy, RepeatedActs, table};

/// Writes the table. Classes: paths, commands, destinations. Automata: anchored, floating, command, network.
pub fn serialise(
    policy: &Policy,
    generation: u32,
    one_walk: bool,
    classes: [&Classes; 3],
    automata: [&Dfa; 4],
) -> Vec<u8> {
    let mut bytes = vec![0; ROWS];
    for (at, classes) in [PATH_CLASSES, COMMAND_CLASSES, NETWORK_CLASSES]
        .into_iter()
        .zip(classes)
    {
        for (byte, class) in classes.of.iter().enumerate() {
            let column = 4 * (1 + u16::from(*class));
            bytes[at + 2 * byte..][..2].copy_from_slice(&column.to_le_bytes());
        }
    }
    let walk = match narrow_columns(classes[0]) {
        Some(columns) if one_walk => {
            bytes[NARROW_CLASSES..ROWS].copy_from_slice(&columns);
            flags::ONE_WALK | flags::NARROW
        }
        _ if one_walk => flags::ONE_WALK,
        _ => 0,
    };
    let placed = automata.map(|dfa| append(&mut bytes, dfa));
    let [anchored, floating, command, network] = placed;
    let defaults = policy.defaults;
    let path_default = [
        (defaults.read, access::READ),
        (defaults.write, access::WRITE),
        (defaults.exec, access::EXEC),
    ]
    .into_iter()
    .fold(0, |all, (verdict, bit)| {
        label::join(all, label::of_path(verdict, bit))
    });
    let mapped = mapped();
    let header = TableHeader {
        magic: MAGIC,
        len: bytes.len() as u32,
        generation,
        flags: header_flags(policy) | walk,
        path_default: label::published(path_default),
        network_default: (defaults.network as u32) << network_label::CONNECT
            | (defaults.listen as u32) << network_label::LISTEN
            | (defaults.unix as u32) << network_label::UNIX_CONNECT,
        kernel: policy.kernel_permits(),
        mapped: table::behind(&bytes, &network, NETWORK_CLASSES, &mapped) as u32,
        anchored,
        floating,
        command,
        network,
        automata: digest(&bytes[PATH_CLASSES..]),
    };
    let head = header.as_bytes();
    bytes[..head.len()].copy_from_slice(head);
    bytes
}

/// What every address of IPv4 begins with.
fn mapped() -> [u8; MAPPED_LEN] {
    let mut bytes = [0; MAPPED_LEN];
    bytes[MAPPED_LEN - size_of_val(&MAPPED)..].copy_from_slice(&MAPPED.to_ne_bytes());
    bytes
}

/// A number of the bytes, which is not 0.
fn digest(bytes: &[u8]) -> u64 {
    let digest = sha2::Sha256::digest(bytes);
    let number = digest.first_chunk().map_or(0, |it| u64::from_le_bytes(*it));
    number.max(1)
}

/// The columns of the classes of bytes, if each fits a byte.
fn narrow_columns(classes: &Classes) -> Option<[u8; 256]> {
    let mut columns = [0; 256];
    for (column, class) in columns.iter_mut().zip(classes.of.iter()) {
        *column = u8::try_from(4 * (1 + u16::from(*class))).ok()?;
    }
    Some(columns)
}

fn header_flags(policy: &Policy) -> u32 {
    let commands = policy
        .rules
        .iter()
        .any(|rule| matches!(rule.matcher, Matcher::Command { .. }));
    [
        (policy.mode == Mode::Shadow, flags::SHADOW),
        (policy.repeats == RepeatedActs::Fold, flags::FOLD),
        (commands, flags::HAS_COMMANDS),
        (policy.has_name_rules(), flags::HAS_NAMES),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .fold(
        policy.limits.kinds() << flags::BUDGETS | policy.audit.flags(),
        |all, (_, flag)| all | flag,
    )
}

fn append(bytes: &mut Vec<u8>, dfa: &Dfa) -> Automaton {
    let start = bytes.len();
    let row = 4 * (1 + dfa.classes);
    for (state, label) in dfa.labels.iter().enumerate() {
        bytes.extend(label.to_le_bytes());
        for to in &dfa.next[state * dfa.classes..(state + 1) * dfa.classes] {
            bytes.extend(((start + *to as usize * row) as u32).to_le_bytes());
        }
    }
    Automaton {
        start: start as u32,
        classes: dfa.classes as u32,
        states: dfa.labels.len() as u32,
        reserved: 0,
    }
}
