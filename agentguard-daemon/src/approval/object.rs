//! From a record to what the kernel would look for: one item for each access to one object.

use agentguard_common::approval::{Key, MAX_OBJECT, kind};
use agentguard_common::verdict::{Operation, access};
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes as _;

use crate::event::{Event, Target};

/// One access to one object, as the kernel's map has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// One of [`kind`].
    kind: u8,
    /// One bit of [`access`].
    access: u8,
    /// Bytes of the object that are a program's path.
    split: u32,
    /// The object.
    object: Vec<u8>,
}

impl Item {
    /// The program and its arguments, `argv[0]` first, where it is the start of one.
    pub fn command(&self) -> Option<(&[u8], Vec<&[u8]>)> {
        if self.kind != kind::COMMAND {
            return None;
        }
        let (path, arguments) = self.object.split_at_checked(self.split as usize)?;
        let arguments = arguments.strip_suffix(b"\0")?;
        Some((path, arguments.split(|byte| *byte == 0).collect()))
    }

    /// The key of an agent's grant of it.
    pub fn key(&self, slot: u32, session: u32) -> Key {
        let mut key = Key {
            agent: slot,
            session,
            len: self.object.len() as u32,
            split: self.split,
            kind: u32::from(self.kind),
            access: u32::from(self.access),
            object: [0; MAX_OBJECT],
        };
        let len = self.object.len().min(MAX_OBJECT);
        key.object[..len].copy_from_slice(&self.object[..len]);
        key
    }
}

/// What a grant of the act in a record would have to permit, `None` where no grant can: an object that is not known
/// to the last byte or is too long, or an act that is never granted.
///
/// `asks` says of each name of an object that moves whether a rule asks about writing it.
pub fn items_of(event: &Event<'_>, asks: impl Fn(&[u8]) -> bool) -> Option<Vec<Item>> {
    let mut items = Vec::new();
    let mut add = |kind, accesses: u8, object: &[u8], split: usize| {
        let bits = (0..8).map(|bit| 1 << bit);
        for access in bits.filter(|bit| accesses & bit != 0) {
            items.push(Item {
                kind,
                access,
                split: split as u32,
                object: object.to_vec(),
            });
        }
    };
    match (event.operation, event.target) {
        (Operation::Exec, Target::Path(path))
            if event.argv_is_complete() && !event.arguments.is_empty() =>
        {
            let object = [path, event.arguments].concat();
            add(kind::COMMAND, access::EXEC, &object, path.len());
        }
        // What was made can be read by whoever made it; the open that makes it may want both.
        (Operation::Create, Target::Path(path)) => {
            add(kind::PATH, access::READ | access::WRITE, path, 0);
        }
        (Operation::Rename | Operation::Link, Target::Path(path)) => {
            let both = [Some(path), event.second_path()];
            for path in both.into_iter().flatten().filter(|path| asks(path)) {
                add(kind::PATH, access::WRITE, path, 0);
            }
        }
        (
            Operation::Open
            | Operation::Unlink
            | Operation::Rmdir
            | Operation::Mkdir
            | Operation::Mknod
            | Operation::Symlink
            | Operation::Truncate
            | Operation::Chmod
            | Operation::Chown
            | Operation::Attribute,
            Target::Path(path),
        ) if event.access & access::EXEC == 0 => add(kind::PATH, event.access, path, 0),
        (Operation::Connect | Operation::Send, Target::Socket(destination)) => {
            add(kind::ADDRESS, access::CONNECT, destination.as_bytes(), 0);
        }
        (Operation::Listen, Target::Socket(destination)) => {
            add(kind::ADDRESS, access::LISTEN, destination.as_bytes(), 0);
        }
        (Operation::Connect | Operation::Send, Target::Unix(_, name)) => {
            add(kind::PATH, access::CONNECT, name, 0);
        }
        (Operation::Listen, Target::Unix(_, name)) => add(kind::PATH, access::LISTEN, name, 0),
        _ => return None,
    }
    let fits = |item: &Item| !item.object.is_empty() && item.object.len() <= MAX_OBJECT;
    (!items.is_empty() && items.iter().all(fits)).then_some(items)
}
