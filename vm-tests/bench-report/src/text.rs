//! Tables as people read them on a terminal, and in Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::figures::{Cell, Operation, Row, Table};
use crate::number::{grouped, percent, signed};

/// Columns beside each other, at most: more do not fit on a page.
const COLUMNS: usize = 5;

/// A table cut into parts that fit, each a header and lines of cells; and the reasons of what is absent.
pub struct Parts {
    /// Header and lines.
    pub parts: Vec<(Vec<String>, Vec<Vec<String>>)>,
    /// Why cells have a number in brackets instead of a figure; the first is `[1]`.
    pub reasons: Vec<String>,
}

/// Cuts a table into parts.
pub fn parts(table: &Table) -> Parts {
    let mut reasons = Reasons::default();
    let parts = table
        .operations
        .chunks(COLUMNS)
        .map(|operations| {
            let mut header = vec![table.unit.clone()];
            header.extend(operations.iter().map(|operation| operation.title.clone()));
            let lines = table
                .rows
                .iter()
                .enumerate()
                .map(|(index, row)| line(table, index == 0, row, operations, &mut reasons))
                .collect();
            (header, lines)
        })
        .collect();
    Parts {
        parts,
        reasons: reasons.texts,
    }
}

#[derive(Default)]
struct Reasons {
    texts: Vec<String>,
    numbers: BTreeMap<String, usize>,
}

impl Reasons {
    fn number(&mut self, why: &str) -> usize {
        if let Some(number) = self.numbers.get(why) {
            return *number;
        }
        self.texts.push(why.to_owned());
        self.numbers.insert(why.to_owned(), self.texts.len());
        self.texts.len()
    }
}

fn line(
    table: &Table,
    first: bool,
    row: &Row,
    operations: &[Operation],
    reasons: &mut Reasons,
) -> Vec<String> {
    let mut line = vec![row.title.clone()];
    for operation in operations {
        line.push(match row.cells.get(&operation.name) {
            None => "–".into(),
            Some(Cell::Absent(why)) => format!("[{}]", reasons.number(why)),
            Some(Cell::Measured(spread)) if first => grouped(spread.least),
            Some(Cell::Measured(spread)) => match table.bare(&operation.name) {
                Some(bare) => {
                    let added = spread.least - bare.least;
                    format!("{} ({})", signed(added), percent(added, bare.least))
                }
                None => grouped(spread.least),
            },
        });
    }
    line
}

/// For a terminal.
pub fn plain(table: &Table) -> String {
    let parts = parts(table);
    let mut text = format!("{}\n", table.title);
    for (header, lines) in &parts.parts {
        text += "\n";
        let widths: Vec<usize> = (0..header.len())
            .map(|column| {
                let cells = lines.iter().filter_map(|line| line.get(column));
                cells
                    .chain(header.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for line in std::iter::once(header).chain(lines) {
            let cells: Vec<String> = line
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(index, (cell, width))| {
                    if index == 0 {
                        format!("{cell:<width$}")
                    } else {
                        format!("{cell:>width$}")
                    }
                })
                .collect();
            text += cells.join("  ").trim_end();
            text += "\n";
        }
    }
    for (index, why) in parts.reasons.iter().enumerate() {
        let _ = writeln!(text, "[{}] {why}", index + 1);
    }
    text
}

/// For a page.
pub fn markdown(table: &Table) -> String {
    let parts = parts(table);
    let mut text = String::new();
    for (header, lines) in &parts.parts {
        let _ = writeln!(text, "| {} |", header.join(" | "));
        let _ = writeln!(text, "| ---{} |", " | ---:".repeat(header.len() - 1));
        for line in lines {
            let cells: Vec<String> = line.iter().map(|cell| cell.replace('|', "\\|")).collect();
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        text += "\n";
    }
    for (index, why) in parts.reasons.iter().enumerate() {
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(text, "\\[{}\\] Not measured: {why}  ", index + 1);
    }
    if !parts.reasons.is_empty() {
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_terminal_shows_additions_and_reasons() {
        let text = plain(&sample::figures().tables[0]);
        assert!(text.contains("+2,900 (+23.2 %)"), "{text}");
        assert!(text.contains("[1] this kernel has no Landlock"), "{text}");
        assert_eq!(text.matches("this kernel has no Landlock").count(), 1);
    }

    #[test]
    fn a_page_has_a_line_for_each_row() {
        let text = markdown(&sample::figures().tables[0]);
        assert!(
            text.contains("| bare kernel | 12,500 | 1,200,000 | 15,000 | 700 |"),
            "{text}"
        );
        assert_eq!(text.lines().filter(|line| line.starts_with('|')).count(), 7);
    }

    #[test]
    fn many_columns_are_cut_into_parts() {
        let mut table = sample::figures().tables.remove(0);
        let more = table.operations.clone();
        table.operations.extend(more);
        assert_eq!(parts(&table).parts.len(), 2);
    }
}
