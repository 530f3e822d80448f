//! The `kernel` section: switches for what changes the system or reaches outside of the agent.
//!
//! A switch is open only where it is written, and nowhere denied: what extends a policy can tighten it, and
//! nothing is ever open because it was forgotten. The one exception is executable memory without a file,
//! which most interpreters need.

use std::collections::BTreeMap;

use agentguard_common::verdict::Lock;

use super::diagnostic::{PolicyError, Source};
use super::schema::{At, Document, Switch};
use super::suggest::closest;

/// Which locks are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locks(u32);

impl Default for Locks {
    fn default() -> Self {
        Self(1 << Lock::AnonymousCode as u32)
    }
}

impl Locks {
    /// Whether the lock with this number is open.
    pub fn get(self, lock: u32) -> bool {
        lock < 32 && self.0 >> lock & 1 != 0
    }

    /// Bit `n` is set where lock number `n` is open.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Joins the sections of all files.
    pub fn join(documents: &[(&Source, &Document)]) -> Result<Self, PolicyError> {
        let mut written: BTreeMap<Lock, Switch> = BTreeMap::new();
        for (source, document) in documents {
            for (name, switch) in document.kernel.iter().flatten() {
                let lock = known(source, name, switch)?;
                let so_far = written.entry(lock).or_insert(Switch::Allow);
                if switch.value == Switch::Deny {
                    *so_far = Switch::Deny;
                }
            }
        }
        let mut locks = Self::default();
        for (lock, switch) in written {
            let bit = 1 << lock as u32;
            match switch {
                Switch::Allow => locks.0 |= bit,
                Switch::Deny => locks.0 &= !bit,
            }
        }
        Ok(locks)
    }
}

fn known(source: &Source, name: &str, switch: &At<Switch>) -> Result<Lock, PolicyError> {
    if let Some(lock) = Lock::ALL.iter().find(|lock| lock.name() == name) {
        return Ok(*lock);
    }
    let names: Vec<&str> = Lock::ALL.iter().map(|lock| lock.name()).collect();
    let help = closest(name, &names).map_or_else(
        || format!("known are {}", names.join(", ")),
        |near| format!("did you mean `{near}`?"),
    );
    Err(PolicyError::at(
        source,
        switch.span,
        format!(
            "`{}` is nothing that the section `kernel` speaks of",
            name.escape_debug()
        ),
        help,
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use agentguard_common::verdict::{Lock, Reason, Verdict};

    use crate::policy::{Action, LoadOptions, Policy, load_text};

    fn policy(text: &str) -> Policy {
        load_text(Path::new("/p.yaml"), text, &LoadOptions::default()).expect("a policy")
    }

    fn judged(policy: &Policy, lock: Lock) -> (Verdict, Reason) {
        let judgement = policy.judge(&Action::Kernel { lock: lock as u32 });
        (judgement.verdict, judgement.reason)
    }

    #[test]
    fn everything_is_locked_unless_it_is_written() {
        let plain = policy("version: 1\n");
        for lock in Lock::ALL {
            let expected = if *lock == Lock::AnonymousCode {
                (Verdict::Allow, Reason::Default)
            } else {
                (Verdict::Deny, Reason::Locked)
            };
            assert_eq!(judged(&plain, *lock), expected, "{}", lock.name());
        }
        let open = policy("version: 1\nkernel: {mount: allow, anonymous_code: deny}\n");
        assert_eq!(judged(&open, Lock::Mount).0, Verdict::Allow);
        assert_eq!(judged(&open, Lock::AnonymousCode).0, Verdict::Deny);
        assert_eq!(judged(&open, Lock::Bpf).0, Verdict::Deny);
    }

    #[test]
    fn unknown_switches_are_refused() {
        let options = LoadOptions::default();
        let text = "version: 1\nkernel: {mounts: allow}\n";
        let error = load_text(Path::new("/p.yaml"), text, &options).expect_err("unknown");
        assert!(error.to_string().contains("`mounts`"), "{error}");
    }

    #[test]
    fn numbers_fit_the_table() {
        assert!(Lock::ALL.iter().all(|lock| (*lock as u32) < 32));
    }
}
