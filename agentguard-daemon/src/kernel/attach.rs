//! The programs of the object, one by one: loaded, attached, pinned. Lineage is attached first.

use std::io;
use std::path::Path;
use std::time::Instant;

use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, Iter, Lsm};
use aya::{Btf, Ebpf};

use super::{Guard, KernelError, hooks};

/// Tracepoints that keep lineage and record the life of processes.
const TRACEPOINTS: &[&str] = &["cgroup_attach_task", "task_newtask", "sched_process_exit"];
/// The walks over all tasks: labelling, and telling what threads repeat.
pub(super) const LABELLING: &str = "settle_tasks";
pub(super) const TELLING: &str = "tell_repeats";

impl Guard {
    pub(super) fn load_programs(
        &mut self,
        btf: &Btf,
        loaded: Option<fn()>,
    ) -> Result<(), KernelError> {
        let loaded = loaded.unwrap_or(|| ());
        for name in TRACEPOINTS {
            let program: &mut BtfTracePoint = program(self.object(), name)?;
            program
                .load(name, btf)
                .map_err(|error| of_program("load", name, error))?;
            loaded();
        }
        self.load_iterators(btf)?;
        self.load_redirects()?;
        self.load_counters()?;
        for name in hooks::present(btf) {
            let program: &mut Lsm = program(self.object(), name)?;
            let started = Instant::now();
            program
                .load(name, btf)
                .map_err(|error| refused(name, error))?;
            tracing::debug!(
                program = name,
                verified = program.info().ok().and_then(|info| info.verified_instruction_count()),
                elapsed = ?started.elapsed(),
                "loaded"
            );
            loaded();
        }
        Ok(())
    }

    pub(super) fn load_iterators(&mut self, btf: &Btf) -> Result<(), KernelError> {
        for name in [LABELLING, TELLING] {
            let iterator: &mut Iter = program(self.object(), name)?;
            iterator
                .load("task", btf)
                .map_err(|error| of_program("load", name, error))?;
        }
        Ok(())
    }

    /// Everything verifies: now attach, lineage first. In a folder the links outlive this process.
    pub(super) fn attach(&mut self, folder: Option<&Path>) -> Result<(), KernelError> {
        for name in hooks::known() {
            let program: &mut Lsm = program(self.object(), name)?;
            if program.fd().is_err() {
                // This kernel has no such hook, so it was not loaded.
                continue;
            }
            let link = program.attach().map_err(|error| refused(name, error))?;
            if let Some(folder) = folder {
                let link = program
                    .take_link(link)
                    .map_err(|error| of_program("keep", name, error))?;
                pin(link.into(), folder, name)?;
            }
        }
        for name in TRACEPOINTS {
            let program: &mut BtfTracePoint = program(self.object(), name)?;
            let link = program
                .attach()
                .map_err(|error| of_program("attach", name, error))?;
            if let Some(folder) = folder {
                let link = program
                    .take_link(link)
                    .map_err(|error| of_program("keep", name, error))?;
                pin(link.into(), folder, name)?;
            }
        }
        Ok(())
    }
}

fn pin(link: FdLink, folder: &Path, name: &str) -> Result<(), KernelError> {
    let path = folder.join(name);
    match link.pin(&path) {
        // The descriptor may go: the name holds the link.
        Ok(_) => Ok(()),
        Err(error) => Err(KernelError::Pin {
            call: "pin the link",
            path,
            error: io::Error::other(error),
        }),
    }
}

/// A program under its type.
pub(super) fn program<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| KernelError::Map {
            map: name,
            error: "no such program in the object".into(),
        })?
        .try_into()
        .map_err(|error| of_program("find", name, error))
}

pub(super) fn of_program(
    action: &'static str,
    program: &'static str,
    error: aya::programs::ProgramError,
) -> KernelError {
    KernelError::Program {
        action,
        program,
        error: Box::new(error),
    }
}

/// Tells a kernel that refuses LSM programs on principle from a program that does not verify.
fn refused(program: &'static str, error: aya::programs::ProgramError) -> KernelError {
    if let aya::programs::ProgramError::LoadError {
        io_error,
        verifier_log,
    } = &error
        && io_error.raw_os_error() == Some(libc::EPERM)
        && verifier_log.to_string().trim().is_empty()
    {
        return KernelError::LsmRefused(io::Error::from_raw_os_error(libc::EPERM));
    }
    of_program("load", program, error)
}
