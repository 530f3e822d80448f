//! Checking a log: that each record is the one that was written, that none is missing, and that the signed
//! marks say the same.
//!
//! It reads, and never repairs. It must never say "whole" of something that it did not look at.

#[cfg(test)]
mod manipulated;
mod report;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

pub use self::report::{Finding, Kind, Loss, Report};
pub use self::walk::{Piece, Walk};
use super::key::PublicKey;
use super::mark::{Head, Mark};
use super::segment::{self, Segment};
use crate::hex::hex;

/// Checks all of a log. `progress` is given the bytes of lines as they are checked.
pub fn verify(
    log: &Path,
    keys: &[PublicKey],
    anchors: Vec<Mark>,
    progress: &mut dyn FnMut(u64),
) -> io::Result<Report> {
    let live = is_written(log);
    let mut walk = Walk::new(log.display().to_string(), keys);
    // First the marks, then the log, which only grows.
    if let Some(head) = Head::read(log)? {
        walk.expect(head, "head");
    }
    for anchor in anchors {
        walk.expect(anchor, "anchor");
    }
    let mut seen = HashSet::new();
    loop {
        for closed in segment::closed_of(log)? {
            if seen.insert(closed.first) {
                piece(&mut walk, &closed, progress)?;
            }
        }
        let last = match File::open(log) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !seen.is_empty() => None,
            Err(error) => return Err(error),
        };
        let leaving = segment::leaving(log);
        let between = fs::metadata(&leaving).is_ok_and(|file| file.len() > 0);
        if between && live {
            // It gets its number in a moment.
            std::thread::sleep(std::time::Duration::from_millis(5));
            continue;
        }
        // Unless it was closed before we had it open.
        let closed = segment::closed_of(log)?;
        if closed.iter().any(|closed| !seen.contains(&closed.first)) {
            continue;
        }
        if between {
            plain(&mut walk, File::open(&leaving)?, &leaving, live, progress);
        }
        match last {
            Some(file) => plain(&mut walk, file, log, live, progress),
            None => walk.add(
                Kind::Replaced,
                None,
                "the file that is written is not there, only closed segments".to_owned(),
            ),
        }
        return Ok(walk.finish(live));
    }
}

fn plain(walk: &mut Walk, file: File, path: &Path, live: bool, progress: &mut dyn FnMut(u64)) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let piece = Piece {
        name: &name,
        first: None,
    };
    let mut text = BufReader::with_capacity(256 << 10, file);
    walk.piece(piece, &mut text, live, progress);
}

fn piece(walk: &mut Walk, segment: &Segment, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    let name = segment.name();
    let piece = Piece {
        name: &name,
        first: segment.first,
    };
    let file = match File::open(&segment.path) {
        // It was packed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !segment.packed => {
            return packed(
                walk,
                File::open(segment::beside(&segment.path, segment::PACKED))?,
                Piece {
                    name: &format!("{name}{}", segment::PACKED),
                    ..piece
                },
                progress,
            );
        }
        outcome => outcome?,
    };
    if segment.packed {
        return packed(walk, file, piece, progress);
    }
    let mut text = BufReader::with_capacity(256 << 10, file);
    walk.piece(piece, &mut text, false, progress);
    Ok(())
}

/// Walks through a packed segment, and takes the digest of its file on the way.
pub fn packed(
    walk: &mut Walk,
    file: impl Read,
    piece: Piece<'_>,
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let digesting = Digesting {
        from: file,
        digest: Sha256::new(),
    };
    let mut decoder = zstd::stream::read::Decoder::new(digesting)?;
    {
        let mut text = BufReader::with_capacity(256 << 10, &mut decoder);
        walk.piece(piece, &mut text, false, progress);
    }
    let mut rest = decoder.finish();
    io::copy(&mut rest, &mut io::sink())?;
    let digest = rest.into_inner().digest;
    walk.packed(piece.name, hex(&digest.finalize()));
    Ok(())
}

struct Digesting<R> {
    from: R,
    digest: Sha256,
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.digest.update(&buffer[..count]);
        Ok(count)
    }
}

/// Whether somebody holds the lock of a log, as the kernel lists locks. (To try it would disturb a start.)
pub fn is_written(log: &Path) -> bool {
    let Ok(file) = fs::metadata(log) else {
        return false;
    };
    let inode = format!(":{}", file.ino());
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.any(|word| word == "FLOCK") && words.any(|word| word.ends_with(&inode))
    })
}
