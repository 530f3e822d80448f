//! The guest's userland: real programs from Debian packages, as one archive in the cache.

use std::path::PathBuf;

use anyhow::Result;

use crate::place;

/// The archive, if the cache has it.
pub fn cached() -> Result<Option<PathBuf>> {
    let path = place::cache()?.join("userland.cpio");
    Ok(path.is_file().then_some(path))
}
