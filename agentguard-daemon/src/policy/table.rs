//! A walker for compiled tables in user space, for tests and for `doctor`: what the kernel does, step by step.
//!
//! It reads nothing but the table; it must never be used in place of the kernel's verdict or of the
//! reference.

use agentguard_common::table::{
    Automaton, COMMAND_CLASSES, COMMAND_SEPARATOR, MAGIC, NETWORK_CLASSES, PATH_CLASSES, ROWS,
    TableHeader, flags, network_label, path_label, unpack,
};
use agentguard_common::verdict::{Reason, Verdict, access};
use zerocopy::FromBytes as _;

use super::rule::Action;

/// The header of a table, if it is whole.
pub fn header(table: &[u8]) -> Option<TableHeader> {
    let (header, _) = TableHeader::read_from_prefix(table).ok()?;
    (header.magic == MAGIC && header.len as usize <= table.len() && table.len() >= ROWS)
        .then_some(header)
}

/// The verdict and reason that a table gives. [`Verdict::None`] where a program's arguments must be seen first.
pub fn walk(table: &[u8], action: &Action<'_>) -> (Verdict, Reason) {
    let Some(header) = header(table) else {
        return (Verdict::Deny, Reason::TableDamaged);
    };
    match *action {
        Action::Path { path, access } => {
            decide_path(&header, path_label_of(table, &header, path), access)
        }
        Action::Exec { path, argv } => decide_exec(table, &header, path, argv),
        Action::Network { destination } => {
            let label = run(table, &header.network, NETWORK_CLASSES, &destination.key());
            or_default(unpack(label, 0), unpack(header.network_default, 0))
        }
        // Names are judged when they are resolved, and never in the kernel.
        Action::Name { .. } => (Verdict::Deny, Reason::Default),
        Action::Listen { at } => {
            let label = run(table, &header.network, NETWORK_CLASSES, &at.listen_key());
            let shift = network_label::LISTEN;
            or_default(unpack(label, shift), unpack(header.network_default, shift))
        }
        Action::Unix { name, listen: true } => or_default(
            unpack(path_label_of(table, &header, name), path_label::LISTEN),
            unpack(header.network_default, network_label::LISTEN),
        ),
        Action::Unix {
            name,
            listen: false,
        } => {
            let found = unpack(path_label_of(table, &header, name), path_label::CONNECT);
            let default = unpack(header.network_default, network_label::UNIX_CONNECT);
            match or_default(found, default) {
                (verdict, Reason::Default) if verdict != Verdict::Allow => {
                    (verdict, Reason::UnixSocket)
                }
                decided => decided,
            }
        }
        Action::Kernel { lock } if lock < 32 && header.kernel >> lock & 1 != 0 => {
            (Verdict::Allow, Reason::Default)
        }
        Action::Kernel { .. } => (Verdict::Deny, Reason::Locked),
    }
}

fn or_default(found: Verdict, default: Verdict) -> (Verdict, Reason) {
    match found {
        Verdict::None => (default, Reason::Default),
        verdict => (verdict, Reason::Rule),
    }
}

/// Runs one automaton over the input; the label of the last state.
fn run(table: &[u8], automaton: &Automaton, classes: usize, input: &[u8]) -> u32 {
    word(table, behind(table, automaton, classes, input))
}

/// The state of an automaton behind an input.
pub(super) fn behind(table: &[u8], automaton: &Automaton, classes: usize, input: &[u8]) -> usize {
    let mut state = automaton.start as usize;
    for byte in input {
        let at = classes + 2 * usize::from(*byte);
        let column = u16::from_le_bytes([table[at], table[at + 1]]);
        state = word(table, state + usize::from(column)) as usize;
    }
    state
}

fn word(table: &[u8], at: usize) -> u32 {
    table.get(at..at + 4).map_or(0, |bytes| {
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    })
}

/// The strictest of both automata.
fn path_label_of(table: &[u8], header: &TableHeader, path: &[u8]) -> u32 {
    let anchored = run(table, &header.anchored, PATH_CLASSES, path);
    let floating = run(table, &header.floating, PATH_CLASSES, path);
    let shifts = [
        path_label::READ,
        path_label::WRITE,
        path_label::EXEC,
        path_label::CONNECT,
        path_label::LISTEN,
    ];
    let strictest = shifts.into_iter().fold(0, |all, shift| {
        all | (unpack(anchored, shift).strictest(unpack(floating, shift)) as u32) << shift
    });
    strictest | ((anchored | floating) & path_label::EXEC_BY_COMMAND)
}

fn decide_path(header: &TableHeader, label: u32, wanted: u8) -> (Verdict, Reason) {
    let wanted = if wanted == 0 {
        access::READ | access::WRITE
    } else {
        wanted
    };
    let mut result = (Verdict::None, Reason::None);
    for (bit, shift) in [
        (access::READ, path_label::READ),
        (access::WRITE, path_label::WRITE),
        (access::EXEC, path_label::EXEC),
    ] {
        if wanted & bit == 0 {
            continue;
        }
        let next = or_default(unpack(label, shift), unpack(header.path_default, shift));
        if next.0 > result.0 || (next.0 == result.0 && next.1 == Reason::Rule) {
            result = next;
        }
    }
    result
}

fn decide_exec(
    table: &[u8],
    header: &TableHeader,
    path: &[u8],
    argv: Option<&[&[u8]]>,
) -> (Verdict, Reason) {
    let label = path_label_of(table, header, path);
    let by_path = unpack(label, path_label::EXEC);
    let default = unpack(header.path_default, path_label::EXEC);
    let by_command = match argv {
        _ if header.flags & flags::HAS_COMMANDS == 0 => Verdict::None,
        Some(argv) => {
            let input = command_input(path, argv);
            unpack(run(table, &header.command, COMMAND_CLASSES, &input), 0)
        }
        None if by_path >= Verdict::Ask => Verdict::None,
        None if by_path == Verdict::Allow || label & path_label::EXEC_BY_COMMAND != 0 => {
            return (Verdict::None, Reason::None);
        }
        None => Verdict::None,
    };
    or_default(by_path.strictest(by_command), default)
}

/// The input of the command automaton: path and arguments, each with its separator.
pub fn command_input(path: &[u8], argv: &[&[u8]]) -> Vec<u8> {
    let mut input = path.to_vec();
    input.push(COMMAND_SEPARATOR);
    for argument in argv {
        input.extend_from_slice(argument);
        input.push(COMMAND_SEPARATOR);
    }
    input
}
