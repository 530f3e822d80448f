//! The stored figures and plots in `docs/benchmarks/`, and the page in `docs/` that are written from them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use bench_report::figures::Figures;
use bench_report::{markdown, plot};

use crate::kernels::MATRIX;
use crate::place;

/// Name of the figures that need no guest.
pub const NATIVE: &str = "native";

fn file(kernel: &str) -> PathBuf {
    // A kernel may be given by its path.
    let name = kernel.trim_start_matches('/').replace('/', "_");
    place::workspace()
        .join("docs/benchmarks")
        .join(format!("{name}.json"))
}

/// The stored figures, if there are any.
pub fn read(kernel: &str) -> Result<Option<Figures>> {
    let path = file(kernel);
    if !path.exists() {
        return Ok(None);
    }
    let text =
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    Figures::parse(&text)
        .map(Some)
        .map_err(|error| anyhow!("failed to read {}: {error}", path.display()))
}

/// Stores figures.
pub fn write(figures: &Figures) -> Result<()> {
    let text = figures.write().map_err(|error| anyhow!(error))?;
    put(&file(&figures.circumstances.kernel), &text)
}

/// Writes the page and the plots from all that is stored.
pub fn write_page() -> Result<()> {
    let runs = runs()?;
    let docs = place::workspace().join("docs");
    for figures in &runs {
        let picture = plot::svg(figures);
        if !picture.is_empty() {
            let name = markdown::plot_name(&figures.circumstances.kernel);
            put(&docs.join(name), &picture)?;
        }
    }
    put(&docs.join("benchmarks.md"), &markdown::page(&runs))
}

/// What is stored, oldest kernel first.
fn runs() -> Result<Vec<Figures>> {
    let kernels = MATRIX.iter().map(|choice| choice.name);
    kernels
        .chain([NATIVE])
        .filter_map(|name| read(name).transpose())
        .collect()
}

fn put(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("failed to create {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))?;
    println!("written: {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_the_stored_figures_give() {
        let runs = runs().expect("the stored figures can be read");
        let page = fs::read_to_string(place::workspace().join("docs/benchmarks.md"));
        assert_eq!(
            page.expect("docs/benchmarks.md"),
            markdown::page(&runs),
            "write it again with `cargo xtask bench --page`"
        );
        for figures in &runs {
            let name = markdown::plot_name(&figures.circumstances.kernel);
            let picture = fs::read_to_string(place::workspace().join("docs").join(name));
            assert_eq!(picture.unwrap_or_default(), plot::svg(figures));
        }
    }
}
