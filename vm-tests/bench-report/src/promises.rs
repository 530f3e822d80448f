//! What the project demands of itself, held against the figures of one run.

use crate::figures::{Figures, Records, Table};
use crate::number::{counted, percent, signed};

/// Name of the row with programs that do nothing, where `AgentGuard` has its own.
pub const EMPTY: &str = "empty-programs";

/// The same, with programs that let packets go on at the cgroup of what is measured, where `AgentGuard` counts them.
pub const EMPTY_WITH_PACKETS: &str = "empty-programs-and-packets";

/// One demand, and whether the figures meet it.
#[derive(Clone, Debug, PartialEq)]
pub struct Promise {
    /// What is demanded.
    pub demand: &'static str,
    /// What the figures say.
    pub figure: String,
    /// Whether it holds; `None` where it was not measured.
    pub holds: Option<bool>,
}

/// Every demand that figures of a guest can speak of.
pub fn judge(figures: &Figures) -> Vec<Promise> {
    let mut promises = Vec::new();
    if let Some(table) = figures.table("operations") {
        promises.extend([half_of_apparmor(table), ten_thousand(table)]);
        promises.extend(
            [
                (
                    "exec",
                    "starting a program adds no more than under AppArmor",
                ),
                (
                    "connect-tcp",
                    "connecting (TCP) adds no more than under AppArmor",
                ),
                (
                    "connect-udp",
                    "connecting (UDP) adds no more than under AppArmor",
                ),
                (
                    "connect-unix",
                    "connecting (Unix) adds no more than under AppArmor",
                ),
            ]
            .map(|(operation, demand)| not_more_than_apparmor(table, operation, demand)),
        );
        promises.push(ungoverned(table));
        promises.extend(ours_of_ungoverned(table));
        promises.push(untouched(table));
    }
    if let Some(table) = figures.table("steps") {
        promises.push(record(table));
    }
    if let Some(table) = figures.table("work") {
        promises.extend([
            work(
                table,
                "governed-1000-alone",
                "ordinary work, everything recorded: at most +3 % instructions of the work itself",
            ),
            work(
                table,
                "governed-1000",
                "the same together with what the daemon does meanwhile",
            ),
        ]);
    }
    promises.push(nothing_lost(figures));
    promises
}

fn pair(table: &Table, operation: &str) -> Option<(f64, f64)> {
    Some((
        table.added("governed-1000", operation)?,
        table.added("apparmor-1000", operation)?,
    ))
}

fn promise(demand: &'static str, judged: Option<(String, bool)>) -> Promise {
    let (figure, holds) = match judged {
        Some((figure, holds)) => (figure, Some(holds)),
        None => ("not measured".to_owned(), None),
    };
    Promise {
        demand,
        figure,
        holds,
    }
}

fn half_of_apparmor(table: &Table) -> Promise {
    promise(
        "open of the 63-byte path, 1,000 rules, everything recorded: less than half of what AppArmor adds",
        pair(table, "open-63").map(|(ours, theirs)| {
            let text = format!("{} against {}", signed(ours), signed(theirs));
            (text, ours < theirs / 2.0)
        }),
    )
}

fn not_more_than_apparmor(table: &Table, operation: &str, demand: &'static str) -> Promise {
    let floor = table
        .added(EMPTY_WITH_PACKETS, operation)
        .map(|floor| {
            format!(
                " (programs that do nothing in their place {})",
                signed(floor)
            )
        })
        .unwrap_or_default();
    promise(
        demand,
        pair(table, operation).map(|(ours, theirs)| {
            let text = format!("{} against {}{floor}", signed(ours), signed(theirs));
            (text, ours <= theirs)
        }),
    )
}

fn ten_thousand(table: &Table) -> Promise {
    let judged = table.operations.iter().filter_map(|operation| {
        let small = table.spread("governed-1000", &operation.name)?.least;
        let large = table.spread("governed-10000", &operation.name)?.least;
        Some((operation, small, large))
    });
    let worst = judged.max_by(|a, b| (a.2 / a.1).total_cmp(&(b.2 / b.1)));
    promise(
        "10,000 rules cost within 2 % of what 1,000 cost, each operation as a whole",
        worst.map(|(operation, small, large)| {
            let text = format!(
                "at most {} ({})",
                percent(large - small, small),
                operation.title
            );
            (text, large <= small * 1.02)
        }),
    )
}

fn ungoverned(table: &Table) -> Promise {
    let judged = table.operations.iter().filter_map(|operation| {
        let added = table.added("ungoverned", &operation.name)?;
        Some((operation, added, table.bare(&operation.name)?.least))
    });
    let over: Vec<String> = judged
        .clone()
        .filter(|(_, added, bare)| *added > bare * 0.005)
        .map(|(operation, added, bare)| {
            let kernel = table.added(EMPTY, &operation.name).map(|floor| {
                let floor = percent(floor, bare);
                format!(" (empty programs {floor})")
            });
            let kernel = kernel.unwrap_or_default();
            format!("{} {}{kernel}", operation.title, percent(added, bare))
        })
        .collect();
    let any = judged.count() > 0;
    let text = if over.is_empty() {
        "none is over".to_owned()
    } else {
        format!("over: {}", over.join("; "))
    };
    promise(
        "ungoverned: at most +0.5 % on every operation",
        any.then_some((text, over.is_empty())),
    )
}

