//! The command line as people meet it: statuses, sentences, help.
//!
//! What needs enforcement runs in the VMs; here is what any machine can show.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::path::Path;

use assert_cmd::Command;

fn agentguard(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("agentguard").unwrap();
    command
        .args(arguments)
        .env_remove("AGENTGUARD_SOCKET")
        .env_remove("SUDO_UID");
    command
}

/// Status and standard error.
fn outcome(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether this kernel could enforce: then what follows would really run.
fn can_enforce() -> bool {
    agentguard(&["doctor"]).output().unwrap().status.success()
}

#[test]
fn doctor_says_what_is_missing_and_what_to_do() {
    let output = agentguard(&["doctor", "--json"]).output().unwrap();
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let missing: Vec<_> = findings
        .iter()
        .filter(|finding| finding["status"] == "missing")
        .collect();
    assert_eq!(
        output.status.code(),
        Some(if missing.is_empty() { 0 } else { 78 })
    );
    for finding in missing {
        assert!(finding["remedy"].is_string(), "{finding}");
    }
    let text = agentguard(&["doctor"]).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("enforced on this machine"), "{text}");
}

#[test]
fn without_root_nothing_is_run() {
    let uid = if is_root() {
        65534
    } else {
        nix::unistd::geteuid().as_raw()
    };
    for arguments in [&["run", "-p", "permissive", "--", "true"][..], &["daemon"]] {
        // The copy can be read by everybody, wherever the target folder is.
        let folder = tempfile::Builder::new()
            .permissions(open())
            .tempdir()
            .unwrap();
        let copy = folder.path().join("agentguard");
        std::fs::copy(assert_cmd::cargo::cargo_bin("agentguard"), &copy).unwrap();
        let mut command = std::process::Command::new(&copy);
        command.args(arguments).current_dir("/");
        if is_root() {
            std::os::unix::process::CommandExt::uid(&mut command, uid);
        }
        let output = output_of_copy(&mut command);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(77), "{text}");
        assert!(
            text.contains("needs root") && text.contains("sudo"),
            "{text}"
        );
    }
}

/// The output of a program that was copied just now. A child that another thread forks meanwhile has the copy open for
/// writing until its own exec, and nobody may start it as long as that.
fn output_of_copy(command: &mut std::process::Command) -> std::process::Output {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match command.output() {
            Err(error)
                if error.kind() == std::io::ErrorKind::ExecutableFileBusy
                    && std::time::Instant::now() < deadline =>
            {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            outcome => return outcome.unwrap(),
        }
    }
}

fn open() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}

