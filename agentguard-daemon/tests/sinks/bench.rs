//! A log that grows, a daemon's sinks without the daemon, and certificates.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agentguard::audit::key::Key;
use agentguard::audit::{Log, LogOptions, Record};
use agentguard::daemon::Config;
use agentguard::export::{Place, SinkState, Sinks};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

/// Folder, log and certificates of one test.
pub struct Bench {
    pub folder: tempfile::TempDir,
    log: Log,
}

impl Bench {
    /// A log in small segments, with a key and a head, as the daemon's has them.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (key, _) = Key::of_state(folder.path()).expect("a key");
        let options = LogOptions {
            segment_mib: 1,
            checkpoint_records: 500,
            ..LogOptions::default()
        };
        let path = folder.path().join("audit.jsonl");
        let log = Log::open_after(&path, 0..0, options, Some(key)).expect("the log");
        certificates(folder.path());
        Self { folder, log }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes so many records; now and then a denial, and a long one.
    pub fn write(&mut self, count: u64) {
        for _ in 0..count {
            let number = self.log.next_seq();
            let verdict = if number.is_multiple_of(37) {
                "deny"
            } else {
                "allow"
            };
            let long = if number.is_multiple_of(501) { 9000 } else { 20 };
            let target = format!("/work/{number}/{}", "x".repeat(long));
            let mut record = Record {
                time: Cow::Borrowed("2026-11-23T04:05:06.123456789Z"),
                agent: Some(Cow::Borrowed("claude")),
                session: Some(1),
                pid: Some(4711),
                target: Some(Cow::Owned(target)),
                verdict: Some(Cow::Borrowed(verdict)),
                ..Record::new("open")
            };
            self.log.append(&mut record).expect("a line");
            if number.is_multiple_of(50) {
                self.log.flush().expect("written");
                self.log.tend().expect("tended");
            }
        }
        self.log.flush().expect("written");
        self.log.tend().expect("tended");
        self.log.sync().expect("on the disk");
    }

    /// The number of the last record.
    pub fn last(&self) -> u64 {
        self.log.next_seq() - 1
    }

    /// Starts the sinks that a configuration speaks of.
    pub fn start(&self, sinks: &str) -> Sinks {
        // What sinks say is shown where a test fails.
        let _ = tracing_subscriber::fmt()
            .with_test_writer()
            .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
            .try_init();
        let text = format!("sinks:\n{sinks}");
        let config = Config::parse(Path::new("test.yaml"), &text).expect("a configuration");
        let place = Place {
            first_wait: Duration::from_millis(20),
            longest_wait: Duration::from_millis(200),
            ..Place::new(self.path("audit.jsonl"), self.folder.path().to_owned())
        };
        Sinks::start(&config.sinks, &place)
    }
}

/// The state of the only sink.
pub fn state(sinks: &Sinks) -> SinkState {
    sinks.states().remove(0)
}

/// Waits until the only sink is in a state.
pub async fn until(sinks: &Sinks, what: impl Fn(&SinkState) -> bool) -> SinkState {
    loop {
        let state = state(sinks);
        if what(&state) {
            return state;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes `ca.pem`, `cert.pem`, `key.pem` for `localhost`, and `other.pem` of an authority that nobody knows.
fn certificates(folder: &Path) {
    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        (certificate, rcgen::Issuer::new(params, key))
    };
    let write = |name: &str, text: &str| {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = std::fs::OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .mode(0o600)
            .open(folder.join(name));
        std::io::Write::write_all(&mut file.expect("a file"), text.as_bytes()).expect("written");
    };
    let (ca, issuer) = authority("the test's authority");
    write("ca.pem", &ca.pem());
    write("other.pem", &authority("another authority").0.pem());
    let key = rcgen::KeyPair::generate().expect("a key");
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names)
        .expect("parameters")
        .signed_by(&key, &issuer)
        .expect("a certificate");
    write("cert.pem", &certificate.pem());
    write("key.pem", &key.serialize_pem());
}

/// A server's side of TLS with those certificates.
pub fn acceptor(folder: &Path) -> TlsAcceptor {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let certificate =
        CertificateDer::from_pem_file(folder.join("cert.pem")).expect("a certificate");
    let key = PrivatePkcs8KeyDer::from_pem_file(folder.join("key.pem")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key))
        .expect("a configuration");
    TlsAcceptor::from(Arc::new(config))
}

/// Each number once.
pub fn once(numbers: &[u64]) -> Vec<u64> {
    let mut once = numbers.to_vec();
    once.sort_unstable();
    once.dedup();
    once
}
