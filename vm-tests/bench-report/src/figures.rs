//! The figures of one run, as they are kept in `docs/benchmarks/KERNEL.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the format.
pub const FORMAT: u32 = 1;

/// One run with one kernel, and what is needed to repeat it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// [`FORMAT`].
    pub format: u32,
    /// Where, when and how.
    pub circumstances: Circumstances,
    /// What was measured.
    pub tables: Vec<Table>,
}

/// Where, when and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Circumstances {
    /// The command that measures this again.
    pub command: String,
    /// Name of the kernel in the matrix; `native` for this machine's own.
    pub kernel: String,
    /// What `uname -r` says.
    pub release: String,
    /// The kernel's security modules, in their order.
    pub modules: String,
    /// Processor of the machine that ran it.
    pub machine: String,
    /// The emulator, with its version and settings; empty without one.
    pub emulator: String,
    /// Day, in UTC.
    pub date: String,
    /// Revision of the source; `+` behind it where files differed from it.
    pub revision: String,
    /// How it was measured, a sentence an item.
    pub method: Vec<String>,
    /// The policy with ten rules; the larger ones differ only in how many denials they have.
    pub policy: String,
}

/// Rows of cells with the same operations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// By which it is found: `operations`, `starts`, `work`, `native`.
    pub name: String,
    /// What people read.
    pub title: String,
    /// What a number counts: `instructions`, `ns`.
    pub unit: String,
    /// Columns, in their order.
    pub operations: Vec<Operation>,
    /// The first row is what the others are compared with.
    pub rows: Vec<Row>,
}

/// One column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Its key in the cells.
    pub name: String,
    /// What people read.
    pub title: String,
}

/// One way to be confined, or none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// By which it is found.
    pub name: String,
    /// What people read.
    pub title: String,
    /// What became of the records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<Records>,
    /// By name of the operation.
    pub cells: BTreeMap<String, Cell>,
}

/// Records of all that a row did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Records {
    /// Lines in the log.
    pub written: u64,
    /// Records that the log or the kernel counts as lost.
    pub lost: u64,
    /// Instructions of the daemon for each record, where they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daemon_instructions: Option<u64>,
}

/// What came of one operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    /// It was measured.
    Measured(Spread),
    /// It was not, and why.
    Absent(String),
}

/// What several rounds gave, each as the mean of its repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The least: what is stated, and compared.
    pub least: f64,
    /// The one in the middle.
    pub median: f64,
    /// The most.
    pub most: f64,
    /// How many rounds.
    pub rounds: u32,
}

impl Spread {
    /// The spread of these rounds; `None` if there are none.
    pub fn of(mut rounds: Vec<f64>) -> Option<Self> {
        rounds.sort_by(f64::total_cmp);
        let middle = rounds.len() / 2;
        let median = if rounds.len() % 2 == 1 {
            *rounds.get(middle)?
        } else {
            f64::midpoint(*rounds.get(middle.checked_sub(1)?)?, *rounds.get(middle)?)
        };
        Some(Self {
            least: *rounds.first()?,
            median,
            most: *rounds.last()?,
            rounds: u32::try_from(rounds.len()).ok()?,
        })
    }

    /// How far the middle is from the least: what another run may differ by.
    pub fn noise(&self) -> f64 {
        self.median - self.least
    }
}

impl Figures {
    /// Reads a file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let figures: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if figures.format == FORMAT {
            Ok(figures)
        } else {
            Err(format!(
                "format {} instead of {FORMAT}: measure again",
                figures.format
            ))
        }
    }

    /// The text of a file.
    pub fn write(&self) -> Result<String, String> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(|error| error.to_string())
    }

    /// The table of this name.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }
}

impl Table {
    /// The row of this name.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// What the operation took in a row, where it was measured.
    pub fn spread(&self, row: &str, operation: &str) -> Option<Spread> {
        self.row(row)?.spread(operation)
    }

    /// What it took without anything: in the first row.
    pub fn bare(&self, operation: &str) -> Option<Spread> {
        self.rows.first()?.spread(operation)
    }

    /// What it took more than in the first row.
    pub fn added(&self, row: &str, operation: &str) -> Option<f64> {
        Some(self.spread(row, operation)?.least - self.bare(operation)?.least)
    }
}

impl Row {
    /// A row of which nothing could be measured.
    pub fn absent(name: &str, title: &str, operations: &[Operation], why: &str) -> Self {
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            records: None,
            cells: operations
                .iter()
                .map(|operation| (operation.name.clone(), Cell::Absent(why.to_owned())))
                .collect(),
        }
    }

    /// What the operation took, where it was measured.
    pub fn spread(&self, operation: &str) -> Option<Spread> {
        match self.cells.get(operation)? {
            Cell::Measured(spread) => Some(*spread),
            Cell::Absent(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_spread_has_least_median_and_most() {
        let spread = Spread::of(vec![5.0, 1.0, 3.0]).expect("three rounds");
        assert_eq!(
            (spread.least, spread.median, spread.most, spread.rounds),
            (1.0, 3.0, 5.0, 3)
        );
        assert!((spread.noise() - 2.0).abs() < 1e-9);
        let even = Spread::of(vec![4.0, 1.0]).expect("two rounds");
        assert!((even.median - 2.5).abs() < 1e-9);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let figures = sample::figures();
        let text = figures.write().expect("it can be written");
        assert_eq!(Figures::parse(&text), Ok(figures));
    }

    #[test]
    fn another_format_and_unknown_keys_are_refused() {
        let mut figures = sample::figures();
        figures.format = 99;
        let text = figures.write().expect("it can be written");
        assert!(Figures::parse(&text).is_err_and(|error| error.contains("measure again")));
        let text = sample::figures().write().expect("it can be written");
        let text = text.replacen("\"tables\"", "\"more\": 1, \"tables\"", 1);
        assert!(Figures::parse(&text).is_err());
    }

    #[test]
    fn an_addition_is_against_the_first_row() {
        let table = &sample::figures().tables[0];
        assert_eq!(table.added("governed-1000", "open-63"), Some(2900.0));
        assert_eq!(table.added("landlock", "open-63"), None);
    }
}
