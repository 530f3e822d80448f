//! What can keep the guard from working, each with the thing that is wrong and its remedy.

use std::io;
use std::path::PathBuf;

/// Errors of the kernel room. Each message names the remedy, where there is one.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not enough privilege.
    #[error(
        "AgentGuard needs root to load kernel programs; run it with sudo, or as a system service"
    )]
    NotRoot,
    /// The kernel is too old.
    #[error(
        "this kernel ({release}) is too old: AgentGuard needs Linux 6.1.54, or 6.2 and later; install a newer kernel"
    )]
    TooOld {
        /// Output of `uname -r`.
        release: String,
    },
    /// `bpf` is not among the active security modules.
    #[error(
        "BPF LSM is not active (active: {active}); add `bpf` to the `lsm=` list of the kernel command line, for example `lsm={active},bpf`, and reboot"
    )]
    NoBpfLsm {
        /// Contents of `/sys/kernel/security/lsm`.
        active: String,
    },
    /// The list of security modules cannot be read.
    #[error(
        "cannot find out whether BPF LSM is active: /sys/kernel/security/lsm: {0}; mount securityfs with `mount -t securityfs none /sys/kernel/security`"
    )]
    NoSecurityFs(#[source] io::Error),
    /// The kernel has no type information.
    #[error(
        "the kernel has no type information at {path}: {error}; use a kernel built with CONFIG_DEBUG_INFO_BTF=y (all current distribution kernels are)"
    )]
    NoBtf {
        /// Where it was looked for.
        path: PathBuf,
        /// What happened.
        #[source]
        error: io::Error,
    },
    /// The type information is damaged, or lacks a field that a program reads.
    #[error(
        "{0}; this kernel is not supported, please report it with the output of `agentguard doctor --json`"
    )]
    Btf(#[from] super::BtfError),
    /// The kernel object cannot be fitted to this kernel.
    #[error(
        "{0}; this kernel is not supported, please report it with the output of `agentguard doctor --json`"
    )]
    Fields(#[from] super::FieldError),
    /// Fully preemptible kernels before 6.2 can hide a task's label for a moment.
    #[error(
        "this kernel ({release}) runs with full preemption, and before Linux 6.2 that can hide a label; boot with `preempt=voluntary` or install a newer kernel"
    )]
    FullPreemption {
        /// Output of `uname -r`.
        release: String,
    },
    /// The kernel refuses to load LSM programs although everything else is there.
    #[error(
        "this kernel refuses to load LSM programs ({0}); if this is a container or a hardened virtual machine, run AgentGuard on the host"
    )]
    LsmRefused(#[source] io::Error),
    /// The object could not be loaded.
    #[error("failed to load the kernel object: {0}")]
    Load(#[from] Box<aya::EbpfError>),
    /// One program could not be loaded or attached.
    #[error("failed to {action} the kernel program `{program}`: {error}")]
    Program {
        /// `load` or `attach`.
        action: &'static str,
        /// Name of the program.
        program: &'static str,
        /// What aya or the verifier said.
        #[source]
        error: Box<aya::programs::ProgramError>,
    },
    /// A map is missing from the object or has another type.
    #[error("failed to open the map `{map}`: {error}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What aya said.
        error: String,
    },
    /// A system call failed.
    #[error("failed to {action}: {error}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The error.
        #[source]
        error: io::Error,
    },
    /// A pin could not be made, opened or removed.
    #[error("failed to {call} {path}: {error}", path = .path.display())]
    Pin {
        /// What was tried.
        call: &'static str,
        /// The pin or folder.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The pinned enforcement is of a build that this one cannot take over.
    #[error(
        "the enforcement that is pinned has layout {pinned} and this build has {ours}: it cannot be taken over, and stays in force; start the build that pinned it, or end it with `agentguard uninstall` and start this one"
    )]
    Abi {
        /// Of the pins.
        pinned: u32,
        /// Of this build.
        ours: u32,
    },
    /// Names of maps are gone.
    #[error(
        "somebody removed pins of maps below /sys/fs/bpf/agentguard: what is attached stays in force and cannot be taken over; end it with `agentguard uninstall` and start again"
    )]
    PinsRemoved,
    /// A pinned map is not what this build would make.
    #[error(
        "the pinned map `{map}` is (type, key, value, entries) {pinned:?} and this build needs {ours:?}: the enforcement that is pinned cannot be taken over, and stays in force; start the build that pinned it, or end it with `agentguard uninstall` and start this one"
    )]
    Shape {
        /// The map.
        map: String,
        /// As it is.
        pinned: [u32; 4],
        /// As it would be.
        ours: [u32; 4],
    },
    /// The table is larger than any that the kernel programs can read, or malformed.
    #[error("a table of {0} bytes cannot be installed")]
    TableSize(usize),
    /// The slot is not one an agent can have.
    #[error("agent slot {0} is out of range")]
    Slot(u32),
    /// Rings can be taken once.
    #[error("the ring buffers are already being read")]
    RingsTaken,
}
