//! What the kernel programs remember of folders: a remembered path must end with what it was made of. Each change
//! is made while the path is remembered, and after it nothing may be judged or recorded by a name of before.

mod ground;
mod mounts;
pub mod mover;
pub mod opener;
mod race;
mod renames;
mod roots;
mod scene;

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

pub use race::while_folders_move;

use crate::fixture;
use crate::guard::{Agent, write_policy};
use crate::run::Tally;
use crate::trail::Trail;
use scene::Scene;

/// The agent, and its policy.
const NAME: &str = "folders";
/// A folder of this name is denied, wherever it is: its files are not known as objects, and judged by name alone.
const POLICY: &str = "\
version: 1
files:
  read: {default: allow, deny: [{id: denied, path: \"**/denied/**\"}]}
  write: {default: allow, deny: [{id: denied-too, path: \"**/denied/**\"}]}
exec: {default: allow, deny: [{id: not-run, path: \"**/denied/**\"}]}
network: {default: deny}
kernel: {mount: allow, user_namespaces: allow, capabilities: allow}
";

/// One change.
struct Change {
    name: &'static str,
    /// A file system that it needs.
    needs: Option<&'static str>,
    make: fn(&mut Scene, &Agent) -> Result<()>,
}

impl Change {
    const fn new(name: &'static str, make: fn(&mut Scene, &Agent) -> Result<()>) -> Self {
        Self {
            name,
            needs: None,
            make,
        }
    }

    /// What this kernel has not.
    fn lacks(&self) -> Option<String> {
        let needed = self.needs?;
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let has = known
            .lines()
            .any(|line| line.split_whitespace().last() == Some(needed));
        (!has).then(|| format!("this kernel has no {needed}"))
    }
}

/// Every change.
const CHANGES: &[Change] = &[
    Change::new("the folder is renamed", |scene, agent| {
        renames::renamed(scene, agent, "d")
    }),
    Change::new("the folder above is renamed", |scene, agent| {
        renames::renamed(scene, agent, "p/d")
    }),
    Change::new("the folder three above is renamed", |scene, agent| {
        renames::renamed(scene, agent, "g/p/q/d")
    }),
    Change::new("two folders exchange their names", |scene, agent| {
        renames::exchanged(scene, agent, "")
    }),
    Change::new(
        "the folders above two exchange their names",
        |scene, agent| renames::exchanged(scene, agent, "/d"),
    ),
    Change::new(
        "a folder is removed, and another made of its name",
        renames::made_anew,
    ),
    Change::new(
        "a file is renamed, and goes to another folder",
        renames::file_renamed,
    ),
    Change::new("a file has names in two folders", renames::linked),
    Change::new(
        "a file is removed, and its folder, and opened again",
        renames::removed,
    ),
    Change::new("a file that never had a name", renames::temporary),
    Change::new("a folder is bound elsewhere", mounts::bound),
    Change::new("a mount is moved", mounts::mount_moved),
    Change::new("a mount is detached while it is used", mounts::detached),
    Change::new("something is mounted over a folder", mounts::mounted_over),
    Change::new("a root elsewhere", roots::rooted),
    Change::new("a root in a mount", roots::rooted_in_mount),
    Change::new("the root changes on the way", roots::root_changes),
    Change::new("mounts of one's own", roots::unshared),
    Change {
        name: "a folder of an overlay",
        needs: Some("overlay"),
        make: mounts::overlaid,
    },
    Change::new("the policy changes", roots::policy_changes),
    Change::new("what is mapped has moved", renames::mapped),
    Change::new("names and folders of many lengths", renames::lengths),
    Change::new("the folder of all, and a link", renames::topmost),
];

/// Runs each change whose name contains `filter`.
pub fn run(audit: &Path, filter: &str, tally: &mut Tally) {
    for change in CHANGES {
        let name = format!(
            "folders: a remembered path ends with what it was made of: {}",
            change.name
        );
        if !name.contains(filter) {
            continue;
        }
        if let Some(why) = change.lacks() {
            tally.skip(&name, &why);
            continue;
        }
        let started = Instant::now();
        tally.count(&name, made(audit, change), started.elapsed());
    }
}

fn made(audit: &Path, change: &Change) -> Result<()> {
    fixture::make(&["mkdir -p moves/free moves/denied".to_owned()])?;
    write_policy(NAME, POLICY)?;
    let agent = Agent::attach(NAME, NAME)?;
    let mut scene = Scene::at(Trail::at(audit));
    (change.make)(&mut scene, &agent)?;
    scene.is_recorded()
}
