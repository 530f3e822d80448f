//! Field offsets from the running kernel's BTF. Rust has no CO-RE: the loader looks each field up by
//! name and sets a read-only global before the programs load. Must never guess: a missing field is an error.

use std::collections::HashMap;

/// What can be wrong with type information.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    /// The blob is not BTF of this machine's byte order, or is cut short.
    #[error("the kernel's type information is damaged at byte {0}")]
    Damaged(usize),
    /// The structure does not exist in this kernel.
    #[error("this kernel has no `struct {0}`")]
    NoStruct(String),
    /// The structure has no such field.
    #[error("this kernel's `struct {0}` has no field `{1}`")]
    NoField(String, String),
}

const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
    /// Byte position of what follows the fixed part.
    body: usize,
}

impl Type {
    const fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }
    const fn len(self) -> usize {
        (self.info & 0xffff) as usize
    }
    const fn bitfields(self) -> bool {
        self.info >> 31 == 1
    }
    /// The type that it is made of, where it is made of one.
    fn refers(self, data: &[u8]) -> Result<u32, BtfError> {
        word(data, self.body.saturating_sub(4))
    }
}

/// The structures of one BTF blob, by name.
pub struct Structs<'a> {
    data: &'a [u8],
    strings: usize,
    types: Vec<Type>,
    by_name: HashMap<&'a [u8], u32>,
}

impl<'a> Structs<'a> {
    /// Indexes a blob such as `/sys/kernel/btf/vmlinux`.
    pub fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        if word16(data, 0)? != 0xeb9f {
            return Err(BtfError::Damaged(0));
        }
        let header = word(data, 4)? as usize;
        let types_at = header + word(data, 8)? as usize;
        let types_end = types_at + word(data, 12)? as usize;
        let strings = header + word(data, 16)? as usize;
        let mut structs = Self {
            data,
            strings,
            types: vec![Type {
                name: 0,
                info: 0,
                body: 0,
            }],
            by_name: HashMap::new(),
        };
        let mut at = types_at;
        while at < types_end {
            let kind = Type {
                name: word(data, at)?,
                info: word(data, at + 4)?,
                body: at + 12,
            };
            let extra = match kind.kind() {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * kind.len(),
                KIND_ENUM | KIND_FUNC_PROTO => 8 * kind.len(),
                _ => 0,
            };
            if kind.kind() == KIND_STRUCT && kind.name != 0 && kind.len() > 0 {
                let id = structs.types.len() as u32;
                let name = structs.string(kind.name)?;
                structs.by_name.entry(name).or_insert(id);
            }
            structs.types.push(kind);
            at = kind.body + extra;
        }
        Ok(structs)
    }

    /// Byte offset of a field, also inside anonymous members.
    pub fn offset(&self, structure: &str, field: &str) -> Result<u32, BtfError> {
        Ok(self.place(structure, field)?.0)
    }

    /// Whether a field has its bytes in common with others: it is in a union.
    pub fn is_shared(&self, structure: &str, field: &str) -> Result<bool, BtfError> {
        Ok(self.place(structure, field)?.1)
    }

    /// Whether a function takes, in this place, a pointer to this structure; false also where it does not exist.
    pub fn takes(&self, function: &str, place: usize, structure: &str) -> Result<bool, BtfError> {
        for kind in &self.types {
            if kind.kind() != KIND_FUNC || self.string(kind.name)? != function.as_bytes() {
                continue;
            }
            let signature = self.of(kind.refers(self.data)?)?;
            if signature.kind() != KIND_FUNC_PROTO || place >= signature.len() {
                return Ok(false);
            }
            let pointer = self.plain(word(self.data, signature.body + 8 * place + 4)?)?;
            if pointer.kind() != KIND_PTR {
                return Ok(false);
            }
            let pointed = self.plain(pointer.refers(self.data)?)?;
            return Ok(
                pointed.kind() == KIND_STRUCT && self.string(pointed.name)? == structure.as_bytes()
            );
        }
        Ok(false)
    }

    fn of(&self, id: u32) -> Result<Type, BtfError> {
        let kind = self.types.get(id as usize);
        kind.copied().ok_or(BtfError::Damaged(0))
    }

    /// A type without its other names and qualifiers.
    fn plain(&self, mut id: u32) -> Result<Type, BtfError> {
        for _ in 0..16 {
            let kind = self.of(id)?;
            match kind.kind() {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT => {
                    id = kind.refers(self.data)?;
                }
                _ => return Ok(kind),
            }
        }
        Err(BtfError::Damaged(0))
    }

    fn place(&self, structure: &str, field: &str) -> Result<(u32, bool), BtfError> {
        let id = self
            .by_name
            .get(structure.as_bytes())
            .ok_or_else(|| BtfError::NoStruct(structure.into()))?;
        self.find(*id, field.as_bytes(), 0)?
            .ok_or_else(|| BtfError::NoField(structure.into(), field.into()))
    }

    /// The offset of a field, and whether it is in a union.
    fn find(&self, id: u32, field: &[u8], depth: u32) -> Result<Option<(u32, bool)>, BtfError> {
        let kind = self.of(id)?;
        if depth > 8 || !matches!(kind.kind(), KIND_STRUCT | KIND_UNION) {
            return Ok(None);
        }
        let union = kind.kind() == KIND_UNION;
        for index in 0..kind.len() {
            let at = kind.body + 12 * index;
            let (name, member) = (word(self.data, at)?, word(self.data, at + 4)?);
            let bits = word(self.data, at + 8)?;
            let (bits, width) = if kind.bitfields() {
                (bits & 0xff_ffff, bits >> 24)
            } else {
                (bits, 0)
            };
            if name == 0 {
                if let Some((inner, shared)) = self.find(member, field, depth + 1)? {
                    return Ok(Some((bits / 8 + inner, shared || union)));
                }
            } else if width == 0 && self.string(name)? == field {
                return Ok(Some((bits / 8, union)));
            }
        }
        Ok(None)
    }

    fn string(&self, offset: u32) -> Result<&'a [u8], BtfError> {
        let at = self.strings + offset as usize;
        let rest = self.data.get(at..).ok_or(BtfError::Damaged(at))?;
        let end = rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(BtfError::Damaged(at))?;
        Ok(&rest[..end])
    }
}