#[test]
fn a_kernel_that_cannot_enforce_is_named() {
    if !is_root() || can_enforce() {
        eprintln!("skipped: needs root on a kernel that cannot enforce");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.jsonl");
    let audit = log.to_str().unwrap();
    let marker = folder.path().join("ran");
    let touch = format!("touch {}", marker.display());
    let (status, text) = outcome(&mut agentguard(&[
        "run",
        "-p",
        "permissive",
        "--audit",
        audit,
        "--",
        "sh",
        "-c",
        &touch,
    ]));
    assert_eq!(status, 78, "{text}");
    assert!(text.starts_with("agentguard: "), "{text}");
    assert!(
        !marker.exists(),
        "the command ran although nothing could be enforced"
    );
    assert!(!log.exists());
}

#[test]
fn without_a_daemon_its_commands_say_so() {
    let socket = "/nonexistent/agentguard.sock";
    let commands: [&[&str]; 8] = [
        &["ps"],
        &["traffic"],
        &["why"],
        &["freeze", "x"],
        &["detach", "x"],
        &["reload"],
        &["attach", "--pid", "1", "-p", "x"],
        &["kill", "x"],
    ];
    for arguments in commands {
        let (status, text) = outcome(agentguard(arguments).args(["--socket", socket]));
        assert_eq!(status, 69, "{arguments:?}: {text}");
        assert!(
            text.contains(socket) && text.contains("systemctl start agentguard"),
            "{text}"
        );
    }
}

#[test]
fn a_wrong_command_line_is_refused() {
    let wrong: [&[&str]; 8] = [
        &[],
        &["frobnicate"],
        &["run", "--", "true"],
        &["run", "-p", "x"],
        &["attach", "-p", "x"],
        &["attach", "-p", "x", "--pid", "1", "--cgroup", "/x"],
        &["audit", "query", "--since", "yesterday"],
        &["run", "-p", "x", "--set", "novalue", "--", "true"],
    ];
    for arguments in wrong {
        assert_eq!(outcome(&mut agentguard(arguments)).0, 2, "{arguments:?}");
    }
}

#[test]
fn every_command_has_help_and_most_an_example() {
    let commands = [
        "run",
        "daemon",
        "attach",
        "ps",
        "traffic",
        "reload",
        "why",
        "doctor",
        "completions",
        "man",
    ];
    for command in commands {
        let output = agentguard(&[command, "--help"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        assert!(text.contains("Example"), "{command}: {text}");
    }
    let help = agentguard(&["--help"]).output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    assert!(!help.contains("internal-"), "{help}");
    assert!(help.contains("Exit status"), "{help}");
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        let script = agentguard(&["completions", shell]).output().unwrap();
        assert!(
            script.status.success() && !script.stdout.is_empty(),
            "{shell}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    agentguard(&["man", pages.to_str().unwrap()])
        .assert()
        .success();
    for page in ["agentguard.1", "agentguard-run.1"] {
        assert!(pages.join(page).is_file(), "{page}");
    }
}

/// A log of three records, one of them a denial.
fn sample(folder: &Path) -> String {
    let path = folder.join("audit.jsonl");
    let lines = [
        r#"{"seq":1,"time":"2026-11-23T04:00:00.000000000Z","op":"start","prev":"0","hash":"1"}"#,
        r#"{"seq":2,"time":"2026-11-23T04:00:01.000000000Z","agent":"a","session":1,"pid":9,"exe":"/usr/bin/cat","op":"open","target":"/etc/x\\x0ay","access":"read","verdict":"deny","rule":"no-x","cause":"rule","prev":"1","hash":"2"}"#,
        r#"{"seq":3,"time":"2026-11-23T04:00:02.000000000Z","agent":"b","session":2,"pid":8,"exe":"/usr/bin/ls","op":"open","target":"/etc","access":"read","verdict":"allow","cause":"default","prev":"2","hash":"3"}"#,
    ];
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_log_is_queried() {
    let folder = tempfile::tempdir().unwrap();
    let file = sample(folder.path());
    let output = |arguments: &[&str]| -> String {
        let output = agentguard(&["audit"])
            .args(arguments)
            .args(["--file", &file])
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(output(&["query", "--json"]).lines().count(), 3);
    assert_eq!(
        output(&["query", "--json", "--limit", "2"]).lines().count(),
        2
    );
    let denied = output(&["query", "--json", "--verdict", "deny,ask"]);
    assert_eq!(denied.lines().count(), 1);
    assert_eq!(
        denied.trim(),
        std::fs::read_to_string(&file)
            .unwrap()
            .lines()
            .nth(1)
            .unwrap()
    );
    let table = output(&["query", "--op", "open"]);
    assert!(
        table.contains(r"read /etc/x\x0ay") && !table.contains('\x1b'),
        "{table}"
    );
    let tail = output(&["tail", "-n", "1"]);
    assert_eq!(
        tail,
        "04:00:02.000 b allow /usr/bin/ls (pid 8) → read /etc\n"
    );
    let tail = output(&["tail", "--agent", "a"]);
    assert!(
        tail.starts_with("04:00:01.000 a DENIED /usr/bin/cat (pid 9) → read /etc/x"),
        "{tail}"
    );
}

#[test]
fn a_missing_log_is_named() {
    let (status, text) = outcome(&mut agentguard(&[
        "audit",
        "query",
        "--file",
        "/nonexistent/log",
    ]));
    assert_eq!(status, 66);
    assert!(text.contains("/nonexistent/log"), "{text}");
}

#[test]
fn a_wrong_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.yaml");
    std::fs::write(&path, "on_stopp: kill\n").unwrap();
    let (status, text) = outcome(&mut agentguard(&[
        "daemon",
        "--config",
        path.to_str().unwrap(),
    ]));
    assert_eq!(status, 2, "{text}");
    assert!(
        text.contains("c.yaml") && text.contains("on_stopp"),
        "{text}"
    );
    let (status, _) = outcome(&mut agentguard(&[
        "daemon",
        "--config",
        "/nonexistent.yaml",
    ]));
    assert_eq!(status, 66);
}
