//! The kernel's own decide code against the naive reference, in bulk: the classifier `selftest` runs
//! the code of the hooks under `BPF_PROG_TEST_RUN`, which needs root but no BPF LSM.

#![expect(clippy::unwrap_used, reason = "a test says where it fails")]

#[path = "support/selftest.rs"]
mod selftest;

use agentguard::kernel::{Opening, Ports};
use agentguard::policy::generate::{Generator, Random};
use agentguard::policy::{Action, LoadOptions, OwnedAction, Walks, load_text};
use agentguard_common::record::Destination;
use agentguard_common::selftest::kind;
use agentguard_common::table::{MARKS, SMALL_TABLE, flags};
use agentguard_common::verdict::{Reason, Verdict, access};
use selftest::{Kernel, skipped};
use zerocopy::IntoBytes as _;

/// Policies and actions of the comparison; together at least 200,000 cases.
const POLICIES: u64 = 1_000;
const ACTIONS: usize = 220;
/// Policies of the comparison of moves.
const MOVE_POLICIES: u64 = 300;

/// What the kernel decides.
trait Decides {
    fn decide(&mut self, action: &Action<'_>) -> (Verdict, Reason);
    fn decide_move(&mut self, from: &[u8], to: &[u8]) -> (Verdict, Reason);
    fn decided(&mut self) -> (Verdict, Reason);
    fn is_quiet(&mut self, action: &Action<'_>) -> bool;
    fn marks(&mut self) -> u32;
}

impl Decides for Kernel {
    /// What the kernel decides.
    fn decide(&mut self, action: &Action<'_>) -> (Verdict, Reason) {
        let case = self.case();
        case.args_len = 0;
        case.count = 0;
        let path = match action {
            Action::Path { path, access } => {
                case.kind = kind::FILE;
                case.access = u32::from(*access);
                *path
            }
            Action::Exec { path, argv } => {
                case.kind = if argv.is_some() {
                    kind::COMMAND
                } else {
                    kind::PROGRAM
                };
                let mut at = path.len();
                for argument in argv.unwrap_or_default() {
                    case.bytes[at..at + argument.len()].copy_from_slice(argument);
                    case.bytes[at + argument.len()] = 0;
                    at += argument.len() + 1;
                    case.count += 1;
                }
                case.args_len = (at - path.len()) as u32;
                *path
            }
            Action::Network { destination } => {
                case.kind = kind::NETWORK;
                destination.as_bytes()
            }
            Action::Kernel { lock } => {
                case.kind = kind::LOCK;
                case.access = *lock;
                b""
            }
            Action::Name { .. } => panic!("names are judged when they are resolved"),
            Action::Listen { at } => {
                case.kind = kind::LISTEN;
                at.as_bytes()
            }
            Action::Unix { name, listen } => {
                case.kind = if *listen { kind::ABSTRACT } else { kind::UNIX };
                *name
            }
        };
        case.path_len = path.len() as u32;
        case.bytes[..path.len()].copy_from_slice(path);
        self.decided()
    }

    /// What the kernel decides on giving a folder another name.
    fn decide_move(&mut self, from: &[u8], to: &[u8]) -> (Verdict, Reason) {
        let case = self.case();
        case.kind = kind::MOVE;
        case.path_len = from.len() as u32;
        case.args_len = to.len() as u32;
        case.bytes[..from.len()].copy_from_slice(from);
        case.bytes[from.len()..from.len() + to.len()].copy_from_slice(to);
        self.decided()
    }

    fn decided(&mut self) -> (Verdict, Reason) {
        self.set();
        let result = self.run();
        (
            Verdict::from_number((result >> 16 & 7) as u8).unwrap(),
            Reason::from_number((result & 0xffff) as u16).unwrap(),
        )
    }

    /// Whether the decision before has no record if it is permitted.
    fn is_quiet(&mut self, action: &Action<'_>) -> bool {
        let bit = match action {
            Action::Path { .. } => flags::QUIET_OPENS,
            _ => flags::QUIET,
        };
        self.run() >> 18 & bit != 0
    }

    /// Marks for budgets that came with the decision before.
    fn marks(&mut self) -> u32 {
        self.run() >> 12 & MARKS
    }
}

/// A file is opened for reading or writing; executing is another kind of action.
fn without_exec(action: Action<'_>) -> Action<'_> {
    match action {
        Action::Path { path, access } => Action::Path {
            path,
            access: access & (access::READ | access::WRITE),
        },
        other => other,
    }
}

#[test]
fn the_kernel_agrees_with_the_reference() {
    if skipped() {
        return;
    }
    let mut kernel = Kernel::load();
    let mut cases = 0usize;
    let mut levels = [0usize; 2];
    let mut verdicts = std::collections::BTreeMap::new();
    for seed in 0..POLICIES {
        let mut generator = Generator::new(seed ^ 0x5eed_0000);
        let text = generator.policy();
        let policy = load_text("random.yaml".as_ref(), &text, &LoadOptions::default()).unwrap();
        // One automaton for all paths, and two in lockstep: different code walks them.
        let walks = if seed % 4 < 2 {
            Walks::Fewest
        } else {
            Walks::Two
        };
        let mut table = policy.compile_for(1, walks).unwrap().bytes;
        if seed % 2 == 1 {
            // The same policy in the other size of table, which other code walks.
            table.resize(table.len().max(SMALL_TABLE + 4), 0);
        }
        kernel.guard.install(1, &table).unwrap();
        for _ in 0..ACTIONS {
            generator.action().with(|action| {
                let action = &without_exec(*action);
                let decided = kernel.decide(action);
                let judged = policy.judge(action);
                let mut expected = (judged.verdict, judged.reason);
                if judged.verdict == Verdict::None {
                    // The arguments must be seen first: the hook lets the program go on to that check.
                    expected = (Verdict::Allow, decided.1);
                }
                assert_eq!(
                    decided, expected,
                    "seed {seed}, {action:?}, by {:?}\n{text}",
                    judged.rule
                );
                let has_level = !matches!(action, Action::Exec { .. });
                if has_level && matches!(decided.0, Verdict::Allow | Verdict::Ask) {
                    let quiet = kernel.is_quiet(action);
                    assert_eq!(
                        quiet,
                        !policy.is_recorded(action),
                        "seed {seed}, {action:?}\n{text}"
                    );
                    levels[usize::from(quiet)] += 1;
                }
                *verdicts.entry(decided).or_insert(0usize) += 1;
                cases += 1;
            });
        }
    }
    println!("{cases} cases, 0 differences: {verdicts:?}; {levels:?} recorded and not");
    assert!(levels.iter().all(|level| *level > 5_000), "{levels:?}");
    assert!(cases >= 200_000, "only {cases} cases");
    for verdict in [Verdict::Allow, Verdict::Ask, Verdict::Deny] {
        assert!(verdicts[&(verdict, Reason::Rule)] > 5_000, "{verdicts:?}");
    }
}

/// A path that the generator made.
fn any_path(generator: &mut Generator) -> Vec<u8> {
    loop {
        let action = generator.action();
        if let OwnedAction::Path { path, .. } = action
            && path.starts_with(b"/")
            && path.len() > 1
        {
            return path;
        }
    }
}

/// The reference has no automaton, and cannot say that the same rules apply below two folders. What it can
/// say is that they do not: by one path below each on which it judges differently.
#[test]
fn a_folder_moves_only_to_where_the_same_rules_apply() {
    if skipped() {
        return;
    }
    let mut kernel = Kernel::load();
    let (mut allowed, mut kept, mut refused) = (0u32, 0u32, 0u32);
    for seed in 0..MOVE_POLICIES {
        let mut generator = Generator::new(seed ^ 0x3077_0000);
        let text = generator.policy();
        let policy = load_text("random.yaml".as_ref(), &text, &LoadOptions::default()).unwrap();
        let walks = if seed % 2 == 0 {
            Walks::Fewest
        } else {
            Walks::Two
        };
        kernel
            .guard
            .install(1, &policy.compile_for(1, walks).unwrap().bytes)
            .unwrap();
        let judge = |path: &[u8], access| policy.judge(&Action::Path { path, access });
        let below: Vec<Vec<u8>> = (0..200).map(|_| any_path(&mut generator)).collect();
        for _ in 0..40 {
            let (from, to) = (any_path(&mut generator), any_path(&mut generator));
            let decided = kernel.decide_move(&from, &to);
            let (leaves, arrives) = (judge(&from, access::WRITE), judge(&to, access::WRITE));
            let worse = if arrives.verdict > leaves.verdict {
                arrives
            } else {
                leaves
            };
            if worse.verdict != Verdict::Allow {
                assert_eq!(
                    decided,
                    (worse.verdict, worse.reason),
                    "{from:?} {to:?}\n{text}"
                );
                refused += 1;
                continue;
            }
            match decided {
                (Verdict::Deny, Reason::RulesDiffer) => kept += 1,
                (Verdict::Deny, Reason::NameWidens) => {
                    assert_ne!(judge(&from, access::READ).verdict, Verdict::Allow);
                    refused += 1;
                }
                (Verdict::Allow, _) => {
                    allowed += 1;
                    for suffix in &below {
                        let place = |folder: &[u8]| [folder, suffix].concat();
                        for access in [access::READ, access::WRITE, access::EXEC] {
                            assert_eq!(
                                judge(&place(&from), access).verdict,
                                judge(&place(&to), access).verdict,
                                "seed {seed}: {from:?} may become {to:?}, but {suffix:?} differs\n{text}"
                            );
                        }
                    }
                }
                other => panic!("{other:?} for {from:?} {to:?}\n{text}"),
            }
        }
    }
    println!("{allowed} allowed, {kept} kept in place, {refused} refused by a rule");
    assert!(
        allowed > 500 && kept > 100 && refused > 500,
        "{allowed} {kept} {refused}"
    );
}

#[test]
fn the_comparison_notices_a_removed_rule() {
    if skipped() {
        return;
    }
    let load =
        |text: &str| load_text("policy.yaml".as_ref(), text, &LoadOptions::default()).unwrap();
    let open = "version: 1\nname: a\nfiles:\n  read:\n    default: allow\n";
    let denied = load(&format!("{open}    deny: [\"/secret/**\"]\n"));
    let action = Action::Path {
        path: b"/secret/x",
        access: 1,
    };
    let mut kernel = Kernel::load();
    let mut decide = |table: &[u8]| {
        kernel.guard.install(1, table).unwrap();
        kernel.decide(&action)
    };
    assert_eq!(
        decide(&denied.compile(1).unwrap().bytes),
        (Verdict::Deny, Reason::Rule)
    );
    assert_eq!(
        decide(&load(open).compile(2).unwrap().bytes),
        (Verdict::Allow, Reason::Default)
    );
}

/// Nanoseconds on the clock of the deadlines.
fn now() -> u64 {
    agentguard::kernel::boot_time().unwrap()
}

fn opening(session: u32, address: [u8; 16], deadline: u64, grants: &[Ports]) -> Opening {
    Opening {
        agent: 1,
        session,
        address,
        name: "a.test".to_owned(),
        deadline,
        grants: grants.to_vec(),
    }
}

const HOUR: u64 = 3_600_000_000_000;

/// Random openings, and destinations near them, against a plain list of what was opened.
#[test]
fn what_names_opened_is_open_for_its_ports_and_its_time() {
    if skipped() {
        return;
    }
    let text = "version: 1\nnetwork:\n  allow: [\"a.test\", \"192.0.2.7:9/udp\"]\n  ask: [\"192.0.2.8\"]\n  deny: [\"192.0.2.9\", \"any:25/tcp\"]\n";
    let policy = load_text("names.yaml".as_ref(), text, &LoadOptions::default()).unwrap();
    let mut kernel = Kernel::load();
    let table = policy.compile(1).unwrap().bytes;
    kernel.guard.install(1, &table).unwrap();
    let mut random = Random::new(4);
    let mut opened: Vec<(u32, [u8; 16], bool, Ports)> = Vec::new();
    let address = |random: &mut Random| {
        let mut address = [0; 16];
        address[10..12].fill(0xff);
        address[12..].copy_from_slice(&[192, 0, 2, random.below(12) as u8]);
        if random.chance(20) {
            address[..2].copy_from_slice(&[0x20, 1]);
        }
        address
    };
    let ports = [0u16, 9, 24, 25, 26, 80, 443, 444, 65535];
    for _ in 0..24 {
        let low = *random.pick(&ports);
        let ports = Ports {
            low,
            high: low.saturating_add(*random.pick(&[0, 1, 1000])),
            protocol: *random.pick(&[None, Some(6), Some(17)]),
            marks: *random.pick(&[0, 0x1000, 0x8000, 0x3000]),
        };
        let (session, live) = (1 + u32::from(random.chance(20)), random.chance(70));
        let address = address(&mut random);
        let deadline = if live { now() + HOUR } else { 1 };
        kernel
            .guard
            .open_address(&opening(session, address, deadline, &[ports]))
            .unwrap();
        opened.push((session, address, live, ports));
    }
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..3_000 {
        let destination = Destination {
            family: 10,
            protocol: *random.pick(&[6, 17, 1]),
            port: *random.pick(&ports),
            kind: 1,
            address: address(&mut random),
        };
        let action = Action::Network {
            destination: &destination,
        };
        let judged = policy.judge(&action);
        let by_names = opened.iter().filter(|(session, address, live, ports)| {
            *session == 1
                && *live
                && *address == destination.address
                && (ports.low..=ports.high).contains(&destination.port)
                && ports
                    .protocol
                    .is_none_or(|own| u16::from(own) == destination.protocol)
        });
        let by_names: Vec<u16> = by_names.map(|(.., ports)| ports.marks).collect();
        let is_by_name = judged.reason == Reason::Default && !by_names.is_empty();
        let expected = if is_by_name {
            (Verdict::Allow, Reason::Opened)
        } else {
            (judged.verdict, judged.reason)
        };
        assert_eq!(
            kernel.decide(&action),
            expected,
            "{destination:?} {opened:?}"
        );
        let expected_marks = by_names.iter().filter(|_| is_by_name);
        assert_eq!(
            kernel.marks(),
            expected_marks.fold(0, |all, marks| all | u32::from(*marks)),
            "{destination:?} {opened:?}"
        );
        *counts.entry(expected).or_insert(0u32) += 1;
    }
    println!("{counts:?}");
    assert!(counts[&(Verdict::Allow, Reason::Opened)] > 50, "{counts:?}");
    assert!(counts[&(Verdict::Deny, Reason::Rule)] > 50, "{counts:?}");
    kernel.guard.close_addresses(1).unwrap();
    let destination = Destination {
        family: 2,
        protocol: 6,
        port: 80,
        kind: 1,
        address: opened[0].1,
    };
    let action = Action::Network {
        destination: &destination,
    };
    assert_ne!(kernel.decide(&action), (Verdict::Allow, Reason::Opened));
}

/// What a decision costs with ten addresses that are open, and with a hundred thousand. The figures are printed;
/// no time limit is worth anything on a machine that others use.
#[test]
fn many_open_addresses_are_looked_up_alike() {
    if skipped() {
        return;
    }
    let text = "version: 1\nnetwork:\n  allow: [\"a.test\"]\n";
    let policy = load_text("names.yaml".as_ref(), text, &LoadOptions::default()).unwrap();
    let mut kernel = Kernel::load();
    kernel
        .guard
        .install(1, &policy.compile(1).unwrap().bytes)
        .unwrap();
    let deadline = now() + HOUR;
    let ports = Ports {
        low: 443,
        high: 443,
        protocol: Some(6),
        marks: 0,
    };
    let mut made = 0u32;
    for count in [10u32, 100_000] {
        while made < count {
            let mut address = [0; 16];
            address[10..12].fill(0xff);
            address[12..].copy_from_slice(&(0x0900_0000 + made).to_be_bytes());
            kernel
                .guard
                .open_address(&opening(1, address, deadline, &[ports]))
                .unwrap();
            made += 1;
        }
        let mut address = [0; 16];
        address[10..12].fill(0xff);
        address[12..].copy_from_slice(&(0x0900_0000u32 + 7).to_be_bytes());
        let destination = Destination {
            family: 2,
            protocol: 6,
            port: 443,
            kind: 1,
            address,
        };
        let action = Action::Network {
            destination: &destination,
        };
        assert_eq!(kernel.decide(&action), (Verdict::Allow, Reason::Opened));
        let best = (0..10).map(|_| kernel.time(100_000)).min().unwrap();
        println!(
            "{count} open addresses: {} ns for a decision",
            best.as_nanos()
        );
    }
}
