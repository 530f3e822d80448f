//! Files of AgentGuard's own, as the disk must have them: for root only, whole or not there at all.
//! It must never follow a link, share a file that somebody else made, or say that something is there before it is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};

/// Which step failed, and on what.
#[derive(Debug)]
pub struct Failed {
    /// What was tried.
    pub call: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

/// A folder and those above it, mode 0700 where they are made.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// A new file, mode 0600, in the place of what an earlier attempt may have left. It gets its real name when it is
/// whole.
pub fn begin(path: &Path) -> io::Result<File> {
    // If it cannot be removed, it cannot be made.
    let _ = fs::remove_file(path);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW | O_CLOEXEC)
        .open(path)
}

/// Waits until the disk has the names in a file's folder.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// The folder that a file is in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Replaces a file in one step; when this returns, the disk has it.
pub fn replace(path: &Path, text: &[u8]) -> Result<(), Failed> {
    let failed = |call, path: &Path| {
        let path = path.to_owned();
        move |source| Failed { call, path, source }
    };
    let partial = path.with_extension("partial");
    begin(&partial)
        .and_then(|mut file| {
            file.write_all(text)?;
            file.sync_all()
        })
        .map_err(failed("write", &partial))?;
    fs::rename(&partial, path).map_err(failed("replace", path))?;
    sync_folder(path).map_err(failed("sync the folder of", path))
}

/// The first `most` bytes of a file that nobody but its owner, root or who we are, may read. `what` says in errors what
/// is in it.
pub fn secret(path: &Path, what: &str, most: u64) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let io = |error: io::Error| format!("failed to read {what} {shown}: {error}");
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK)
        .open(path)
        .map_err(io)?;
    let data = file.metadata().map_err(io)?;
    let us = nix::unistd::geteuid().as_raw();
    if !data.is_file() || (data.uid() != 0 && data.uid() != us) || data.mode() & 0o077 != 0 {
        return Err(format!(
            "{what} {shown} may be read by others (mode {:o}, owner {}): `chown root {shown} && chmod 600 {shown}`, and use another if it was not so from the beginning",
            data.mode() & 0o7777,
            data.uid()
        ));
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_never_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a.json"), folder.path().join("other"));
        fs::write(&other, "other").unwrap();
        symlink(&other, folder.path().join("a.partial")).unwrap();
        for text in ["one", "two"] {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_to_string(&other).unwrap(), "other");
        fs::create_dir(folder.path().join("a.partial")).unwrap();
        let failed = replace(&path, b"three").unwrap_err();
        assert_eq!(
            (failed.call, failed.path),
            ("write", folder.path().join("a.partial"))
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
    }
}
