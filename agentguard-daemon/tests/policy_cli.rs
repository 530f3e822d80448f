//! `agentguard policy` as people and programs call it.

use std::path::Path;

use assert_cmd::Command;

fn agentguard(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("agentguard").expect("the binary");
    command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .env("NO_COLOR", "1")
        .args(arguments)
        .args(["--set", "workspace=/work", "--set", "home=/home/u"]);
    command
}

fn output(arguments: &[&str], status: i32) -> String {
    let mut command = Command::cargo_bin("agentguard").expect("the binary");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let set = [
        "--set",
        "workspace=/work",
        "--set",
        "home=/home/u",
        "--policies",
        "policies",
    ];
    let (head, tail) = arguments.split_at(3);
    let result = command
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .args(head)
        .args(set)
        .args(tail)
        .assert()
        .code(status);
    String::from_utf8(result.get_output().stdout.clone()).expect("UTF-8")
}

#[test]
fn shipped_policies_check() {
    let files: Vec<String> =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies"))
            .expect("the folder of policies")
            .map(|entry| {
                format!(
                    "policies/{}",
                    entry.expect("an entry").file_name().to_string_lossy()
                )
            })
            .collect();
    assert!(files.len() >= 7, "{files:?}");
    let mut arguments = vec!["policy", "check"];
    arguments.extend(files.iter().map(String::as_str));
    agentguard(&arguments).assert().code(0);
}

#[test]
fn bad_policies_end_with_status_2() {
    let bad = [
        "unknown-key",
        "bad-cidr",
        "extends-cycle",
        "alias-bomb",
        "invalid-utf8",
        "empty",
        "budget-without-per",
    ];
    for name in bad {
        let path = format!("agentguard-daemon/tests/policies-bad/{name}.yaml");
        for verb in ["check", "test"] {
            agentguard(&["policy", verb, &path]).assert().code(2);
        }
        let json = output(&["policy", "check", &path, "--json"], 2);
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert!(
            value[0]["error"]["line"].is_u64() && value[0]["error"]["help"].is_string(),
            "{json}"
        );
    }
}

#[test]
fn a_failing_test_ends_with_status_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("failing.yaml");
    std::fs::write(
        &path,
        "version: 1\ntests:\n  - {read: /etc/passwd, expect: allow}\n",
    )
    .expect("a file");
    let path = path.to_str().expect("a UTF-8 path");
    for verb in ["check", "test"] {
        let text = output(&["policy", verb, path], 1);
        assert!(
            text.contains("failing.yaml:3: read /etc/passwd is allow: it is deny, by default"),
            "{text}"
        );
    }
}

#[test]
fn explanations_read_well() {
    let rows: &[(&str, &[&str], i32)] = &[
        ("read-ssh-key", &["--read", "/home/u/.ssh/id_rsa"], 1),
        ("read-workspace", &["--read", "/work/src/main.rs"], 0),
        ("write-outside", &["--write", "/srv/a file"], 1),
        ("force-push", &["--exec", "git", "push", "--force"], 1),
        ("push", &["--exec", "git push origin main"], 0),
        ("metadata", &["--connect", "169.254.169.254:80/tcp"], 1),
        ("ssh-out", &["--connect", "93.184.216.34:22/tcp"], 1),
        ("unix", &["--connect", "unix"], 1),
        ("name", &["--connect", "github.com:443"], 0),
        ("other-name", &["--connect", "example.org:443"], 1),
    ];
    for (name, action, status) in rows {
        let mut arguments = vec!["policy", "explain", "coding-agent"];
        arguments.extend(*action);
        insta::assert_snapshot!(format!("explain-{name}"), output(&arguments, *status));
    }
    let limits = "agentguard-daemon/tests/policies-good/limits.yaml";
    let rows: &[(&str, &[&str], i32)] = &[
        ("model", &["--model", "claude-sonnet-4-5"], 0),
        ("other-model", &["--model", "gpt-4o"], 0),
        ("time-open", &["--time", "2026-07-15T12:00:00Z"], 0),
        ("time-closed", &["--time", "2026-07-18T12:00:00+01:00"], 1),
    ];
    for (name, action, status) in rows {
        let mut arguments = vec!["policy", "explain", limits];
        arguments.extend(*action);
        insta::assert_snapshot!(format!("explain-{name}"), output(&arguments, *status));
    }
    output(&["policy", "explain", "base", "--model", "gpt-4o"], 1);
    output(&["policy", "explain", limits, "--time", "tomorrow"], 2);
    let json = output(
        &[
            "policy",
            "explain",
            "coding-agent",
            "--json",
            "--read",
            "/etc/shadow",
        ],
        1,
    );
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(value["rule"]["id"], "system-secrets", "{json}");
}

