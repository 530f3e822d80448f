//! TLS: whom we trust, and who we are. Files are read anew for each connection, so that they can be
//! replaced while the daemon runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;

use crate::disk;

/// Largest file of a secret.
const MAX: u64 = 1 << 20;

/// Whom to trust, and who we are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificates (PEM) that are trusted, instead of the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// The name that the receiver's certificate must have, where it is not that of the address.
    #[serde(default)]
    pub server_name: Option<String>,
    /// Our own certificate (PEM), with those above it.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// Its key (PEM), readable by root only.
    #[serde(default)]
    pub key: Option<PathBuf>,
}

impl TlsConfig {
    /// What is wrong with it as a whole, if anything.
    pub fn check(&self) -> Result<(), String> {
        if self.certificate.is_some() != self.key.is_some() {
            return Err("`certificate` and `key` go together".to_owned());
        }
        Ok(())
    }
}

/// The settings of a connection.
pub fn client(config: &TlsConfig) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &config.ca {
        for certificate in certificates(path)? {
            roots
                .add(certificate)
                .map_err(|error| format!("the certificates {}: {error}", path.display()))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        return Err("no certificates are trusted: install the system's (ca-certificates), or name some with `ca`".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let client = match (&config.certificate, &config.key) {
        (Some(certificate), Some(path)) => {
            let key = PrivateKeyDer::from_pem_slice(&secret(path)?)
                .map_err(|_| format!("{} holds no key (PEM)", path.display()))?;
            builder
                .with_client_auth_cert(certificates(certificate)?, key)
                .map_err(|error| format!("the certificate {}: {error}", certificate.display()))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(client))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |error: rustls::pki_types::pem::Error| {
        format!("the certificates {}: {error}", path.display())
    };
    let list = CertificateDer::pem_file_iter(path).map_err(wrong)?;
    list.collect::<Result<_, _>>().map_err(wrong)
}

/// The bytes of a file that only its owner, root or who we are, may read.
pub fn secret(path: &Path) -> Result<Vec<u8>, String> {
    disk::secret(path, "the secrets in", MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn secrets_that_others_may_read_are_refused_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        std::fs::write(&path, "very secret").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
        mode(0o640).unwrap();
        let error = secret(&path).unwrap_err();
        assert!(error.contains("may be read by others"), "{error}");
        mode(0o600).unwrap();
        assert_eq!(secret(&path).unwrap(), b"very secret");
        let rcgen::CertifiedKey { cert, .. } =
            rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let certificate = folder.path().join("cert.pem");
        std::fs::write(&certificate, cert.pem()).unwrap();
        let config = TlsConfig {
            ca: Some(certificate.clone()),
            server_name: None,
            certificate: Some(certificate),
            key: Some(path),
        };
        let error = client(&config).unwrap_err();
        assert!(
            error.contains("holds no key") && !error.contains("very secret"),
            "{error}"
        );
    }
}
