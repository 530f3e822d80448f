//! Completion scripts and manual pages.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};

use super::Cli;
use super::exit::Exit;
use super::report::CliError;

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  agentguard completions bash > /etc/bash_completion.d/agentguard"
)]
pub struct CompletionsArgs {
    /// The shell.
    shell: clap_complete::Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  agentguard man /usr/share/man/man1")]
pub struct ManArgs {
    /// The folder; it is made if it is missing.
    folder: PathBuf,
}

pub fn completions(args: &CompletionsArgs) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "agentguard", &mut script);
    super::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok.into())
}

pub fn man(args: &ManArgs) -> Result<ExitCode, CliError> {
    let failed =
        |error: std::io::Error| CliError::file("write manual pages into", &args.folder, &error);
    std::fs::create_dir_all(&args.folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(failed)?;
    Ok(Exit::Ok.into())
}