#[test]
fn wrong_actions_are_usage_errors() {
    let rows: &[&[&str]] = &[
        &["--read", "relative"],
        &["--connect", "example.org"],
        &[],
        &["--exec", ""],
    ];
    for action in rows {
        let mut arguments = vec!["policy", "explain", "coding-agent"];
        arguments.extend(*action);
        output(&arguments, 2);
    }
}

#[test]
fn help_reads_well() {
    for verb in ["check", "explain", "test", "schema"] {
        let mut command = Command::cargo_bin("agentguard").expect("the binary");
        let result = command.args(["policy", verb, "--help"]).assert().code(0);
        let text = String::from_utf8(result.get_output().stdout.clone()).expect("UTF-8");
        assert!(text.contains("Example"), "{text}");
        assert!(verb == "schema" || text.contains("Exit status"), "{text}");
    }
}

#[test]
fn the_schema_accepts_the_shipped_policies_and_refuses_what_the_loader_refuses() {
    let result = Command::cargo_bin("agentguard")
        .expect("the binary")
        .args(["policy", "schema"])
        .assert()
        .code(0);
    let schema: serde_json::Value =
        serde_json::from_slice(&result.get_output().stdout).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let value = |path: &Path| -> serde_json::Value {
        let text = std::fs::read_to_string(path).expect("a policy");
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let mut count = 0;
    for entry in std::fs::read_dir(root.join("../policies")).expect("the folder of policies") {
        let path = entry.expect("an entry").path();
        let policy = value(&path);
        let errors: Vec<String> = validator
            .iter_errors(&policy)
            .map(|error| format!("{}: {error}", error.instance_path))
            .collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
        count += 1;
    }
    assert!(count >= 7);
    let limits = value(&root.join("tests/policies-good/limits.yaml"));
    let errors: Vec<String> = validator
        .iter_errors(&limits)
        .map(|it| it.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let bad = [
        "unknown-key",
        "unknown-key-in-rule",
        "missing-version",
        "wrong-version",
        "wrong-type",
        "wrong-choice",
        "not-a-mapping",
        "budgets-not-a-list",
        "budget-unknown-key",
        "budget-duration",
        "schedule-not-a-mapping",
        "unknown-protocol",
        "empty-pattern",
    ];
    for name in bad {
        let policy = value(&root.join(format!("tests/policies-bad/{name}.yaml")));
        assert!(
            !validator.is_valid(&policy),
            "{name} is valid by the schema"
        );
    }
}

#[test]
fn a_difference_says_what_is_recorded_no_more_and_what_is_from_now_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    };
    let before = write(
        "before.yaml",
        "version: 1
kernel: { mount: allow }
files:
  read:
    allow:
      - { id: sources, path: \"/src/**\" }
      - { id: customers, path: \"/srv/customers/**\", audit: all }
    deny: [{ id: keys, path: \"/keys/**\" }]
network:
  allow:
    - { id: telemetry, address: 10.0.0.7, port: 443, protocol: tcp, audit: denied }
    - { id: web, name: example.org, audit: denied }
",
    );
    let after = write(
        "after.yaml",
        "version: 1
audit: { level: decisions, repeats: fold }
kernel: { mount: allow }
files:
  read:
    allow:
      - { id: sources, path: \"/src/**\" }
      - { id: customers, path: \"/srv/customers/**\", audit: all }
      - { id: keys, path: \"/keys/**\" }
network:
  allow:
    - { id: telemetry, address: 10.0.0.7, port: 443, protocol: tcp }
    - { id: web, name: example.org }
",
    );
    for (name, arguments, status) in [
        (
            "diff-recorded",
            ["policy", "diff", &before, &after].to_vec(),
            1,
        ),
        (
            "diff-recorded-json",
            ["policy", "diff", &before, &after, "--json"].to_vec(),
            1,
        ),
        ("diff-same", ["policy", "diff", &after, &after].to_vec(), 0),
    ] {
        insta::assert_snapshot!(name, output(&arguments, status));
    }
}
