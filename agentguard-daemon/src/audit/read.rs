//! Reading a log: whole lines, forward, and waiting for more.
//!
//! A line that is not a record is given as such, never skipped.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use super::record::Record;

/// Reads one log from its beginning.
#[derive(Debug)]
pub struct Reader<R = BufReader<File>> {
    file: R,
    /// The line so far: a writer may be in the middle of it.
    line: Vec<u8>,
}

/// One line of a log.
#[derive(Debug)]
pub struct Line {
    /// The line without its newline.
    pub text: Vec<u8>,
    /// The record in it.
    pub record: Result<Record<'static>, serde_json::Error>,
}

impl Reader {
    /// Opens a log for reading.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self::over(BufReader::with_capacity(256 << 10, file)))
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads a log from anywhere.
    pub fn over(file: R) -> Self {
        Self {
            file,
            line: Vec::new(),
        }
    }

    /// The next whole line; `None` if there is none yet.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        if self.file.read_until(b'\n', &mut self.line)? == 0 && !self.line.ends_with(b"\n") {
            return Ok(None);
        }
        if self.line.pop_if(|byte| *byte == b'\n').is_none() {
            return Ok(None);
        }
        let text = std::mem::take(&mut self.line);
        let record = serde_json::from_slice(&text);
        Ok(Some(Line { text, record }))
    }
}
