//! The rules that every policy has, whatever it says: AgentGuard's own files are nobody else's.
//!
//! They are one more file of the policy, so that records name them like any rule. Paths are plain text there,
//! by way of variables, and never patterns.

use std::fmt::Write as _;
use std::path::PathBuf;

/// What stands for the path of the file in diagnostics and records.
pub const PATH: &str = "<built-in>/agentguard-files.yaml";

/// What belongs to AgentGuard where nothing is configured otherwise.
pub fn usual() -> Vec<PathBuf> {
    [
        "/etc/agentguard",
        "/var/lib/agentguard",
        "/var/log/agentguard",
        "/run/agentguard",
        "/run/credentials/agentguard.service",
        "/sys/fs/bpf/agentguard",
    ]
    .map(PathBuf::from)
    .to_vec()
}

/// The program that runs, by the name that it had when it was started: after an upgrade in place the new one
/// is there.
pub fn program() -> PathBuf {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let Ok(path) = std::env::current_exe() else {
        return PathBuf::from("/usr/bin/agentguard");
    };
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(name) => std::ffi::OsString::from_vec(name.to_vec()).into(),
        None => path,
    }
}

/// Name of the control socket, in whichever folder it is.
pub const SOCKET: &str = "control.sock";

/// What the rules speak of.
#[derive(Debug, Default)]
pub struct Own {
    /// Files and folders that nobody may open.
    pub closed: Vec<PathBuf>,
    /// The program.
    pub program: Option<PathBuf>,
    /// The files of the policy itself, which may be read: an agent must not loosen its own rules.
    pub policies: Vec<PathBuf>,
}

