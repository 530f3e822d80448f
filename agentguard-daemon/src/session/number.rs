//! Numbers of sessions: unique among all engines of a host, past and present.

use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::SessionError;

/// The next number from the counter file: unique among all engines of this host.
pub(super) fn next_session(path: &Path) -> Result<u32, SessionError> {
    let failed = |call| {
        move |source| SessionError::Io {
            call,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(folder) = path.parent() {
        crate::disk::make_folder(folder).map_err(failed("make the folder of"))?;
    }
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed("open"))?;
    let mut file = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed("lock")(errno.into()))?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed("read"))?;
    let session = text
        .trim()
        .parse::<u32>()
        .unwrap_or(0)
        .wrapping_add(1)
        .max(1);
    file.rewind().map_err(failed("write"))?;
    file.set_len(0).map_err(failed("write"))?;
    file.write_all(format!("{session}\n").as_bytes())
        .map_err(failed("write"))?;
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_numbered_across_engines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/session");
        assert_eq!(next_session(&path).unwrap(), 1);
        assert_eq!(next_session(&path).unwrap(), 2);
        std::fs::write(&path, "41").unwrap();
        assert_eq!(next_session(&path).unwrap(), 42);
    }
}
