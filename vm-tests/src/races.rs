//! Races against the guard: for some seconds of the guest's time 64 threads of an agent change what
//! is used while it is judged. Not one forbidden open or start may come through.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::attempt::{Attempt, perform};
use crate::guard::{Agent, Group, write_policy};
use crate::row::Actor;

/// Seconds of the guest's time for each race; `CI` has the default.
const SECONDS: &str = "AGENTGUARD_RACE_SECONDS";
const DEFAULT: u64 = 5;
const POLICY: &str = "\
version: 1
files:
  read: {default: allow, deny: [{id: no-secret, path: \"/t/secret/**\"}]}
  write: {default: allow}
exec: {default: allow, deny: [{id: danger, command: [\"echo ** --danger **\"]}]}
network: {default: deny}
";

/// What one race saw.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    permitted: u64,
    refused: u64,
    forbidden: u64,
}

impl Seen {
    fn read(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let [
            "permitted",
            permitted,
            "refused",
            refused,
            "forbidden",
            forbidden,
        ] = words[..]
        else {
            anyhow::bail!("the race said {text:?}");
        };
        Ok(Self {
            permitted: permitted.parse()?,
            refused: refused.parse()?,
            forbidden: forbidden.parse()?,
        })
    }
}

fn run(verb: &str, seconds: u64, group: Option<&Group>) -> Result<Seen> {
    let done = perform(&Attempt {
        act: &[verb.to_owned(), seconds.to_string()],
        cwd: None,
        setup: &[],
        after: &[],
        before: &[],
        private: false,
        actor: Actor::User,
        group,
        patience: Duration::from_secs(seconds) + Duration::from_mins(2),
    })?;
    ensure!(
        done.errno == 0 && !done.killed,
        "the race broke off: {}",
        done.complaint.trim()
    );
    Seen::read(&String::from_utf8_lossy(&done.output))
}

/// How long a race takes.
pub fn seconds() -> Result<u64> {
    match std::env::var(SECONDS) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{SECONDS} is no number: {text}")),
        Err(_) => Ok(DEFAULT),
    }
}

/// Runs a race without a guard, where it must be won now and then, and with one, where it must not.
pub fn race(verb: &str) -> Result<()> {
    let seconds = seconds()?;
    let control = run(verb, 2, None)?;
    ensure!(
        control.forbidden > 0,
        "without a guard the race is never won, so it shows nothing: {control:?}"
    );
    write_policy("race", POLICY)?;
    let agent = Agent::attach(verb, "race")?;
    let seen = run(verb, seconds, Some(&agent.group))?;
    println!("      {verb}: {seen:?}");
    ensure!(seen.forbidden == 0, "the race was won: {seen:?}");
    ensure!(
        seen.permitted > 0 && seen.refused > 0,
        "it was not close: {seen:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Seen;

    #[test]
    fn a_line_is_read() {
        let seen = Seen::read("permitted 1 refused 20 forbidden 0").expect("a line");
        assert_eq!((seen.permitted, seen.refused, seen.forbidden), (1, 20, 0));
        assert!(Seen::read("").is_err());
    }
}
