//! A row: one act under one policy, and all that must be true afterwards. Rows are data; this
//! module reads them and never runs anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// A file of rows that share a subject.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// Policies of this file by name, as their users would write them.
    #[serde(default)]
    pub policies: BTreeMap<String, String>,
    /// The policy of rows that name none.
    pub policy: String,
    /// What people call the family in the table of techniques.
    #[serde(default)]
    pub title: String,
    /// The policy under which acts that the rows deny are permitted: each is tried there too.
    pub twin: Option<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// What must happen to the act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// It succeeds, has its effect, and is recorded as allowed.
    Allowed,
    /// It fails with EPERM or EACCES, has no effect, and is recorded as denied; ungoverned it succeeds.
    Denied,
    /// The acting process is killed before its act has any effect.
    Killed,
    /// It succeeds and is recorded as something that enforcement would deny.
    WouldDeny,
}

impl Expect {
    /// The verdict that the record must name.
    pub fn verdict(self) -> &'static str {
        match self {
            Self::Allowed => "allow",
            Self::Denied | Self::Killed => "deny",
            Self::WouldDeny => "would-deny",
        }
    }
}

/// The user that acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Actor {
    /// Uid 1000, in no privileged group.
    User,
    /// Uid 0 with every capability.
    Root,
}

/// What a row needs of the machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Needs {
    /// The errnos with which the act fails, ungoverned, on a machine without it.
    pub errno: Vec<i32>,
    /// What it is, in words.
    pub what: String,
    /// The denial comes before the machine finds out: it is checked also where there is no positive control.
    #[serde(default)]
    pub judged_first: bool,
}

/// One row.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What the row shows.
    pub name: String,
    /// Policy, if not the file's.
    pub policy: Option<String>,
    /// Who acts: both, one after the other, unless one is named.
    #[serde(rename = "as", default = "everybody")]
    pub actors: Vec<Actor>,
    /// Shell lines run before, ungoverned and as root, in the fixture.
    #[serde(default)]
    pub setup: Vec<String>,
    /// Working directory of the act.
    pub cwd: Option<String>,
    /// The act: a verb of `vm-tests act` and its arguments.
    pub act: Vec<String>,
    /// What must happen.
    pub expect: Expect,
    /// Operation in the record; the verb's own if absent.
    pub op: Option<String>,
    /// Target in the record; the verb's first argument if absent. Escaped as records are.
    pub target: Option<String>,
    /// Id of the rule in the record.
    pub rule: Option<String>,
    /// Cause in the record: the stable name of why it was decided so.
    pub cause: Option<String>,
    /// The second path in the record, as `target`.
    pub to: Option<String>,
    /// The policy under which the same act is permitted, if not the file's; `none` if there is none.
    pub twin: Option<String>,
    /// Have the acting process unshare mounts and host name first, so that nothing stays.
    #[serde(default)]
    pub private: bool,
    /// Acts before, by the acting process as root, before it is governed.
    #[serde(default)]
    pub before: Vec<Vec<String>>,
    /// Shell lines run after, ungoverned and as root.
    #[serde(default)]
    pub after: Vec<String>,
    /// What the machine must have; the row is skipped where it has not.
    pub needs: Option<Needs>,
    /// The call reports no failure: only that nothing happened shows the denial. Says why.
    pub silent: Option<String>,
    /// What is permitted here leaves no record. Says why.
    pub unrecorded: Option<String>,
    /// The hook that stops it.
    pub hook: Option<String>,
    /// The denial does not come from the policy's rules: without them it stays. Says why.
    pub inherent: Option<String>,
}

fn everybody() -> Vec<Actor> {
    vec![Actor::User, Actor::Root]
}

impl Row {
    /// Operation that the record must name.
    pub fn operation(&self) -> &str {
        let verb = self.act.first().map_or("", String::as_str);
        let own = match verb {
            "connect" | "connect-unix" | "connect32" | "uring-connect" => "connect",
            "send" | "fast-open" => "send",
            _ if verb.starts_with("exec") => "exec",
            _ => "open",
        };
        self.op.as_deref().unwrap_or(own)
    }
}

/// Reads every row file of a folder, in the order of their names.
pub fn load(folder: &Path) -> Result<Vec<(String, Family)>> {
    let mut families = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))?
    {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path)
            .with_context(|| format!("failed to read {}", path.display()))?;
        let family: Family = serde_saphyr::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        let name = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default()
            .to_owned();
        families.push((name, family));
    }
    if families.is_empty() {
        bail!("{} holds no row files", folder.display());
    }
    families.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(families)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> Vec<(String, Family)> {
        load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("rows")).expect("the rows parse")
    }

    #[test]
    fn names_are_unique() {
        let families = shipped();
        let mut names: Vec<(&str, &str)> = families
            .iter()
            .flat_map(|(file, family)| {
                family
                    .rows
                    .iter()
                    .map(move |row| (file.as_str(), row.name.as_str()))
            })
            .collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn each_file_has_allowed_and_denied_rows() {
        for (file, family) in shipped() {
            let count = |expect: Expect| {
                family
                    .rows
                    .iter()
                    .filter(|row| row.expect == expect)
                    .count()
            };
            assert!(
                count(Expect::Allowed) > 0,
                "{file} has no allowed row: its denials may be accidents"
            );
            assert!(
                count(Expect::Denied) + count(Expect::Killed) + count(Expect::WouldDeny) > 0,
                "{file} denies nothing"
            );
        }
    }

    /// A verb that is denied somewhere is permitted somewhere: else the denial may be an accident.
    #[test]
    fn each_denial_has_a_twin() {
        for (file, family) in shipped() {
            for row in family
                .rows
                .iter()
                .filter(|row| matches!(row.expect, Expect::Denied | Expect::Killed))
            {
                let verb = row.act.first();
                let twin = row.twin.as_ref().or(family.twin.as_ref());
                if let Some(twin) = twin.filter(|twin| twin.as_str() != "none") {
                    assert!(
                        family.policies.contains_key(twin),
                        "{file}: {}: no policy {twin}",
                        row.name
                    );
                    continue;
                }
                let permitted = family
                    .rows
                    .iter()
                    .any(|other| other.expect == Expect::Allowed && other.act.first() == verb);
                assert!(
                    permitted || row.inherent.is_some(),
                    "{file}: {}: {verb:?} is nowhere permitted",
                    row.name
                );
            }
        }
    }

    #[test]
    fn every_verb_is_known() {
        for (file, family) in shipped() {
            for row in family.rows {
                let verb = row.act.first().expect("an act has a verb");
                assert!(
                    crate::act::VERBS
                        .iter()
                        .any(|verbs| verbs.contains(&verb.as_str())),
                    "{file}: {}: no verb {verb}",
                    row.name
                );
            }
        }
    }
}
