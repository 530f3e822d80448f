//! Watching the folders of protected objects. What comes, goes or is replaced there is reported for the agents
//! concerned, and everything is once in a while: a mount makes no event.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::policy::protected::Interest;

/// A change is acted on when nothing has changed for this long.
const QUIET: Duration = Duration::from_millis(20);
/// But never later than this.
const LATEST: Duration = Duration::from_millis(200);
/// Everything is looked at again this often.
const PERIOD: Duration = Duration::from_secs(30);
/// After each look, this many times what it took is waited: a folder that is always busy costs a tenth.
const REST: u32 = 9;
/// But never longer than this: meanwhile nothing that is new is protected.
const LONGEST_REST: Duration = Duration::from_secs(2);
/// Folders watched for one agent.
const MAX_FOLDERS: usize = 1024;

/// The watch on all agents' folders.
#[derive(Clone)]
pub(super) struct Scout {
    shared: Arc<Shared>,
}

struct Shared {
    inotify: Inotify,
    rounds: AtomicU64,
    /// Whether it was said that a folder cannot be watched: there may be a thousand.
    told: AtomicBool,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    /// Who is interested in what, for each folder.
    folders: HashMap<WatchDescriptor, Vec<(u64, Interest)>>,
    /// The search that counts for an agent.
    agents: HashMap<u32, u64>,
    /// Searches whose folders have changed since.
    changed: HashSet<u64>,
}

/// The watches of one search. Dropped unless they are settled.
pub(super) struct Round {
    scout: Scout,
    number: u64,
    folders: AtomicUsize,
    settled: bool,
}

impl Scout {
    /// Starts a thread that calls `look` with the slots of agents whose objects may be others now, or with
    /// nothing, which means all.
    pub fn start(look: impl Fn(Option<&HashSet<u32>>) + Send + 'static) -> std::io::Result<Self> {
        let scout = Self {
            shared: Arc::new(Shared {
                inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
                rounds: AtomicU64::new(1),
                told: AtomicBool::new(false),
                watched: Mutex::default(),
            }),
        };
        let shared = scout.shared.clone();
        std::thread::Builder::new()
            .name("object-watch".to_owned())
            .spawn(move || {
                let mut everything = Instant::now();
                loop {
                    let slots = (Instant::now() < everything)
                        .then(|| shared.next_changes(everything))
                        .filter(|slots| !slots.is_empty());
                    if slots.is_none() && Instant::now() < everything {
                        continue;
                    }
                    let started = Instant::now();
                    look(slots.as_ref());
                    if slots.is_none() {
                        everything = Instant::now() + PERIOD;
                    }
                    std::thread::sleep((started.elapsed() * REST).min(LONGEST_REST));
                }
            })?;
        Ok(scout)
    }

    /// A search begins.
    pub fn begin(&self) -> Round {
        Round {
            scout: self.clone(),
            number: self.shared.rounds.fetch_add(1, Ordering::Relaxed),
            folders: AtomicUsize::new(0),
            settled: false,
        }
    }

    /// An agent has gone.
    pub fn forget(&self, slot: u32) {
        let mut watched = self.shared.watched();
        if let Some(round) = watched.agents.remove(&slot) {
            self.shared.drop_round(&mut watched, round);
        }
    }
}

impl Round {
    /// Watches a folder that is about to be read.
    pub fn watch(&self, folder: &Path, interest: Interest) {
        match self.folders.fetch_add(1, Ordering::Relaxed) {
            count if count < MAX_FOLDERS => {}
            MAX_FOLDERS => {
                tracing::debug!("only the first {MAX_FOLDERS} folders are watched");
                return;
            }
            _ => return,
        }
        let events = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        // The lock is held over the call, so that no event of the new watch is met unknown.
        let mut watched = self.scout.shared.watched();
        match self.scout.shared.inotify.add_watch(folder, events) {
            Ok(watch) => {
                let interests = watched.folders.entry(watch).or_default();
                interests.push((self.number, interest));
            }
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => {}
            Err(errno) if !self.scout.shared.told.swap(true, Ordering::Relaxed) => {
                tracing::warn!(
                    "changes in {} and maybe other folders will be seen late: {errno}; see `sysctl fs.inotify.max_user_watches`",
                    folder.display()
                );
            }
            Err(_) => {}
        }
    }

