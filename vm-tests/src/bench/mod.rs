//! What operations cost, in guest instructions: without anything, under `AgentGuard`, and under what
//! people would use instead, all in one guest. It judges nothing; `cargo xtask bench` compares.

pub mod apparmor;
mod audit;
mod confine;
mod empty;
mod fanotify;
mod landlock;
mod measure;
mod operation;
mod ours;
mod policy;
mod programs;
mod rows;
mod scene;
mod seccomp;
mod server;
mod socket;
mod starts;
mod trace;
mod work;

use std::path::PathBuf;

use anyhow::Result;

/// Measuring, in a guest whose time counts instructions.
#[derive(clap::Subcommand)]
pub enum Task {
    /// Measure everything and write the tables as JSON.
    Run {
        /// Folder with the compiled profiles of the peers.
        #[arg(long, default_value = "/guest/bench")]
        peers: PathBuf,
        /// Where the tables are written.
        #[arg(long, default_value = "/tmp/bench.json")]
        out: PathBuf,
        /// Only rows whose name contains one of these, besides the bare kernel.
        #[arg(long)]
        only: Vec<String>,
    },
    /// Do one operation again and again, governed, for a debugger that follows it.
    Trace {
        /// Which one.
        operation: String,
        /// Where the names of the kernel's functions are written.
        #[arg(long)]
        out: PathBuf,
    },
    /// Be the process that does it.
    #[command(hide = true)]
    Traced {
        /// Which one.
        operation: String,
        /// The cgroup that it enters.
        cgroup: PathBuf,
    },
    /// Be the measured process: confine itself, measure, and print the cells.
    #[command(hide = true)]
    Child {
        /// How it is confined, as JSON.
        confined: String,
    },
    /// Be the process that starts programs again and again.
    #[command(hide = true)]
    Program {
        /// What is started, as JSON.
        program: String,
    },
    /// Be the process that permits opens.
    #[command(hide = true)]
    Permit,
    /// Write the sources of `AppArmor`'s profiles to a folder of the build machine.
    Profiles {
        /// The folder.
        folder: PathBuf,
    },
    /// Write the policy with ten rules to standard output.
    Policy,
}

/// Does it.
pub fn main(task: &Task) -> Result<()> {
    match task {
        Task::Run { peers, out, only } => rows::run(peers, out, only),
        Task::Trace { operation, out } => trace::run(operation, out),
        Task::Traced { operation, cgroup } => trace::child(operation, cgroup),
        Task::Child { confined } => confine::child(confined),
        Task::Program { program } => programs::serve(program),
        Task::Permit => fanotify::serve(),
        Task::Profiles { folder } => apparmor::write_sources(folder),
        Task::Policy => {
            print!("{}", policy::text(policy::Kind::Recorded, 10));
            Ok(())
        }
    }
}
