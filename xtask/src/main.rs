//! `cargo xtask`: sets up, demonstrates, tests, measures, boots and packages AgentGuard. It must never write
//! into the repository outside cargo's target folder, but for `bench`: figures, and the page about them.

mod archive;
mod bench;
mod command;
mod deb;
mod debian;
mod demo;
mod dist;
mod elf;
mod fuzz;
mod guest;
mod kernels;
mod place;
mod powercut;
mod product;
mod qemu;
mod receivers;
mod setup;
mod sources;
mod test;
mod toolchain;
mod trace;
mod userland;
mod vm;

use std::process::ExitCode;

use clap::Parser;

/// Set up, demonstrate, test, measure, boot and package AgentGuard.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Find or install what building and testing need, each only when it is missing.
    Setup(setup::Options),
    /// Measure what everything costs, and compare with the stored figures; 3 if something became dearer.
    Bench(bench::Options),
    /// Show what an agent under `policies/coding-agent.yaml` can and cannot do.
    Demo(demo::Options),
    /// Pack the release: programs, policies, unit, completions and manual pages, with checksums.
    Dist(dist::Options),
    /// Throw made-up bytes at every parser that reads what an agent can influence.
    Fuzz(fuzz::Options),
    Powercut(powercut::Options),
    /// Run every test: on this host, then in a guest with each kernel of the matrix.
    Test(test::Options),
    Trace(trace::Options),
    /// Boot a guest and run one command in it; its exit status is the command's.
    Vm(vm::Options),
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Setup(options) => setup::main(&options),
        Task::Bench(options) => bench::main(&options),
        Task::Demo(options) => demo::main(&options),
        Task::Dist(options) => dist::main(&options),
        Task::Fuzz(options) => fuzz::main(&options),
        Task::Powercut(options) => powercut::main(&options),
        Task::Test(options) => test::main(&options),
        Task::Trace(options) => trace::main(&options),
        Task::Vm(options) => vm::main(&options),
    };
    match result {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(101)
        }
    }
}
