//! Arithmetic on labels: the verdicts that a state stands for, packed into twelve bits, four marks of budgets, and what is
//! recorded.

use agentguard_common::table::path_label::{CONNECT, EXEC, EXEC_BY_COMMAND, LISTEN, READ, WRITE};
use agentguard_common::table::{MARKS, level, network_label};
use agentguard_common::verdict::{Verdict, access};

/// Verdicts for reading, writing, executing, and for Unix-domain sockets connecting and listening (2 bits each), and
/// "a command rule may speak of it"; then marks for budgets, and levels of recording.
pub type Label = u32;

/// What is the same of several rules as of each: bits that are put together. The rest of what permits.
const SAID: Label = MARKS | level::PATHS;
const MAY_WAIT: Label = EXEC_BY_COMMAND;
const READING: Label = 3 << READ;
const WRITING: Label = 3 << WRITE;
const EXECUTING: Label = 3 << EXEC;
const CONNECTING: Label = 3 << CONNECT;
const LISTENING: Label = 3 << LISTEN;
/// The least strict verdict on executing that denies it.
const DENIES: Label = (Verdict::Ask as Label) << EXEC;

/// The label of a program that command rules may speak of.
pub const BY_COMMAND: Label = MAY_WAIT;

/// The strictest of two labels, for each access by itself.
///
/// Where executing is denied, nothing waits for arguments: that bit is then set in both, so that a
/// label that denies everything absorbs all others. For the same reason it has all marks and levels.
pub fn join(a: Label, b: Label) -> Label {
    let strictest = [READING, WRITING, EXECUTING, CONNECTING, LISTENING]
        .into_iter()
        .fold((a | b) & (MAY_WAIT | SAID), |all, field| {
            all | (a & field).max(b & field)
        });
    let waits = if strictest & EXECUTING >= DENIES {
        MAY_WAIT
    } else {
        0
    };
    strictest | waits | if denies_all(strictest) { SAID } else { 0 }
}

/// Whether nothing is permitted, and so nothing counted, and everything recorded.
fn denies_all(label: Label) -> bool {
    [READING, WRITING, EXECUTING, CONNECTING, LISTENING]
        .into_iter()
        .all(|field| label & field == field)
}

/// Whether `b` changes nothing where `a` holds already.
pub fn absorbs(a: Label, b: Label) -> bool {
    join(a, b) == join(a, a)
}

/// The label as the kernel reads it.
pub fn published(label: Label) -> Label {
    let label = if denies_all(label) {
        label & !SAID
    } else {
        label
    };
    if label & EXECUTING >= DENIES {
        label & !MAY_WAIT
    } else {
        label
    }
}

/// The label with marks of budgets.
pub fn marked(label: Label, marks: u32) -> Label {
    label | marks & MARKS
}

/// The label of a path rule.
pub fn of_path(verdict: Verdict, accesses: u8) -> Label {
    [
        (access::READ, READ),
        (access::WRITE, WRITE),
        (access::EXEC, EXEC),
        (access::CONNECT, CONNECT),
        (access::LISTEN, LISTEN),
    ]
    .iter()
    .filter(|(bit, _)| accesses & bit != 0)
    .fold(0, |label, (_, shift)| {
        join(label, Label::from(verdict as u8) << shift)
    })
}

/// The label of a rule about destinations.
pub fn of_destination(verdict: Verdict, listen: bool) -> Label {
    let shift = if listen {
        network_label::LISTEN
    } else {
        network_label::CONNECT
    };
    Label::from(verdict as u8) << shift
}
