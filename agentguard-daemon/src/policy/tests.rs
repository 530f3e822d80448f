//! Tests of the rooms together: text to verdict.

use std::net::Ipv4Addr;
use std::path::Path;

use agentguard_common::record::{Destination, reached};
use agentguard_common::verdict::{Reason, Verdict, access};

use super::*;

fn policy(text: &str) -> Policy {
    let options = LoadOptions {
        search: Vec::new(),
        vars: [("workspace", "/work/x"), ("home", "/home/u")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        ..LoadOptions::default()
    };
    load_text(Path::new("test.yaml"), text, &options)
        .unwrap_or_else(|error| panic!("{error}: {}", error.help_text()))
}

/// The verdict of both judges.
fn verdict(policy: &Policy, action: &OwnedAction) -> Verdict {
    let table = policy.compile(1).expect("a table");
    action.with(|action| {
        let judgement = policy.judge(action);
        assert_eq!(
            (judgement.verdict, judgement.reason),
            table::walk(&table.bytes, action),
            "{action:?}"
        );
        judgement.verdict
    })
}

fn reads(globs: &str, path: &str) -> bool {
    let policy = policy(&format!(
        "version: 1\nfiles: {{read: {{allow: {globs}}}}}\n"
    ));
    let action = OwnedAction::Path {
        path: path.as_bytes().to_vec(),
        access: access::READ,
    };
    verdict(&policy, &action) == Verdict::Allow
}

#[test]
fn globs_mean_what_the_manual_says() {
    let rows: &[(&str, &[&str], &[&str])] = &[
        (
            "['/a/**']",
            &["/a", "/a/", "/a/b", "/a/b/c", "/a/\nb"],
            &["/ab", "/", "/b/a"],
        ),
        (
            "['/a/*']",
            &["/a/b", "/a/.b", "/a/\n"],
            &["/a", "/a/", "/a/b/c"],
        ),
        ("['/*']", &["/a"], &["/", "/a/b"]),
        ("['/']", &["/"], &["/a"]),
        ("['/**']", &["/", "/a", "/a/b"], &[]),
        (
            "['**/x']",
            &["/x", "/a/x", "/a/b/x"],
            &["/ax", "/x/a", "/a/xb"],
        ),
        (
            "['/a/**/x']",
            &["/a/x", "/a/b/x", "/a/b/c/x"],
            &["/ax", "/a/bx", "/x"],
        ),
        (
            "['**/x/**']",
            &["/x", "/a/x", "/a/x/y/z"],
            &["/ax/b", "/a/xx"],
        ),
        ("['/a?c']", &["/abc"], &["/a/c", "/ac", "/abbc"]),
        ("['/[a-c]x']", &["/ax", "/cx"], &["/dx", "/x", "//x"]),
        ("['/[!a]x']", &["/bx", "/\nx"], &["/ax", "//x"]),
        (
            "['/{a,b*}/c']",
            &["/a/c", "/b/c", "/bb/c"],
            &["/c/c", "/ab/c"],
        ),
        ("['/{a,**/b}']", &["/a", "/b", "/x/b"], &["/x/a"]),
        ("['/a\\*b']", &["/a*b"], &["/axb"]),
        ("['/a\\x0ab']", &["/a\nb"], &["/ab"]),
        (
            "['~/.ssh/**']",
            &["/home/u/.ssh/id"],
            &["/home/v/.ssh/id", "/home/u/.sshx"],
        ),
        (
            "['${workspace}/*.rs']",
            &["/work/x/a.rs"],
            &["/work/x/a/b.rs", "/work/a.rs"],
        ),
        (
            "[{path: /a/**, except: /a/b/**}]",
            &["/a/c", "/a"],
            &["/a/b", "/a/b/c"],
        ),
        (
            "[{path: '**/.env*', except: '**/.env.example'}]",
            &["/.env", "/x/.env.local"],
            &["/x/.env.example"],
        ),
        (
            "[{path: /a/**, except: '**/k'}]",
            &["/a/c", "/a/k/c"],
            &["/a/k", "/a/b/k"],
        ),
    ];
    for (globs, yes, no) in rows {
        yes.iter()
            .for_each(|path| assert!(reads(globs, path), "{globs} must match {path:?}"));
        no.iter()
            .for_each(|path| assert!(!reads(globs, path), "{globs} must not match {path:?}"));
    }
}

#[test]
fn commands_mean_what_the_manual_says() {
    let policy = policy(
        "version: 1
exec:
  default: deny
  allow:
    - git push **
    - command: /usr/bin/make
    - /bin/echo
  deny:
    - command: 'git ** push ** {-f,--force*} **'
      except: 'git push --force-if-includes'
",
    );
    let rows = [
        ("git push", true),
        ("git push origin main", true),
        ("git push -f", false),
        ("git push origin --force", false),
        ("git push --force-if-includes", true),
        ("git push --force-if-includes x", false),
        ("git -C x push --force", false),
        ("git pull", false),
        ("/opt/git/git push", true),
        ("make", true),
        ("make all", false),
        ("/bin/echo anything", true),
    ];
    for (command, allowed) in rows {
        let action = OwnedAction::command(command).expect("a command");
        let expected = if allowed {
            Verdict::Allow
        } else {
            Verdict::Deny
        };
        assert_eq!(verdict(&policy, &action), expected, "{command}");
    }
    for (path, expected) in [
        ("/usr/bin/git", Verdict::None),
        ("/bin/echo", Verdict::None),
        ("/bin/ls", Verdict::Deny),
    ] {
        assert_eq!(
            verdict(&policy, &OwnedAction::Program { path: path.into() }),
            expected,
            "{path}"
        );
    }
}

#[test]
fn destinations_mean_what_the_manual_says() {
    let policy = policy(
        "version: 1
network:
  allow:
    - any:443/tcp
    - '[::/0]:80/tcp'
    - {cidr: [10.0.0.0/8, 'fd00::/12'], port: [8000-8999, 22], protocol: tcp}
    - 127.0.0.1
  deny:
    - {address: any, port: 443, protocol: any, except: ['9.9.9.9', '1.0.0.0/8', '2001:db8::/31']}
    - 169.254.0.0/16
",
    );
    let rows = [
        ("9.9.9.9:443/tcp", true),
        ("[::ffff:9.9.9.9]:443/tcp", true),
        ("9.9.9.9:443/udp", false),
        ("8.8.8.8:443/tcp", false),
        ("1.2.3.4:80/tcp", false),
        ("[2001:db9::1]:443/tcp", true),
        ("[2001:dba::1]:443/tcp", false),
        ("[2001:dba::1]:80/tcp", true),
        ("[::1]:80/tcp", true),
        ("[::]:80/tcp", true),
        ("10.9.8.7:8500/tcp", true),
        ("10.9.8.7:7999/tcp", false),
        ("10.9.8.7:22/udp", false),
        ("[fd0f::1]:22/tcp", true),
        ("[fd10::1]:22/tcp", false),
        ("127.0.0.1:5/udp", true),
        ("0.0.0.0:5/udp", true),
        ("169.254.169.254:80/tcp", false),
    ];
    for (destination, allowed) in rows {
        let action =
            OwnedAction::Network(address::parse_destination(destination).expect("a destination"));
        let expected = if allowed {
            Verdict::Allow
        } else {
            Verdict::Deny
        };
        assert_eq!(verdict(&policy, &action), expected, "{destination}");
    }
}

#[test]
fn kernel_and_daemon_agree_on_what_an_address_reaches() {
    let mut addresses = vec![[0; 16], [0xff; 16]];
    for byte in 0..16 {
        for value in [1, 0x7f, 0xff] {
            // Nothing, IPv4's beginning, and almost either.
            for start in [[0; 16], Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets()] {
                let mut address = start;
                address[byte] = value;
                addresses.extend([start, address]);
            }
        }
    }
    for address in addresses {
        let destination = Destination {
            address,
            ..Destination::default()
        };
        let words = [0, 8].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&address[at..at + 8]);
            u64::from_ne_bytes(word)
        });
        let reached = reached(words).map(u64::to_ne_bytes).concat();
        assert_eq!(reached, destination.key()[..16], "{address:?}");
    }
}

