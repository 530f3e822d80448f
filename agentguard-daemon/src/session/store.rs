//! What must be known after a restart, in the state folder: agents, and the text of each policy in force.
//!
//! It is written before the kernel is told of an agent, and after the kernel let go of one: what is here is
//! never less than what is governed. Each file is whole or not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self};
use std::io::{self};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{PolicyRequest, SessionError};
use crate::agent::Name;
use crate::disk;
use crate::policy::{self, Policy};

/// Version of the file's format.
const VERSION: u32 = 1;
const AGENTS: &str = "agents.json";
const POLICIES: &str = "policies";

/// Everything about agents that outlives a daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Of the format.
    pub version: u32,
    /// The boot that cgroups and slots belong to.
    pub boot: String,
    /// No policy was ever in force under this number or a higher one.
    pub next_generation: u32,
    /// The slot that was given out last.
    pub last_slot: u32,
    /// Agents, in the order of their slots.
    pub agents: Vec<SavedAgent>,
    /// Generations that are not in force any more, and whose records may not be in the log yet.
    pub retired: Vec<u32>,
    /// Slots of agents that were frozen for the length of an upgrade only.
    pub frozen_for_upgrade: Vec<u32>,
}

/// One agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedAgent {
    /// Its name.
    pub name: Name,
    /// Its slot.
    pub slot: u32,
    /// Its session.
    pub session: u32,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// That cgroup's number: another one at the same path is not trusted.
    pub cgroup_id: u64,
    /// Whether the cgroup was made for it.
    pub owns_cgroup: bool,
    /// Where its process came from.
    pub came_from: Option<PathBuf>,
    /// When it came under governance, in milliseconds since 1970.
    pub since: u64,
    /// Whether it goes with the `agentguard run` that it belongs to.
    pub owned: bool,
    /// Whose budgets it spends; its name's if absent.
    #[serde(default)]
    pub account: Option<Name>,
    /// Its policy, as it was asked for.
    pub request: PolicyRequest,
    /// The generation in force.
    pub generation: u32,
}

/// A policy as it was read.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedPolicy {
    name: String,
    vars: BTreeMap<String, String>,
    sources: Vec<(PathBuf, String)>,
    files: Vec<PathBuf>,
}

/// A policy under its generation, with the variables that it was read with.
pub type Generation<'a> = (u32, &'a Arc<Policy>, &'a BTreeMap<String, String>);

/// The folder.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Generations whose text is there.
    written: BTreeSet<u32>,
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SessionError {
    let path = path.to_owned();
    move |source| SessionError::Io { call, path, source }
}

impl Store {
    /// A store in the state folder, which need not exist.
    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            written: BTreeSet::new(),
        }
    }

    /// What is there; `None` if nothing is. What cannot be understood is an error: agents may be governed that
    /// nobody knows.
    pub fn load(&mut self) -> Result<Option<Saved>, SessionError> {
        let path = self.folder.join(AGENTS);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(failed("read", &path))?,
        };
        let damaged = |what: String| SessionError::State {
            path: path.clone(),
            what,
        };
        let saved: Saved =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if saved.version != VERSION {
            return Err(damaged(format!("its format is {}", saved.version)));
        }
        let generations = saved.agents.iter().map(|agent| agent.generation);
        self.written = generations.chain(saved.retired.iter().copied()).collect();
        Ok(Some(saved))
    }

    /// The policy of a generation, word for word.
    pub fn policy(
        &self,
        generation: u32,
    ) -> Result<(Policy, BTreeMap<String, String>), SessionError> {
        let path = self.policy_path(generation);
        let text = fs::read(&path).map_err(failed("read", &path))?;
        let saved: SavedPolicy =
            serde_json::from_slice(&text).map_err(|error| SessionError::State {
                path,
                what: error.to_string(),
            })?;
        let policy = policy::load_sources(&saved.name, &saved.sources, &saved.files, &saved.vars)?;
        Ok((policy, saved.vars))
    }

    fn policy_path(&self, generation: u32) -> PathBuf {
        self.folder
            .join(POLICIES)
            .join(format!("{generation}.json"))
    }

    /// Writes it all, and removes texts that nobody needs any more.
    pub fn save(
        &mut self,
        saved: &Saved,
        generations: &[Generation<'_>],
    ) -> Result<(), SessionError> {
        let folder = self.folder.join(POLICIES);
        disk::make_folder(&folder).map_err(failed("make the folder", &folder))?;
        for (generation, policy, vars) in generations {
            if self.written.contains(generation) {
                continue;
            }
            let text = SavedPolicy {
                name: policy.name().to_owned(),
                vars: (*vars).clone(),
                sources: policy.sources(),
                files: policy.files().to_vec(),
            };
            replace(&self.policy_path(*generation), &text)?;
            self.written.insert(*generation);
        }
        let saved = Saved {
            version: VERSION,
            ..saved.clone()
        };
        replace(&self.folder.join(AGENTS), &saved)?;
        let needed: BTreeSet<u32> = generations.iter().map(|it| it.0).collect();
        for generation in self.written.difference(&needed) {
            // A text too many does no harm.
            let _ = fs::remove_file(self.policy_path(*generation));
        }
        self.written = needed;
        Ok(())
    }
}

