//! `cargo xtask setup`: finds or installs what building and testing need, each only when it is
//! missing. A second run uses no network.

use anyhow::Result;

use crate::debian::Apt;
use crate::kernels;

/// Find or install what building and testing need, each only when it is missing.
#[derive(clap::Args)]
pub struct Options {}

/// Runs every step.
pub fn main(_options: &Options) -> Result<i32> {
    let mut apt = None;
    for choice in kernels::MATRIX {
        if kernels::cached(choice)?.is_some() {
            continue;
        }
        if apt.is_none() {
            let fresh = Apt::every_suite()?;
            fresh.update()?;
            apt = Some(fresh);
        }
        if let Some(apt) = &apt {
            let kernel = kernels::fetch(choice, apt)?;
            println!("kernel {}: {}", kernel.name, kernel.release);
        }
    }
    Ok(0)
}
