//! The key that signs marks of the audit trail: made at the first start, readable by root only.
//!
//! The secret never leaves its file; what is shown and exported is the public half.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use nix::libc::{O_CLOEXEC, O_NOFOLLOW};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::disk;
use crate::hex::{from_hex, hex};

/// Name of the secret half in the state folder.
pub const FILE: &str = "audit.key";
/// Name of the public half, for everybody.
pub const PUBLIC_FILE: &str = "audit.pub";

/// Why a key cannot be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// A call failed.
    #[error("failed to {call} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file can be read by others.
    #[error("{path} has mode {mode:o}: the key of the audit trail must be its owner's alone (chmod 600, and consider it stolen)", path = .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file has something else in it.
    #[error("{0} is not a key of an audit trail: 64 hexadecimal digits are expected")]
    NotAKey(String),
}

/// The secret half.
#[derive(Debug)]
pub struct Key {
    secret: SigningKey,
    public: PublicKey,
}

/// The public half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl Key {
    /// A new key, in memory only.
    pub fn generate() -> io::Result<Self> {
        let mut seed = [0; 32];
        let mut filled = 0;
        while filled < seed.len() {
            filled += rustix::rand::getrandom(
                &mut seed[filled..],
                rustix::rand::GetRandomFlags::empty(),
            )?;
        }
        Ok(Self::from_seed(seed))
    }

    fn from_seed(seed: [u8; 32]) -> Self {
        let secret = SigningKey::from_bytes(&seed);
        let public = PublicKey(secret.verifying_key());
        Self { secret, public }
    }

    /// The key of a state folder; it is made if there is none. Says whether it was.
    pub fn of_state(folder: &Path) -> Result<(Self, bool), KeyError> {
        let path = folder.join(FILE);
        let failed = |call| {
            let path = path.clone();
            move |source| KeyError::Io { call, path, source }
        };
        let (key, made) = match fs::symlink_metadata(&path) {
            Ok(metadata) => {
                if metadata.mode() & 0o077 != 0 || !metadata.is_file() {
                    return Err(KeyError::Open {
                        path,
                        mode: metadata.mode() & 0o7777,
                    });
                }
                let text = fs::read_to_string(&path).map_err(failed("read"))?;
                let seed = from_hex(text.trim())
                    .ok_or_else(|| KeyError::NotAKey(path.display().to_string()))?;
                (Self::from_seed(seed), false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk::make_folder(folder).map_err(failed("make the folder of"))?;
                let key = Self::generate().map_err(failed("make"))?;
                let text = hex(&key.secret.to_bytes()) + "\n";
                disk::replace(&path, text.as_bytes()).map_err(|it| failed(it.call)(it.source))?;
                (key, true)
            }
            Err(error) => return Err(failed("read")(error)),
        };
        let public = folder.join(PUBLIC_FILE);
        let text = format!("{}\n", key.public.hex());
        if fs::read_to_string(&public).is_ok_and(|have| have == text) {
            return Ok((key, made));
        }
        // Only for convenience: it can be made of the key again at any time.
        let _ = fs::remove_file(&public);
        let mut options = OpenOptions::new();
        let written = options
            .write(true)
            .create_new(true)
            .mode(0o644)
            .custom_flags(O_NOFOLLOW | O_CLOEXEC)
            .open(&public)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            tracing::warn!("{} was not written: {error}", public.display());
        }
        Ok((key, made))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The signature of a text, in hexadecimal digits.
    pub fn sign(&self, text: &[u8]) -> String {
        hex(&self.secret.sign(text).to_bytes())
    }
}

impl PublicKey {
    /// From 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let wrong =
            || KeyError::NotAKey(format!("`{}`", text.chars().take(80).collect::<String>()));
        let bytes: [u8; 32] = from_hex(text.trim()).ok_or_else(wrong)?;
        VerifyingKey::from_bytes(&bytes)
            .map(Self)
            .map_err(|_| wrong())
    }

    /// From a file that [`Key::of_state`] wrote, or that was exported.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let text = fs::read_to_string(path).map_err(|source| KeyError::Io {
            call: "read",
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|_| KeyError::NotAKey(path.display().to_string()))
    }

    /// All of it, in 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        hex(self.0.as_bytes())
    }

    /// A short name: the first 16 digits of its SHA-256.
    pub fn id(&self) -> String {
        hex(&Sha256::digest(self.0.as_bytes())[..8])
    }

    /// Whether a signature (128 hexadecimal digits) of a text is this key's.
    pub fn verify(&self, text: &[u8], signature: &str) -> bool {
        from_hex::<64>(signature).is_some_and(|bytes| {
            self.0
                .verify_strict(text, &Signature::from_bytes(&bytes))
                .is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let (first, made) = Key::of_state(&state).unwrap();
        assert!(made);
        let (again, made) = Key::of_state(&state).unwrap();
        assert!(!made);
        assert_eq!(first.public(), again.public());
        let path = state.join(FILE);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        let public = PublicKey::read(&state.join(PUBLIC_FILE)).unwrap();
        assert_eq!(public, first.public());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Key::of_state(&state), Err(KeyError::Open { .. })));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(Key::of_state(&state).is_err());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "nonsense\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Key::of_state(&state), Err(KeyError::NotAKey(_))));
    }

    #[test]
    fn a_signature_holds_for_its_text_and_key_only() {
        let (key, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        let signature = key.sign(b"text");
        assert!(key.public().verify(b"text", &signature));
        assert!(!key.public().verify(b"texu", &signature));
        assert!(!other.public().verify(b"text", &signature));
        assert!(!key.public().verify(b"text", &signature.to_uppercase()));
        for at in 0..signature.len() {
            let mut changed = signature.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(!key.public().verify(b"text", &changed), "digit {at}");
        }
    }
}
