//! Grants of operators in the kernel: the map behind `agentguard_common::approval`.

use agentguard_common::approval::{Grant, Key};
use aya::maps::{HashMap, Map, MapData, MapError};

use super::guard::Bytes;
use super::load::{failed, open};
use super::{Guard, KernelError};

const MAP: &str = "APPROVED";

// SAFETY: a `repr(C)` struct of integers and bytes without padding.
unsafe impl aya::Pod for Bytes<Key> {}
// SAFETY: a `repr(C)` struct of integers without padding.
unsafe impl aya::Pod for Bytes<Grant> {}

/// The map of grants.
pub struct Approvals(HashMap<MapData, Bytes<Key>, Bytes<Grant>>);

impl Approvals {
    /// Takes the map over.
    pub fn open(map: Map) -> Result<Self, KernelError> {
        Ok(Self(open(MAP, map)?))
    }
}

impl Guard {
    /// Puts a grant in force, in the place of another for the same.
    pub fn approve(&mut self, key: Key, grant: Grant) -> Result<(), KernelError> {
        let map = &mut self.approvals.0;
        map.insert(Bytes(key), Bytes(grant), 0)
            .map_err(|error| failed(MAP, &error))
    }

    /// Takes a grant away, if it is there with this number.
    pub fn disapprove(&mut self, key: Key, number: u32) -> Result<(), KernelError> {
        if self.approval(key)?.is_none_or(|it| it.number != number) {
            return Ok(());
        }
        match self.approvals.0.remove(&Bytes(key)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(failed(MAP, &error)),
        }
    }

    /// A grant as it stands.
    pub fn approval(&self, key: Key) -> Result<Option<Grant>, KernelError> {
        match self.approvals.0.get(&Bytes(key), 0) {
            Ok(grant) => Ok(Some(grant.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(MAP, &error)),
        }
    }

    /// Takes away every grant that is not kept.
    pub fn keep_approvals(&mut self, keep: &dyn Fn(&Key, u32) -> bool) -> Result<(), KernelError> {
        let mut gone = Vec::new();
        for entry in &self.approvals.0 {
            let (key, grant) = entry.map_err(|error| failed(MAP, &error))?;
            if !keep(&key.0, grant.0.number) {
                gone.push((key.0, grant.0.number));
            }
        }
        gone.into_iter()
            .try_for_each(|(key, number)| self.disapprove(key, number))
    }
}
