//! Whether a program stands on its own: what is packed runs on systems whose C library is older, or is none. It must never
//! take what it cannot read for a program that does.

use anyhow::{Context as _, Result, bail};

/// Functions of the C library that load modules of the host into the program. A module of another version of the
/// library ends it.
const LOADERS: [&str; 9] = [
    "getaddrinfo",
    "gethostbyname_r",
    "getgrgid_r",
    "getgrnam_r",
    "getgrouplist",
    "getpwnam_r",
    "getpwuid_r",
    "getservbyname_r",
    "iconv_open",
];

/// Segments of a program: what loads it, and what it asks for.
const INTERPRETER: u32 = 3;
const DYNAMIC: u32 = 2;
/// The tag of a library that is asked for.
const NEEDED: u64 = 1;

/// An error where a program asks for a loader or a library, or can come to load one.
pub fn stands_alone(program: &[u8]) -> Result<()> {
    if is_linked(program)? {
        bail!("it is linked with libraries of this machine, which others may not have");
    }
    for name in LOADERS {
        let symbol = format!("\0{name}\0");
        if holds(program, symbol.as_bytes()) {
            bail!("it calls `{name}`, which loads libraries of the host that it runs on");
        }
    }
    Ok(())
}

/// Whether a program asks for a loader or a library.
pub fn is_linked(program: &[u8]) -> Result<bool> {
    if !program.starts_with(b"\x7fELF\x02\x01") {
        bail!("it is no program of 64 bits");
    }
    let (table, size, count) = (
        word(program, 0x20, 8)?,
        word(program, 0x36, 2)?,
        word(program, 0x38, 2)?,
    );
    if count == 0 {
        bail!("it has no segments");
    }
    for number in 0..count {
        let at = number
            .checked_mul(size)
            .and_then(|it| it.checked_add(table));
        let at = usize::try_from(at.context("its segments are nowhere")?)?;
        match u32::try_from(word(program, at, 4)?)? {
            INTERPRETER => return Ok(true),
            DYNAMIC if asks(program, at)? => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

/// Whether the entries of the segment that is described here have a library.
fn asks(program: &[u8], at: usize) -> Result<bool> {
    let begin = usize::try_from(word(program, at + 8, 8)?)?;
    let length = usize::try_from(word(program, at + 32, 8)?)?;
    let end = begin.checked_add(length).context("a segment has no end")?;
    let entries = program.get(begin..end).context("a segment is cut off")?;
    for entry in entries.chunks_exact(16) {
        if word(entry, 0, 8)? == NEEDED {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A number of so many bytes, the lowest first.
fn word(bytes: &[u8], at: usize, size: usize) -> Result<u64> {
    let end = at.checked_add(size).context("it is cut off")?;
    let part = bytes.get(at..end).context("it is cut off")?;
    let shift = |value: u64, byte: &u8| (value << 8) | u64::from(*byte);
    Ok(part.iter().rev().fold(0, shift))
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|at| at == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with one segment, which has these entries.
    fn made(kind: u32, entries: &[u64]) -> Vec<u8> {
        let mut program = b"\x7fELF\x02\x01".to_vec();
        program.resize(0x40, 0);
        program[0x20] = 0x40;
        (program[0x36], program[0x38]) = (56, 1);
        let data: Vec<u8> = entries.iter().flat_map(|it| it.to_le_bytes()).collect();
        let words = [0x78, 0, 0, data.len() as u64, 0, 0];
        program.extend_from_slice(&kind.to_le_bytes());
        program.extend_from_slice(&[0; 4]);
        program.extend(words.iter().flat_map(|it| it.to_le_bytes()));
        program.extend_from_slice(&data);
        program
    }

    #[test]
    fn what_asks_for_nothing_stands_alone() {
        let load = made(1, &[]);
        assert!(stands_alone(&load).is_ok());
        // It finds its own place in memory, and needs nobody for it.
        let movable = made(DYNAMIC, &[30, 8, 0x6fff_fffb, 0x0800_0000, 0, 0]);
        assert!(stands_alone(&movable).is_ok());
        assert!(is_linked(&made(INTERPRETER, &[])).expect("it is read"));
        assert!(stands_alone(&made(DYNAMIC, &[30, 8, NEEDED, 5])).is_err());
    }

    #[test]
    fn what_can_come_to_load_modules_does_not() {
        let mut program = made(1, &[]);
        program.extend_from_slice(b"\0my_getaddrinfo\0getaddrinfos\0");
        assert!(stands_alone(&program).is_ok());
        program.extend_from_slice(b"getaddrinfo\0");
        let error = stands_alone(&program).expect_err("it calls it");
        assert!(error.to_string().contains("`getaddrinfo`"), "{error}");
    }

    #[test]
    fn what_cannot_be_read_does_not() {
        let whole = made(DYNAMIC, &[30, 8]);
        for length in 0..whole.len() {
            assert!(stands_alone(&whole[..length]).is_err(), "{length}");
        }
        assert!(stands_alone(b"#!/bin/sh\n").is_err());
        // This test is linked with the C library of the machine.
        let own = std::env::current_exe().and_then(std::fs::read);
        let error = stands_alone(&own.expect("this program")).expect_err("it is linked");
        assert!(error.to_string().contains("libraries of this machine"));
    }
}
