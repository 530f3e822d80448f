//! The registry that packages are installed from: a server of files, which nothing confines in any row.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Where it listens.
pub const PORT: u16 = 7003;

/// More wait to be accepted than a server of Python lets wait by itself: whom it turns away tries again after a second,
/// which would be measured.
const SERVER: &str = "\
import http.server, sys
http.server.ThreadingHTTPServer.request_queue_size = 128
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
";

/// A server that runs.
pub struct Registry(Child);

impl Registry {
    /// Starts it, and waits until it answers.
    pub fn start(folder: &Path) -> Result<Self> {
        let child = Command::new("python3")
            .args(["-c", SERVER, &PORT.to_string()])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start the registry")?;
        let mut registry = Self(child);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).is_err() {
            if let Some(status) = registry.0.try_wait()? {
                bail!("the registry ended: {status}");
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
