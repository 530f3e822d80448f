//! Addresses that names opened: the maps behind `agentguard_common::opened`.
//! It must never open what it was not asked to, and a map that is full is an error.

use std::collections::HashMap as Table;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use agentguard_common::opened::{
    Address, EVERY_PROTOCOL, GRANTS, Grant, MAX_OPENED, Opened, Resolver,
};
use aya::maps::{Array, HashMap, Map, MapData};

use super::guard::Bytes;
use super::load::{failed, open};
use super::traffic::Traffic;
use super::{Guard, KernelError, sys};

/// Bytes of a name in its map; the longest name has 253.
const NAME: usize = 256;

/// What an address is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// First port.
    pub low: u16,
    /// Last port.
    pub high: u16,
    /// Protocol number; `None` for all that policies can permit.
    pub protocol: Option<u8>,
    /// Bits of [`agentguard_common::table::MARKS`]: budgets that count what goes there.
    pub marks: u16,
}

impl Ports {
    /// Whether a grant in the kernel is for the same ports and protocol.
    fn are_of(self, grant: &Grant) -> bool {
        (self.low, self.high, number_of(self.protocol)) == (grant.low, grant.high, grant.protocol)
    }
}

/// A protocol as the map has it.
fn number_of(protocol: Option<u8>) -> u16 {
    protocol.map_or(EVERY_PROTOCOL, u16::from)
}

/// What the kernel is asked to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Agent slot.
    pub agent: u32,
    /// Session.
    pub session: u32,
    /// In IPv6 form.
    pub address: [u8; 16],
    /// The name that opens it: lower case, no dot at the end.
    pub name: String,
    /// `CLOCK_BOOTTIME` in nanoseconds from which on it does not hold.
    pub deadline: u64,
    /// What for.
    pub grants: Vec<Ports>,
}

/// The names behind the numbers in records.
#[derive(Clone, Debug, Default)]
pub struct NameBook(Arc<Mutex<Book>>);

#[derive(Debug, Default)]
struct Book {
    numbers: Table<Arc<str>, u32>,
    names: Table<u32, Arc<str>>,
    last: u32,
}

impl NameBook {
    /// The name with this number.
    pub fn name(&self, number: u32) -> Option<Arc<str>> {
        self.lock().names.get(&number).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, name: &str) -> Option<u32> {
        self.lock().numbers.get(name).copied()
    }

    /// A number for a new name, not 0.
    fn next(&self) -> u32 {
        let mut book = self.lock();
        loop {
            book.last = book.last.wrapping_add(1).max(1);
            if !book.names.contains_key(&book.last) {
                return book.last;
            }
        }
    }

    /// A number stands for a name from now on.
    pub(crate) fn enter(&self, number: u32, name: &str) {
        let name: Arc<str> = name.into();
        let mut book = self.lock();
        book.last = book.last.max(number);
        book.numbers.insert(name.clone(), number);
        book.names.insert(number, name);
    }

    fn strike(&self, number: u32) {
        let mut book = self.lock();
        if let Some(name) = book.names.remove(&number) {
            book.numbers.remove(&name);
        }
    }
}

/// The maps.
pub(super) struct Names {
    opened: HashMap<MapData, Bytes<Address>, Bytes<Opened>>,
    numbered: HashMap<MapData, u32, [u8; NAME]>,
    pub(super) resolvers: Array<MapData, Bytes<Resolver>>,
    pub(super) ports: Array<MapData, u64>,
    book: NameBook,
}

// SAFETY: `repr(C)` structs of integers without padding.
unsafe impl aya::Pod for Bytes<Address> {}
// SAFETY: as above.
unsafe impl aya::Pod for Bytes<Opened> {}
// SAFETY: as above.
unsafe impl aya::Pod for Bytes<Resolver> {}

impl Names {
    /// Opens the maps, and reads the names that an earlier daemon left.
    pub fn open([opened, names, resolvers, ports]: [Map; 4]) -> Result<Self, KernelError> {
        let this = Self {
            opened: open("OPENED", opened)?,
            numbered: open("NAMES", names)?,
            resolvers: open("RESOLVERS", resolvers)?,
            ports: open("RESOLVER_PORTS", ports)?,
            book: NameBook::default(),
        };
        for entry in &this.numbered {
            let (number, bytes) = entry.map_err(|error| failed("NAMES", &error))?;
            let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(NAME);
            if let Ok(name) = std::str::from_utf8(&bytes[..len]) {
                this.book.enter(number, name);
            }
        }
        Ok(this)
    }

    fn entries(&self) -> Result<Vec<(Address, Opened)>, KernelError> {
        self.opened
            .iter()
            .map(|entry| entry.map(|(key, value)| (key.0, value.0)))
            .collect::<Result<_, _>>()
            .map_err(|error| failed("OPENED", &error))
    }

    fn put(&mut self, key: Address, value: Opened) -> Result<(), KernelError> {
        self.opened
            .insert(Bytes(key), Bytes(value), 0)
            .map_err(|error| failed("OPENED", &error))
    }

