//! A service that hands out the files of a folder: python's own, which nothing confines.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// Within which it answers.
const SOON: Duration = Duration::from_mins(1);
/// More wait to be accepted than python lets wait by itself: whom it turns away tries again after a second, which would
/// be measured.
const SERVER: &str = "\
import http.server, sys
http.server.ThreadingHTTPServer.request_queue_size = 128
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), http.server.SimpleHTTPRequestHandler).serve_forever()
";

/// One that runs; ended when dropped.
pub struct Service(Child);

impl Service {
    /// Starts it, and waits until it answers.
    pub fn start(folder: &Path, address: &str, port: u16) -> Result<Self> {
        let child = Command::new("python3")
            .args(["-c", SERVER, address, &port.to_string()])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start python3")?;
        let service = Self(child);
        let started = Instant::now();
        while TcpStream::connect((address, port)).is_err() {
            ensure!(
                started.elapsed() < SOON,
                "the service at {address}:{port} did not start"
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
