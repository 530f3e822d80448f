//! `audit export` and the configuration of sinks, as people meet them.

use std::borrow::Cow;
use std::path::Path;
use std::process::Output;

use agentguard::audit::key::Key;
use agentguard::audit::{Log, LogOptions, Record};
use assert_cmd::Command;

/// A log of so many records, in a folder.
fn log(folder: &Path, count: u32) {
    let key = Key::of_state(folder).expect("a key").0;
    let options = LogOptions::default();
    let path = folder.join("audit.jsonl");
    let mut log = Log::open_after(&path, 0..0, options, Some(key)).expect("a log");
    for number in 0..count {
        let denied = number % 4 == 0;
        let mut record = Record {
            time: Cow::Borrowed("2026-11-23T04:05:06.000000000Z"),
            agent: Some(Cow::Borrowed("claude")),
            pid: Some(number),
            exe: Some(Cow::Borrowed("/usr/bin/git")),
            target: Some(Cow::Owned(format!("/work/\"{number}\",x"))),
            verdict: Some(Cow::Borrowed(if denied { "deny" } else { "allow" })),
            ..Record::new("open")
        };
        log.append(&mut record).expect("a line");
    }
    log.sync().expect("written");
}

fn export(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("agentguard").expect("the program");
    command.env("NO_COLOR", "1").current_dir(folder);
    command
        .args(["audit", "export", "--file", "audit.jsonl"])
        .args(arguments);
    command.output().expect("it runs")
}

fn text(folder: &Path, arguments: &[&str]) -> String {
    let output = export(folder, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_format_has_every_record_that_fits() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    log(folder, 1000);
    let whole = std::fs::read_to_string(folder.join("audit.jsonl")).expect("the log");
    let count = whole.lines().count();
    assert_eq!(text(folder, &[]), whole);
    let denied = text(folder, &["--verdict", "deny"]);
    assert_eq!(denied.lines().count(), 250);

    let events = text(folder, &["--format", "ocsf"]);
    assert_eq!(events.lines().count(), count);
    let findings = events
        .lines()
        .filter(|line| line.contains("\"class_uid\":2004,"));
    assert_eq!(findings.count(), 250);

    let table = text(folder, &["--format", "csv"]);
    assert!(table.starts_with("seq,time,agent,"), "{table}");
    assert_eq!(table.matches("\r\n").count(), count + 1);
    assert!(table.contains("\"/work/\"\"7\"\",x\""));

    let requests = text(folder, &["--format", "otlp-json"]);
    assert_eq!(requests.lines().count(), count.div_ceil(100));
    let mut lines = String::new();
    for request in requests.lines() {
        let request: serde_json::Value = serde_json::from_str(request).expect("JSON");
        let records = &request["resourceLogs"][0]["scopeLogs"][0]["logRecords"];
        for record in records.as_array().expect("records") {
            lines.push_str(record["body"]["stringValue"].as_str().expect("a line"));
            lines.push('\n');
        }
    }
    assert_eq!(lines, whole);
}

#[test]
fn a_file_is_whole_or_as_it_was() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    log(folder, 10);
    let out = folder.join("out.jsonl");
    std::fs::write(&out, "before").expect("written");
    let failed = export(folder, &["--output", "out.jsonl", "--file", "no-such-log"]);
    assert_eq!(
        failed.status.code(),
        Some(2),
        "a log is named once: {failed:?}"
    );
    let mut command = Command::cargo_bin("agentguard").expect("the program");
    command.current_dir(folder);
    command.args([
        "audit",
        "export",
        "--file",
        "no-such-log",
        "--output",
        "out.jsonl",
    ]);
    assert_eq!(command.output().expect("it runs").status.code(), Some(66));
    assert_eq!(std::fs::read_to_string(&out).expect("a file"), "before");
    assert!(!folder.join("out.jsonl.part").exists());
    assert_eq!(text(folder, &["--output", "out.jsonl"]), "");
    let written = std::fs::read(&out).expect("a file");
    assert_eq!(
        written,
        std::fs::read(folder.join("audit.jsonl")).expect("the log")
    );
    let mode = std::fs::metadata(&out)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let nowhere = export(folder, &["--output", "no/such/folder"]);
    assert_eq!(nowhere.status.code(), Some(66), "{nowhere:?}");
}

#[test]
fn a_configuration_with_a_mistake_is_shown_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agentguard.yaml");
    let text = "audit: /tmp/x\nsinks:\n  siem:\n    syslog:\n      to: tcp://192.0.2.1:601\n";
    std::fs::write(&path, text).expect("written");
    let mut command = Command::cargo_bin("agentguard").expect("the program");
    command
        .env("NO_COLOR", "1")
        .args(["daemon", "--config"])
        .arg(&path);
    let output = command.output().expect("it runs");
    let shown = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert!(
        shown.contains("agentguard.yaml:5:11") && shown.contains("in the clear"),
        "{shown}"
    );
}

#[test]
fn nobody_to_ask_about_sinks_is_told() {
    let mut command = Command::cargo_bin("agentguard").expect("the program");
    command.args(["audit", "sinks", "--socket", "/nonexistent/control.sock"]);
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(69));
}
