//! The commands that read a log, on a log that the library wrote.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use agentguard::audit::key::Key;
use agentguard::audit::{Log, LogOptions, Record};
use assert_cmd::Command;

struct Bench {
    folder: tempfile::TempDir,
}

fn agentguard() -> Command {
    let mut command = Command::cargo_bin("agentguard").expect("the program");
    command.env("NO_COLOR", "1");
    command
}

impl Bench {
    /// A run: a shell starts git, git forks a child that reads, and is refused a key.
    fn new() -> Self {
        let bench = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        let key = Key::of_state(bench.folder.path()).expect("a key").0;
        let options = LogOptions::default();
        let mut log = Log::open_after(&bench.log(), 0..0, options, Some(key)).expect("a log");
        let base =
            |op: &'static str, pid: u32, ppid: u32, exec_id: u64, exe: &'static str| Record {
                time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
                agent: Some(Cow::Borrowed("claude")),
                session: Some(7),
                pid: Some(pid),
                ppid: Some(ppid),
                exec_id: Some(exec_id),
                exe: Some(Cow::Borrowed(exe)),
                policy: Some(Cow::Borrowed("p")),
                ..Record::new(op)
            };
        let exec =
            |pid, ppid, exec_id, new, exe, target: &'static str, argv: &[&'static str]| Record {
                target: Some(Cow::Borrowed(target)),
                access: Some(Cow::Borrowed("exec")),
                verdict: Some(Cow::Borrowed("allow")),
                cause: Some(Cow::Borrowed("rule")),
                new_exec_id: Some(new),
                argv: Some(argv.iter().map(|text| Cow::Borrowed(*text)).collect()),
                ..base("exec", pid, ppid, exec_id, exe)
            };
        let open = |verdict, cause, target: String| Record {
            target: Some(Cow::Owned(target)),
            access: Some(Cow::Borrowed("read")),
            verdict: Some(Cow::Borrowed(verdict)),
            cause: Some(Cow::Borrowed(cause)),
            ..base("open", 12, 11, 2, "/usr/bin/git")
        };
        let policy = bench.folder.path().join("p.yaml");
        std::fs::write(&policy, "version: 1\nfiles:\n  read:\n    deny:\n      - id: keys\n        path: /home/ann/.ssh/**\nx: 1\n").expect("a file");
        let mut records = vec![
            exec(
                10,
                1,
                0,
                1,
                "/sbin/agentguard",
                "/bin/sh",
                &["sh", "-c", "git fetch"],
            ),
            Record {
                child: Some(11),
                ..base("fork", 10, 1, 1, "/bin/sh")
            },
            exec(11, 10, 1, 2, "/bin/sh", "/usr/bin/git", &["git", "fetch"]),
            Record {
                child: Some(12),
                ..base("fork", 11, 10, 2, "/usr/bin/git")
            },
        ];
        records.extend((0..5).map(|number| open("allow", "rule", format!("/work/file{number}"))));
        records.push(Record {
            rule: Some(Cow::Borrowed("keys")),
            rule_at: Some(Cow::Owned(format!("{}:5", policy.display()))),
            ..open("deny", "rule", "/home/ann/.ssh/id_rsa".to_owned())
        });
        for record in &mut records {
            log.append(record).expect("a line");
        }
        log.sync().expect("written");
        bench
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Status and output of a command on the log.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let log = self.path("audit.jsonl");
        let arguments = arguments
            .iter()
            .map(|it| if *it == "LOG" { &log } else { *it });
        let output = agentguard().args(arguments).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), text + &errors)
    }

    fn key(&self) -> String {
        self.path("audit.pub")
    }
}