    fn take(&mut self, key: Address) -> Result<(), KernelError> {
        self.opened
            .remove(&Bytes(key))
            .map_err(|error| failed("OPENED", &error))
    }

    /// The number of a name, new if need be.
    fn number(&mut self, name: &str, traffic: &Traffic) -> Result<u32, KernelError> {
        if let Some(number) = self.book.known(name) {
            return Ok(number);
        }
        let mut bytes = [0; NAME];
        let full = |what: &str| KernelError::Map {
            map: "NAMES",
            error: what.to_owned(),
        };
        if name.is_empty() || name.len() >= NAME {
            return Err(full("no host has such a name"));
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let number = self.book.next();
        if self.numbered.insert(number, bytes, 0).is_err() {
            self.forget_names(traffic)?;
            self.numbered
                .insert(number, bytes, 0)
                .map_err(|error| failed("NAMES", &error))?;
        }
        self.book.enter(number, name);
        Ok(number)
    }

    /// Strikes names off that nothing is open by, and no traffic is counted for.
    fn forget_names(&mut self, traffic: &Traffic) -> Result<(), KernelError> {
        let counted = traffic.names()?;
        let used: std::collections::HashSet<u32> = self
            .entries()?
            .iter()
            .flat_map(|(_, value)| value.grants.iter().map(|grant| grant.name))
            .chain(counted)
            .collect();
        let all: Vec<u32> = self.numbered.keys().filter_map(Result::ok).collect();
        for number in all.into_iter().filter(|number| !used.contains(number)) {
            self.numbered
                .remove(&number)
                .map_err(|error| failed("NAMES", &error))?;
            self.book.strike(number);
        }
        Ok(())
    }

    /// Removes what is over.
    fn sweep(&mut self, now: u64) -> Result<(), KernelError> {
        let over = |value: &Opened| value.grants.iter().all(|grant| grant.deadline <= now);
        let ended: Vec<Address> = self
            .entries()?
            .into_iter()
            .filter(|(_, value)| over(value))
            .map(|(key, _)| key)
            .collect();
        for key in ended {
            self.take(key)?;
        }
        Ok(())
    }

    fn open_address(&mut self, opening: &Opening, traffic: &Traffic) -> Result<(), KernelError> {
        let now = now()?;
        let name = self.number(&opening.name, traffic)?;
        let key = Address {
            agent: opening.agent,
            session: opening.session,
            address: opening.address,
        };
        let before = self.opened.get(&Bytes(key), 0).ok().map(|value| value.0);
        let mut value = before.unwrap_or(Opened {
            key,
            ..Opened::default()
        });
        merge(&mut value, name, opening, now).ok_or_else(|| KernelError::Map {
            map: "OPENED",
            error: format!("more than {GRANTS} ranges of ports are open at one address"),
        })?;
        if self.put(key, value).is_err() {
            self.sweep(now)?;
            self.put(key, value).map_err(|_| KernelError::Map {
                map: "OPENED",
                error: format!("{MAX_OPENED} addresses are open already"),
            })?;
        }
        Ok(())
    }
}

/// Adds an opening to what is open at an address; `None` where there is no room. One that is there is prolonged,
/// and never shortened. Servers that many names share are served at the same ports: where the room is used up, a
/// name takes the place of another one whose time it covers, or is covered itself. Then the address closes for both
/// when a new policy takes away one of them, and opens again as soon as the other one is asked for. Budgets that count
/// one of them count both then.
fn merge(value: &mut Opened, name: u32, opening: &Opening, now: u64) -> Option<()> {
    for ports in &opening.grants {
        let same =
            |grant: &&mut Grant| grant.deadline > now && grant.name == name && ports.are_of(grant);
        if let Some(grant) = value.grants.iter_mut().find(same) {
            grant.deadline = grant.deadline.max(opening.deadline);
            grant.marks |= ports.marks;
            continue;
        }
        let grants = &mut value.grants;
        if let Some(free) = grants.iter_mut().find(|grant| grant.deadline <= now) {
            *free = Grant {
                deadline: opening.deadline,
                name,
                low: ports.low,
                high: ports.high,
                protocol: number_of(ports.protocol),
                marks: ports.marks,
                ..Grant::default()
            };
            continue;
        }
        let alike = grants.iter_mut().filter(|grant| ports.are_of(grant));
        let room = alike.min_by_key(|grant| grant.deadline)?;
        (room.shared, room.marks) = (1, room.marks | ports.marks);
        if room.deadline <= opening.deadline {
            (room.deadline, room.name) = (opening.deadline, name);
        }
    }
    Some(())
}

fn now() -> Result<u64, KernelError> {
    sys::boot_time().map_err(|error| KernelError::Io {
        action: "read the clock",
        error,
    })
}

impl Guard {
    /// Opens an address for an agent.
    pub fn open_address(&mut self, opening: &Opening) -> Result<(), KernelError> {
        self.names.open_address(opening, &self.traffic)
    }

    /// Closes every address of an agent, whatever its session. Connections that are made already stay.
    pub fn close_addresses(&mut self, agent: u32) -> Result<(), KernelError> {
        self.judge_addresses(agent, 0, &mut |_| Vec::new())
    }

