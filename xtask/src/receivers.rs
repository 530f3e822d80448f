//! Receivers that others wrote, to which tests send: where the machine has none, one from its packages. Nothing that is
//! built or installed needs them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::archive::Tree;
use crate::debian::Apt;
use crate::place::{self, Scratch};

/// VictoriaMetrics: takes metrics by OTLP, and decodes them itself. Debian's Prometheus is built without OTLP, and the
/// VictoriaMetrics of Debian 12 is older than its own.
const PACKAGE: &str = "victoria-metrics";
const PROGRAM: &str = "usr/bin/victoria-metrics";

fn place_of() -> Result<PathBuf> {
    Ok(place::cache()?.join("receivers").join(PACKAGE))
}

/// The program, if it is there.
pub fn cached() -> Result<Option<PathBuf>> {
    Ok(Some(place_of()?).filter(|path| path.exists()))
}

/// Gets the newest that any release has: it needs a C library that Debian 12 has, too.
pub fn fetch(apt: &Apt) -> Result<PathBuf> {
    let scratch = Scratch::new("receiver")?;
    let deb = apt.download(PACKAGE, scratch.path())?;
    let mut tree = Tree::default();
    tree.package(&deb, |path| path != PROGRAM)?;
    let program = tree
        .contents(PROGRAM)
        .with_context(|| format!("{PACKAGE} has no {PROGRAM}"))?;
    let path = place_of()?;
    let folder = path.parent().context("the cache has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    // Under its name only when it is whole.
    let partial = path.with_extension("partial");
    fs::write(&partial, program)
        .and_then(|()| fs::set_permissions(&partial, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&partial, &path))
        .with_context(|| format!("failed to write {}", path.display()))?;
    Ok(path)
}
