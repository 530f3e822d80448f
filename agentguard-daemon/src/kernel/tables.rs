//! A map of maps from agent slot to table. A table is never changed: another one takes its place.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{ArrayOfMaps, Map, MapData};

use super::KernelError;
use super::load::{failed, open};
use super::sys;

/// The tables of one size.
pub struct Tables {
    name: &'static str,
    map: ArrayOfMaps<MapData, MapData>,
    fd: OwnedFd,
}

impl Tables {
    /// Takes the map over.
    pub fn open(name: &'static str, map: Map) -> Result<Self, KernelError> {
        let Map::ArrayOfMaps(data) = map else {
            return Err(KernelError::Map {
                map: name,
                error: "not an array of maps".into(),
            });
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| KernelError::Io {
            action: "keep a map open",
            error,
        })?;
        Ok(Self {
            name,
            map: open(name, Map::ArrayOfMaps(data))?,
            fd,
        })
    }

    /// Puts a table, padded with zeroes to `size`, in the place of the one before.
    pub fn set(&mut self, agent: u32, size: usize, table: &[u8]) -> Result<(), KernelError> {
        let io = |error| KernelError::Io {
            action: "make a table",
            error,
        };
        let fd = sys::create_table_map(size as u32).map_err(io)?;
        sys::fill_table_map(&fd, size, table).map_err(io)?;
        let inner = MapData::from_fd(fd).map_err(|error| failed(self.name, &error))?;
        self.map
            .set(agent, &inner, 0)
            .map_err(|error| failed(self.name, &error))
    }

    /// Takes the table away; fine if there is none.
    pub fn clear(&self, agent: u32) -> Result<(), KernelError> {
        sys::delete(self.fd.as_fd(), agent).map_err(|error| KernelError::Map {
            map: self.name,
            error: error.to_string(),
        })
    }
}
