//! A report as one page of HTML: no script, nothing from elsewhere, plots as drawings within it.

use std::fmt::Write as _;

use super::{Report, span, stamp};
use crate::audit::stats::Count;
use crate::event::escape::printable;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid #ddd}\
table{border-collapse:collapse;width:100%}td,th{padding:.2rem .6rem;text-align:left;vertical-align:top}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;width:6rem}\
td.w{font-family:ui-monospace,monospace;overflow-wrap:anywhere}td.b{width:12rem}\
.bar{fill:#4a78b5}.no{fill:#c0392b}.axis{stroke:#999}.bad{background:#fdecea;padding:.6rem;border-left:4px solid #c0392b}\
.good{background:#eaf5ec;padding:.6rem;border-left:4px solid #3a8a4d}text{font-size:11px;fill:#555}\
footer{margin-top:3rem;color:#777;font-size:.85rem;overflow-wrap:anywhere}\
@media print{body{margin:0;max-width:none}}";

/// Size of the plot over time, in points.
const WIDTH: usize = 900;
const HEIGHT: u64 = 160;

/// A text within markup.
fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in printable(text).chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// Writes the page.
pub fn write(report: &Report) -> String {
    let summary = &report.summary;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>AgentGuard report: {0}</title>\n\
         <style>{STYLE}</style></head><body>\n<h1>AgentGuard report: {0}</h1>\n\
         <p>{1} records of {2}, {3} to {4}.</p>\n",
        text(&report.about),
        summary.records,
        text(&report.log),
        text(summary.first.as_deref().unwrap_or("-")),
        text(summary.last.as_deref().unwrap_or("-")),
    );
    let class = match &report.verified {
        Some(verified) if verified.is_proved() => "good",
        Some(_) => "bad",
        None => "",
    };
    let _ = writeln!(
        page,
        "<p class=\"{class}\">{}</p>",
        text(&report.integrity())
    );
    if summary.lost > 0 {
        let _ = writeln!(
            page,
            "<p class=\"bad\">{} records were lost, as gap records say.</p>",
            summary.lost
        );
    }
    table(&mut page, "Verdicts", &report.verdicts(), false);
    sessions(&mut page, report);
    over_time(&mut page, report);
    for (title, counts) in report.lists() {
        table(&mut page, &title, counts, title.starts_with("refused"));
    }
    let _ = write!(
        page,
        "<footer>Made at {} by: <code>{}</code>. Every number is counted from the records of the log.</footer>\n</body></html>\n",
        text(&report.made),
        text(&report.command)
    );
    page
}

fn table(page: &mut String, title: &str, counts: &[Count], refused: bool) {
    let Some(most) = counts.iter().map(|count| count.count).max() else {
        return;
    };
    let _ = writeln!(page, "<h2>{}</h2>\n<table>", text(title));
    for count in counts {
        let width = u128::from(count.count) * 190 / u128::from(most.max(1)) + 1;
        let refused = refused || matches!(&*count.what, "deny" | "ask" | "would-deny");
        let class = if refused { "no" } else { "bar" };
        let _ = writeln!(
            page,
            "<tr><td class=\"n\">{}</td><td class=\"b\"><svg width=\"192\" height=\"12\"><rect class=\"{class}\" width=\"{width}\" height=\"12\"/></svg></td><td class=\"w\">{}</td></tr>",
            count.count,
            text(&count.what)
        );
    }
    page.push_str("</table>\n");
}

fn sessions(page: &mut String, report: &Report) {
    if report.sessions.is_empty() {
        return;
    }
    page.push_str("<h2>Sessions</h2>\n<table><tr><th class=\"n\">session</th><th>agent</th><th>policies</th><th class=\"n\">allowed</th><th class=\"n\">refused</th><th class=\"n\">would be</th><th>from</th><th>to</th></tr>\n");
    for session in &report.sessions {
        let _ = writeln!(
            page,
            "<tr><td class=\"n\">{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td><td>{}</td></tr>",
            session.session,
            text(&session.agent),
            text(&session.policies.join(", ")),
            session.allowed,
            session.refused,
            session.would_deny,
            text(&session.first),
            text(&session.last)
        );
    }
    page.push_str("</table>\n");
}

fn over_time(page: &mut String, report: &Report) {
    let (first, step, slices) = &report.over_time;
    let most = slices
        .iter()
        .map(|slice| slice.allowed + slice.denied)
        .max();
    let Some(most) = most.filter(|most| *most > 0) else {
        return;
    };
    let wide = (WIDTH / slices.len().max(1)).max(1);
    let _ = write!(
        page,
        "<h2>Activity, each {}</h2>\n<svg viewBox=\"0 0 {WIDTH} {}\" width=\"100%\" role=\"img\" aria-label=\"actions over time\">\n",
        span(*step),
        HEIGHT + 20
    );
    for (number, slice) in slices.iter().enumerate() {
        let high = |count: u64| (count * HEIGHT).div_ceil(most).min(HEIGHT);
        let (allowed, denied) = (high(slice.allowed), high(slice.denied));
        let x = number * wide;
        let title = format!(
            "{}: {} allowed, {} {}",
            stamp(*first, *step, number),
            slice.allowed,
            slice.denied,
            report.refused()
        );
        let bar = wide.saturating_sub(1).max(1);
        let above = allowed.min(HEIGHT - denied.min(HEIGHT));
        let _ = writeln!(
            page,
            "<g><title>{}</title><rect class=\"bar\" x=\"{x}\" y=\"{}\" width=\"{bar}\" height=\"{above}\"/><rect class=\"no\" x=\"{x}\" y=\"{}\" width=\"{bar}\" height=\"{denied}\"/></g>",
            text(&title),
            HEIGHT - denied - above,
            HEIGHT - denied
        );
    }
    let _ = writeln!(
        page,
        "<line class=\"axis\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{HEIGHT}\" y2=\"{HEIGHT}\"/><text x=\"0\" y=\"{0}\">{1}</text><text x=\"{WIDTH}\" y=\"{0}\" text-anchor=\"end\">{2}; at most {most}</text></svg>",
        HEIGHT + 15,
        stamp(*first, *step, 0),
        stamp(*first, *step, slices.len())
    );
}
