//! Which program acts: the names behind the exec ids of records.
//!
//! Memory is bounded: two generations of at most [`CAP`] names each. A name that is used moves to
//! the young generation, so only programs of processes that were idle for `CAP` execs are
//! forgotten; those are asked of `/proc` again. It must never give a name that the kernel did not.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::event::escape::escape;

/// Names in one generation.
pub const CAP: usize = 16_384;

/// Escaped names of programs by exec id, and by pid for processes that were attached while running.
#[derive(Debug)]
pub struct Programs {
    young: HashMap<u64, Arc<str>>,
    old: HashMap<u64, Arc<str>>,
    /// Programs of processes without an exec record.
    running: HashMap<u32, Arc<str>>,
    cap: usize,
}

impl Programs {
    /// An empty table.
    pub fn new() -> Self {
        Self::with_cap(CAP)
    }

    fn with_cap(cap: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            running: HashMap::new(),
            cap,
        }
    }

    /// An exec record: from now on `exec_id` means the program at `path`.
    pub fn started(&mut self, exec_id: u64, pid: u32, path: &[u8]) {
        self.running.remove(&pid);
        self.insert(exec_id, Arc::from(escape(path).as_ref()));
    }

    /// A process ended: its pid may soon be another's.
    pub fn ended(&mut self, pid: u32) {
        self.running.remove(&pid);
    }

    /// The program that a task runs. `None` if neither records nor `/proc` know it.
    pub fn name(&mut self, exec_id: u64, pid: u32) -> Option<Arc<str>> {
        if exec_id != 0 {
            if let Some(name) = self.young.get(&exec_id) {
                return Some(name.clone());
            }
            if let Some(name) = self.old.remove(&exec_id) {
                self.insert(exec_id, name.clone());
                return Some(name);
            }
            let name = program_of(pid)?;
            self.insert(exec_id, name.clone());
            return Some(name);
        }
        if let Some(name) = self.running.get(&pid) {
            return Some(name.clone());
        }
        let name = program_of(pid)?;
        if self.running.len() >= self.cap {
            self.running.clear();
        }
        self.running.insert(pid, name.clone());
        Some(name)
    }

    fn insert(&mut self, exec_id: u64, name: Arc<str>) {
        if self.young.len() >= self.cap {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(exec_id, name);
    }
}

impl Default for Programs {
    fn default() -> Self {
        Self::new()
    }
}

/// What `/proc` says a process runs.
fn program_of(pid: u32) -> Option<Arc<str>> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::fs::read_link(PathBuf::from(format!("/proc/{pid}/exe"))).ok()?;
    Some(Arc::from(escape(path.as_os_str().as_bytes()).as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pid that no process has: above the kernel's largest.
    const NOBODY: u32 = 5_000_000;

    #[test]
    fn a_program_is_known_by_its_exec() {
        let mut programs = Programs::new();
        programs.started(7, NOBODY, b"/bin/a\nb");
        assert_eq!(programs.name(7, NOBODY).as_deref(), Some(r"/bin/a\x0ab"));
        assert_eq!(programs.name(8, NOBODY), None);
    }

    #[test]
    fn a_process_attached_while_running_is_asked_of_proc() {
        let mut programs = Programs::new();
        let own = std::env::current_exe().unwrap();
        let name = programs.name(0, std::process::id()).unwrap();
        assert_eq!(&*name, own.to_str().unwrap());
        assert_eq!(programs.name(0, NOBODY), None);
    }

    #[test]
    fn memory_is_bounded_and_names_in_use_survive() {
        let mut programs = Programs::with_cap(10);
        programs.started(1, NOBODY, b"/used");
        programs.started(2, NOBODY, b"/idle");
        for id in 3..1_000 {
            programs.started(id, NOBODY, b"/other");
            assert!(programs.name(1, NOBODY).is_some(), "{id}");
        }
        assert_eq!(programs.name(2, NOBODY), None);
        assert!(programs.young.len() + programs.old.len() <= 20);
    }
}
