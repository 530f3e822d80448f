//! Runs as logs have them, and the policies that are learnt from them.

mod network;

use std::collections::BTreeMap;

use agentguard_common::record::Destination;
use agentguard_common::verdict::{Verdict, access};

use super::{LearnError, Lesson};
use crate::audit::Record;
use crate::policy::{Action, LoadOptions, Policy};

const HOME: &str = "/home/ann";
const WORK: &str = "/home/ann/work";

fn options() -> LoadOptions {
    let vars = [("workspace", WORK), ("home", HOME)];
    LoadOptions {
        vars: BTreeMap::from(vars.map(|(name, value)| (name.to_owned(), value.to_owned()))),
        ..LoadOptions::default()
    }
}

fn record<'a>(op: &'a str, access: Option<&'a str>, target: &'a str) -> Record<'a> {
    Record {
        target: Some(target.into()),
        access: access.map(Into::into),
        exe: Some("/usr/bin/python3".into()),
        verdict: Some("would-deny".into()),
        cause: Some("default".into()),
        ..Record::new(op)
    }
}

/// What a run of python in a workspace does.
fn run() -> Vec<Record<'static>> {
    let mut records = Vec::new();
    let mut open = |access: &'static str, path: String| {
        let mut one = record("open", Some(access), "");
        one.target = Some(path.into());
        records.push(one);
    };
    for number in 0..9 {
        open("read", format!("/usr/lib/python3/module{number}.py"));
        open("read", format!("/usr/lib/python3/a/part{number}.py"));
        open("read", format!("/usr/lib/python3/b/part{number}.py"));
        open("read", format!("/usr/lib/python3/c/part{number}.py"));
        open("read", format!("{WORK}/src/file{number}.py"));
        open("write", format!("{WORK}/out/file{number}.txt"));
        open("read+write", format!("/tmp/tmpk3jx9{number}ab/scratch"));
        open("read", format!("/proc/{}/status", 4000 + number));
    }
    open("read", "/etc/ld.so.cache".to_owned());
    open("read", format!("{HOME}/.config/app/one.conf"));
    open("read", format!("{HOME}/.config/app/two.conf"));
    open("read", format!("{HOME}/.config/app/three.conf"));
    open("read", format!("{HOME}/.config/app/four.conf"));
    open("read", format!("{WORK}/we*ird [name] $x\\x0a{{}}"));
    records.push(Record {
        argv: Some(vec!["git".into(), "status".into()]),
        ..record("exec", Some("exec"), "/usr/bin/git")
    });
    records.push(Record {
        port: Some(443),
        protocol: Some("tcp".into()),
        family: Some("inet".into()),
        ..record("connect", None, "151.101.0.223:443")
    });
    records.push(Record {
        to: Some(format!("{WORK}/renamed").into()),
        ..record("rename", Some("write"), "/home/ann/work/old")
    });
    records.push(Record {
        cause: Some("locked".into()),
        ..record("kernel", None, "user_namespaces")
    });
    // What was refused is not learnt.
    records.push(Record {
        verdict: Some("deny".into()),
        cause: Some("rule".into()),
        ..record("open", Some("read"), "/home/ann/.ssh/id_rsa")
    });
    records
}

