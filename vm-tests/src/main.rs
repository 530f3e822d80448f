//! The program of the guest: runs rows against the daemon, and is each row's acting process. Its
//! rows must only run in a guest: they replace policies and clear `/t`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use vm_tests::demo::Scene;
use vm_tests::guard::{self, Daemon};
use vm_tests::run::{Mode, Runner, Tally};
use vm_tests::{
    act, bench, contend, fixture, folders, installed, listen, names, row, runaway, scenario,
    survival, table, workshop,
};

/// Tests that run in a guest.
#[derive(Parser)]
enum Task {
    /// Run every row of a folder.
    Rows {
        /// Folder with the row files.
        #[arg(default_value = "/guest/rows")]
        folder: PathBuf,
        /// Only rows whose name contains this.
        #[arg(long, default_value = "")]
        filter: String,
        /// Test the tests: with a policy that permits everything, each denial row must fail.
        #[arg(long)]
        permissive: bool,
        /// Try only the acts, without any guard.
        #[arg(long, conflicts_with = "permissive")]
        ungoverned: bool,
    },
    /// Do a day's ordinary work under a shipped policy; needs the workshop's programs.
    Workshop {
        /// Only jobs whose name contains this.
        #[arg(long, default_value = "")]
        filter: String,
    },
    /// Install the package on a Debian system with systemd, and use it there to its end.
    Installed {
        /// Only as far as the steps whose name contains this.
        #[arg(long, default_value = "")]
        filter: String,
    },
    /// Perform one act when a byte arrives on standard input.
    Act(act::Options),
    /// Be 64 threads or processes that try something at once, in rounds.
    #[command(hide = true)]
    Contend {
        /// What.
        what: contend::What,
        /// Who.
        who: contend::Who,
    },
    /// Call a model and start processes, as told on standard input.
    #[command(hide = true)]
    Runaway,
    /// Open files as told on standard input.
    #[command(hide = true)]
    Opener,
    /// Move a folder while others open what is in it.
    #[command(hide = true)]
    Mover {
        /// How long.
        seconds: u64,
        /// Where.
        root: PathBuf,
    },
    /// Start a process outside of every agent, for setup.
    Victim {
        /// `plain`, or `giver NAME FILE`.
        words: Vec<String>,
    },
    /// Be that process.
    #[command(hide = true)]
    Outsider {
        /// As above.
        words: Vec<String>,
    },
    /// Write the table of techniques to standard output.
    Table {
        /// Folder with the row files.
        folder: PathBuf,
    },
    /// Measure what operations cost.
    #[command(subcommand)]
    Bench(bench::Task),
    /// Play the demonstration.
    Demo(Scene),
}

fn main() -> ExitCode {
    match Task::parse() {
        Task::Act(options) => ExitCode::from(u8::try_from(act::main(&options)).unwrap_or(1)),
        Task::Contend { what, who } => {
            said(contend::main(what, who).map_err(std::io::Error::other))
        }
        Task::Runaway => said(runaway::main().map_err(std::io::Error::other)),
        Task::Opener => said(folders::opener::main().map_err(std::io::Error::other)),
        Task::Mover { seconds, root } => {
            said(folders::mover::main(seconds, &root).map_err(std::io::Error::other))
        }
        Task::Victim { words } => said(act::victim::start(&words)),
        Task::Outsider { words } => said(act::victim::serve(&words)),
        Task::Table { folder } => match row::load(&folder) {
            Ok(families) => {
                print!("{}", table::write(&families));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("failed to read the rows: {error:#}");
                ExitCode::FAILURE
            }
        },
        Task::Bench(task) => match bench::main(&task) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("measuring broke off: {error:#}\n{}", guard::log_tail());
                ExitCode::FAILURE
            }
        },
        Task::Demo(scene) => match scene.play() {
            Ok(held) => ExitCode::from(u8::from(!held)),
            Err(error) => {
                println!("the demonstration broke off: {error:#}");
                ExitCode::from(2)
            }
        },
        Task::Workshop { filter } => {
            let mut tally = Tally::default();
            closing(workshop::run(&filter, &mut tally).map(|()| tally))
        }
        Task::Installed { filter } => {
            let mut tally = Tally::default();
            installed::run(&filter, &mut tally);
            closing(Ok(tally))
        }
        Task::Rows {
            folder,
            filter,
            permissive,
            ungoverned,
        } => {
            let mode = match (permissive, ungoverned) {
                (true, _) => Mode::Permissive,
                (_, true) => Mode::Ungoverned,
                _ => Mode::Policies,
            };
            closing(rows(&folder, &filter, mode))
        }
    }
}

fn closing(result: Result<Tally>) -> ExitCode {
    match result {
        Ok(tally) => {
            println!(
                "{} passed, {} failed, {} skipped",
                tally.passed, tally.failed, tally.skipped
            );
            ExitCode::from(u8::from(tally.failed > 0 || tally.passed == 0))
        }
        Err(error) => {
            println!("the run broke off: {error:#}\n{}", guard::log_tail());
            ExitCode::from(2)
        }
    }
}

fn said(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn rows(folder: &Path, filter: &str, mode: Mode) -> Result<Tally> {
    let families = row::load(folder)?;
    fixture::make_long()?;
    fixture::load_modules()?;
    listen::start().context("failed to start the services")?;
    let daemon = (mode != Mode::Ungoverned).then(Daemon::start).transpose()?;
    if let Some(daemon) = &daemon {
        println!(
            "the daemon was ready after {} ms",
            daemon.started_in.as_millis()
        );
    }
    // Rows that signal the daemon need something in its place where there is none.
    act::victim::stand_in(daemon.as_ref().map(Daemon::pid))?;
    let mut runner = Runner::new(mode, filter, guard::AUDIT.as_ref());
    for (file, family) in &families {
        runner.family(file, family)?;
    }
    let mut tally = runner.tally;
    if mode == Mode::Policies {
        folders::run(guard::AUDIT.as_ref(), filter, &mut tally);
        scenario::run(guard::AUDIT.as_ref(), filter, &mut tally);
        names::run(guard::AUDIT, filter, &mut tally);
        names::containers::run(guard::AUDIT, filter, &mut tally);
        // What follows has daemons of its own.
        drop(daemon);
        survival::run(filter, &mut tally);
        installed::skip(filter, &mut tally);
    }
    Ok(tally)
}
