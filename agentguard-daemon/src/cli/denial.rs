//! The one line that tells a person (or an agent) what was refused, why, and what would permit it.

use crate::audit::Record;

use super::report::red;

/// `DENIED /usr/bin/curl (pid 64) → 1.2.3.4:443  rule: …  reason: …  to allow: …`
pub fn line(record: &Record<'_>, colour: bool) -> String {
    let word = match record.verdict.as_deref() {
        Some("would-deny") => "WOULD DENY",
        Some("ask") => "DENIED (ask)",
        _ => "DENIED",
    };
    let exe = record.exe.as_deref().unwrap_or("?");
    let pid = record.pid.unwrap_or(0);
    let mut line = format!("{} {exe} (pid {pid}) → {}", red(word, colour), deed(record));
    line.push_str(&times(record));
    line.push_str("  rule: ");
    line.push_str(
        record
            .rule
            .as_deref()
            .or(record.cause.as_deref())
            .unwrap_or("none"),
    );
    if let Some(reason) = &record.reason {
        line.push_str("  reason: ");
        line.push_str(reason);
    }
    if let Some(remedy) = remedy(record) {
        line.push_str("  to allow: ");
        line.push_str(&remedy);
    }
    line
}

/// How often it was done again, where the record stands for that.
pub fn times(record: &Record<'_>) -> String {
    match record.repeats {
        None => String::new(),
        Some(1) => " (once more)".to_owned(),
        Some(repeats) => format!(" ({repeats} times more)"),
    }
}

/// What was tried: `read /x`, `run git push --force`, `1.2.3.4:443`.
pub fn deed(record: &Record<'_>) -> String {
    let target = record.target.as_deref().unwrap_or("?");
    match &*record.op {
        "open" => format!("{} {target}", record.access.as_deref().unwrap_or("open")),
        "exec" => match record.argv.as_deref() {
            Some([_, arguments @ ..]) if !arguments.is_empty() => {
                format!("run {target} {}", arguments.join(" "))
            }
            _ => format!("run {target}"),
        },
        "connect" => target.to_owned(),
        "send" => format!("send to {target}"),
        "resolve" => format!("resolve {target}"),
        other => format!("{other} {target}"),
    }
}

/// What would permit it, where a policy could.
pub fn remedy(record: &Record<'_>) -> Option<String> {
    if let (Some("ask"), Some(id)) = (record.verdict.as_deref(), record.approval) {
        return Some(format!(
            "sudo agentguard approvals grant {id}, and try again"
        ));
    }
    let policy = record.policy.as_deref().unwrap_or("the policy");
    let target = record.target.as_deref()?;
    match record.cause.as_deref()? {
        "rule" => {
            let rule = record.rule.as_deref()?;
            let place = record.rule_at.as_deref().unwrap_or(policy);
            Some(format!("narrow the rule `{rule}` with `except:` ({place})"))
        }
        "default" => {
            let entry = match (&*record.op, record.access.as_deref()) {
                ("open", Some("read")) => format!("files.read.allow: [\"{target}\"]"),
                ("open", Some("write")) => format!("files.write.allow: [\"{target}\"]"),
                ("open", Some("read+write")) => format!("files.read_write.allow: [\"{target}\"]"),
                ("open" | "exec", _) => format!("exec.allow: [\"{target}\"]"),
                ("connect" | "send", _) => match record.protocol.as_deref() {
                    Some(protocol @ ("tcp" | "udp")) => {
                        format!("network.allow: [\"{target}/{protocol}\"]")
                    }
                    _ => format!("network.allow: [\"{target}\"]"),
                },
                ("resolve", _) => format!("network.allow: [\"{target}:443\"]"),
                _ => return None,
            };
            Some(format!("add to `{policy}`: {entry}"))
        }
        "unix-socket" => Some(format!("set in `{policy}`: network.unix: allow")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(op: &str, target: &str, cause: &str) -> Record<'static> {
        Record {
            exe: Some("/usr/bin/curl".into()),
            pid: Some(64),
            target: Some(target.to_owned().into()),
            verdict: Some("deny".into()),
            cause: Some(cause.to_owned().into()),
            policy: Some("coding-agent".into()),
            op: op.to_owned().into(),
            ..Record::default()
        }
    }

    #[test]
    fn a_default_denial_says_what_to_add() {
        let mut denied = record("connect", "1.2.3.4:443", "default");
        denied.protocol = Some("tcp".into());
        denied.reason = Some("no rule permits this destination".into());
        assert_eq!(
            line(&denied, false),
            "DENIED /usr/bin/curl (pid 64) → 1.2.3.4:443  rule: default  \
             reason: no rule permits this destination  \
             to allow: add to `coding-agent`: network.allow: [\"1.2.3.4:443/tcp\"]"
        );
    }

    #[test]
    fn a_rule_says_where_it_is() {
        let mut denied = record("exec", "/usr/bin/git", "rule");
        denied.argv = Some(vec!["git".into(), "push".into(), "--force".into()]);
        denied.rule = Some("no-force-push".into());
        denied.rule_at = Some("/etc/p.yaml:12".into());
        assert_eq!(
            line(&denied, false),
            "DENIED /usr/bin/curl (pid 64) → run /usr/bin/git push --force  rule: no-force-push  \
             to allow: narrow the rule `no-force-push` with `except:` (/etc/p.yaml:12)"
        );
    }

    #[test]
    fn a_failure_has_no_remedy() {
        let denied = record("open", "/x", "path-unreadable");
        assert!(!line(&denied, false).contains("to allow"));
        assert!(line(&denied, true).starts_with("\x1b[1;31mDENIED\x1b[0m /usr"));
    }
}
