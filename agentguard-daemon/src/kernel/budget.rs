//! Budgets that kernel programs charge: the maps behind `agentguard_common::budget`. Counts are only read here.

use std::os::fd::AsFd as _;

use agentguard_common::budget::{Limits, Meter};
use aya::maps::{Map, MapData};
use zerocopy::IntoBytes as _;

use super::tables::Tables;
use super::{Guard, KernelError, sys};

/// Limits by agent, and meters by number.
pub struct Budgets {
    limits: Tables,
    /// Programs are loaded by the number of its descriptor: it stays open.
    meters: MapData,
}

impl Budgets {
    /// Takes the maps over.
    pub fn open([limits, meters]: [Map; 2]) -> Result<Self, KernelError> {
        let Map::Array(meters) = meters else {
            return Err(KernelError::Map {
                map: "METERS",
                error: "not an array".into(),
            });
        };
        Ok(Self {
            limits: Tables::open("LIMITS", limits)?,
            meters,
        })
    }
}

impl Guard {
    /// Puts limits in force for an agent, replacing those before in a single step. They must be there before a
    /// policy that has budgets.
    pub fn set_limits(&mut self, agent: u32, limits: &Limits) -> Result<(), KernelError> {
        super::guard::check_slot(agent)?;
        self.budgets
            .limits
            .set(agent, size_of::<Limits>(), limits.as_bytes())
    }

    /// What a meter has, read under its lock.
    pub fn meter(&self, number: u32) -> Result<Meter, KernelError> {
        let mut meter = Meter::EMPTY;
        sys::look_up_locked(self.budgets.meters.fd().as_fd(), number, &mut meter).map_err(
            |error| KernelError::Map {
                map: "METERS",
                error: error.to_string(),
            },
        )?;
        Ok(meter)
    }

    pub(super) fn forget_limits(&self, agent: u32) -> Result<(), KernelError> {
        self.budgets.limits.clear(agent)
    }
}
