//! A report as text and as Markdown.

use super::{Report, span, stamp};
use crate::audit::stats::Count;
use crate::event::escape::printable;

/// Width of the bars on a terminal.
const BAR: u64 = 40;

/// Writes it.
pub fn write(report: &Report, markdown: bool) -> String {
    let mut page = Page {
        text: String::new(),
        markdown,
    };
    page.heading(
        1,
        &format!("AgentGuard report: {}", page.shown(&report.about)),
    );
    let summary = &report.summary;
    let time = |page: &Page, time: &Option<String>| page.shown(time.as_deref().unwrap_or("-"));
    page.line(&format!(
        "{} records of {}, {} to {}.",
        summary.records,
        page.shown(&report.log),
        time(&page, &summary.first),
        time(&page, &summary.last)
    ));
    page.line(&format!("\n{}", report.integrity()));
    if summary.lost > 0 {
        page.line(&format!(
            "\n{} records were lost, as gap records say.",
            summary.lost
        ));
    }
    page.heading(2, "Verdicts");
    page.list(&report.verdicts());
    page.sessions(report);
    page.over_time(report);
    for (title, counts) in report.lists() {
        page.heading(2, &title);
        page.list(counts);
    }
    page.line(&format!(
        "\nMade at {} by: {}",
        report.made,
        page.shown(&report.command)
    ));
    page.text.trim_start().to_owned()
}

struct Page {
    text: String,
    markdown: bool,
}

impl Page {
    /// A text that may come from a record or from an argument.
    fn shown(&self, text: &str) -> String {
        if self.markdown {
            code(text)
        } else {
            printable(text).into_owned()
        }
    }

    fn line(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
    }

    fn heading(&mut self, level: usize, title: &str) {
        let text = if self.markdown {
            format!("\n{} {title}\n", "#".repeat(level))
        } else {
            format!("\n{title}\n{}", "-".repeat(title.chars().count()))
        };
        self.line(&text);
    }

    fn sessions(&mut self, report: &Report) {
        if report.sessions.is_empty() {
            return;
        }
        self.heading(2, "Sessions");
        for session in &report.sessions {
            let would_be = match session.would_deny {
                0 => String::new(),
                count => format!(", {count} that shadow mode let pass"),
            };
            self.line(&format!(
                "{}session {} of {}: {} allowed, {} refused{would_be}, by {}, {} to {}",
                if self.markdown { "- " } else { "  " },
                session.session,
                self.shown(&session.agent),
                session.allowed,
                session.refused,
                self.shown(&session.policies.join(", ")),
                self.shown(&session.first),
                self.shown(&session.last)
            ));
        }
    }

    fn over_time(&mut self, report: &Report) {
        let (first, step, slices) = &report.over_time;
        let sums = slices.iter().map(|slice| slice.allowed + slice.denied);
        let Some(most) = sums.max().filter(|most| *most > 0) else {
            return;
        };
        self.heading(2, &format!("Activity, each {}", span(*step)));
        let refused = report.refused();
        if self.markdown {
            self.line(&format!(
                "| from | allowed | {refused} |\n| --- | ---: | ---: |"
            ));
        } else {
            self.line(&format!("  from, allowed (=), {refused} (#)"));
        }
        for (number, slice) in slices.iter().enumerate() {
            let at = stamp(*first, *step, number);
            if slice.allowed + slice.denied == 0 {
                continue;
            }
            let width = |count: u64| (count * BAR).div_ceil(most) as usize;
            let (allowed, denied) = (slice.allowed, slice.denied);
            let line = if self.markdown {
                format!("| {at} | {allowed} | {denied} |")
            } else {
                let bars = "=".repeat(width(allowed)) + &"#".repeat(width(denied));
                format!("  {at}  {allowed:>8} {denied:>6}  {bars}")
            };
            self.line(&line);
        }
    }

    fn list(&mut self, counts: &[Count]) {
        if self.markdown {
            self.line("| count | what |\n| ---: | --- |");
        }
        for count in counts {
            let what = self.shown(&count.what);
            let line = if self.markdown {
                format!("| {} | {what} |", count.count)
            } else {
                format!("  {:>10}  {what}", count.count)
            };
            self.line(&line);
        }
    }
}

/// A text within Markdown: as code, in which nothing has a meaning. A bar would end a cell of a table, however it is
/// escaped where a backslash is before it: it is written as bytes that are not printable are.
fn code(text: &str) -> String {
    let text = printable(text).replace('|', "\\x7c");
    if text.trim().is_empty() {
        return "-".to_owned();
    }
    let longest = text.split(|it| it != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    if longest == 0 {
        format!("{fence}{text}{fence}")
    } else {
        format!("{fence} {text} {fence}")
    }
}
