//! What `agentguard run` says on standard error: denials as they come, and the sum at the end.

use std::collections::HashMap;
use std::path::Path;

use super::denial;
use crate::audit::Record;
use crate::session::AgentInfo;

/// Different denials that are shown as they come; more are only counted.
const SHOWN: usize = 50;
/// Different denials that are listed at the end.
const LISTED: usize = 10;

/// Denials of one run.
#[derive(Debug)]
pub struct Summary {
    session: u32,
    quiet: bool,
    colour: bool,
    /// By what was done: how often, and the line of the first.
    seen: HashMap<(String, String), (u64, String)>,
    order: Vec<(String, String)>,
    count: u64,
}

impl Summary {
    /// Nothing so far.
    pub fn new(session: u32, quiet: bool, colour: bool) -> Self {
        Self {
            session,
            quiet,
            colour,
            seen: HashMap::new(),
            order: Vec::new(),
            count: 0,
        }
    }

    /// Refusals taken so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Takes a refusal, a line of the log; shows it if it is the first of its kind.
    pub fn denied(&mut self, line: &str) {
        if let Some(text) = self.take(line)
            && !self.quiet
        {
            eprintln!("{text}");
        }
    }

    /// What is to be shown of a refusal.
    fn take(&mut self, line: &str) -> Option<String> {
        let record: Record<'_> = serde_json::from_str(line).ok()?;
        if record.session != Some(self.session) {
            return None;
        }
        let acts = record.acts();
        self.count += acts;
        let key = (
            record.exe.as_deref().unwrap_or("?").to_owned(),
            denial::deed(&record),
        );
        if let Some((count, _)) = self.seen.get_mut(&key) {
            *count += acts;
            return None;
        }
        let text = denial::line(&record, self.colour);
        self.seen.insert(key.clone(), (acts, text.clone()));
        self.order.push(key);
        (self.order.len() <= SHOWN).then_some(text)
    }

    /// The sum.
    pub fn finish(&self, agent: &AgentInfo, log: &Path) {
        if !self.quiet {
            eprint!("{}", self.text(agent, log));
        }
    }

    fn text(&self, agent: &AgentInfo, log: &Path) -> String {
        let tally = agent.tally;
        let would_deny = match tally.would_deny {
            0 => String::new(),
            count => format!(", {count} would be denied (mode shadow)"),
        };
        let mut lines = vec![format!(
            "agentguard: {} (session {}, policy `{}`): {} allowed, {} denied{would_deny}",
            agent.name, agent.session, agent.policy, tally.allowed, tally.denied
        )];
        for key in self.order.iter().take(LISTED) {
            if let Some((count, line)) = self.seen.get(key) {
                lines.push(format!("{count:>6}× {line}"));
            }
        }
        if self.order.len() > LISTED {
            lines.push(format!(
                "        and {} other denials",
                self.order.len() - LISTED
            ));
        }
        lines.push(format!("agentguard: audit log {}\n", log.display()));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Tally;

    fn line(session: u32, target: &str) -> String {
        let record = Record {
            session: Some(session),
            exe: Some("/usr/bin/cat".into()),
            pid: Some(9),
            target: Some(target.to_owned().into()),
            access: Some("read".into()),
            verdict: Some("deny".into()),
            rule: Some("secrets".into()),
            ..Record::new("open")
        };
        serde_json::to_string(&record).unwrap()
    }

    #[test]
    fn each_denial_is_shown_once_and_counted() {
        let mut summary = Summary::new(3, false, false);
        let shown = "DENIED /usr/bin/cat (pid 9) → read /a  rule: secrets";
        assert_eq!(summary.take(&line(3, "/a")).as_deref(), Some(shown));
        assert_eq!(summary.take(&line(3, "/a")), None);
        assert_eq!(summary.take(&line(4, "/a")), None);
        assert_eq!(summary.take("nonsense"), None);
        for number in 0..SHOWN {
            let shown = summary.take(&line(3, &format!("/b{number}"))).is_some();
            assert_eq!(shown, number < SHOWN - 1);
        }
        let agent = AgentInfo {
            name: "cat".into(),
            session: 3,
            policy: "p".into(),
            mode: "enforce".into(),
            generation: 1,
            files: vec![],
            cgroup: "/x".into(),
            processes: 0,
            frozen: false,
            since: 0,
            tally: Tally {
                allowed: 4,
                denied: 52,
                would_deny: 0,
            },
            budget: None,
            environment: vec![],
        };
        let text = summary.text(&agent, Path::new("/log"));
        assert!(text.starts_with(
            "agentguard: cat (session 3, policy `p`): 4 allowed, 52 denied\n     2× DENIED"
        ));
        assert!(text.contains("and 41 other denials"), "{text}");
        assert!(text.ends_with("audit log /log\n"));
    }
}