#[test]
fn a_log_is_verified_with_its_key_and_anchor() {
    let bench = Bench::new();
    let key = bench.key();
    let verify = ["audit", "verify", "--file", "LOG", "--key", &key];
    let (status, text) = bench.run(&verify);
    assert_eq!(status, 0, "{text}");
    assert!(
        text.starts_with("whole: 12 records, 1 to 12, in 1 segments"),
        "{text}"
    );
    let (status, json) = bench.run(&[&verify[..], &["--json"]].concat());
    assert_eq!(status, 0);
    assert!(
        json.contains("\"checkpoints\": 1") && json.contains("\"unsigned\": 0"),
        "{json}"
    );
    // Kept elsewhere, and compared.
    let (status, anchor) = bench.run(&["audit", "anchor", "--file", "LOG"]);
    assert_eq!(status, 0, "{anchor}");
    let anchors = bench.path("anchors.txt");
    std::fs::write(
        &anchors,
        format!("Nov 25 host agentguard: audit anchor {anchor}"),
    )
    .expect("a file");
    let anchored = [&verify[..], &["--anchor", &anchors]].concat();
    assert_eq!(bench.run(&anchored).0, 0);
    let given = bench.path("given.txt");
    let (status, text) = bench.run(&[
        "audit",
        "anchor",
        "--file",
        "LOG",
        "--command",
        "sh",
        "-c",
        &format!("cat > {given}"),
    ]);
    assert_eq!(status, 0, "{text}");
    assert_eq!(
        std::fs::read_to_string(&given).expect("it was given"),
        anchor
    );
    let (status, text) = bench.run(&["audit", "key", "--export", "--state-dir", &bench.path("")]);
    assert_eq!(
        (status, text),
        (0, std::fs::read_to_string(&key).expect("the key"))
    );
    // Changed, cut, replaced.
    let log = std::fs::read_to_string(bench.log()).expect("the log");
    std::fs::write(bench.log(), log.replace("/work/file3", "/work/file4")).expect("written");
    let (status, text) = bench.run(&verify);
    assert_eq!(status, 1);
    assert!(
        text.contains("WRONG  audit.jsonl, line 9 (byte ")
            && text.contains("record 9: the record was changed"),
        "{text}"
    );
    let lines: Vec<&str> = log.lines().collect();
    std::fs::write(bench.log(), lines[..10].join("\n") + "\n").expect("written");
    let (status, text) = bench.run(&verify);
    assert_eq!(status, 1);
    assert!(
        text.contains(
            "the log ends at record 10, the head speaks of record 12: 2 are missing at the end"
        ),
        "{text}"
    );
    std::fs::remove_file(bench.path("audit.jsonl.head")).expect("removed");
    std::fs::remove_file(bench.log()).expect("removed");
    {
        let key = Key::of_state(bench.folder.path()).expect("the key").0;
        let mut log =
            Log::open_after(&bench.log(), 0..0, LogOptions::default(), Some(key)).expect("a log");
        for _ in 0..20 {
            let mut record = Record {
                time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
                ..Record::new("open")
            };
            log.append(&mut record).expect("a line");
        }
        log.sync().expect("written");
    }
    assert_eq!(bench.run(&verify).0, 0);
    let (status, text) = bench.run(&anchored);
    assert_eq!(status, 1);
    assert!(text.contains("the anchor has another record 12"), "{text}");
    assert_eq!(
        bench
            .run(&["audit", "verify", "--file", "/nonexistent/log"])
            .0,
        66
    );
}

#[test]
fn a_record_is_shown_with_what_led_to_it() {
    let bench = Bench::new();
    let (status, text) = bench.run(&["audit", "show", "11", "--file", "LOG"]);
    assert_eq!(status, 0, "{text}");
    for wanted in [
        "verdict:   deny",
        "rule:      keys",
        "  |       - id: keys\n  |         path: /home/ann/.ssh/**\n",
        "     11  /usr/bin/git  git fetch  [record 4]",
        "     10  /bin/sh  sh -c git fetch  [record 2]",
    ] {
        assert!(text.contains(wanted), "lacks {wanted}: {text}");
    }
    let (status, json) = bench.run(&["audit", "show", "11", "--file", "LOG", "--json"]);
    assert_eq!(status, 0);
    assert!(
        json.contains("\"ancestry\"") && json.contains("\"rule_text\""),
        "{json}"
    );
    assert_eq!(bench.run(&["audit", "show", "99", "--file", "LOG"]).0, 66);
}

#[test]
fn records_are_found_and_counted() {
    let bench = Bench::new();
    let count = |arguments: &[&str]| {
        let (status, text) =
            bench.run(&[&["audit", "query", "--file", "LOG", "--count"], arguments].concat());
        assert_eq!(status, 0, "{text}");
        text.trim().parse::<u32>().expect("a number")
    };
    assert_eq!(count(&[]), 12);
    assert_eq!(count(&["--verdict", "deny"]), 1);
    assert_eq!(count(&["--path", "/work/*"]), 5);
    assert_eq!(count(&["--tree", "11"]), 8);
    assert_eq!(count(&["--tree", "10", "--op", "exec"]), 2);
    assert_eq!(count(&["--text", "id_rsa"]), 1);
    assert_eq!(count(&["--name", "git", "--no-index"]), 7);
    let (status, text) = bench.run(&["audit", "stats", "--file", "LOG"]);
    assert_eq!(status, 0);
    assert!(
        text.starts_with("12 records") && text.contains("           1  keys"),
        "{text}"
    );
    let (status, json) = bench.run(&["audit", "stats", "--file", "LOG", "--json"]);
    assert_eq!(status, 0);
    assert!(json.contains("\"different_files_read\": 5"), "{json}");
    for form in ["text", "markdown", "html"] {
        let (status, text) = bench.run(&["report", "--file", "LOG", "--form", form]);
        assert_eq!(status, 0, "{text}");
        assert!(
            text.contains("12 records of") && text.contains("/home/ann/.ssh/id_rsa"),
            "{text}"
        );
    }
}

