//! `docs/benchmarks.md`, written from the stored figures and nothing else.

use std::fmt::Write as _;

use crate::figures::{Circumstances, Figures, Row, Table};
use crate::number::counted;
use crate::promises::judge;
use crate::text;

/// The page about these runs.
pub fn page(runs: &[Figures]) -> String {
    let mut page = String::from(
        "# What it costs\n\n\
         <!-- Written by `cargo xtask bench` from the files in docs/benchmarks/. Changes by hand are lost. -->\n\n\
         Every figure on this page is written by a command, from [files](benchmarks) that the same command made:\n\n\
         ```\n",
    );
    for figures in runs {
        let _ = writeln!(page, "{}", figures.circumstances.command);
    }
    page += "```\n\n\
             The first row of each table is what an operation takes without anything; the others say how much more it\n\
             takes. Figures are the least of several rounds; the spread of the rounds is below the tables.\n";
    for figures in runs {
        run(figures, &mut page);
    }
    page
}

fn run(figures: &Figures, page: &mut String) {
    let about = &figures.circumstances;
    if about.kernel == "native" {
        let _ = writeln!(page, "\n## This machine, without a guest\n");
    } else {
        let _ = writeln!(page, "\n## Linux {}\n", about.release);
    }
    circumstances(about, page);
    let promises: Vec<_> = judge(figures)
        .into_iter()
        .filter(|promise| promise.holds.is_some() || about.kernel != "native")
        .collect();
    if !promises.is_empty() {
        *page += "### What is demanded\n\n| demand | figures | holds |\n| --- | --- | --- |\n";
        for promise in promises {
            let holds = promise
                .holds
                .map_or("–", |holds| if holds { "yes" } else { "**no**" });
            let _ = writeln!(
                page,
                "| {} | {} | {holds} |",
                promise.demand, promise.figure
            );
        }
        *page += "\n";
    }
    if figures.table("operations").is_some() {
        let name = plot_name(&about.kernel);
        let _ = writeln!(page, "![Instructions more than on a bare kernel]({name})\n");
    }
    for table in &figures.tables {
        let _ = writeln!(page, "### {}\n", table.title);
        *page += &text::markdown(table);
        spread(table, page);
        records(table, page);
    }
    if !about.policy.is_empty() {
        let _ = writeln!(
            page,
            "<details><summary>The policy with ten rules on files; larger ones have more denials</summary>\n\n```yaml\n{}```\n\n</details>\n",
            about.policy
        );
    }
}

/// Path of a kernel's picture, from the page.
pub fn plot_name(kernel: &str) -> String {
    format!("benchmarks/{kernel}.svg")
}

fn circumstances(about: &Circumstances, page: &mut String) {
    let lines = [
        ("kernel", &about.release),
        ("security modules", &about.modules),
        ("machine", &about.machine),
        ("emulator", &about.emulator),
        ("date", &about.date),
        ("revision", &about.revision),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(page, "- {name}: {value}");
    }
    for sentence in &about.method {
        let _ = writeln!(page, "- {sentence}");
    }
    *page += "\n";
}

/// How far the rounds lie apart.
fn spread(table: &Table, page: &mut String) {
    let mut parts = Vec::new();
    for operation in &table.operations {
        let noise = |row: &Row| {
            let spread = row.spread(&operation.name)?;
            (spread.least > 0.0).then(|| spread.noise() / spread.least * 100.0)
        };
        let worst = table.rows.iter().filter_map(noise).fold(0.0, f64::max);
        parts.push(format!("{} {worst:.1} %", operation.title));
    }
    let rounds = table
        .rows
        .iter()
        .flat_map(|row| table.operations.iter().filter_map(|o| row.spread(&o.name)))
        .map(|spread| spread.rounds)
        .max();
    if let Some(rounds) = rounds {
        let _ = writeln!(
            page,
            "How far the median of the rounds (at most {rounds}) lies above their least, in the row where it is furthest: {}.\n",
            parts.join("; ")
        );
    }
}

fn records(table: &Table, page: &mut String) {
    let rows: Vec<(&Row, _)> = table
        .rows
        .iter()
        .filter_map(|row| Some((row, row.records.as_ref()?)))
        .collect();
    if rows.is_empty() {
        return;
    }
    *page += "| records | written | lost | instructions of the daemon meanwhile, for each |\n| --- | ---: | ---: | ---: |\n";
    for (row, records) in rows {
        let number = |value: Option<u64>| value.map_or("–".into(), counted);
        let written = (records.written > 0).then_some(records.written);
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} |",
            row.title,
            number(written),
            number(Some(records.lost)),
            number(records.daemon_instructions)
        );
    }
    *page += "\n";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn the_page_has_command_circumstances_and_every_row() {
        let figures = sample::figures();
        let page = page(std::slice::from_ref(&figures));
        for wanted in [
            "cargo xtask bench --kernel 6.12\n",
            "## Linux 6.12.0-test",
            "- revision: 0123abc",
            "- Guest time counts instructions.",
            "![Instructions more than on a bare kernel](benchmarks/6.12.svg)",
            "\\[1\\] Not measured: this kernel has no Landlock",
            "| governed, 1,000 rules | 5,000 | 0 | 21,000 |",
            "```yaml\nversion: 1\n```",
        ] {
            assert!(page.contains(wanted), "{wanted:?} is not in\n{page}");
        }
        for row in &figures.tables[0].rows {
            assert!(page.contains(&format!("| {} |", row.title)));
        }
    }
}
