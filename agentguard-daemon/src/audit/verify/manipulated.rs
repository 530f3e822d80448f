//! Random manipulations of a log, every one of which must be found.
//!
//! Each begins with the untouched log, and changes one of its files, or two. What lies before the first of them is as
//! it was, so the check begins there, in the state that the check of the untouched log had at that place: the same
//! [`Walk`] as that of `audit verify`, over the same bytes. It stops at the first finding.
//!
//! ```text
//! AGENTGUARD_MANIPULATED_RECORDS=1000000 AGENTGUARD_MANIPULATIONS=10000 AGENTGUARD_SEED=7 \
//!     cargo test --release -p agentguard-daemon --lib every_manipulation -- --nocapture
//! ```

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use super::tests::make;
use super::{Piece, Walk, packed};
use crate::audit::chain;
use crate::audit::key::{Key, PublicKey};
use crate::audit::mark::Head;
use crate::audit::segment::{self, Segment};

/// A sequence of numbers that looks random (splitmix64), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides.max(1) as u64) as usize
    }
}

/// One file of the log in memory.
#[derive(Clone)]
struct File {
    segment: Segment,
    bytes: Arc<Vec<u8>>,
}

type Lines = Vec<Vec<u8>>;

fn walk_through(walk: &mut Walk, files: &[File]) {
    for file in files {
        let name = file.segment.name();
        let piece = Piece {
            name: &name,
            first: file.segment.first,
        };
        let mut bytes = Cursor::new(&file.bytes[..]);
        if file.segment.packed {
            packed(walk, bytes, piece, &mut |_| {}).unwrap();
        } else {
            walk.piece(piece, &mut bytes, false, &mut |_| {});
        }
        if !walk.report().is_whole() {
            return;
        }
    }
}

/// Manipulations of the bytes of a file, whatever they mean.
const OF_BYTES: [&str; 5] = [
    "a bit was flipped",
    "a byte was changed",
    "a byte was removed",
    "a byte was put in",
    "the file was cut",
];
/// Of its lines. A compressed segment is unpacked and packed again for them.
const OF_LINES: [&str; 7] = [
    "a line was removed",
    "a line was put in again",
    "two lines changed places",
    "a line was made up",
    "the lines at the end were removed",
    "a bit of a line was flipped",
    "a record was changed, and the chain made anew to the end of the file",
];
/// Of whole files.
const OF_FILES: [&str; 2] = ["the file was removed", "two files changed their contents"];

/// Changes one or two of the files. Says which is the first of them, and how it was changed.
fn manipulate(files: &mut Vec<File>, dice: &mut Dice) -> (usize, &'static str) {
    let at = dice.roll(files.len());
    let kind = dice.roll(20);
    if kind == 0 {
        files.remove(at);
        return (at, OF_FILES[0]);
    }
    if kind == 1 {
        let other = (at + 1 + dice.roll(files.len() - 1)) % files.len();
        let bytes = files[at].bytes.clone();
        files[at].bytes = std::mem::replace(&mut files[other].bytes, bytes);
        return (at.min(other), OF_FILES[1]);
    }
    let is_packed = files[at].segment.packed;
    let bytes = Arc::make_mut(&mut files[at].bytes);
    if kind < 10 {
        return (at, of_bytes(bytes, dice));
    }
    let text = if is_packed {
        zstd::stream::decode_all(&bytes[..]).unwrap()
    } else {
        std::mem::take(bytes)
    };
    let mut lines: Lines = text
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    let what = of_lines(&mut lines, dice);
    *bytes = lines.concat();
    if is_packed {
        *bytes = zstd::bulk::compress(bytes, 1).unwrap();
    }
    (at, what)
}

fn of_bytes(bytes: &mut Vec<u8>, dice: &mut Dice) -> &'static str {
    let kind = dice.roll(OF_BYTES.len());
    let place = dice.roll(bytes.len());
    match kind {
        0 => bytes[place] ^= 1 << dice.roll(8),
        1 => bytes[place] = bytes[place].wrapping_add(1 + dice.roll(255) as u8),
        2 => drop(bytes.remove(place)),
        3 => bytes.insert(place, dice.roll(256) as u8),
        _ => bytes.truncate(place),
    }
    OF_BYTES[kind]
}

