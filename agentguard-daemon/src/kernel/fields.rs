//! Offsets of kernel fields in the load instructions of the kernel object. Loads that every open makes
//! carry their offset themselves; in the object a placeholder stands for it, which is replaced here.
//! Must never change anything else.

use agentguard_common::offsets::PLACEHOLDER;
use zerocopy::IntoBytes as _;

/// Why an object cannot be completed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FieldError {
    /// It is not an object file as the build makes it.
    #[error("the kernel object is damaged")]
    Damaged,
    /// A load has room for 15 bits.
    #[error("the field of {0} lies too far from the beginning of its structure ({1} bytes)")]
    TooFar(&'static str, u32),
}

/// `SHT_PROGBITS` and `SHF_EXECINSTR`: sections of instructions.
const PROGBITS: u64 = 1;
const EXECUTABLE: u64 = 4;
/// Bytes of a section header, and of an instruction.
const SECTION: usize = 64;
const INSTRUCTION: usize = 8;
/// A load of an immediate takes two instructions, of which the second holds data.
const LOAD_IMMEDIATE: u8 = 0x18;
/// `BPF_LDX | BPF_MEM` of any size.
const LOAD: u8 = 0x61;
const ANY_SIZE: u8 = 0x18;

/// A copy of an object that is aligned like the original.
pub struct Completed {
    words: Vec<u64>,
    len: usize,
}

impl Completed {
    /// The object.
    pub fn bytes(&self) -> &[u8] {
        &self.words.as_bytes()[..self.len]
    }
}

/// Replaces each placeholder by the offset of its field. `offsets` is in the order of the list.
pub fn complete(object: &[u8], offsets: &[(&'static str, u32)]) -> Result<Completed, FieldError> {
    let mut words = vec![0u64; object.len().div_ceil(size_of::<u64>())];
    let bytes = &mut words.as_mut_bytes()[..object.len()];
    bytes.copy_from_slice(object);
    let sections = number(object, 0x28, 8)?;
    for index in 0..number(object, 0x3c, 2)? {
        let header = sections + index * SECTION;
        let executable = number(object, header + 8, 8)? as u64 & EXECUTABLE != 0;
        if number(object, header + 4, 4)? as u64 != PROGBITS || !executable {
            continue;
        }
        let (from, len) = (
            number(object, header + 0x18, 8)?,
            number(object, header + 0x20, 8)?,
        );
        let code = from.checked_add(len).and_then(|to| bytes.get_mut(from..to));
        complete_section(code.ok_or(FieldError::Damaged)?, offsets)?;
    }
    Ok(Completed {
        words,
        len: object.len(),
    })
}

fn complete_section(code: &mut [u8], offsets: &[(&'static str, u32)]) -> Result<(), FieldError> {
    let mut instructions = code.chunks_exact_mut(INSTRUCTION);
    while let Some(instruction) = instructions.next() {
        if instruction[0] == LOAD_IMMEDIATE {
            instructions.next();
            continue;
        }
        let number = i16::from_le_bytes([instruction[2], instruction[3]])
            .checked_add(PLACEHOLDER)
            .map(|negative| usize::try_from(-i32::from(negative)));
        let Some(Ok(number)) = number else { continue };
        if instruction[0] & !ANY_SIZE != LOAD {
            continue;
        }
        if let Some((name, offset)) = offsets.get(number) {
            let offset = i16::try_from(*offset).map_err(|_| FieldError::TooFar(name, *offset))?;
            instruction[2..4].copy_from_slice(&offset.to_le_bytes());
        }
    }
    Ok(())
}

/// A number of so many bytes.
fn number(object: &[u8], at: usize, size: usize) -> Result<usize, FieldError> {
    let bytes = at.checked_add(size).and_then(|to| object.get(at..to));
    let mut word = [0; 8];
    word[..size].copy_from_slice(bytes.ok_or(FieldError::Damaged)?);
    usize::try_from(u64::from_le_bytes(word)).map_err(|_| FieldError::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSETS: &[(&str, u32)] = &[("A", 8), ("B", 0x7fff), ("C", 0x8000)];

    fn load(opcode: u8, offset: i16) -> [u8; 8] {
        let [low, high] = offset.to_le_bytes();
        [opcode, 0x12, low, high, 0, 0, 0, 0]
    }

    fn completed(code: &[[u8; 8]]) -> Result<Vec<[u8; 8]>, FieldError> {
        let mut code = code.concat();
        complete_section(&mut code, OFFSETS)?;
        Ok(code
            .chunks_exact(8)
            .map(|chunk| <[u8; 8]>::try_from(chunk).unwrap())
            .collect())
    }

    #[test]
    fn placeholders_of_loads_are_replaced_and_nothing_else() {
        let (a, b) = (-PLACEHOLDER, -PLACEHOLDER - 1);
        for size in [0x61, 0x69, 0x71, 0x79] {
            assert_eq!(
                completed(&[load(size, a), load(size, b)]),
                Ok(vec![load(size, 8), load(size, 0x7fff)])
            );
        }
        let others = [
            load(0x7b, a),
            load(0x61, a + 1),
            load(0x61, b - 2),
            load(0x61, i16::MIN),
            load(LOAD_IMMEDIATE, 0),
            load(0x61, a),
        ];
        assert_eq!(completed(&others), Ok(others.to_vec()));
    }

    #[test]
    fn an_offset_that_does_not_fit_is_an_error() {
        assert_eq!(
            completed(&[load(0x79, -PLACEHOLDER - 2)]),
            Err(FieldError::TooFar("C", 0x8000))
        );
    }

    #[test]
    fn nothing_is_left_in_the_object_and_only_loads_have_changed() {
        let all: Vec<_> = (0..64).map(|_| ("field", 16)).collect();
        let completed = complete(super::super::OBJECT, &all).unwrap();
        let (old, new) = (super::super::OBJECT, completed.bytes());
        assert_eq!(old.len(), new.len());
        let changed = old
            .chunks_exact(8)
            .zip(new.chunks_exact(8))
            .filter(|(old, new)| old != new);
        let mut count = 0;
        for (old, new) in changed {
            assert_eq!((&old[..2], &old[4..]), (&new[..2], &new[4..]));
            assert_eq!(new[2..4], 16i16.to_le_bytes());
            count += 1;
        }
        assert!(count > 6, "each hook has at least one");
        for end in 0..512 {
            let _ = complete(&old[..end], &all);
        }
    }
}
