//! The providers' keys: read from files that nobody else may read, shown nowhere.

use std::fmt;
use std::path::{Path, PathBuf};

use hyper::header::HeaderValue;

use super::config::KEYS;
use crate::disk;

/// Longest key, in bytes.
const MAX: u64 = 8192;

/// A key. Nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Reads a file that only its owner may read.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = disk::secret(path, "the key", MAX)?;
        let text = String::from_utf8(bytes).unwrap_or_default();
        let key = text.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "{} holds no key: one line of printable characters",
                path.display()
            ));
        }
        Ok(Self(key.to_owned()))
    }

    /// The key of a provider; none where there is none. `given` is what the configuration names.
    pub fn find(provider: &str, given: Option<&Path>) -> Result<Option<Self>, String> {
        if let Some(path) = given {
            return Self::read(path).map(Some);
        }
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let places = credentials
            .map(|folder| folder.join(format!("agentguard-{provider}")))
            .into_iter()
            .chain([Path::new(KEYS).join(provider)]);
        for path in places {
            if path.symlink_metadata().is_ok() {
                return Self::read(&path).map(Some);
            }
        }
        Ok(None)
    }

    /// A header's value, marked so that it is not shown.
    pub fn header(&self, prefix: &str) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("{prefix}{}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Its bytes, to look for them where they must not be.
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_that_others_may_read_is_refused_and_no_key_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "sk-very-secret\n").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
        for bad in [0o644, 0o640, 0o604, 0o660] {
            mode(bad).unwrap();
            let error = Secret::read(&path).unwrap_err();
            assert!(
                error.contains("may be read by others") && !error.contains("secret"),
                "{error}"
            );
        }
        mode(0o600).unwrap();
        let key = Secret::read(&path).unwrap();
        let shown = format!("{key:?} {:?}", key.header("Bearer "));
        assert!(!shown.contains("secret"), "{shown}");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Secret::read(&link).is_err());
        std::fs::write(&path, "two words").unwrap();
        let error = Secret::read(&path).unwrap_err();
        assert!(
            !error.contains("words") || error.contains("holds no key"),
            "{error}"
        );
    }
}
