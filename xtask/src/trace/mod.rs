//! `cargo xtask trace`: one operation of a governed process, instruction by instruction, from QEMU's stub for debuggers.
//! It says where the instructions go; what they amount to, `cargo xtask bench` says.

mod gdb;

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bench_report::trace::{MARK, Step, Symbols, WARM_UP, text};

use crate::command::shell_quoted;
use crate::guest::{Guest, Show};
use crate::place::Scratch;
use crate::{kernels, product, userland};
use gdb::Stub;

/// Where the guest writes the names of the kernel's functions.
const SYMBOLS: &str = "/tmp/kallsyms";
/// Time within which the emulator starts.
const PATIENCE: Duration = Duration::from_mins(2);
/// More instructions than an operation has.
const MOST: usize = 5_000_000;

/// Say where the instructions of one operation go: by hook, program and function.
///
/// The operations are those of `cargo xtask bench`, under its policy of 1,000 rules, with everything recorded. Interrupts and
/// timers stand still while it is traced: what waits for one (starting a program) cannot be traced.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask trace open-63\n  cargo xtask trace connect-udp --kernel newest"
)]
pub struct Options {
    /// open-2, open-11, open-63, open-255, connect-tcp, connect-udp, connect-unix, bind, rename, read, write or stat.
    operation: String,
    /// Kernel: 6.1, 6.12 or newest.
    #[arg(long, default_value = "6.12")]
    kernel: String,
}

/// Boots, traces and shows.
pub fn main(options: &Options) -> Result<i32> {
    let binaries = product::build()?;
    let scratch = Scratch::new("trace")?;
    let socket = scratch.path().join("gdb");
    let job = format!(
        "exec /guest/vm-tests bench trace {} --out {SYMBOLS}\n",
        shell_quoted(&options.operation)
    );
    let mut guest = Guest::new(kernels::find(&options.kernel)?, job);
    guest.icount = true;
    guest.show = Show::Nothing;
    guest.debugger = Some(socket.clone());
    guest.wanted = vec![SYMBOLS.into()];
    guest.userland = Some(userland::GUEST.get()?);
    product::put(&mut guest, &binaries)?;
    eprintln!(
        "xtask: booting kernel {}, and tracing {} there",
        options.kernel, options.operation
    );
    let tracer = thread::spawn(move || trace(&socket));
    let outcome = guest.run()?;
    if outcome.status != 0 {
        bail!(
            "the operation failed ({})\n{}",
            outcome.status,
            outcome.output
        );
    }
    let steps = match tracer.join() {
        Ok(steps) => steps?,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    let (_, symbols) = outcome
        .files
        .first()
        .context("the guest brought no symbols back")?;
    let symbols = String::from_utf8_lossy(symbols);
    print!("{}", text(&steps, &Symbols::parse(&symbols)));
    Ok(0)
}

/// One operation's instructions, from one mark to the next.
fn trace(socket: &Path) -> Result<Vec<Step>> {
    let mut stub = Stub::connect(socket, PATIENCE)?;
    for _ in 0..=WARM_UP {
        stub.run_to(MARK)?;
        // Off it: it would be found again at once.
        stub.step()?;
    }
    let mut steps = Vec::new();
    loop {
        let step = stub.step()?;
        if step.address == MARK {
            break;
        }
        steps.push(step);
        if steps.len() > MOST {
            stub.leave()?;
            bail!("the operation waits for something that does not come while it is traced");
        }
    }
    stub.leave()?;
    Ok(steps)
}
