//! What is looked for: whether a record fits, whether a line or a frame can have one that does.
//!
//! What only may fit is looked at; it must never be said of something that fits that it cannot.

use std::collections::HashSet;
use std::path::PathBuf;

use jiff::Timestamp;
use memchr::memmem;

use crate::audit::glance::{Glance, is_refusal};
use crate::audit::index::{Frame, word};
use crate::event::escape::unescape;

/// What is looked for. Everything that is set must fit.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Name of the agent.
    pub agent: Option<String>,
    /// Session of the agent.
    pub session: Option<u32>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// One of these verdicts; any if there is none.
    pub verdicts: Vec<String>,
    /// One of these operations; any if there is none.
    pub ops: Vec<String>,
    /// Id of the rule.
    pub rule: Option<String>,
    /// Over the target, and over the new path of what has two.
    pub path: Option<globset::GlobMatcher>,
    /// The acting program: its whole path, or the last part.
    pub name: Option<String>,
    /// The process.
    pub pid: Option<u32>,
    /// This process and all that come from it.
    pub tree: Option<u32>,
    /// Anywhere in the line.
    pub text: Option<String>,
    /// Numbers of records, from the first to the last.
    pub seqs: Option<(u64, u64)>,
    /// The fork that made this process.
    pub child: Option<u32>,
    /// The exec whose program has this number.
    pub exec: Option<u64>,
}

impl Filter {
    /// Whether a record fits. `family` are the processes of the tree so far.
    pub(super) fn fits(&self, seen: &Glance<'_>, family: &HashSet<u32>) -> bool {
        let is = |wanted: &Option<String>, have: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| have == Some(wanted))
        };
        let is_one = |wanted: &[String], have: Option<&str>| {
            wanted.is_empty() || wanted.iter().any(|wanted| have == Some(wanted))
        };
        is(&self.agent, seen.agent)
            && self
                .session
                .is_none_or(|session| seen.session == Some(session))
            && self.pid.is_none_or(|pid| seen.pid == Some(pid))
            && self.child.is_none_or(|child| seen.child == Some(child))
            && self.exec.is_none_or(|exec| seen.new_exec_id == Some(exec))
            && is_one(&self.verdicts, seen.verdict)
            && is_one(&self.ops, Some(seen.op))
            && is(&self.rule, seen.rule)
            && (self.tree.is_none() || seen.pid.is_some_and(|pid| family.contains(&pid)))
            && self
                .seqs
                .is_none_or(|(first, last)| (first..=last).contains(&seen.seq))
            && self.name.as_deref().is_none_or(|name| {
                let exe = seen.exe.unwrap_or_default();
                exe == name || exe.rsplit('/').next() == Some(name)
            })
            && self.path.as_ref().is_none_or(|glob| {
                let mut targets = [seen.target, seen.to].into_iter().flatten();
                targets.any(|target| target_fits(glob, target))
            })
            && self.in_time(seen)
    }

    /// Whether a record fits but for its text, as plainly as it can be asked; the tree follows.
    #[cfg(test)]
    pub fn takes(&self, record: &crate::audit::Record<'_>, family: &mut HashSet<u32>) -> bool {
        let seen = Glance::from(record);
        let fits = self.fits(&seen, family);
        self.follow(&seen, family);
        fits
    }

    fn in_time(&self, seen: &Glance<'_>) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Ok(time) = seen.time.parse::<Timestamp>() else {
            return false;
        };
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
    }

    /// What the line of a record that fits must have in it. Names and values are there as JSON writes them, and
    /// nothing within a text can look like a field: a quote in a text is written `\"`.
    pub(super) fn needles(&self) -> Needles {
        let field = |name: &str, value: Option<&String>| {
            let value = serde_json::to_string(value?).ok()?;
            Some(format!("\"{name}\":{value}"))
        };
        let only = |list: &[String]| (list.len() == 1).then(|| list[0].clone());
        let parts = self
            .path
            .as_ref()
            .map(|glob| plain_parts(glob.glob().glob()));
        let mut parts: Vec<String> = parts.into_iter().flatten().map(str::to_owned).collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
        let all = [
            // The rarest first.
            self.text.clone(),
            parts.first().cloned(),
            field("rule", self.rule.as_ref()),
            field("verdict", only(&self.verdicts).as_ref()),
            field("op", only(&self.ops).as_ref()),
            field("agent", self.agent.as_ref()),
        ];
        let all = all.into_iter().flatten();
        Needles(
            all.map(|it| memmem::Finder::new(&it).into_owned())
                .collect(),
        )
    }

    /// The words that a frame must have, each list one of them.
    pub(super) fn words(&self) -> Vec<Vec<u64>> {
        // Words of refusals are there a second time.
        let refused = !self.verdicts.is_empty() && self.verdicts.iter().all(|it| is_refusal(it));
        let kind = |kind: char| {
            if refused {
                kind.to_ascii_uppercase()
            } else {
                kind
            }
        };
        let text = |letter, text: &str| word(kind(letter), text.as_bytes());
        let number = |letter, number: u64| word(kind(letter), &number.to_le_bytes());
        let mut all = Vec::new();
        all.extend(self.agent.iter().map(|agent| vec![text('a', agent)]));
        all.extend(self.rule.iter().map(|rule| vec![text('r', rule)]));
        all.extend(self.session.map(|it| vec![number('s', it.into())]));
        all.extend(self.pid.map(|it| vec![number('p', it.into())]));
        all.extend(self.child.map(|it| vec![number('k', it.into())]));
        all.extend(self.exec.map(|it| vec![number('x', it)]));
        for (letter, wanted) in [('v', &self.verdicts), ('o', &self.ops)] {
            if !wanted.is_empty() {
                all.push(wanted.iter().map(|wanted| text(letter, wanted)).collect());
            }
        }
        if let Some(name) = &self.name {
            all.push(vec![text('e', name), text('n', name)]);
        }
        if let Some(glob) = &self.path {
            all.extend(plain_parts(glob.glob().glob()).map(|part| vec![text('c', part)]));
        }
        all
    }

    /// Whether a frame may have something that fits.
    pub(super) fn may_be_in(
        &self,
        frame: &Frame,
        words: &[Vec<u64>],
        family: &HashSet<u32>,
    ) -> bool {
        if self.tree.is_some() {
            // Whoever belongs to the tree may fork anywhere, also where nothing else fits.
            return family
                .iter()
                .any(|pid| frame.may_have(word('p', &u64::from(*pid).to_le_bytes())));
        }
        let numbers = self
            .seqs
            .is_none_or(|(first, last)| first <= frame.last && last >= frame.first);
        let time = |text: &str| text.parse::<Timestamp>();
        // A time that cannot be read excludes nothing.
        let times = self
            .since
            .is_none_or(|since| time(&frame.to).map_or(true, |to| to >= since))
            && self
                .until
                .is_none_or(|until| time(&frame.from).map_or(true, |from| from <= until));
        numbers
            && times
            && words
                .iter()
                .all(|any| any.iter().any(|word| frame.may_have(*word)))
    }

    /// Who belongs to the tree after a record.
    pub(super) fn follow(&self, record: &Glance<'_>, family: &mut HashSet<u32>) {
        if self.tree.is_none() {
            return;
        }
        let Some(pid) = record.pid.filter(|pid| family.contains(pid)) else {
            return;
        };
        match (record.op, record.child) {
            ("fork", Some(child)) => {
                family.insert(child);
            }
            // The number may soon be another's. The root is the one that was asked for.
            ("exit", _) if self.tree != Some(pid) => {
                family.remove(&pid);
            }
            _ => {}
        }
    }
}

