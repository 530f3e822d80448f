//! Addresses of the kernel's own variables. What cannot be found is not guessed: what needs it is left out.

use std::io::{BufRead, BufReader};

/// Where the running kernel lists its symbols.
const SYMBOLS: &str = "/proc/kallsyms";

/// The counts of all renames and of all mounts, which stand at the beginning of these two locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `rename_lock`; 0 if it is not known.
    pub renames: u64,
    /// `mount_lock`; 0 if it is not known.
    pub mounts: u64,
}

impl Counts {
    /// Those of the running kernel; zeroes where it does not tell (`kernel.kptr_restrict=2`), or where the programs could
    /// not rely on them: they need loads that the processor makes in order.
    pub fn of_kernel() -> Self {
        if !cfg!(target_arch = "x86_64") {
            return Self::default();
        }
        std::fs::File::open(SYMBOLS)
            .map_or_else(|_| Self::default(), |file| Self::read(BufReader::new(file)))
    }

    fn read(mut symbols: impl BufRead) -> Self {
        let mut found = Self::default();
        let mut line = Vec::new();
        while !found.both() {
            line.clear();
            match symbols.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => found.note(line.trim_ascii_end()),
            }
        }
        if found.both() { found } else { Self::default() }
    }

    const fn both(self) -> bool {
        self.renames != 0 && self.mounts != 0
    }

    /// A line: address, kind, name, and the module if it is one's.
    fn note(&mut self, line: &[u8]) {
        let place = if line.ends_with(b" rename_lock") {
            &mut self.renames
        } else if line.ends_with(b" mount_lock") {
            &mut self.mounts
        } else {
            return;
        };
        let digits = line.split(|byte| *byte == b' ').next();
        let digits = digits.and_then(|it| str::from_utf8(it).ok());
        *place = digits
            .and_then(|it| u64::from_str_radix(it, 16).ok())
            .unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_found_among_names_that_look_alike() {
        let symbols = "ffffffffb1dee064 r __ksymtab_rename_lock\nffffffffb2dd06c4 b kernfs_rename_lock\n\
                       ffffffffb2409600 D rename_lock\nffffffffb2409640 t rename_lock_x\nffffffffb2409680 D mount_lock\n\
                       ffffffffc0001000 d mount_lock\t[module]\n";
        let found = Counts::read(symbols.as_bytes());
        assert_eq!(
            found,
            Counts {
                renames: 0xffff_ffff_b240_9600,
                mounts: 0xffff_ffff_b240_9680
            }
        );
    }

    #[test]
    fn one_alone_or_an_address_that_is_kept_back_is_none() {
        for symbols in [
            "",
            "ffffffffb2409600 D rename_lock\n",
            "0000000000000000 D rename_lock\n0000000000000000 D mount_lock\n",
            "ffffffffb2409600 D rename_lock\nffffffffc0001000 d mount_lock\t[module]\n",
            "x D rename_lock\ny D mount_lock",
        ] {
            assert_eq!(
                Counts::read(symbols.as_bytes()),
                Counts::default(),
                "{symbols}"
            );
        }
    }
}