impl Own {
    /// The text of the rules. A path that is not UTF-8 cannot be written in a policy, and is the error.
    pub fn text(&self) -> Result<String, PathBuf> {
        let mut vars = String::new();
        let mut rules = String::new();
        let mut rule = |access: &str, id: &str, reason: &str, paths: &[PathBuf]| {
            let mut patterns = Vec::new();
            for (index, path) in paths.iter().enumerate() {
                let plain = path.to_str().ok_or_else(|| path.clone())?;
                let name = format!("{}_{index}", id.replace('-', "_"));
                // A JSON text is a YAML text. Writing to a `String` cannot fail.
                let _ = writeln!(vars, "  {name}: {}", serde_json::Value::from(plain));
                patterns.push(format!("\"${{{name}}}/**\""));
                if access == "read_write" {
                    // Closed segments of a log, its head and its index are beside it.
                    patterns.push(format!("\"${{{name}}}.*\""));
                }
            }
            if !patterns.is_empty() {
                let _ = write!(
                    rules,
                    "  {access}:\n    deny:\n      - id: {id}\n        path: [{}]\n        reason: {reason}\n",
                    patterns.join(", ")
                );
            }
            Ok::<(), PathBuf>(())
        };
        rule(
            "read_write",
            "agentguard-files",
            "The policies, the audit log and the controls of AgentGuard itself.",
            &self.closed,
        )?;
        let kept: Vec<PathBuf> = self.program.iter().chain(&self.policies).cloned().collect();
        rule(
            "write",
            "agentguard-program",
            "AgentGuard itself, and the policy that this agent is under.",
            &kept,
        )?;
        let sockets = (0..self.closed.len())
            .map(|index| format!("\"${{agentguard_files_{index}}}/{SOCKET}\""))
            .collect::<Vec<_>>()
            .join(", ");
        let network = if sockets.is_empty() {
            String::new()
        } else {
            format!(
                "network:\n  unix:\n    allow:\n      - id: agentguard-socket\n        path: [{sockets}]\n        reason: An agent may ask why it was refused; the daemon answers nothing else.\n"
            )
        };
        Ok(format!(
            "version: 1\nname: agentguard-files\nvars:\n{vars}files:\n{rules}{network}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use agentguard_common::verdict::{Verdict, access};

    use std::path::Path;

    use super::*;
    use crate::policy::{Action, LoadOptions, load_text};

    #[test]
    fn no_policy_permits_what_is_ours_and_paths_are_no_patterns() {
        let options = LoadOptions {
            own: vec!["/var/log/agentguard".into(), "/srv/a*b/\"log".into()],
            ..LoadOptions::default()
        };
        let text = "version: 1\nfiles: {default: allow}\n";
        let policy = load_text(Path::new("/p.yaml"), text, &options).expect("a policy");
        let verdict = |path: &str, access| {
            let path = path.as_bytes();
            policy.judge(&Action::Path { path, access }).verdict
        };
        for ours in [
            "/var/log/agentguard",
            "/var/log/agentguard/audit.jsonl",
            "/srv/a*b/\"log",
            "/srv/a*b/\"log.head",
            "/srv/a*b/\"log.0000000000000001.zst",
        ] {
            assert_eq!(verdict(ours, access::READ), Verdict::Deny, "{ours}");
            assert_eq!(verdict(ours, access::WRITE), Verdict::Deny, "{ours}");
        }
        assert_eq!(verdict("/srv/axxb/\"log", access::READ), Verdict::Allow);
        let program = std::env::current_exe().expect("this program");
        let program = program.to_str().expect("UTF-8");
        assert_eq!(verdict(program, access::READ), Verdict::Allow);
        assert_eq!(verdict(program, access::WRITE), Verdict::Deny);
    }

    #[test]
    fn the_control_socket_is_in_reach_whatever_a_policy_says() {
        let options = LoadOptions {
            own: vec!["/run/agentguard".into()],
            ..LoadOptions::default()
        };
        for text in [
            "version: 1\n",
            "version: 1\nnetwork: {unix: deny}\n",
            "version: 1\nnetwork: {unix: {deny: [\"/run/**\", \"**/*.sock\"]}}\n",
        ] {
            let policy = load_text(Path::new("/p.yaml"), text, &options).expect("a policy");
            let table = policy.compile(1).expect("a table").bytes;
            for (name, expected) in [
                ("/run/agentguard/control.sock", Verdict::Allow),
                ("/run/agentguard/other.sock", Verdict::Deny),
                ("/run/docker.sock", Verdict::Deny),
            ] {
                let action = Action::Unix {
                    name: name.as_bytes(),
                    listen: false,
                };
                assert_eq!(policy.judge(&action).verdict, expected, "{name}: {text}");
                let (verdict, _) = crate::policy::table::walk(&table, &action);
                assert_eq!(verdict, expected, "{name}: {text}");
            }
        }
    }

    #[test]
    fn an_agent_cannot_write_its_own_policy() {
        use std::os::unix::ffi::OsStrExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().canonicalize().expect("resolved");
        let text = "version: 1\nextends: [base]\nfiles: {default: allow}\n";
        std::fs::write(root.join("real.yaml"), text).expect("written");
        std::os::unix::fs::symlink("real.yaml", root.join("p.yaml")).expect("linked");
        let options = LoadOptions {
            own: usual(),
            vars: [("home".to_owned(), "/home/u".to_owned())].into(),
            ..LoadOptions::default()
        };
        let link = root.join("p.yaml");
        let policy =
            crate::policy::load(link.to_str().expect("UTF-8"), &options).expect("a policy");
        // The file, the link to it, and what would be read in place of the built-in policy.
        for (name, read, write) in [
            ("real.yaml", Verdict::Allow, Verdict::Deny),
            ("p.yaml", Verdict::Allow, Verdict::Deny),
            ("base.yaml", Verdict::Allow, Verdict::Deny),
            ("other.yaml", Verdict::Allow, Verdict::Allow),
        ] {
            let path = root.join(name);
            for (access, expected) in [(access::READ, read), (access::WRITE, write)] {
                let path = path.as_os_str().as_bytes();
                let judgement = policy.judge(&Action::Path { path, access });
                assert_eq!(judgement.verdict, expected, "{name}");
            }
        }
    }
}
