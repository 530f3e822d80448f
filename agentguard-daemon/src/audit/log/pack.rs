//! Compressing closed segments, beside the writer's work.
//!
//! A packed segment gets its name only when it is whole and on the disk; the plain one goes only when the log
//! has the digest of the packed one. A packing that was cut off is begun again at the next start.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use memchr::memchr;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::audit::index::Builder;
use crate::audit::segment::{self, PACKED};
use crate::disk;
use crate::hex::hex;

/// Bytes of lines in one frame. Frames can be read by themselves, so a reader need not unpack all before it.
pub const FRAME: usize = 128 << 10;
/// Bytes that are read at once.
const READ: usize = 512 << 10;
/// Hashes do not shrink, and the rest repeats: more work than this makes segments hardly smaller, or none.
const LEVEL: i32 = 1;

/// A segment that was packed.
#[derive(Debug)]
pub struct Packed {
    /// The plain file.
    pub plain: PathBuf,
    /// The packed one.
    pub path: PathBuf,
    /// Its SHA-256, in hexadecimal digits.
    pub digest: String,
    /// Its size.
    pub bytes: u64,
    /// The size of the plain one.
    pub plain_bytes: u64,
}

/// One thread that packs what it is given. It is started when there is something to pack.
#[derive(Debug)]
pub struct Packer {
    orders: Orders,
    results: Receiver<Packed>,
}

/// The way to give it something.
#[derive(Clone, Debug)]
pub struct Orders(Arc<Inbox>);

#[derive(Debug)]
struct Inbox {
    orders: Sender<PathBuf>,
    /// What the thread begins with, until it has begun.
    idle: Mutex<Option<Idle>>,
}

#[derive(Debug)]
struct Idle {
    todo: Receiver<PathBuf>,
    done: Sender<Packed>,
    /// Told of each segment that is done.
    notify: Arc<Notify>,
}

impl Packer {
    /// Nothing is packed yet. `notify` is told of each segment that is done.
    pub fn new(notify: Arc<Notify>) -> Self {
        let (orders, todo) = channel();
        let (done, results) = channel();
        let idle = Idle { todo, done, notify };
        let inbox = Inbox {
            orders,
            idle: Mutex::new(Some(idle)),
        };
        Self {
            orders: Orders(Arc::new(inbox)),
            results,
        }
    }

    /// The way to give it something.
    pub fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// A segment that is done.
    pub fn done(&self) -> Option<Packed> {
        self.results.try_recv().ok()
    }

    /// Waits for the next that is done, for tests.
    #[cfg(test)]
    pub fn wait(&self) -> Option<Packed> {
        self.results.recv().ok()
    }
}

impl Orders {
    /// Packs a closed segment some time soon. One that fails stays as it is until the next start.
    pub fn begin(&self, plain: &Path) {
        let idle = self
            .0
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(idle) = idle {
            idle.start();
        }
        if self.0.orders.send(plain.to_owned()).is_err() {
            tracing::error!("{} stays as it is: nobody packs", plain.display());
        }
    }
}

impl Idle {
    fn start(self) {
        let spawned = std::thread::Builder::new()
            .name("pack".to_owned())
            .spawn(move || {
                for plain in self.todo {
                    match pack(&plain) {
                        Ok(packed) => {
                            if self.done.send(packed).is_err() {
                                break;
                            }
                            self.notify.notify_one();
                            crate::kernel::trim_memory();
                        }
                        Err(error) => {
                            tracing::error!("{} was not packed: {error}", plain.display());
                        }
                    }
                }
            });
        if let Err(error) = spawned {
            tracing::error!("segments stay as they are, no thread could be started: {error}");
        }
    }
}

/// The lines of a file, as many as belong into one frame at a time.
struct Frames<R> {
    input: R,
    buffer: Vec<u8>,
    /// Up to where they were given.
    given: usize,
    ended: bool,
}

impl<R: Read> Frames<R> {
    fn of(input: R) -> Self {
        Self {
            input,
            buffer: Vec::with_capacity(READ + FRAME),
            given: 0,
            ended: false,
        }
    }

    /// Whole lines of at least [`FRAME`] bytes, or all that is left.
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        // Where the end of the frame was looked for.
        let mut from = FRAME - 1;
        let end = loop {
            let rest = &self.buffer[self.given..];
            let end = rest
                .get(from..)
                .and_then(|tail| memchr(b'\n', tail))
                .map(|at| from + at + 1);
            if let Some(end) = end {
                break end;
            }
            if self.ended {
                break rest.len();
            }
            from = from.max(rest.len());
            self.buffer.drain(..self.given);
            self.given = 0;
            let read = (&mut self.input)
                .take(READ as u64)
                .read_to_end(&mut self.buffer)?;
            self.ended = read < READ;
        };
        let begin = self.given;
        self.given += end;
        Ok((end > 0).then(|| &self.buffer[begin..self.given]))
    }
}

/// Packs one segment.
pub fn pack(plain: &Path) -> io::Result<Packed> {
    let path = segment::beside(plain, PACKED);
    let part = segment::beside(&path, ".part");
    let mut output = disk::begin(&part)?;
    let mut input = Frames::of(File::open(plain)?);
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    compressor.include_checksum(true)?;
    compressor.include_contentsize(true)?;
    let mut digest = Sha256::new();
    let mut index = Builder::default();
    let (mut bytes, mut plain_bytes) = (0, 0);
    let mut frame = Vec::new();
    while let Some(lines) = input.next()? {
        frame.clear();
        frame.reserve(zstd::zstd_safe::compress_bound(lines.len()));
        compressor.compress_to_buffer(lines, &mut frame)?;
        output.write_all(&frame)?;
        digest.update(&frame);
        index.frame(frame.len() as u64, lines);
        bytes += frame.len() as u64;
        plain_bytes += lines.len() as u64;
    }
    output.sync_all()?;
    fs::rename(&part, &path)?;
    disk::sync_folder(&path)?;
    // Whoever searches makes it otherwise.
    let indexed = index.finish(&output).and_then(|index| index.write(&path));
    if let Err(error) = indexed {
        tracing::warn!("the index of {} was not made: {error}", path.display());
    }
    Ok(Packed {
        plain: plain.to_owned(),
        path,
        digest: hex(&digest.finalize()),
        bytes,
        plain_bytes,
    })
}

#[cfg(test)]
mod tests {
    use std::io::BufRead as _;

    use super::*;

    #[test]
    fn frames_are_the_first_lines_that_are_long_enough() {
        let line = |len: usize| [vec![b'x'; len], vec![b'\n']].concat();
        let many: Vec<u8> = (0..9_000).flat_map(|it| line(it * 37 % 900)).collect();
        for text in [
            many.clone(),
            [&many[..], b"torn"].concat(),
            [&many[..300_000], &line(3 * READ), &many].concat(),
            vec![b'y'; 2 * READ],
            line(FRAME - 1),
            [line(FRAME - 2), line(5)].concat(),
            vec![],
        ] {
            let mut frames = Frames::of(&text[..]);
            let mut rest = &text[..];
            let mut expected = Vec::new();
            loop {
                let ended = rest.read_until(b'\n', &mut expected).unwrap() == 0;
                if expected.len() >= FRAME || (ended && !expected.is_empty()) {
                    assert!(frames.next().unwrap() == Some(&expected[..]));
                    expected.clear();
                }
                if ended {
                    break;
                }
            }
            assert!(frames.next().unwrap().is_none());
        }
    }
}