fn word(data: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = data
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .ok_or(BtfError::Damaged(at))?;
    Ok(u32::from_ne_bytes(*bytes))
}

fn word16(data: &[u8], at: usize) -> Result<u16, BtfError> {
    let bytes = data
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .ok_or(BtfError::Damaged(at))?;
    Ok(u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_the_fields_that_hooks_read() {
        let data = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let structs = Structs::parse(&data).unwrap();
        assert_eq!(structs.offset("qstr", "name").unwrap(), 8);
        assert_eq!(structs.offset("sock", "__sk_common").unwrap(), 0);
        // Inside an anonymous union of an anonymous struct.
        assert!(structs.offset("qstr", "len").unwrap() <= 4);
        assert!(structs.offset("file", "f_path").unwrap() > 0);
        assert!(structs.is_shared("qstr", "len").unwrap());
        assert!(!structs.is_shared("path", "dentry").unwrap());
    }

    #[test]
    fn what_functions_take_is_known() {
        let data = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let structs = Structs::parse(&data).unwrap();
        let takes = |function, place, structure| structs.takes(function, place, structure).unwrap();
        assert!(takes("vfs_fsync", 0, "file"));
        assert!(!takes("vfs_fsync", 0, "inode"));
        assert!(!takes("vfs_fsync", 1, "file"), "that one is a number");
        assert!(!takes("vfs_fsync", 9, "file"), "there is none");
        assert!(!takes("no_such_function", 0, "file"));
        // `const struct path *`.
        assert!(takes("vfs_getattr", 0, "path"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let data = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let structs = Structs::parse(&data).unwrap();
        assert_eq!(
            structs.offset("no_such", "x"),
            Err(BtfError::NoStruct("no_such".into()))
        );
        assert_eq!(
            structs.offset("file", "f_nope"),
            Err(BtfError::NoField("file".into(), "f_nope".into()))
        );
    }

    #[test]
    fn damage_is_an_error_wherever_it_is_cut() {
        let data = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        for len in (0..4096).chain([data.len() / 2]) {
            assert!(
                Structs::parse(&data[..len]).is_err(),
                "accepted {len} bytes"
            );
        }
    }
}
