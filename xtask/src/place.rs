//! Where things are: the workspace and the cache. Downloads and built guests live in the cache,
//! never in the repository.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

/// The root of the workspace that this `xtask` was built from.
pub fn workspace() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The cache (`AGENTGUARD_CACHE`, else `agentguard` in the user's cache folder), created if missing.
pub fn cache() -> Result<PathBuf> {
    let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let path = match env::var_os("AGENTGUARD_CACHE") {
        Some(path) => PathBuf::from(path),
        None => env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(home)
            .context("neither AGENTGUARD_CACHE nor HOME is set")?
            .join("agentguard"),
    };
    fs::create_dir_all(&path)
        .with_context(|| format!("failed to create the cache {}", path.display()))?;
    Ok(path)
}

/// A folder for one run that is removed when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates the folder.
    pub fn new(name: &str) -> Result<Self> {
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_nanos());
        let path =
            env::temp_dir().join(format!("agentguard-{name}-{}-{nanos}", std::process::id()));
        fs::create_dir_all(&path)
            .with_context(|| format!("failed to create {}", path.display()))?;
        Ok(Self(path))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing can be done about a leftover in the temporary folder.
        let _ = fs::remove_dir_all(&self.0);
    }
}
