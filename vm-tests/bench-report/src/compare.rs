//! Whether figures became worse than those that are stored.

use crate::figures::{Figures, Row, Table};
use crate::number::{percent, signed};

/// By which part an addition may grow before it is shown.
pub const TOLERANCE: f64 = 0.03;

/// An operation that became dearer.
#[derive(Clone, Debug, PartialEq)]
pub struct Regression {
    /// Title of the row.
    pub row: String,
    /// Title of the operation.
    pub operation: String,
    /// What it added then.
    pub before: f64,
    /// What it adds now.
    pub after: f64,
}

impl Regression {
    /// In one line.
    pub fn line(&self) -> String {
        format!(
            "{}, {}: {} instead of {} ({})",
            self.row,
            self.operation,
            signed(self.after),
            signed(self.before),
            percent(self.after - self.before, self.before)
        )
    }
}

/// What became dearer than it was. Peers are not judged: they are not ours.
///
/// What is compared is the addition to the bare kernel in the same run, because that hardly depends
/// on the emulator. It is a regression where it grew by more than [`TOLERANCE`] and by more than the
/// rounds of either run differ among themselves.
pub fn regressions(before: &Figures, after: &Figures) -> Vec<Regression> {
    after
        .tables
        .iter()
        .filter(|table| table.unit == "instructions")
        .filter_map(|table| Some((before.table(&table.name)?, table)))
        .flat_map(|(before, after)| {
            after
                .rows
                .iter()
                .filter(|row| ours(row))
                .flat_map(move |row| in_row(before, after, row))
        })
        .collect()
}

/// Rows that measure `AgentGuard`.
pub fn ours(row: &Row) -> bool {
    ["governed", "ungoverned", "denied", "agentguard"]
        .iter()
        .any(|word| row.name.starts_with(word))
}

fn in_row<'a>(
    before: &'a Table,
    after: &'a Table,
    row: &'a Row,
) -> impl Iterator<Item = Regression> + 'a {
    after.operations.iter().filter_map(move |operation| {
        let then = before.added(&row.name, &operation.name)?;
        let now = after.added(&row.name, &operation.name)?;
        let noise = [before, after]
            .iter()
            .flat_map(|table| {
                [
                    table.spread(&row.name, &operation.name),
                    table.bare(&operation.name),
                ]
            })
            .flatten()
            .map(|spread| spread.noise())
            .fold(0.0, f64::max);
        let allowed = (then.abs() * TOLERANCE).max(noise).max(1.0);
        (now - then > allowed).then(|| Regression {
            row: row.title.clone(),
            operation: operation.title.clone(),
            before: then,
            after: now,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Cell;
    use crate::sample;

    fn with(row: &str, operation: &str, more: f64) -> Figures {
        let mut figures = sample::figures();
        let row = figures.tables[0]
            .rows
            .iter_mut()
            .find(|candidate| candidate.name == row)
            .expect("the row");
        let Some(Cell::Measured(spread)) = row.cells.get_mut(operation) else {
            panic!("the cell");
        };
        spread.least += more;
        spread.median += more;
        figures
    }

    #[test]
    fn the_same_figures_are_no_regression() {
        assert_eq!(regressions(&sample::figures(), &sample::figures()), []);
    }

    #[test]
    fn a_growth_over_three_percent_of_the_addition_is_one() {
        let found = regressions(&sample::figures(), &with("governed-1000", "open-63", 100.0));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            found[0].line(),
            "governed, 1,000 rules, open + close, 63 bytes: +3,000 instead of +2,900 (+3.4 %)"
        );
        assert_eq!(
            regressions(&sample::figures(), &with("governed-1000", "open-63", 80.0)),
            []
        );
    }

    #[test]
    fn growth_within_the_spread_is_none_and_peers_are_not_judged() {
        assert_eq!(
            regressions(&sample::figures(), &with("ungoverned", "read", 3.0)),
            []
        );
        assert_eq!(
            regressions(&sample::figures(), &with("ungoverned", "read", 5.0)).len(),
            1
        );
        assert_eq!(
            regressions(&sample::figures(), &with("apparmor-1000", "read", 500.0)),
            []
        );
    }

    #[test]
    fn what_became_cheaper_or_is_new_is_none() {
        assert_eq!(
            regressions(&with("governed-1000", "exec", 9e5), &sample::figures()),
            []
        );
        let mut before = sample::figures();
        before.tables.clear();
        assert_eq!(regressions(&before, &sample::figures()), []);
    }
}
