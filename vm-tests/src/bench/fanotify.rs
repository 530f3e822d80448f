//! Fanotify permission events: each open, and each open for execution, waits for another process,
//! which permits it. It looks at nothing: a real one asks for the path as well, and costs more.

use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::measure::{PRIORITY, prioritise};

/// File systems on which opens are asked about.
const PLACES: [&std::ffi::CStr; 2] = [c"/", c"/tmp"];

/// A process that permits; its marks go with it when this is dropped.
pub struct Permitting(Child);

impl Permitting {
    /// Starts it; when this returns, it is asked.
    pub fn start() -> Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .args(["bench", "permit"])
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start the process that permits")?;
        let said = child.stdout.take().context("it has no standard output")?;
        let permitting = Self(child);
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        if line.trim_end() != "ready" {
            bail!("{}", line.trim_end());
        }
        Ok(permitting)
    }
}

impl Drop for Permitting {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Is that process. What it cannot do, it says instead of being ready.
pub fn serve() -> Result<()> {
    match marked() {
        Ok(group) => {
            // Before others, but never before the measured process.
            prioritise(PRIORITY - 1)?;
            println!("ready");
            while permit(&group) {}
        }
        Err(error) => println!("{error:#}"),
    }
    Ok(())
}

fn marked() -> Result<OwnedFd> {
    let flags = (libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC) as u32;
    // SAFETY: numbers only; what is returned is a new descriptor.
    let group = unsafe {
        let group = libc::fanotify_init(libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC, flags);
        ensure!(
            group >= 0,
            "this kernel has no fanotify permission events: {}",
            std::io::Error::last_os_error()
        );
        OwnedFd::from_raw_fd(group)
    };
    for place in PLACES {
        // SAFETY: a C string and a live descriptor.
        let status = unsafe {
            libc::fanotify_mark(
                group.as_raw_fd(),
                libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM,
                libc::FAN_OPEN_PERM | libc::FAN_OPEN_EXEC_PERM,
                libc::AT_FDCWD,
                place.as_ptr(),
            )
        };
        ensure!(
            status == 0,
            "failed to ask for permission events on {}: {}",
            place.to_string_lossy(),
            std::io::Error::last_os_error()
        );
    }
    Ok(group)
}

/// Permits whatever is asked; false when nothing can be read.
fn permit(group: &OwnedFd) -> bool {
    let mut events = [0u64; 512];
    // SAFETY: a live buffer, aligned for events, of the length that is passed; the kernel fills it with
    // whole events. Each event's descriptor is ours to close.
    unsafe {
        let count = libc::read(
            group.as_raw_fd(),
            events.as_mut_ptr().cast(),
            size_of_val(&events),
        );
        let mut at = 0;
        while at < count {
            let event = &*events
                .as_ptr()
                .byte_offset(at)
                .cast::<libc::fanotify_event_metadata>();
            let response = libc::fanotify_response {
                fd: event.fd,
                response: libc::FAN_ALLOW,
            };
            libc::write(
                group.as_raw_fd(),
                (&raw const response).cast(),
                size_of_val(&response),
            );
            libc::close(event.fd);
            at += libc::ssize_t::try_from(event.event_len).unwrap_or(count);
        }
        count > 0
    }
}