#[test]
fn built_in_policies_pass_their_own_tests() {
    let options = LoadOptions {
        search: Vec::new(),
        vars: [("workspace", "/work/x"), ("home", "/home/u")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        ..LoadOptions::default()
    };
    for name in BUILT_IN_NAMES {
        let policy = load(name, &options).unwrap_or_else(|error| {
            panic!("{name}: {error}: {:?} {}", error.place(), error.help_text())
        });
        let outcomes = policy.run_inline_tests();
        let failed: Vec<&TestOutcome> = outcomes
            .iter()
            .filter(|outcome| outcome.failure.is_some())
            .collect();
        assert!(failed.is_empty(), "{name}: {failed:#?}");
        assert!(!outcomes.is_empty(), "{name} has no tests");
        let table = policy
            .compile(1)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            table.bytes.len() <= agentguard_common::table::LARGE_TABLE,
            "{name}: {:?}",
            table.stats
        );
        println!("{name}: {:?}", table.stats);
    }
}

/// Policies and actions of the comparison; together at least 200,000 actions.
const POLICIES: u64 = 2_000;
const ACTIONS: usize = 110;

#[test]
fn tables_agree_with_the_reference() {
    let workers = 4u64;
    let counts = std::thread::scope(|scope| {
        let run =
            |worker| scope.spawn(move || compare((worker..POLICIES).step_by(workers as usize)));
        let running: Vec<_> = (0..workers).map(run).collect();
        let mut all = Counts::new();
        for (key, count) in running
            .into_iter()
            .flat_map(|worker| worker.join().expect("agreement"))
        {
            *all.entry(key).or_default() += count;
        }
        all
    });
    println!("{counts:?}");
    assert!(counts.values().sum::<usize>() >= 200_000);
    // A comparison in which nothing ever matches would prove nothing.
    for verdict in [Verdict::Allow, Verdict::Ask, Verdict::Deny] {
        assert!(counts[&(verdict, Reason::Rule)] > 5_000, "{counts:?}");
    }
}

