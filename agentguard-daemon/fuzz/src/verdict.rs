//! Actions under shipped policies: the compiled table says what the reference says, for any path, command
//! line and address.

use std::cell::OnceCell;

use agentguard::policy::{Action, LoadOptions, Policy, load, table};
use agentguard_common::record::Destination;
use zerocopy::FromBytes as _;

/// Kinds of action.
pub const KINDS: u8 = 5;

thread_local! {
    static POLICIES: OnceCell<Vec<(Policy, Vec<u8>)>> = const { OnceCell::new() };
}

fn shipped() -> Vec<(Policy, Vec<u8>)> {
    let mut options = LoadOptions::default();
    for (name, value) in [("workspace", "/work"), ("home", "/home/user")] {
        options.vars.insert(name.to_owned(), value.to_owned());
    }
    let compiled = |name: &&str| {
        let policy = load(name, &options).expect("a shipped policy");
        let table = policy.compile(1).expect("a table");
        (policy, table.bytes)
    };
    ["coding-agent", "locked-down", "read-only-analyst"]
        .iter()
        .map(compiled)
        .collect()
}

/// The first byte says what kind of action the others are.
pub fn run(data: &[u8]) {
    POLICIES.with(|kept| {
        for (policy, table) in kept.get_or_init(shipped) {
            agree(policy, table, data);
        }
    });
}

/// The table and the reference on the action that the bytes make.
pub fn agree(policy: &Policy, table: &[u8], data: &[u8]) {
    if let [kind, input @ ..] = data {
        agree_on(policy, table, *kind % KINDS, input);
    }
}

/// The same with the kind named. NULs are where arguments end, and paths have none.
pub fn agree_on(policy: &Policy, table: &[u8], kind: u8, input: &[u8]) {
    let mut words = input.split(|byte| *byte == 0);
    let path = words.next().unwrap_or_default();
    let argv: Vec<&[u8]> = words.collect();
    match kind {
        0 => {
            for access in 0..8 {
                same(policy, table, &Action::Path { path, access });
            }
        }
        1 => same(policy, table, &Action::Exec { path, argv: None }),
        2 => same(
            policy,
            table,
            &Action::Exec {
                path,
                argv: Some(&argv),
            },
        ),
        3 => {
            let mut bytes = [0; size_of::<Destination>()];
            for (to, from) in bytes.iter_mut().zip(input) {
                *to = *from;
            }
            if let Ok(destination) = Destination::read_from_bytes(&bytes) {
                let destination = &destination;
                same(policy, table, &Action::Network { destination });
                same(policy, table, &Action::Listen { at: destination });
            }
        }
        _ => {
            // An abstract name may hold NULs.
            let name = [b"\0", input].concat();
            for (name, listen) in [(path, false), (&name[..], false), (&name[..], true)] {
                same(policy, table, &Action::Unix { name, listen });
            }
            for lock in 0..40 {
                same(policy, table, &Action::Kernel { lock });
            }
        }
    }
}

fn same(policy: &Policy, table: &[u8], action: &Action<'_>) {
    let judged = policy.judge(action);
    assert_eq!(
        table::walk(table, action),
        (judged.verdict, judged.reason),
        "{action:?}: {:?}",
        judged.rule
    );
}