#[test]
fn a_report_is_made_again_by_its_own_command() {
    let bench = Bench::new();
    let made = |text: &str| {
        let (report, command) = text.rsplit_once("Made at ").expect("how it was made");
        let (_, command) = command.split_once(" by: ").expect("a command");
        (report.to_owned(), command.trim().to_owned())
    };
    let since = [
        "report", "--file", "LOG", "--agent", "claude", "--since", "36500d",
    ];
    let (status, text) = bench.run(&since);
    assert_eq!(status, 0, "{text}");
    let (first, command) = made(&text);
    {
        // The log goes on.
        let mut log = Log::open(&bench.log()).expect("a log");
        let mut record = Record {
            time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
            agent: Some(Cow::Borrowed("claude")),
            ..Record::new("open")
        };
        log.append(&mut record).expect("a line");
        log.sync().expect("written");
    }
    let words: Vec<&str> = command.split(' ').collect();
    assert_eq!(words[..2], ["agentguard", "report"]);
    let (status, text) = bench.run(&words[1..]);
    assert_eq!(status, 0, "{text}");
    assert_eq!(made(&text), (first, command));
    assert_ne!(made(&bench.run(&since).1).0, made(&text).0);
    let key = bench.key();
    let verified = [&since[..], &["--verify", "--key", &key]].concat();
    let (status, text) = bench.run(&verified);
    assert!(status == 0 && text.contains("The log is whole"), "{text}");
    let lines = std::fs::read_to_string(bench.log()).expect("the log");
    std::fs::write(bench.log(), lines.replace("/work/file3", "/work/file4")).expect("changed");
    let (status, text) = bench.run(&verified);
    assert!(
        status == 1 && text.contains("THE LOG IS NOT WHOLE"),
        "{text}"
    );
}

#[test]
fn a_policy_is_learnt_replayed_and_compared() {
    let bench = Bench::new();
    let write = |name: &str, text: &str| {
        std::fs::write(Path::new(&bench.path(name)), text).expect("a file");
        bench.path(name)
    };
    let set = ["--set", "home=/home/ann", "--set", "workspace=/work"];
    let (status, text) =
        bench.run(&[&["policy", "learn", "LOG", "--as", "fetch"], &set[..]].concat());
    assert_eq!(status, 0, "{text}");
    let (text, _) = text.rsplit_once("agentguard: ").expect("a remark");
    assert!(text.contains("${workspace}/*"), "{text}");
    let learnt = write("learnt.yaml", text);
    for (action, what, status) in [
        ("--read", "/work/file3", 0),
        ("--read", "/work/new", 0),
        ("--write", "/work/file3", 1),
        ("--read", "/home/ann/.ssh/id_rsa", 1),
        ("--read", "/work/.ssh/id_rsa", 1),
        ("--connect", "192.0.2.1:443/tcp", 1),
        ("--exec", "/usr/bin/git", 0),
        ("--exec", "/usr/bin/curl", 1),
    ] {
        let explain = [&["policy", "explain", &*learnt][..], &set, &[action, what]];
        assert_eq!(bench.run(&explain.concat()).0, status, "{action} {what}");
    }
    assert_eq!(
        bench.run(&["policy", "learn", "LOG", "--as", "a b"]).0,
        2,
        "no such name"
    );
    assert_eq!(
        bench
            .run(&["policy", "learn", "LOG", "--verdict", "deny"])
            .0,
        1
    );
    let (status, text) =
        bench.run(&[&["policy", "replay", "LOG", "--policy", &learnt], &set[..]].concat());
    assert_eq!(status, 0, "{text}");
    assert!(
        text.contains(
            "8 asked again, 0 that only the kernel can answer: 0 would be decided otherwise"
        ),
        "{text}"
    );
    let strict = write(
        "strict.yaml",
        "version: 1\nexec: { default: allow }\nfiles:\n  read:\n    allow: [\"/work/file{0,1,2}\", \"/home/**\"]\n",
    );
    let (status, text) = bench.run(&["policy", "replay", "LOG", "--policy", &strict]);
    assert_eq!(status, 1);
    assert!(
        text.contains("3 would be decided otherwise (2 refused, 1 permitted)"),
        "{text}"
    );
    assert!(
        text.contains("would permit  1× open read /home/ann/.ssh/id_rsa"),
        "{text}"
    );
    let stricter = write(
        "stricter.yaml",
        "version: 1\nexec: { default: allow }\nfiles:\n  read:\n    allow: [\"/work/file{0,1}\", \"/home/**\"]\n",
    );
    let (status, text) = bench.run(&["policy", "diff", &strict, &stricter]);
    assert_eq!(status, 1);
    assert!(text.contains("denies   read     /work/file2"), "{text}");
    assert_eq!(
        bench.run(&["policy", "diff", &strict, &strict]),
        (0, "they decide and record alike\n".to_owned())
    );
}
