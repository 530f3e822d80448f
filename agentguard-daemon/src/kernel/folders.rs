//! Whether the programs may remember the paths of folders: only where it was seen that the counts on which that rests
//! do count. Must never switch it on by belief.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use agentguard_common::folder::Learning;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};

use super::attach::{of_program, program};
use super::guard::Bytes;
use super::load::failed;
use super::{Guard, KernelError};

/// The program that reads the counts, and where it leaves them.
const COUNTING: &str = "counting";
pub(super) const LEARNING: &str = "LEARNING";
/// `FSCONFIG_CMD_CREATE`.
const CREATE: libc::c_uint = 6;

impl Guard {
    /// Lets the programs that were loaded now remember folders, if a rename and a mount of our own are counted.
    pub(super) fn prove_folders(&mut self) {
        let proved = match self.counts_move() {
            Ok(true) => self.remember_folders().map_err(|error| error.to_string()),
            Ok(false) => {
                Err("renames and mounts are not counted where the kernel's list says".into())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = proved {
            tracing::warn!(
                "paths of folders are not remembered, so that opens cost twice as much: {reason}"
            );
        }
    }

    fn counts_move(&mut self) -> Result<bool, KernelError> {
        let name: &mut SchedClassifier = program(self.object(), COUNTING)?;
        name.load()
            .map_err(|error| of_program("load", COUNTING, error))?;
        let before = self.counts()?;
        rename_and_unmount().map_err(|error| KernelError::Io {
            action: "rename a file on a file system of our own",
            error,
        })?;
        let after = self.counts()?;
        let moved = |shift: u32| (after >> shift) as u32 != (before >> shift) as u32;
        Ok(moved(32) && moved(0))
    }

    /// What the programs read: renames in the upper half, mounts in the lower. A change that happens just now makes it odd.
    fn counts(&mut self) -> Result<u64, KernelError> {
        let program: &mut SchedClassifier = program(self.object(), COUNTING)?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&[0; 64]);
        program
            .test_run(options)
            .map_err(|error| of_program("run", COUNTING, error))?;
        Ok(self.learnt()?.0.counts)
    }

    fn learnt(&self) -> Result<Bytes<Learning>, KernelError> {
        let learning = self.learning.get(&0, 0);
        learning.map_err(|error| failed(LEARNING, &error))
    }

    /// The programs' own words in the map may change meanwhile, which does no harm.
    fn remember_folders(&mut self) -> Result<(), KernelError> {
        let mut learning = self.learnt()?;
        learning.0.proved = 1;
        let set = self.learning.set(0, learning, 0);
        set.map_err(|error| failed(LEARNING, &error))
    }
}

/// Makes a file system that nobody else sees, renames in it, and lets it go. (To make it is no change of a mount that
/// anybody could have seen, and kernels from 6.18 on do not count it as one.)
fn rename_and_unmount() -> io::Result<()> {
    let call = |number, with: [libc::c_long; 4]| {
        // SAFETY: numbers, and strings that live as long as the program.
        let answer = unsafe { libc::syscall(number, with[0], with[1], with[2], with[3], 0) };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(answer)
    };
    let text = |text: &'static CStr| text.as_ptr() as libc::c_long;
    let descriptor = |answer: libc::c_long| {
        let number = i32::try_from(answer).map_err(io::Error::other)?;
        // SAFETY: a descriptor that the kernel has just made for us.
        Ok::<_, io::Error>(unsafe { OwnedFd::from_raw_fd(number) })
    };
    let closing = libc::c_long::from(libc::O_CLOEXEC);
    let context = descriptor(call(libc::SYS_fsopen, [text(c"tmpfs"), 1, 0, 0])?)?;
    let number = libc::c_long::from(context.as_raw_fd());
    call(libc::SYS_fsconfig, [number, CREATE.into(), 0, 0])?;
    let mount = descriptor(call(libc::SYS_fsmount, [number, 1, 0, 0])?)?;
    let folder = libc::c_long::from(mount.as_raw_fd());
    let flags = libc::c_long::from(libc::O_CREAT | libc::O_WRONLY) | closing;
    drop(descriptor(call(
        libc::SYS_openat,
        [folder, text(c"a"), flags, 0o600],
    )?)?);
    call(
        libc::SYS_renameat2,
        [folder, text(c"a"), folder, text(c"b")],
    )?;
    drop(mount);
    Ok(())
}
