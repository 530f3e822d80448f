//! What was spent in one window. The ledger's time goes in; nothing here reads a clock.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::policy::limits::Per;

/// Parts of a sliding window. A charge is forgotten when its whole part is out of the window, so up to a
/// sixtieth of the window late, and never early.
const PARTS: u64 = 60;

/// A count with its window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meter {
    /// Length in nanoseconds; none where nothing is ever forgotten.
    length: Option<u64>,
    sliding: bool,
    /// Number of the part, and what was spent in it; oldest first, never empty amounts.
    parts: VecDeque<(u64, u64)>,
}

impl Meter {
    /// An empty one.
    pub fn new(per: Per, sliding: bool) -> Self {
        Self {
            length: per.length(),
            sliding,
            parts: VecDeque::new(),
        }
    }

    /// Length of a part; 0 where there is but one.
    fn part(&self) -> u64 {
        match self.length {
            None => 0,
            Some(length) if self.sliding => length.div_ceil(PARTS),
            Some(length) => length,
        }
    }

    /// The window is over before a machine or a daemon can have started again.
    pub fn is_short(&self) -> bool {
        self.length.is_some_and(|length| length <= 60_000_000_000)
    }

    /// The number of the window that holds now, where windows follow each other; else 0.
    pub fn window(&self, now: u64) -> u64 {
        if self.sliding { 0 } else { self.number(now) }
    }

    fn number(&self, now: u64) -> u64 {
        match self.part() {
            0 => 0,
            part => now / part,
        }
    }

    /// When a part is forgotten.
    fn forgotten(&self, number: u64) -> Option<u64> {
        let length = self.length?;
        let end = (number + 1).saturating_mul(self.part());
        Some(if self.sliding {
            end.saturating_add(length)
        } else {
            end
        })
    }

    /// What was spent in the window that ends now.
    pub fn spent(&self, now: u64) -> u64 {
        self.parts
            .iter()
            .filter(|(number, _)| self.forgotten(*number).is_none_or(|at| at > now))
            .fold(0, |sum: u64, (_, amount)| sum.saturating_add(*amount))
    }

    /// Spends.
    pub fn add(&mut self, now: u64, amount: u64) {
        while let Some((number, _)) = self.parts.front()
            && self.forgotten(*number).is_some_and(|at| at <= now)
        {
            self.parts.pop_front();
        }
        if amount == 0 {
            return;
        }
        let number = self.number(now);
        match self.parts.back_mut() {
            Some((last, spent)) if *last >= number => *spent = spent.saturating_add(amount),
            _ => self.parts.push_back((number, amount)),
        }
    }

    /// Replaces what was spent in each part: numbers and amounts, oldest first.
    pub fn replace(&mut self, parts: impl Iterator<Item = (u64, u64)>) {
        self.parts.clear();
        self.parts.extend(parts.filter(|(_, amount)| *amount > 0));
    }

    /// Length of a part for the kernel, in nanoseconds; 0 where nothing is ever forgotten.
    pub fn part_length(&self) -> u64 {
        self.part()
    }

    /// The number of the part that holds now.
    pub fn part_number(&self, now: u64) -> u64 {
        self.number(now)
    }

    /// Whether the window moves with the time.
    pub fn is_sliding(&self) -> bool {
        self.sliding
    }

    /// When no more than `most` will be spent, in the ledger's time; none if never.
    pub fn falls_to(&self, now: u64, most: u64) -> Option<u64> {
        let mut left = self.spent(now);
        if left <= most {
            return Some(now);
        }
        for (number, amount) in &self.parts {
            let at = self.forgotten(*number)?;
            if at <= now {
                continue;
            }
            left = left.saturating_sub(*amount);
            if left <= most {
                return Some(at);
            }
        }
        None
    }

    /// When the window that holds now is over; none if never. A sliding one moves all the time.
    pub fn resets(&self, now: u64) -> Option<u64> {
        if self.sliding {
            return self
                .parts
                .iter()
                .find_map(|(number, _)| self.forgotten(*number).filter(|at| *at > now));
        }
        self.forgotten(self.number(now))
    }

    /// Since when the present window counts, in the ledger's time.
    pub fn began(&self, now: u64) -> Option<u64> {
        let length = self.length?;
        Some(if self.sliding {
            now.saturating_sub(length)
        } else {
            now - now % length
        })
    }

    /// Length of the window in nanoseconds.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The same with nothing in it.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self {
            parts: VecDeque::new(),
            ..self.clone()
        }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self, now: u64) -> bool {
        self.spent(now) == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: u64 = 60_000_000_000;

    #[test]
    fn a_fixed_window_begins_anew_and_a_sliding_one_forgets_slowly() {
        let mut fixed = Meter::new(Per::Minute, false);
        fixed.add(MINUTE + 1, 5);
        assert_eq!(fixed.spent(2 * MINUTE - 1), 5);
        assert_eq!(fixed.resets(MINUTE + 1), Some(2 * MINUTE));
        assert_eq!(fixed.falls_to(MINUTE + 1, 4), Some(2 * MINUTE));
        assert_eq!(fixed.spent(2 * MINUTE), 0);
        let mut sliding = Meter::new(Per::Minute, true);
        sliding.add(MINUTE, 5);
        sliding.add(MINUTE + MINUTE / 2, 3);
        assert_eq!(sliding.spent(2 * MINUTE), 8);
        assert_eq!(sliding.spent(2 * MINUTE + MINUTE / 60), 3);
        assert_eq!(
            sliding.falls_to(2 * MINUTE, 3),
            Some(2 * MINUTE + MINUTE / 60)
        );
        let mut ever = Meter::new(Per::Total, false);
        ever.add(1, u64::MAX);
        ever.add(2, 5);
        assert_eq!(ever.spent(u64::MAX), u64::MAX);
        assert_eq!(ever.falls_to(2, 5), None);
    }

    proptest! {
        /// Against a list of every charge: a window never forgets early, and never late by more than a part.
        #[test]
        fn a_list_of_all_charges_agrees(
            sliding: bool,
            steps in proptest::collection::vec((0..2 * MINUTE, 0..1000_u64), 1..80),
        ) {
            let mut meter = Meter::new(Per::Minute, sliding);
            let mut all: Vec<(u64, u64)> = Vec::new();
            let mut now = 100 * MINUTE;
            for (pass, amount) in steps {
                now += pass;
                meter.add(now, amount);
                all.push((now, amount));
                let since = |from: u64| all.iter().filter(|it| it.0 > from).map(|it| it.1).sum::<u64>();
                let spent = meter.spent(now);
                if sliding {
                    prop_assert!(spent >= since(now - MINUTE));
                    prop_assert!(spent <= since(now - MINUTE - MINUTE / 60 - 1));
                } else {
                    let from = now / MINUTE * MINUTE;
                    prop_assert_eq!(spent, all.iter().filter(|it| it.0 >= from).map(|it| it.1).sum::<u64>());
                }
                if let Some(at) = meter.falls_to(now, spent / 2) {
                    prop_assert!(meter.spent(at) <= spent / 2);
                    prop_assert!(at == now || meter.spent(at - 1) > spent / 2);
                }
            }
        }
    }
}