/// What is ours of what an ungoverned process pays: the rest is paid for any program at the same hooks. Nothing
/// where that was not measured.
fn ours_of_ungoverned(table: &Table) -> Option<Promise> {
    let judged = table.operations.iter().filter_map(|operation| {
        let ours = table.spread("ungoverned", &operation.name)?.least;
        let empty = table.spread(EMPTY, &operation.name)?.least;
        Some((operation, ours - empty, table.bare(&operation.name)?.least))
    });
    let (operation, more, bare) = judged.max_by(|a, b| (a.1 / a.2).total_cmp(&(b.1 / b.2)))?;
    let text = format!(
        "at most {} ({}, {})",
        percent(more, bare),
        signed(more),
        operation.title
    );
    Some(promise(
        "ungoverned, over empty programs at the same hooks: at most +0.5 % on every operation",
        Some((text, more <= bare * 0.005)),
    ))
}

fn untouched(table: &Table) -> Promise {
    let rows = table.rows.iter().filter(|row| crate::compare::ours(row));
    let figures: Vec<(String, f64)> = rows
        .flat_map(|row| {
            ["read", "write"].into_iter().filter_map(|operation| {
                let added = table.added(&row.name, operation)?;
                Some((format!("{operation}, {}", row.title), added))
            })
        })
        .collect();
    let worst = figures
        .iter()
        .max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
    promise(
        "read and write: exactly +0, ungoverned and governed",
        worst.map(|(what, added)| {
            let text = if *added == 0.0 {
                "+0 everywhere".to_owned()
            } else {
                format!("{} ({what})", signed(*added))
            };
            (text, *added == 0.0)
        }),
    )
}

fn work(table: &Table, row: &str, demand: &'static str) -> Promise {
    let parts = table.operations.iter().filter_map(|operation| {
        let added = table.added(row, &operation.name)?;
        Some((operation, added / table.bare(&operation.name)?.least))
    });
    let worst = parts.max_by(|a, b| a.1.total_cmp(&b.1));
    promise(
        demand,
        worst.map(|(operation, part)| {
            let text = format!("at most {} ({})", percent(part, 1.0), operation.title);
            (text, part <= 0.03)
        }),
    )
}

fn record(table: &Table) -> Promise {
    promise(
        "an allowed open: at most 600 instructions from its verdict to the committed record",
        table.spread("agentguard", "record").map(|spread| {
            let text = format!("{:.0}, with the space for it", spread.least);
            (text, spread.least <= 600.0)
        }),
    )
}

fn nothing_lost(figures: &Figures) -> Promise {
    let records: Vec<&Records> = figures
        .tables
        .iter()
        .flat_map(|table| &table.rows)
        .filter(|row| crate::compare::ours(row))
        .filter_map(|row| row.records.as_ref())
        .collect();
    let sum =
        |field: fn(&Records) -> u64| records.iter().map(|records| field(records)).sum::<u64>();
    let (written, lost) = (sum(|r| r.written), sum(|r| r.lost));
    promise(
        "no record is lost",
        (!records.is_empty()).then(|| {
            let text = format!("{} of {}", counted(lost), counted(written + lost));
            (text, lost == 0)
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn holds(text: &str) -> Option<bool> {
        let promises = judge(&sample::figures());
        let found = promises
            .iter()
            .find(|promise| promise.demand.contains(text));
        found.expect("the demand").holds
    }

    #[test]
    fn figures_decide_what_holds() {
        assert_eq!(holds("less than half"), Some(false));
        assert_eq!(holds("starting a program"), Some(false));
        assert_eq!(holds("+0.5 %"), Some(false));
        assert_eq!(holds("exactly +0"), Some(true));
        assert_eq!(holds("no record is lost"), Some(true));
    }

    #[test]
    fn the_kernels_part_is_told_apart() {
        let mut figures = sample::figures();
        assert!(!judge(&figures).iter().any(|p| p.demand.contains("empty")));
        let rows = &mut figures.tables[0].rows;
        let mut empty = rows.iter().find(|row| row.name == "ungoverned").cloned();
        let row = empty.as_mut().expect("the row");
        row.name = EMPTY.to_owned();
        if let Some(crate::figures::Cell::Measured(spread)) = row.cells.get_mut("open-63") {
            spread.least -= 25.0;
        }
        rows.extend(empty);
        let promises = judge(&figures);
        let all = &promises
            .iter()
            .find(|p| p.demand.contains("ungoverned: at"));
        let all = &all.expect("the demand").figure;
        assert!(
            all.contains("open + close, 63 bytes +1.6 % (empty programs +1.4 %)"),
            "{all}"
        );
        let ours = promises.iter().find(|p| p.demand.contains("over empty"));
        let ours = ours.expect("the demand");
        assert_eq!(ours.figure, "at most +0.2 % (+25, open + close, 63 bytes)");
        assert_eq!(ours.holds, Some(true));
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        assert_eq!(holds("10,000 rules"), None);
        assert_eq!(holds("connecting (TCP)"), None);
    }
}
