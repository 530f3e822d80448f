//! Lines one after the other: which of them fit, and who belongs to the tree behind them.

use std::collections::HashSet;

use super::filter::{Filter, Needles};
use crate::audit::glance::Glance;
use crate::audit::record::Record;

/// Follows the tree with a line; gives its record if that fits.
pub(super) fn take_in<'a>(
    filter: &Filter,
    family: &mut HashSet<u32>,
    may_fit: bool,
    line: &'a [u8],
) -> Result<Option<Record<'a>>, serde_json::Error> {
    let mut fits = |seen: &Glance<'_>| {
        let fits = may_fit && filter.fits(seen, family);
        filter.follow(seen, family);
        fits
    };
    if let Some(seen) = Glance::at(line) {
        return if fits(&seen) {
            serde_json::from_slice(line).map(Some)
        } else {
            Ok(None)
        };
    }
    let record: Record<'_> = serde_json::from_slice(line)?;
    let fits = fits(&Glance::from(&record));
    Ok(fits.then_some(record))
}

/// A filter over lines that come one after the other.
#[derive(Debug)]
pub struct Sieve {
    filter: Filter,
    needles: Needles,
    family: HashSet<u32>,
}

impl Sieve {
    /// From now on.
    pub fn new(filter: Filter) -> Self {
        Self {
            family: filter.tree.into_iter().collect(),
            needles: filter.needles(),
            filter,
        }
    }

    /// Whether a line is to be shown: a record that fits, or what is no record.
    pub fn takes(&mut self, line: &[u8]) -> bool {
        let may_fit = self.needles.are_in(line);
        let taken = take_in(&self.filter, &mut self.family, may_fit, line);
        taken.map_or(true, |record| record.is_some())
    }
}
