//! Which agents exist: slots, sessions, names.
//!
//! A slot is not given out again before its agent is gone from the kernel.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::SystemTime;

use agentguard_common::label::Membership;
use agentguard_common::table::MAX_AGENTS;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Cgroup;

/// Longest name of an agent.
const NAME_MAX: usize = 48;

/// A name of an agent: letters, digits, `-`, `_` and `.`, beginning with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{}` cannot be the name of an agent: use up to {NAME_MAX} letters, digits, `-`, `_` and `.`, beginning with a letter or digit", .0.escape_debug())]
pub struct NameError(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The nearest name to any text, for defaults.
    pub fn nearest(text: &str) -> Self {
        let name: String = text
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                    c
                } else {
                    '-'
                }
            })
            .skip_while(|c| !c.is_ascii_alphanumeric())
            .take(NAME_MAX)
            .collect();
        Self(if name.is_empty() {
            "agent".to_owned()
        } else {
            name
        })
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = text.len() <= NAME_MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// One agent under governance.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its name; no two agents have the same.
    pub name: Name,
    /// Its slot in the kernel's tables.
    pub slot: u32,
    /// Its session.
    pub session: u32,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// The cgroup's number in the kernel.
    pub cgroup_id: u64,
    /// Whether the cgroup was made for it, and goes with it.
    pub owns_cgroup: bool,
    /// The cgroup that a process was taken from, to put it back.
    pub came_from: Option<PathBuf>,
    /// When it came under governance.
    pub since: SystemTime,
    /// Whether it belongs to an `agentguard run`, and ends with that.
    pub owned: bool,
    /// Whose budgets it spends: its name, or what an agent without a name of its own is called.
    pub account: Name,
}

impl Agent {
    /// What its tasks are labelled with.
    pub fn membership(&self) -> Membership {
        Membership {
            agent: self.slot,
            session: self.session,
        }
    }
}

/// Why an agent cannot be added or found.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// The name is taken.
    #[error(
        "an agent `{0}` is already governed; give another name with --name, or `agentguard detach {0}` first"
    )]
    NameTaken(Name),
    /// The cgroup is governed already, or lies within or above one that is.
    #[error("the cgroup {path} belongs to the agent `{name}` already; `agentguard detach {name}` first", path = .path.display())]
    CgroupTaken {
        /// The cgroup.
        path: PathBuf,
        /// Whose it is.
        name: Name,
    },
    /// All slots are in use.
    #[error("{} agents are governed already, and that is the most that one host can have", MAX_AGENTS - 1)]
    Full,
    /// No such agent.
    #[error("no agent `{0}` is governed; `agentguard ps` lists those that are")]
    Unknown(String),
}

/// All agents under governance, by slot.
#[derive(Debug, Default)]
pub struct Registry {
    agents: BTreeMap<u32, Agent>,
    last_slot: u32,
}

impl Registry {
    /// A free slot. Slots are given out in turn, so that a late record of an old agent is not taken
    /// for a new one's.
    pub fn free_slot(&mut self) -> Result<u32, RegistryError> {
        let count = MAX_AGENTS - 1;
        for step in 0..count {
            let slot = (self.last_slot + step) % count + 1;
            if !self.agents.contains_key(&slot) {
                self.last_slot = slot;
                return Ok(slot);
            }
        }
        Err(RegistryError::Full)
    }

    /// The slot that was given out last.
    pub fn last_slot(&self) -> u32 {
        self.last_slot
    }

    /// Slots are given out in turn after this one.
    pub fn set_last_slot(&mut self, slot: u32) {
        self.last_slot = slot;
    }

    /// Whether an agent of this name and cgroup could be added.
    pub fn check(&self, name: &Name, cgroup: Option<&Cgroup>) -> Result<(), RegistryError> {
        if self.agents.values().any(|agent| agent.name == *name) {
            return Err(RegistryError::NameTaken(name.clone()));
        }
        let Some(path) = cgroup.map(Cgroup::path) else {
            return Ok(());
        };
        let clash = self.agents.values().find(|agent| {
            path.starts_with(agent.cgroup.path()) || agent.cgroup.path().starts_with(path)
        });
        match clash {
            None => Ok(()),
            Some(agent) => Err(RegistryError::CgroupTaken {
                path: path.to_owned(),
                name: agent.name.clone(),
            }),
        }
    }

    /// Adds an agent at its slot.
    pub fn add(&mut self, agent: Agent) {
        self.agents.insert(agent.slot, agent);
    }

    /// Takes an agent out.
    pub fn remove(&mut self, slot: u32) -> Option<Agent> {
        self.agents.remove(&slot)
    }

    /// The agent of a name.
    pub fn find(&self, name: &str) -> Result<&Agent, RegistryError> {
        self.agents
            .values()
            .find(|agent| agent.name.as_str() == name)
            .ok_or_else(|| RegistryError::Unknown(name.to_owned()))
    }

    /// The agent whose cgroup is or contains `path`.
    pub fn of_cgroup(&self, path: &std::path::Path) -> Option<&Agent> {
        self.agents
            .values()
            .find(|agent| path.starts_with(agent.cgroup.path()))
    }

    /// All agents.
    pub fn iter(&self) -> impl Iterator<Item = &Agent> {
        self.agents.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_file_names() {
        for good in ["claude", "a.b-c_9", "7"] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        let long = "x".repeat(NAME_MAX + 1);
        for bad in ["", ".", "..", "-x", "a/b", "a b", "ä", "a\n", &long] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for (text, name) in [
            ("/bin/sh", "bin-sh"),
            ("..", "agent"),
            ("ä b", "b"),
            (&long, &long[..NAME_MAX]),
        ] {
            assert_eq!(Name::nearest(text).as_str(), name);
            assert!(name.parse::<Name>().is_ok());
        }
    }

    #[test]
    fn slots_are_given_in_turn_and_end() {
        let mut registry = Registry::default();
        assert_eq!(registry.free_slot().unwrap(), 1);
        assert_eq!(registry.free_slot().unwrap(), 2);
        for slot in 1..MAX_AGENTS {
            registry.agents.insert(slot, agent(slot));
        }
        assert!(matches!(registry.free_slot(), Err(RegistryError::Full)));
        registry.remove(1);
        assert_eq!(registry.free_slot().unwrap(), 1);
    }

    fn agent(slot: u32) -> Agent {
        Agent {
            name: Name(format!("a{slot}")),
            slot,
            session: slot,
            cgroup: Cgroup::at(PathBuf::from(format!("/cg/a{slot}"))),
            cgroup_id: u64::from(slot),
            owns_cgroup: true,
            came_from: None,
            since: SystemTime::UNIX_EPOCH,
            owned: false,
            account: "a".parse().unwrap(),
        }
    }

    #[test]
    fn a_name_and_a_cgroup_are_governed_once() {
        let mut registry = Registry::default();
        registry.add(agent(1));
        let other = "other".parse().unwrap();
        let taken = |path: &str| {
            registry
                .check(&other, Some(&Cgroup::at(path.into())))
                .is_err()
        };
        assert!(registry.check(&"a1".parse().unwrap(), None).is_err());
        assert!(taken("/cg/a1") && taken("/cg/a1/below") && taken("/cg"));
        assert!(!taken("/cg/a2") && !taken("/cg/a11"));
        assert_eq!(
            registry
                .of_cgroup(std::path::Path::new("/cg/a1/x"))
                .unwrap()
                .slot,
            1
        );
        assert!(
            registry
                .of_cgroup(std::path::Path::new("/cg/a11"))
                .is_none()
        );
    }
}
