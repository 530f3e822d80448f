//! Programs that are attached to an agent's cgroup, and go with it. What others have attached there is never touched.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use super::attach::of_program;
use super::{Guard, KernelError, sys};

/// A program of ours, and the number of the place that it is attached to.
pub(super) type Placed = (&'static str, u32);

impl Guard {
    /// Attaches programs that are loaded. Those of an earlier daemon are replaced in one step: two would each do their
    /// work, and none would leave it undone for a moment.
    pub(super) fn attach_to(
        &mut self,
        cgroup: &Path,
        programs: &[Placed],
        action: &'static str,
    ) -> Result<(), KernelError> {
        let folder = File::open(cgroup).map_err(io("open the agent's cgroup"))?;
        for (name, kind) in programs {
            let found = self.object().program(name).ok_or(KernelError::Map {
                map: name,
                error: "no such program in the object".into(),
            })?;
            let missing = |error| of_program("find", name, error);
            let ours = found.fd().map_err(missing)?;
            let id = found.info().map_err(missing)?.id();
            let before = earlier(&folder, name, *kind)?;
            if before.iter().any(|other| other.id == id) {
                continue;
            }
            let mut before = before.iter().map(|other| other.descriptor.as_fd());
            let first = before.next();
            sys::attach(folder.as_fd(), ours.as_fd(), first, *kind).map_err(io(action))?;
            for more in before {
                // It may have gone.
                let _ = sys::detach(folder.as_fd(), more, *kind);
            }
        }
        Ok(())
    }
}

/// Takes programs of ours off a cgroup, if it is still there.
pub(super) fn detach_from(
    cgroup: &Path,
    programs: &[Placed],
    action: &'static str,
) -> Result<(), KernelError> {
    let Ok(folder) = File::open(cgroup) else {
        return Ok(());
    };
    for (name, kind) in programs {
        for ours in earlier(&folder, name, *kind)? {
            sys::detach(folder.as_fd(), ours.descriptor.as_fd(), *kind).map_err(io(action))?;
        }
    }
    Ok(())
}

/// The programs of this name that are attached, whoever of us did that.
fn earlier(folder: &File, name: &str, kind: u32) -> Result<Vec<sys::Attached>, KernelError> {
    let mut found = sys::attached(folder.as_fd(), kind)
        .map_err(io("list the programs of the agent's cgroup"))?;
    found.retain(|other| other.name == name);
    Ok(found)
}

fn io(action: &'static str) -> impl Fn(std::io::Error) -> KernelError {
    move |error| KernelError::Io { action, error }
}
