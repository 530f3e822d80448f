//! Watching policy files: a change is a hot swap.
//!
//! Folders are watched, not files, because editors replace files. A change that does not make a
//! policy changes nothing but the log.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// A change is acted on when nothing has changed for this long: writers write in pieces.
const QUIET: Duration = Duration::from_millis(10);
/// But never later than this: a folder that is always busy must not put a swap off for ever.
const LATEST: Duration = Duration::from_millis(200);

/// Watches files and calls back with those that changed.
#[derive(Clone, Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inotify: Inotify,
    /// Watched folders with the names of interest in them.
    folders: Mutex<HashMap<WatchDescriptor, (PathBuf, HashSet<OsString>)>>,
}

impl Watcher {
    /// Starts a thread that calls `changed` with each set of changed files.
    pub fn start(changed: impl Fn(HashSet<PathBuf>) + Send + 'static) -> std::io::Result<Self> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let shared = Arc::new(Shared {
            inotify: Inotify::init(flags)?,
            folders: Mutex::default(),
        });
        let watcher = Self {
            shared: shared.clone(),
        };
        std::thread::Builder::new()
            .name("policy-watch".to_owned())
            .spawn(move || {
                loop {
                    let files = shared.next_changes();
                    if !files.is_empty() {
                        changed(files);
                    }
                }
            })?;
        Ok(watcher)
    }

    /// Watches a file, also when it does not exist at the moment.
    pub fn add(&self, file: &Path) -> std::io::Result<()> {
        let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
            return Ok(());
        };
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        // The lock is held over the call, so that no event of the new watch is met unknown.
        let mut folders = self.shared.folders();
        let watch = self.shared.inotify.add_watch(folder, events)?;
        let entry = folders
            .entry(watch)
            .or_insert_with(|| (folder.to_owned(), HashSet::new()));
        entry.1.insert(name.to_owned());
        Ok(())
    }
}

impl Shared {
    fn folders(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<WatchDescriptor, (PathBuf, HashSet<OsString>)>> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for changes until they pause.
    fn next_changes(&self) -> HashSet<PathBuf> {
        let mut files = HashSet::new();
        let mut wait = PollTimeout::NONE;
        let mut first = None;
        loop {
            if first.is_some_and(|first: Instant| first.elapsed() > LATEST) {
                return files;
            }
            let mut ready = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, wait) {
                Ok(0) => return files,
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => {
                    tracing::error!("failed to wait for changes of policy files: {errno}");
                    std::thread::sleep(Duration::from_secs(1));
                    return files;
                }
            }
            let events = self.inotify.read_events().unwrap_or_default();
            let folders = self.folders();
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    // Something was missed: look at everything.
                    files.extend(
                        folders
                            .values()
                            .flat_map(|(folder, names)| names.iter().map(|name| folder.join(name))),
                    );
                }
                if let Some((folder, names)) = folders.get(&event.wd)
                    && let Some(name) = event.name
                    && names.contains(&name)
                {
                    files.insert(folder.join(name));
                }
            }
            first.get_or_insert_with(Instant::now);
            wait = PollTimeout::try_from(QUIET).unwrap_or(PollTimeout::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn written_and_replaced_files_are_seen_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.yaml");
        let (sender, changes) = mpsc::channel();
        let watcher = Watcher::start(move |files| sender.send(files).unwrap()).unwrap();
        watcher.add(&file).unwrap();
        let next = || changes.recv_timeout(Duration::from_secs(10)).unwrap();
        let expected = HashSet::from([file.clone()]);
        std::fs::write(folder.path().join("other"), "x").unwrap();
        std::fs::write(&file, "1").unwrap();
        assert_eq!(next(), expected);
        std::fs::write(folder.path().join("new"), "2").unwrap();
        std::fs::rename(folder.path().join("new"), &file).unwrap();
        assert_eq!(next(), expected);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(next(), expected);
    }
}