fn learn(records: &[Record<'_>]) -> (String, Policy) {
    let mut lesson = Lesson::default();
    for record in records {
        lesson.add(record);
    }
    lesson.policy("learnt", &options()).unwrap()
}

fn path(policy: &Policy, path: &str, access: u8) -> Verdict {
    let path = path.as_bytes();
    policy.judge(&Action::Path { path, access }).verdict
}

#[test]
fn the_same_run_passes_and_little_else() {
    let (text, policy) = learn(&run());
    let read = |file: &str| path(&policy, file, access::READ);
    let write = |file: &str| path(&policy, file, access::WRITE);
    for file in [
        "/usr/lib/python3/module0.py",
        // Generalised: many files of a folder, and a name that is made up anew each time.
        "/usr/lib/python3/module99.py",
        "/usr/lib/python3/b/other.py",
        "/tmp/tmpzzzzzzzz/scratch",
        "/proc/77/status",
        "/home/ann/work/src/new.py",
    ] {
        assert_eq!(read(file), Verdict::Allow, "{file}\n{text}");
    }
    for file in [
        "/home/ann/.ssh/id_rsa",
        "/home/ann/.ssh",
        "/home/ann/.bashrc",
        // Not generalised, as secrets may be there.
        "/home/ann/.config/app/five.conf",
        "/etc/shadow",
        "/proc/77/mem",
        "/",
    ] {
        assert_eq!(read(file), Verdict::Deny, "{file}\n{text}");
    }
    assert_eq!(write("/home/ann/work/out/new.txt"), Verdict::Allow);
    assert_eq!(
        write("/home/ann/work/src/file1.py"),
        Verdict::Deny,
        "{text}"
    );
    assert_eq!(write("/home/ann/work/renamed"), Verdict::Allow);
    let exec = |path: &str, argv: &[&[u8]]| {
        let path = path.as_bytes();
        let argv = Some(argv);
        policy.judge(&Action::Exec { path, argv }).verdict
    };
    assert_eq!(exec("/usr/bin/git", &[b"git", b"log"]), Verdict::Allow);
    assert_eq!(exec("/usr/bin/curl", &[b"curl"]), Verdict::Deny);
    let host = |last: u8, port: u16| {
        let mut destination = Destination {
            family: 2,
            protocol: 6,
            port,
            kind: 1,
            address: [0; 16],
        };
        destination.address[10..].copy_from_slice(&[0xff, 0xff, 151, 101, 0, last]);
        let destination = &destination;
        policy.judge(&Action::Network { destination }).verdict
    };
    assert_eq!(host(223, 443), Verdict::Allow);
    assert_eq!(host(224, 443), Verdict::Deny);
    assert_eq!(host(223, 80), Verdict::Deny);
    assert!(text.contains("${workspace}/src/*"), "{text}");
    assert!(text.contains("× by python3: "), "{text}");
    // Nobody's home is spelt out.
    assert!(
        text.lines()
            .filter(|line| line.contains("- \""))
            .all(|line| !line.contains(HOME)),
        "{text}"
    );
}

#[test]
fn a_busy_home_is_not_opened_where_secrets_are() {
    // Whoever runs an agent in the home folder has that as the workspace.
    let options = LoadOptions {
        vars: BTreeMap::from(
            [("workspace", HOME), ("home", HOME)].map(|(name, value)| (name.into(), value.into())),
        ),
        ..LoadOptions::default()
    };
    let mut lesson = Lesson::default();
    for number in 0..40 {
        let mut one = record("open", Some("read"), "");
        one.target = Some(format!("{HOME}/part{}/file{number}", number % 5).into());
        lesson.add(&one);
    }
    let kept = record("open", Some("read"), "/home/ann/part1/.config/seen");
    lesson.add(&kept);
    let (text, policy) = lesson.policy("x", &options).unwrap();
    let read = |file: &str| path(&policy, file, access::READ);
    for file in ["/home/ann/part9/new", "/home/ann/part1/.config/seen"] {
        assert_eq!(read(file), Verdict::Allow, "{file}\n{text}");
    }
    for file in [
        "/home/ann/.ssh",
        "/home/ann/.ssh/id_rsa",
        "/home/ann/part1/.ssh/id_rsa",
        "/home/ann/part1/.config/unseen",
        "/home/ann/part2/.env",
        "/home/ann/.bash_history",
    ] {
        assert_eq!(read(file), Verdict::Deny, "{file}\n{text}");
    }
}

#[test]
fn a_file_that_is_written_and_then_renamed_may_be_renamed() {
    let mut lesson = Lesson::default();
    lesson.add(&record("open", Some("read"), "/srv/x/config"));
    lesson.add(&record("open", Some("write"), "/srv/x/config.new"));
    lesson.add(&Record {
        to: Some("/srv/x/config".into()),
        ..record("rename", Some("write"), "/srv/x/config.new")
    });
    let (text, policy) = lesson.policy("x", &options()).unwrap();
    let read = path(&policy, "/srv/x/config.new", access::READ);
    assert_eq!(read, Verdict::Allow, "{text}");
    assert_eq!(path(&policy, "/srv/x/other", access::READ), Verdict::Deny);
}

#[test]
fn what_writes_to_the_system_writes_only_there() {
    let mut lesson = Lesson::default();
    for number in 0..20 {
        let mut one = record("open", Some("write"), "");
        one.target = Some(format!("/usr/lib/x/file{number}").into());
        lesson.add(&one);
    }
    let (text, policy) = lesson.policy("x", &options()).unwrap();
    let write = |file: &str| path(&policy, file, access::WRITE);
    assert_eq!(write("/usr/lib/x/file3"), Verdict::Allow, "{text}");
    assert_eq!(write("/usr/lib/x/file20"), Verdict::Deny, "{text}");
}

#[test]
fn names_cannot_write_rules() {
    let mut lesson = Lesson::default();
    let name = "/srv/\\x0a  write: { default: allow }\u{2028}#\"";
    lesson.add(&record("open", Some("read"), name));
    // A log of somebody else's: not escaped.
    let mut foreign = record("open", Some("read"), "/srv/y");
    foreign.exe = Some("/bin/x\n  write: { default: allow }".into());
    lesson.add(&foreign);
    let forged = lesson.policy("x\nmode: shadow", &options());
    assert!(matches!(forged, Err(LearnError::Policy(_))));
    let (text, policy) = lesson.policy("x", &options()).unwrap();
    assert_eq!(
        path(&policy, "/srv/y", access::WRITE),
        Verdict::Deny,
        "{text}"
    );
    assert_eq!(policy.mode(), crate::policy::Mode::Enforce);
    assert!(
        text.lines().all(|line| !line.starts_with("  write")),
        "{text}"
    );
}

#[test]
fn loopback_and_protocols_without_a_name_are_learnt() {
    let mut lesson = Lesson::default();
    for (target, protocol) in [
        ("0.0.0.0:80", "tcp"),
        ("[::1]:9", "sctp"),
        ("10.0.0.1:0", "icmp"),
    ] {
        lesson.add(&Record {
            protocol: Some(protocol.into()),
            family: Some("inet".into()),
            ..record("connect", None, target)
        });
    }
    let (text, _) = lesson.policy("x", &options()).unwrap();
    assert!(
        text.contains("\"127.0.0.1/32\", port: 80, protocol: tcp"),
        "{text}"
    );
    assert!(
        text.contains("\"::1/128\", port: 9, protocol: any"),
        "{text}"
    );
}

#[test]
fn from_nothing_nothing_is_learnt() {
    let refused = record("open", Some("read"), "/etc/shadow");
    let mut lesson = Lesson::default();
    lesson.add(&Record {
        verdict: Some("deny".into()),
        ..refused
    });
    assert!(matches!(
        lesson.policy("x", &options()),
        Err(LearnError::Nothing)
    ));
}

#[test]
fn a_secret_that_was_read_does_not_open_its_folder() {
    let records: Vec<Record<'_>> = (0..20)
        .map(|number| {
            let mut one = record("open", Some("read"), "");
            one.target = Some(format!("{WORK}/.ssh/key{number}").into());
            one
        })
        .collect();
    let (text, policy) = learn(&records);
    assert_eq!(
        path(&policy, "/home/ann/work/.ssh/key3", access::READ),
        Verdict::Allow
    );
    assert_eq!(
        path(&policy, "/home/ann/work/.ssh/key20", access::READ),
        Verdict::Deny,
        "{text}"
    );
}