    /// Judges what is open for an agent again: `grants` gives what a name is permitted with now. Where one stands for
    /// others, which are not known any more, every budget that counts by some name, `marks`, counts it.
    pub fn judge_addresses(
        &mut self,
        agent: u32,
        marks: u16,
        grants: &mut dyn FnMut(&str) -> Vec<Ports>,
    ) -> Result<(), KernelError> {
        for (key, mut value) in self.names.entries()? {
            if key.agent != agent {
                continue;
            }
            let before = value;
            for grant in &mut value.grants {
                let name = self.names.book.name(grant.name);
                let permitted = name.map_or_else(Vec::new, |name| grants(&name));
                match permitted.iter().find(|ports| ports.are_of(grant)) {
                    Some(ports) if grant.shared != 0 => grant.marks = ports.marks | marks,
                    Some(ports) => grant.marks = ports.marks,
                    None => *grant = Grant::default(),
                }
            }
            if value.grants == [Grant::default(); GRANTS] {
                self.names.take(key)?;
            } else if value != before {
                self.names.put(key, value)?;
            }
        }
        Ok(())
    }

    /// The names behind the numbers in records.
    pub fn names(&self) -> NameBook {
        self.names.book.clone()
    }

    /// Nothing is open for an agent any more, and no resolver listens for it.
    pub(super) fn forget_names(&mut self, agent: u32) -> Result<(), KernelError> {
        self.close_addresses(agent)?;
        if self.resolver_of(agent)?.is_some() {
            self.resolver_at(agent, Path::new(""), None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: Ports = Ports {
        low: 443,
        high: 443,
        protocol: Some(6),
        marks: 0,
    };

    fn at(port: u16) -> Ports {
        Ports {
            low: port,
            high: port,
            protocol: None,
            marks: 0,
        }
    }

    fn opening(deadline: u64, grants: &[Ports]) -> Opening {
        Opening {
            agent: 1,
            session: 1,
            address: [1; 16],
            name: "a.test".to_owned(),
            deadline,
            grants: grants.to_vec(),
        }
    }

    #[test]
    fn an_opening_is_prolonged_and_never_shortened() {
        let mut value = Opened::default();
        merge(&mut value, 1, &opening(100, &[WEB]), 10).expect("room");
        merge(&mut value, 1, &opening(50, &[WEB]), 20).expect("room");
        assert_eq!(value.grants[0].deadline, 100);
        merge(&mut value, 1, &opening(200, &[WEB]), 30).expect("room");
        assert_eq!(value.grants[0].deadline, 200);
        assert_eq!(value.grants[1], Grant::default());
    }

    #[test]
    fn names_that_share_an_address_have_times_of_their_own_and_limited_room() {
        let mut value = Opened::default();
        for name in 1..=GRANTS as u32 {
            let deadline = 100 + u64::from(name);
            merge(&mut value, name, &opening(deadline, &[at(80)]), 10).expect("room");
        }
        // Other ports find no room.
        assert!(merge(&mut value, 99, &opening(500, &[at(81)]), 10).is_none());
        // The first one is over.
        merge(&mut value, 99, &opening(500, &[at(81)]), 101).expect("room");
        assert_eq!((value.grants[0].name, value.grants[0].low), (99, 81));
        assert_eq!(value.grants[1].deadline, 102);
    }

    #[test]
    fn any_number_of_names_share_an_address_at_the_same_ports() {
        let mut value = Opened::default();
        let mut last = 0;
        for name in 1..=100u32 {
            // Longer and shorter ones, in turns.
            let deadline = if name % 3 == 0 {
                150
            } else {
                200 + u64::from(name)
            };
            let wanted = opening(deadline, &[WEB]);
            merge(&mut value, name, &wanted, 10).expect("room");
            last = last.max(deadline);
            // What was opened so far stays open for as long as it was promised.
            let open = value.grants.iter().map(|grant| grant.deadline).max();
            assert_eq!(open, Some(last));
        }
        assert!(
            value
                .grants
                .iter()
                .all(|grant| (grant.low, grant.high) == (443, 443))
        );
    }

    #[test]
    fn budgets_count_a_name_that_another_one_covers() {
        let mut value = Opened::default();
        let marked = |marks| Ports { marks, ..WEB };
        for name in 1..=GRANTS as u32 {
            merge(&mut value, name, &opening(100, &[WEB]), 10).expect("room");
        }
        // Covered by what lasts longer; takes the place of what does not.
        for (name, deadline, marks) in [(98, 50, 0x1000), (99, 500, 0x2000)] {
            merge(&mut value, name, &opening(deadline, &[marked(marks)]), 10).expect("room");
        }
        let all = value.grants.iter().fold(0, |all, grant| all | grant.marks);
        assert_eq!(all, 0x3000);
        // The same again, by another rule besides.
        merge(&mut value, 99, &opening(500, &[marked(0x4000)]), 10).expect("room");
        assert!(
            value
                .grants
                .iter()
                .any(|grant| grant.name == 99 && grant.marks & 0x6000 == 0x6000)
        );
    }
}