/// Removes what a store has in a folder: agents and policies, but not the numbers of sessions and approvals, which
/// must never come again.
pub fn clear(folder: &Path) -> Result<(), SessionError> {
    let (agents, policies) = (folder.join(AGENTS), folder.join(POLICIES));
    for (path, outcome) in [
        (&agents, fs::remove_file(&agents)),
        (&policies, fs::remove_dir_all(&policies)),
    ] {
        match outcome {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Replaces a file in one step; when this returns, the disk has it.
fn replace(path: &Path, value: &impl Serialize) -> Result<(), SessionError> {
    let text = serde_json::to_vec(value).map_err(|error| failed("write", path)(error.into()))?;
    disk::replace(path, &text).map_err(|it| failed(it.call, &it.path)(it.source))
}

/// The number of this boot.
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(generation: u32) -> SavedAgent {
        SavedAgent {
            name: "a".parse().unwrap(),
            slot: 1,
            session: 7,
            cgroup: "/cg/a".into(),
            cgroup_id: 99,
            owns_cgroup: false,
            came_from: None,
            since: 5,
            owned: false,
            account: None,
            request: PolicyRequest::default(),
            generation,
        }
    }

    fn policy(text: &str) -> Arc<Policy> {
        let options = policy::LoadOptions::default();
        Arc::new(policy::load_text(Path::new("/p.yaml"), text, &options).unwrap())
    }

    #[test]
    fn what_is_saved_comes_back_word_for_word() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::at(&folder.path().join("state"));
        assert_eq!(store.load().unwrap(), None);
        let saved = Saved {
            version: VERSION,
            boot: boot(),
            next_generation: 9,
            agents: vec![agent(8)],
            ..Saved::default()
        };
        let text = "version: 1\n# a word\nnetwork: {default: allow}\n";
        let vars = BTreeMap::from([("home".to_owned(), "/h".to_owned())]);
        store.save(&saved, &[(8, &policy(text), &vars)]).unwrap();
        let mut store = Store::at(&folder.path().join("state"));
        assert_eq!(store.load().unwrap(), Some(saved.clone()));
        let (found, found_vars) = store.policy(8).unwrap();
        assert_eq!(found.sources(), [("/p.yaml".into(), text.to_owned())]);
        assert_eq!((found.name(), found_vars), ("p", vars.clone()));
        // Nobody needs generation 8 any more.
        let next = Saved {
            agents: vec![agent(9)],
            ..saved
        };
        store.save(&next, &[(9, &policy(text), &vars)]).unwrap();
        assert!(store.policy(8).is_err() && store.policy(9).is_ok());
        clear(&folder.path().join("state")).unwrap();
        assert_eq!(store.load().unwrap(), None);
    }

    #[test]
    fn damage_is_an_error_and_not_an_empty_host() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::at(folder.path());
        for text in ["", "{", "{\"version\":9}", "[]"] {
            fs::write(folder.path().join(AGENTS), text).unwrap();
            assert!(
                matches!(store.load(), Err(SessionError::State { .. })),
                "{text:?}"
            );
        }
    }
}
