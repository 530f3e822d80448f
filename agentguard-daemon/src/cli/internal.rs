//! Hidden subcommands: this program as a child of itself.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::session::{canary_child, guardian_child, launch_child};

#[derive(Debug, Subcommand)]
pub enum InternalCommand {
    /// Waits to be governed, then becomes an agent's command.
    #[command(name = "internal-launch", hide = true)]
    Launch(LaunchArgs),
    /// Outlives the engine by one act.
    #[command(name = "internal-guardian", hide = true)]
    Guardian,
    /// Is denied something.
    #[command(name = "internal-canary", hide = true)]
    Canary,
}

#[derive(Debug, Args)]
pub struct LaunchArgs {
    #[arg(long, requires = "gid")]
    uid: Option<u32>,
    #[arg(long, requires = "uid")]
    gid: Option<u32>,
    #[arg(long, value_delimiter = ',')]
    groups: Vec<u32>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub fn run(command: InternalCommand) -> ExitCode {
    let status = match command {
        InternalCommand::Launch(args) => {
            launch_child(args.uid, args.gid, &args.groups, &args.command)
        }
        InternalCommand::Canary => canary_child(),
        InternalCommand::Guardian => {
            guardian_child(std::io::stdin().lock());
            0
        }
    };
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
