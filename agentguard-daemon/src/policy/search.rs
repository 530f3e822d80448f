//! The walk of the search for protected objects: folders that are nearest first, within bounds, and never
//! through a symbolic link.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentguard_common::identity::DENIED;
use agentguard_common::verdict::{Reason, Verdict};
use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat, major, minor};

use super::glob::Glob;
use super::protected::{ACCESSES, Found, Interest, Limits, Object};
use super::reach::{Pattern, Progress};
use super::rule::{Action, Matcher, RuleRef};
use super::{Policy, pseudo};

/// A folder that is to be read.
struct Folder {
    path: PathBuf,
    /// Patterns that can match below, as far as they have come.
    patterns: Vec<(usize, Progress)>,
}

pub struct Search<'a> {
    policy: &'a Policy,
    patterns: Arc<Vec<Pattern>>,
    /// For each of them the exceptions that hold for everything below.
    excepted: Vec<Vec<Pattern>>,
    limits: Limits,
    left: usize,
    floating: bool,
    enter: &'a mut dyn FnMut(&Path, Interest),
    queue: VecDeque<Folder>,
    /// Folders that rules of any depth were looked for in.
    seen: HashSet<PathBuf>,
    /// One reference for each rule.
    names: HashMap<String, Arc<RuleRef>>,
    /// Whether a device is worth a look.
    devices: HashMap<u64, bool>,
    /// What is not even asked.
    served: pseudo::Served,
    found: Found,
}

impl<'a> Search<'a> {
    pub fn new(
        policy: &'a Policy,
        patterns: Arc<Vec<Pattern>>,
        limits: Limits,
        enter: &'a mut dyn FnMut(&Path, Interest),
    ) -> Self {
        Self {
            excepted: patterns.iter().map(|it| all_below(policy, it)).collect(),
            policy,
            patterns,
            limits,
            left: limits.entries,
            floating: false,
            enter,
            queue: VecDeque::new(),
            seen: HashSet::new(),
            names: HashMap::new(),
            devices: HashMap::new(),
            served: pseudo::Served::now(),
            found: Found::default(),
        }
    }

    /// From now on for rules of any depth, with no more than so many entries.
    pub fn float(&mut self, entries: usize) {
        self.floating = true;
        self.left = self.left.min(entries);
    }

    pub fn found(self) -> Found {
        self.found
    }

    /// Looks at one object, and queues it if it is a folder.
    pub fn root(&mut self, root: &[u8], patterns: &[usize]) {
        let path = Path::new(OsStr::from_bytes(root));
        if !self.floating {
            self.ancestors(path);
        }
        // A pattern speaks of resolved paths: behind a link there is nothing that it could match.
        let Ok(opened) = self.open(path, OFlag::O_PATH) else {
            return;
        };
        let Ok(stat) = fstat(&opened) else {
            return;
        };
        let read = |index: &usize| {
            let pattern = &self.patterns[*index];
            (*index, pattern.read(&pattern.start(), root))
        };
        let progress: Vec<(usize, Progress)> = patterns.iter().map(read).collect();
        if kind(&stat) == SFlag::S_IFDIR {
            self.folder(path.to_owned(), &progress);
        } else {
            self.object(path, &stat, &progress);
        }
    }

    /// The way to a root: what is on it may be made or replaced.
    fn ancestors(&mut self, root: &Path) {
        let mut way: Vec<&Path> = root.ancestors().collect();
        way.reverse();
        for pair in way.windows(2) {
            let Some(name) = pair[1].file_name() else {
                continue;
            };
            if self
                .open(pair[0], OFlag::O_PATH | OFlag::O_DIRECTORY)
                .is_err()
            {
                break;
            }
            (self.enter)(pair[0], Interest::Entry(name.as_bytes().to_vec()));
        }
    }

    fn folder(&mut self, path: PathBuf, patterns: &[(usize, Progress)]) {
        let slash: &[u8] = if path.as_os_str() == "/" { b"" } else { b"/" };
        let below = |(index, progress): &(usize, Progress)| {
            let progress = self.patterns[*index].read(progress, slash);
            let alive = !progress.is_empty() && !self.excepted(*index, &path);
            alive.then_some((*index, progress))
        };
        let patterns: Vec<(usize, Progress)> = patterns.iter().filter_map(below).collect();
        if patterns.is_empty() || (self.floating && !self.seen.insert(path.clone())) {
            return;
        }
        self.queue.push_back(Folder { path, patterns });
    }

    /// Whether a rule makes an exception for everything below a folder.
    fn excepted(&self, pattern: usize, folder: &Path) -> bool {
        let folder = folder.as_os_str().as_bytes();
        let mut excepted = self.excepted[pattern].iter();
        excepted.any(|all| all.matches(&all.read(&all.start(), folder)))
    }

    /// Reads the queued folders, those that are nearest first.
    pub fn run(&mut self) {
        while let Some(folder) = self.queue.pop_front() {
            if self.left == 0 || self.found.objects.len() >= self.limits.objects {
                self.cut(&folder.patterns);
                continue;
            }
            self.read(&folder);
        }
    }

