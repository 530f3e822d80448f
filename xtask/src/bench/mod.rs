//! `cargo xtask bench`: what it costs, measured in guests whose time counts instructions, compared
//! with the stored figures, and written to `docs/`.

mod circumstances;
mod measure;
mod native;
mod store;

use anyhow::Result;
use bench_report::compare::{TOLERANCE, regressions};
use bench_report::figures::Figures;
use bench_report::{promises, text};

use crate::kernels::{self, MATRIX};

/// Exit status when something became dearer than the stored figures say.
const REGRESSED: i32 = 3;

/// Measure what everything costs, and compare with the stored figures; 3 if something became dearer.
#[derive(clap::Args)]
pub struct Options {
    /// Only this kernel: 6.1, 6.12 or newest; can be given several times.
    #[arg(long)]
    kernel: Vec<String>,
    /// Only compare with the stored figures: write no file of the repository.
    #[arg(long)]
    compare: bool,
    /// Only rows whose name contains this, besides the bare kernel; nothing is written. Can be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// Measure what needs no guest, on this machine, instead.
    #[arg(long, conflicts_with_all = ["kernel", "only"])]
    native: bool,
    /// Only write the page and the plots again, from the stored figures.
    #[arg(long, conflicts_with_all = ["kernel", "compare", "only", "native"])]
    page: bool,
}

/// Measures, shows, compares and writes.
pub fn main(options: &Options) -> Result<i32> {
    if options.page {
        store::write_page()?;
        return Ok(0);
    }
    if options.native {
        let figures = native::run()?;
        show(&figures);
        keep(options, &figures)?;
        return Ok(0);
    }
    let names = if options.kernel.is_empty() {
        MATRIX.iter().map(|choice| choice.name.to_owned()).collect()
    } else {
        options.kernel.clone()
    };
    let bench = measure::Bench::prepare()?;
    let mut regressed = false;
    for name in names {
        println!("\n== kernel {name}");
        let figures = bench.run(kernels::find(&name)?, &options.only)?;
        show(&figures);
        regressed |= compare(&figures)?;
        keep(options, &figures)?;
    }
    Ok(if regressed { REGRESSED } else { 0 })
}

/// Stores figures, unless they are only to be compared or are not whole.
fn keep(options: &Options, figures: &Figures) -> Result<()> {
    if options.compare || !options.only.is_empty() {
        return Ok(());
    }
    store::write(figures)?;
    store::write_page()
}

fn show(figures: &Figures) {
    for table in &figures.tables {
        println!("\n{}", text::plain(table));
    }
    let promises = promises::judge(figures);
    for promise in promises
        .iter()
        .filter(|_| figures.table("operations").is_some())
    {
        let holds = match promise.holds {
            Some(true) => "holds",
            Some(false) => "DOES NOT HOLD",
            None => "unknown",
        };
        println!("{holds}: {}: {}", promise.demand, promise.figure);
    }
}

/// Shows what became dearer than stored; true if anything did.
fn compare(figures: &Figures) -> Result<bool> {
    let name = &figures.circumstances.kernel;
    let Some(stored) = store::read(name)? else {
        println!("\nNo figures are stored for {name}: nothing to compare with.");
        return Ok(false);
    };
    let worse = regressions(&stored, figures);
    println!(
        "\nFigures of {name} against revision {}: {}",
        stored.circumstances.revision,
        if worse.is_empty() {
            format!(
                "nothing adds over {:.0} % more than it did",
                TOLERANCE * 100.0
            )
        } else {
            format!("{} additions grew", worse.len())
        }
    );
    for regression in &worse {
        println!("  {}", regression.line());
    }
    Ok(!worse.is_empty())
}