/// See [`Filter::needles`].
#[derive(Debug)]
pub(super) struct Needles(Vec<memmem::Finder<'static>>);

impl Needles {
    /// Whether all of them are in a line, or in a text of lines.
    pub(super) fn are_in(&self, text: &[u8]) -> bool {
        self.0.iter().all(|needle| needle.find(text).is_some())
    }

    /// Where the next line begins that may have them all; `None` if there is none.
    pub(super) fn next_line(&self, text: &[u8]) -> Option<usize> {
        let Some(first) = self.0.first() else {
            return Some(0);
        };
        let found = first.find(text)?;
        Some(memchr::memrchr(b'\n', &text[..found]).map_or(0, |at| at + 1))
    }
}

/// Parts of a glob between slashes that are plain text: paths that fit have them, too.
fn plain_parts(glob: &str) -> impl Iterator<Item = &str> {
    let whole = !glob.contains(['{', '}']);
    glob.split('/').filter(move |part| {
        whole
            && !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-@+:,=~".contains(&byte))
    })
}

/// The glob sees the bytes that the kernel saw, not their escaped form.
fn target_fits(glob: &globset::GlobMatcher, target: &str) -> bool {
    use std::os::unix::ffi::OsStringExt;
    let target = unescape(target).ok();
    target.is_some_and(|bytes| glob.is_match(PathBuf::from(std::ffi::OsString::from_vec(bytes))))
}