    /// This is what counts for an agent from now on.
    pub fn settle(mut self, slot: u32) {
        self.settled = true;
        let shared = &self.scout.shared;
        let mut watched = shared.watched();
        if let Some(before) = watched.agents.insert(slot, self.number) {
            shared.drop_round(&mut watched, before);
        }
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        if !self.settled {
            let shared = &self.scout.shared;
            shared.drop_round(&mut shared.watched(), self.number);
        }
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_round(&self, watched: &mut Watched, round: u64) {
        watched.changed.remove(&round);
        watched.folders.retain(|watch, interests| {
            interests.retain(|(number, _)| *number != round);
            if interests.is_empty() {
                // The folder may have gone, and its watch with it.
                let _ = self.inotify.rm_watch(*watch);
            }
            !interests.is_empty()
        });
    }

    /// Waits for changes until they pause; not beyond `end`.
    fn next_changes(&self, end: Instant) -> HashSet<u32> {
        let mut first: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let pending = !self.watched().changed.is_empty();
            if pending {
                first.get_or_insert(now);
            }
            let wait = match first {
                Some(first) if now - first > LATEST => return self.changed(),
                Some(_) => QUIET,
                None => end.saturating_duration_since(now),
            };
            // Rounded up, so that it does not turn in circles before the end.
            let wait = PollTimeout::try_from(wait + Duration::from_millis(1));
            let mut ready = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, wait.unwrap_or(PollTimeout::ZERO)) {
                Ok(0) => return self.changed(),
                Ok(_) => self.read(),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => {
                    tracing::error!("failed to wait for changes of protected files: {errno}");
                    std::thread::sleep(Duration::from_secs(1));
                    return self.changed();
                }
            }
        }
    }

    fn read(&self) {
        let events = self.inotify.read_events().unwrap_or_default();
        let mut guard = self.watched();
        let watched = &mut *guard;
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                // Something was missed: everything is looked at.
                watched.changed.extend(watched.agents.values());
            }
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                watched.folders.remove(&event.wd);
            }
            let Some(name) = &event.name else {
                continue;
            };
            let is_folder = event.mask.contains(AddWatchFlags::IN_ISDIR);
            let interests = watched.folders.get(&event.wd).into_iter().flatten();
            for (round, interest) in interests {
                if !watched.changed.contains(round) && interest.wants(name.as_bytes(), is_folder) {
                    watched.changed.insert(*round);
                }
            }
        }
    }

    /// The agents concerned. A search that is not settled yet stays for later.
    fn changed(&self) -> HashSet<u32> {
        let mut watched = self.watched();
        let slots: HashSet<u32> = watched
            .agents
            .iter()
            .filter(|(_, round)| watched.changed.contains(round))
            .map(|(slot, _)| *slot)
            .collect();
        let settled: Vec<u64> = slots.iter().map(|slot| watched.agents[slot]).collect();
        for round in settled {
            watched.changed.remove(&round);
        }
        slots
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_is_of_interest_is_reported_for_its_agent_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let (sender, looks) = mpsc::channel();
        let scout = Scout::start(move |slots| sender.send(slots.cloned()).unwrap()).unwrap();
        let next = || looks.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(next(), None, "at first everything is looked at");
        for (slot, name) in [(1, "one"), (2, "two")] {
            let round = scout.begin();
            round.watch(root, Interest::Entry(name.as_bytes().to_vec()));
            round.settle(slot);
        }
        std::fs::write(root.join("other"), "x").unwrap();
        std::fs::write(root.join("one"), "x").unwrap();
        assert_eq!(next(), Some(HashSet::from([1])));
        std::fs::rename(root.join("other"), root.join("two")).unwrap();
        assert_eq!(next(), Some(HashSet::from([2])));
        // What changes during a search is reported when it is settled.
        let round = scout.begin();
        round.watch(root, Interest::Entry(b"three".to_vec()));
        std::fs::write(root.join("three"), "x").unwrap();
        assert!(looks.recv_timeout(Duration::from_millis(300)).is_err());
        round.settle(1);
        assert_eq!(next(), Some(HashSet::from([1])));
        scout.forget(1);
        drop(scout.begin());
        std::fs::remove_file(root.join("three")).unwrap();
        std::fs::remove_file(root.join("two")).unwrap();
        assert_eq!(next(), Some(HashSet::from([2])));
        scout.forget(2);
        assert!(scout.shared.watched().folders.is_empty());
    }
}