fn of_lines(lines: &mut Lines, dice: &mut Dice) -> &'static str {
    let kind = dice.roll(OF_LINES.len());
    let place = dice.roll(lines.len());
    match kind {
        0 => drop(lines.remove(place)),
        1 => {
            let line = lines[place].clone();
            let to = dice.roll(lines.len() + 1);
            lines.insert(to, line);
        }
        2 => {
            let other = (place + 1 + dice.roll(lines.len() - 1)) % lines.len();
            lines.swap(place, other);
        }
        3 => {
            // A record that nobody wrote, sealed as if it belonged there.
            let line = lines[place].clone();
            let (body, prev) = parts(&line);
            let mut made = [body, b",\"detail\":\"made up\"}"].concat();
            chain::seal(&mut made, 0, &prev);
            lines.insert(place, made);
        }
        4 => lines.truncate(place),
        5 => {
            let byte = dice.roll(lines[place].len());
            lines[place][byte] ^= 1 << dice.roll(8);
        }
        _ => forge(&mut lines[place..]),
    }
    OF_LINES[kind]
}

/// A line without hash and closing brace, and the hash of the record before it.
fn parts(line: &[u8]) -> (&[u8], chain::Hash) {
    let (body, _) = chain::split(line.strip_suffix(b"\n").unwrap()).unwrap();
    let digits = &body[body.len() - 65..body.len() - 1];
    (body, digits.try_into().unwrap())
}

/// What somebody without the key can do: the first record says something else, and each line is sealed again.
fn forge(lines: &mut [Vec<u8>]) {
    let (_, mut prev) = parts(&lines[0]);
    for (number, line) in lines.iter_mut().enumerate() {
        let (body, _) = parts(line);
        let before = body.len() - 65;
        let mut made = body[..before].to_vec();
        made.extend_from_slice(&prev);
        made.extend_from_slice(b"\"}");
        if number == 0 {
            let time = made.windows(8).position(|it| it == b"\"time\":\"").unwrap() + 8;
            made[time + 3] ^= 1;
        }
        prev = chain::seal(&mut made, 0, &prev);
        *line = made;
    }
}

/// Manipulates a log so many times, each time from the untouched one. Gives what was not found, and how often each
/// kind was tried.
fn found_of(
    log: &Path,
    key: PublicKey,
    count: usize,
    seed: u64,
) -> (Vec<String>, BTreeMap<&'static str, usize>) {
    let segments = segment::all_of(log).unwrap();
    let files: Vec<File> = segments
        .into_iter()
        .map(|segment| File {
            bytes: Arc::new(std::fs::read(&segment.path).unwrap()),
            segment,
        })
        .collect();
    let mut walk = Walk::new(String::new(), &[key]);
    walk.expect(Head::read(log).unwrap().unwrap(), "head");
    let mut states = vec![walk.clone()];
    for file in &files {
        walk_through(&mut walk, std::slice::from_ref(file));
        states.push(walk.clone());
    }
    let whole = walk.finish(false);
    assert!(whole.is_proved(), "{whole:#?}");
    let mut dice = Dice(seed);
    let (mut missed, mut tried) = (Vec::new(), BTreeMap::new());
    for round in 0..count {
        let mut changed = files.clone();
        let (at, what) = manipulate(&mut changed, &mut dice);
        *tried.entry(what).or_default() += 1;
        let mut walk = states[at].clone();
        walk_through(&mut walk, &changed[at..]);
        if walk.finish(false).is_whole() {
            missed.push(format!("round {round}: {what} in file {at}"));
        }
    }
    (missed, tried)
}

/// A number that the environment may set.
fn number(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

#[test]
fn every_manipulation_is_found() {
    let records = number("AGENTGUARD_MANIPULATED_RECORDS", 3_000);
    let count = number("AGENTGUARD_MANIPULATIONS", 1_000);
    let seed = number("AGENTGUARD_SEED", 1);
    let segments = (records / 5_000).max(6);
    let folder = tempfile::tempdir().unwrap();
    let (log, state) = (
        folder.path().join("audit.jsonl"),
        folder.path().join("state"),
    );
    make(&log, &state, segments, records / segments);
    let key = Key::of_state(&state).unwrap().0.public();
    let (missed, tried) = found_of(&log, key, count, seed as u64);
    println!("seed {seed}, {records} records in {segments} files:");
    for (what, times) in tried {
        println!("{times:6} × {what}");
    }
    println!(
        "{} of {count} manipulations were found",
        count - missed.len()
    );
    assert!(missed.is_empty(), "seed {seed}: {missed:#?}");
}
