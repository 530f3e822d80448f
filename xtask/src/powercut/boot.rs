//! One boot: what the guest says, line by line, until its power goes.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::trail::Trail;
use crate::guest::Guest;

/// When the power goes.
#[derive(Clone, Copy)]
pub enum Cut {
    /// So long after the load began.
    Loaded(Duration),
    /// So long after the daemon was started: it may still read and repair the log then.
    Starting(Duration),
    /// When everything is checked.
    Checked,
}

/// What is booted.
pub struct Boot<'a> {
    /// The guest, which is packed.
    pub guest: &'a Guest,
    /// Where.
    pub scratch: &'a Path,
    /// With what.
    pub accelerator: &'a str,
    /// How long it may take to come to where the power goes.
    pub patience: Duration,
}

/// Ends the guest whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Boot<'_> {
    /// Boots, reads, cuts. What was said goes to the trail; says in a line what came of it.
    pub fn run(&self, cut: Cut, trail: &mut Trail) -> Result<String> {
        let mut command = self.guest.command(self.scratch, self.accelerator)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .context("failed to start qemu-system-x86_64")?;
        let mut running = Running(child);
        let lines = lines(&mut running.0)?;
        let begun = Instant::now();
        let mut end = begun + self.patience;
        let mut other = Vec::new();
        let mut is_cut = false;
        let before = trail.told();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) => match line.strip_prefix("powercut ") {
                    Some(said) => {
                        trail.hear(said);
                        match (said.split(' ').next().unwrap_or_default(), cut) {
                            ("failed" | "failed:", _) => {
                                bail!("the guest: {said}\n{}", other.join("\n"))
                            }
                            ("load", Cut::Loaded(after)) | ("starting", Cut::Starting(after)) => {
                                (end, is_cut) = (Instant::now() + after, true);
                            }
                            ("begin", Cut::Checked) => (end, is_cut) = (Instant::now(), true),
                            _ => {}
                        }
                    }
                    None => other.push(line),
                },
                Err(RecvTimeoutError::Timeout) if is_cut => break,
                Err(_) => bail!(
                    "the guest did not come to where its power goes\n{}\n{}",
                    other.join("\n"),
                    std::fs::read_to_string(self.scratch.join("kernel.log")).unwrap_or_default()
                ),
            }
        }
        drop(running);
        // What was on its way counts: the guest had said it.
        for line in lines {
            if let Some(said) = line.strip_prefix("powercut ") {
                trail.hear(said);
            }
        }
        trail.cut();
        Ok(match cut {
            Cut::Loaded(after) => format!(
                "after {:.1} s of load, {} denials shown",
                after.as_secs_f64(),
                trail.told() - before
            ),
            Cut::Starting(after) => {
                format!("{:.1} s after the daemon's start", after.as_secs_f64())
            }
            Cut::Checked => "checked".to_owned(),
        })
    }
}

/// Whole lines of the guest's output. One that the cut tore is none.
fn lines(child: &mut Child) -> Result<Receiver<String>> {
    let pipe = child.stdout.take().context("qemu has no output")?;
    let (send, lines) = channel();
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(pipe.read_until(b'\n', &mut line), Ok(1..)) {
            if line.pop_if(|byte| *byte == b'\n').is_none() {
                break;
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if send.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    Ok(lines)
}