    fn cut(&mut self, patterns: &[(usize, Progress)]) {
        if self.floating {
            self.found.floating_cut = true;
            return;
        }
        for (index, _) in patterns {
            let rule = &self.policy.rules[self.patterns[*index].rule];
            if !self.found.cut.contains(&rule.id) {
                self.found.cut.insert(rule.id.clone());
            }
        }
    }

    fn read(&mut self, folder: &Folder) {
        let Ok(opened) = self.open(&folder.path, OFlag::O_PATH | OFlag::O_DIRECTORY) else {
            return;
        };
        let worth = |stat: FileStat| {
            let known = self.devices.entry(stat.st_dev);
            *known.or_insert_with(|| !pseudo::is_pseudo(&opened))
        };
        if !fstat(&opened).is_ok_and(worth) {
            return;
        }
        if !self.floating {
            let interest = Interest::Patterns(self.patterns.clone(), folder.patterns.clone());
            (self.enter)(&folder.path, interest);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
        let Ok(mut listed) = self.open(&folder.path, flags).and_then(Dir::from_fd) else {
            return;
        };
        for entry in listed.iter().flatten() {
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if self.left == 0 {
                self.cut(&folder.patterns);
                return;
            }
            self.left -= 1;
            self.entry(folder, &opened, name, entry.file_type());
        }
    }

    fn entry(&mut self, folder: &Folder, opened: &OwnedFd, name: &[u8], listed: Option<Type>) {
        if matches!(
            listed,
            Some(Type::Symlink | Type::Fifo | Type::CharacterDevice | Type::BlockDevice)
        ) {
            return;
        }
        let read = |(index, progress): &(usize, Progress)| {
            let progress = self.patterns[*index].read(progress, name);
            (!progress.is_empty()).then_some((*index, progress))
        };
        let is_file = matches!(listed, Some(Type::File | Type::Socket));
        let of_interest = |it: &(usize, Progress)| !is_file || self.patterns[it.0].matches(&it.1);
        let there: Vec<(usize, Progress)> = folder
            .patterns
            .iter()
            .filter_map(read)
            .filter(of_interest)
            .collect();
        if there.is_empty() {
            return;
        }
        let path = folder.path.join(OsStr::from_bytes(name));
        if listed == Some(Type::Directory) {
            self.folder(path, &there);
            return;
        }
        if self.served.holds(&path) {
            return;
        }
        let name = OsStr::from_bytes(name);
        let Ok(stat) = fstatat(opened.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) else {
            // It has gone meanwhile.
            return;
        };
        if kind(&stat) == SFlag::S_IFDIR {
            self.folder(path, &there);
        } else {
            self.object(&path, &stat, &there);
        }
    }

    /// Opens a path in which there is no symbolic link, and which no process has to answer for.
    fn open(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        if self.served.holds(path) {
            return Err(nix::errno::Errno::EXDEV);
        }
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(nix::fcntl::AT_FDCWD, path, how)
    }

    /// Protects a file or socket as far as a rule denies its path.
    fn object(&mut self, path: &Path, stat: &FileStat, patterns: &[(usize, Progress)]) {
        let matched =
            |(index, progress): &&(usize, Progress)| self.patterns[*index].matches(progress);
        if !matches!(kind(stat), SFlag::S_IFREG | SFlag::S_IFSOCK)
            || !patterns.iter().any(|it| matched(&it))
        {
            return;
        }
        let key = (stat.st_ino, device(stat));
        let is_new = !self.found.objects.contains_key(&key);
        if is_new && self.found.objects.len() >= self.limits.objects {
            let matched: Vec<_> = patterns.iter().filter(matched).cloned().collect();
            self.cut(&matched);
            return;
        }
        let mut denied = Object::default();
        for (bit, place) in ACCESSES.iter().zip(&mut denied.rules) {
            let judgement = self.policy.judge(&Action::Path {
                path: path.as_os_str().as_bytes(),
                access: *bit,
            });
            let refused = matches!(judgement.verdict, Verdict::Deny | Verdict::Ask);
            if refused && judgement.reason == Reason::Rule {
                denied.accesses |= u32::from(*bit);
                if judgement.verdict == Verdict::Deny {
                    denied.accesses |= u32::from(*bit) << DENIED;
                }
                *place = judgement.rule.map(|rule| {
                    let name = self.names.entry(rule.id.clone());
                    name.or_insert_with(|| Arc::new(rule)).clone()
                });
            }
        }
        if denied.accesses == 0 {
            return;
        }
        let entry = self.found.objects.entry(key).or_default();
        entry.accesses |= denied.accesses;
        for (rule, other) in entry.rules.iter_mut().zip(denied.rules) {
            if rule.is_none() {
                *rule = other;
            }
        }
    }
}

/// The exceptions of a pattern's rule that hold for everything below what they match.
fn all_below(policy: &Policy, pattern: &Pattern) -> Vec<Pattern> {
    let Matcher::Path { except, .. } = &policy.rules[pattern.rule].matcher else {
        return Vec::new();
    };
    let except = except.iter().flat_map(Glob::alternatives);
    let except = except.map(|tokens| Pattern::new(tokens, pattern.rule));
    except.filter(Pattern::is_all_below).collect()
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// The device as the kernel programs see it.
fn device(stat: &FileStat) -> u32 {
    (major(stat.st_dev) << 20 | minor(stat.st_dev)) as u32
}