type Counts = std::collections::BTreeMap<(Verdict, Reason), usize>;

fn compare(seeds: impl Iterator<Item = u64>) -> Counts {
    let mut counts = Counts::new();
    for seed in seeds {
        let mut generator = generate::Generator::new(seed);
        let text = generator.policy();
        let policy = policy(&text);
        let table = policy
            .compile_for(
                1,
                if seed % 2 == 0 {
                    Walks::Fewest
                } else {
                    Walks::Two
                },
            )
            .unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}"));
        for _ in 0..ACTIONS {
            let action = generator.action();
            action.with(|action| {
                let judged = policy.judge(action);
                let walked = table::walk(&table.bytes, action);
                assert_eq!(
                    (judged.verdict, judged.reason),
                    walked,
                    "seed {seed}, {action:?}, by {:?}\n{text}",
                    judged.rule
                );
                *counts.entry(walked).or_default() += 1;
            });
        }
    }
    counts
}

#[test]
fn damaged_policies_never_break_the_loader() {
    let options = LoadOptions::default();
    let mut random = generate::Random::new(11);
    let mut refused = 0;
    for seed in 0..1_500 {
        let mut bytes = generate::Generator::new(seed).policy().into_bytes();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            let strange = random.pick(&[
                "{", "}", "[", "]", "*", "**", "\\", "\"", "é", "\0", "\u{1b}", "/", "..", "${",
                "~", ",", ":", "- ", "\n", "&a ", "*a",
            ]);
            match random.below(3) {
                0 => drop(bytes.splice(at..at, strange.bytes())),
                1 => drop(bytes.drain(at..(at + random.below(9)).min(bytes.len()))),
                _ => drop(bytes.splice(at..=at, strange.bytes())),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Err(error) = load_text(Path::new("damaged.yaml"), &text, &options) {
            let mut rendered = String::new();
            miette::GraphicalReportHandler::new()
                .render_report(&mut rendered, &error)
                .unwrap_or_else(|_| panic!("seed {seed}: {error:?}"));
            assert!(error.place().is_some(), "seed {seed}: {rendered}");
            refused += 1;
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn ten_thousand_rules_fit_with_room() {
    let text = generate::large(10_000, 300);
    let policy = policy(&text);
    assert_eq!(policy.rules().len(), 10_300);
    let table = policy.compile_for(1, Walks::Two).expect("a table");
    let stats = table.stats;
    assert!(
        table.bytes.len() * 2 <= agentguard_common::table::LARGE_TABLE,
        "{stats:?}"
    );
    let table = policy.compile(1).expect("a table for one walk");
    // The compiled policy is still the policy.
    let mut random = generate::Random::new(7);
    for _ in 0..200 {
        let rule = random.pick(policy.rules());
        let mut path = rule.text.trim_start_matches("**").replace("/**", "/x");
        path = path.replace('*', "y");
        if random.chance(30) {
            path.push('z');
        }
        for access in [access::READ, access::WRITE] {
            let action = OwnedAction::Path {
                path: path.clone().into_bytes(),
                access,
            };
            action.with(|action| {
                let judged = policy.judge(action);
                let walked = table::walk(&table.bytes, action);
                assert_eq!((judged.verdict, judged.reason), walked, "{path}");
            });
        }
    }
}
