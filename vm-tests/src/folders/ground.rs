//! The ground on which folders move: files, names and mounts, as somebody who is not governed changes them.

use std::fs;

use anyhow::{Context as _, Result};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Where the folders are.
pub const ROOT: &str = "/t/moves";

/// A path there.
pub fn place(path: &str) -> String {
    format!("{ROOT}/{path}")
}

/// Makes a folder with a file `f`.
pub fn make(folder: &str) -> Result<()> {
    fs::create_dir_all(place(folder))?;
    fs::write(place(folder) + "/f", folder).with_context(|| format!("failed to write in {folder}"))
}

pub fn rename(from: &str, to: &str) -> Result<()> {
    fs::rename(place(from), place(to)).with_context(|| format!("failed to rename {from} to {to}"))
}

pub fn exchange(one: &str, two: &str) -> Result<()> {
    let flags = RenameFlags::RENAME_EXCHANGE;
    renameat2(
        AT_FDCWD,
        place(one).as_str(),
        AT_FDCWD,
        place(two).as_str(),
        flags,
    )
    .with_context(|| format!("failed to exchange {one} and {two}"))
}

pub fn mounts(from: &str, to: &str, flags: MsFlags) -> Result<()> {
    let none: Option<&str> = None;
    mount(
        Some(place(from).as_str()),
        place(to).as_str(),
        none,
        flags,
        none,
    )
    .with_context(|| format!("failed to mount {from} on {to}"))
}

pub fn bind(from: &str, to: &str) -> Result<()> {
    mounts(from, to, MsFlags::MS_BIND)
}

pub fn tmpfs(on: &str) -> Result<()> {
    let none: Option<&str> = None;
    mount(
        none,
        place(on).as_str(),
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .with_context(|| format!("failed to mount on {on}"))
}

pub fn unmount(path: &str, flags: MntFlags) -> Result<()> {
    umount2(place(path).as_str(), flags).with_context(|| format!("failed to unmount {path}"))
}

/// Renames something else: nothing is remembered any more.
pub fn forget() -> Result<()> {
    let (one, two) = ("/t/ws/free.txt", "/t/ws/renamed.txt");
    fs::rename(one, two).context("failed to rename")?;
    fs::rename(two, one).context("failed to rename")
}
