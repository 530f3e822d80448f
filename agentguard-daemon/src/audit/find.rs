//! Finding records: a filter over records, and the search through the files of a log.
//!
//! The index says where not to look; each record that is given was read from the log and fits the filter.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use memchr::memmem;

use super::glance::{Glance, is_refusal};
use super::index::{Frame, Index, word};
use super::record::Record;
use super::segment::{self, Segment};
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
    fn fits(&self, seen: &Glance<'_>, family: &HashSet<u32>) -> bool {
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
    fn needles(&self) -> Needles {
        let field = |name: &str, value: Option<&String>| {
            let value = serde_json::to_string(value?).ok()?;
            Some(format!("\"{name}\":{value}"))
        };
        let only = |list: &[String]| (list.len() == 1).then(|| list[0].clone());
        let all = [
            // The rarest first.
            self.text.clone(),
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
    fn words(&self) -> Vec<Vec<u64>> {
        // Words of refusals are there a second time.
        let refused = !self.verdicts.is_empty() && self.verdicts.iter().all(|it| is_refusal(it));
        let kind = |kind: char| match refused {
            true => kind.to_ascii_uppercase(),
            false => kind,
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
    fn may_be_in(&self, frame: &Frame, words: &[Vec<u64>], family: &HashSet<u32>) -> bool {
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
    fn follow(&self, record: &Glance<'_>, family: &mut HashSet<u32>) {
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
struct Needles(Vec<memmem::Finder<'static>>);

impl Needles {
    /// Whether all of them are in a line, or in a text of lines.
    fn are_in(&self, text: &[u8]) -> bool {
        self.0.iter().all(|needle| needle.find(text).is_some())
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

/// How a search is made, and what it has done.
#[derive(Debug, Default)]
pub struct Search {
    /// Look everywhere, whatever an index says.
    pub everywhere: bool,
    /// Frames or files that were read.
    pub read: u64,
    /// Frames that need not be read.
    pub skipped: u64,
    /// Indexes that had to be made.
    pub made: u64,
    /// Lines that are no records.
    pub strange: u64,
}

impl Search {
    /// Gives each record that fits, in the order of the log, until `take` says that it has enough.
    pub fn each(
        &mut self,
        log: &Path,
        filter: &Filter,
        mut take: impl FnMut(&[u8], Record<'_>) -> bool,
    ) -> io::Result<()> {
        let mut family: HashSet<u32> = filter.tree.into_iter().collect();
        for segment in segment::all_of(log)? {
            if !self.segment(&segment, filter, &mut family, &mut take)? {
                break;
            }
        }
        Ok(())
    }

    /// The last `count` lines that fit, in the order of the log.
    pub fn last(&mut self, log: &Path, filter: &Filter, count: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut found: Vec<Vec<u8>> = Vec::new();
        if filter.tree.is_some() {
            // Who belongs to the tree is only known from the beginning on.
            let mut lines = VecDeque::new();
            self.each(log, filter, |line, _| {
                lines.push_back(line.to_vec());
                if lines.len() > count {
                    lines.pop_front();
                }
                true
            })?;
            return Ok(lines.into());
        }
        for segment in segment::all_of(log)?.into_iter().rev() {
            if found.len() >= count {
                break;
            }
            self.last_of(&segment, filter, count, &mut found)?;
        }
        found.reverse();
        Ok(found)
    }

    /// Adds what fits in one segment to what was found in later ones, the latest first.
    fn last_of(
        &mut self,
        segment: &Segment,
        filter: &Filter,
        count: usize,
        found: &mut Vec<Vec<u8>>,
    ) -> io::Result<()> {
        let needles = filter.needles();
        let last_in = |search: &mut Self, text: &mut dyn BufRead, found: &mut Vec<Vec<u8>>| {
            let room = count.saturating_sub(found.len());
            let mut lines = VecDeque::new();
            search.lines(
                text,
                filter,
                &needles,
                &mut HashSet::new(),
                &mut |line, _| {
                    lines.push_back(line.to_vec());
                    if lines.len() > room {
                        lines.pop_front();
                    }
                    true
                },
            )?;
            found.extend(lines.into_iter().rev());
            Ok(())
        };
        let Some((file, frames)) = self.frames(segment)? else {
            self.read += 1;
            return last_in(self, &mut *segment.open()?, found);
        };
        let words = filter.words();
        for frame in frames.iter().rev() {
            if found.len() >= count {
                break;
            }
            if !filter.may_be_in(frame, &words, &HashSet::new()) {
                self.skipped += 1;
                continue;
            }
            self.read += 1;
            let text = frame.read(&file)?;
            if needles.are_in(&text) {
                last_in(self, &mut &text[..], found)?;
            }
        }
        Ok(())
    }

    /// The frames of a packed segment, unless all of it is to be read.
    fn frames(&mut self, segment: &Segment) -> io::Result<Option<(File, Vec<Frame>)>> {
        if !segment.packed || self.everywhere {
            return Ok(None);
        }
        let index = Index::of(&segment.path, &mut || self.made += 1)?;
        Ok(Some((File::open(&segment.path)?, index.frames)))
    }

    fn segment(
        &mut self,
        segment: &Segment,
        filter: &Filter,
        family: &mut HashSet<u32>,
        take: &mut dyn FnMut(&[u8], Record<'_>) -> bool,
    ) -> io::Result<bool> {
        let needles = filter.needles();
        let Some((file, frames)) = self.frames(segment)? else {
            self.read += 1;
            return self.lines(&mut *segment.open()?, filter, &needles, family, take);
        };
        let words = filter.words();
        for frame in &frames {
            if !filter.may_be_in(frame, &words, family) {
                self.skipped += 1;
                continue;
            }
            self.read += 1;
            let text = frame.read(&file)?;
            // Forks are looked at whatever is asked for.
            let may_fit = filter.tree.is_some() || needles.are_in(&text);
            if may_fit && !self.lines(&mut &text[..], filter, &needles, family, take)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn lines(
        &mut self,
        text: &mut dyn BufRead,
        filter: &Filter,
        needles: &Needles,
        family: &mut HashSet<u32>,
        take: &mut dyn FnMut(&[u8], Record<'_>) -> bool,
    ) -> io::Result<bool> {
        let mut line = Vec::new();
        loop {
            line.clear();
            text.read_until(b'\n', &mut line)?;
            // A writer may be in the middle of the last one.
            if line.pop_if(|byte| *byte == b'\n').is_none() {
                return Ok(true);
            }
            // Forks are looked at whatever is asked for.
            let may_fit = needles.are_in(&line);
            if filter.tree.is_none() && !may_fit {
                continue;
            }
            match take_in(filter, family, may_fit, &line) {
                Ok(None) => {}
                Ok(Some(record)) => {
                    if !take(&line, record) {
                        return Ok(false);
                    }
                }
                Err(_) => self.strange += 1,
            }
        }
    }
}

/// Follows the tree with a line; gives its record if that fits.
fn take_in<'a>(
    filter: &Filter,
    family: &mut HashSet<u32>,
    may_fit: bool,
    line: &'a [u8],
) -> Result<Option<Record<'a>>, serde_json::Error> {
    let mut fits = |seen: &Glance<'_>| {
        let fits = may_fit && filter.fits(seen, family);
        filter.follow(seen, family);
        fits
    };
    if let Some(seen) = Glance::at(line) {
        return if fits(&seen) {
            serde_json::from_slice(line).map(Some)
        } else {
            Ok(None)
        };
    }
    let record: Record<'_> = serde_json::from_slice(line)?;
    let fits = fits(&Glance::from(&record));
    Ok(fits.then_some(record))
}

/// A filter over lines that come one after the other.
#[derive(Debug)]
pub struct Sieve {
    filter: Filter,
    needles: Needles,
    family: HashSet<u32>,
}

impl Sieve {
    /// From now on.
    pub fn new(filter: Filter) -> Self {
        Self {
            family: filter.tree.into_iter().collect(),
            needles: filter.needles(),
            filter,
        }
    }

    /// Whether a line is to be shown: a record that fits, or what is no record.
    pub fn takes(&mut self, line: &[u8]) -> bool {
        let may_fit = self.needles.are_in(line);
        let taken = take_in(&self.filter, &mut self.family, may_fit, line);
        taken.map_or(true, |record| record.is_some())
    }
}
