//! What operations cost more than without anything, as bars: one picture for each kernel.

use std::fmt::Write as _;

use crate::figures::{Figures, Operation, Row, Table};
use crate::number::signed;

/// Operations that are drawn, where they were measured.
const DRAWN: &[&str] = &[
    "open-63",
    "open-255",
    "exec",
    "connect-tcp",
    "connect-udp",
    "rename",
];
const WIDTH: u32 = 900;
const LABELS: u32 = 430;
const FIGURES: u32 = 90;
const BAR: u32 = 14;
const GAP: u32 = 5;

/// The picture; empty where nothing can be drawn.
pub fn svg(figures: &Figures) -> String {
    let Some(table) = figures.table("operations") else {
        return String::new();
    };
    let mut body = String::new();
    let mut top = 46;
    for operation in table
        .operations
        .iter()
        .filter(|o| DRAWN.contains(&o.name.as_str()))
    {
        top = panel(table, operation, top, &mut body);
    }
    let height = top + 10;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"26\" font-size=\"16\" fill=\"#1a1a1a\">Instructions more than on a bare kernel, Linux {}</text>\n\
         {body}</svg>\n",
        escaped(&figures.circumstances.release)
    )
}

/// Draws the bars of one operation, and returns where the next may begin.
fn panel(table: &Table, operation: &Operation, top: u32, body: &mut String) -> u32 {
    let rows: Vec<(&Row, f64)> = table
        .rows
        .iter()
        .skip(1)
        .filter_map(|row| Some((row, table.added(&row.name, &operation.name)?)))
        .collect();
    let most = rows.iter().map(|(_, added)| *added).fold(1.0, f64::max);
    let _ = writeln!(
        body,
        "<text x=\"12\" y=\"{}\" font-weight=\"bold\" fill=\"#1a1a1a\">{}</text>",
        top + 14,
        escaped(&operation.title)
    );
    let mut y = top + 22;
    for (row, added) in rows {
        let length = added.max(0.0) / most * f64::from(WIDTH - LABELS - FIGURES);
        let colour = if crate::compare::ours(row) {
            "#2166ac"
        } else {
            "#b8b8b8"
        };
        let text = y + BAR - 3;
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\" fill=\"#333333\">{}</text>\
             <rect x=\"{LABELS}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{text}\" fill=\"#333333\">{}</text>",
            LABELS - 8,
            escaped(&row.title),
            f64::from(LABELS + 6) + length,
            signed(added)
        );
        y += BAR + GAP;
    }
    y + 14
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn each_measured_row_has_a_bar_and_absent_ones_have_none() {
        let text = svg(&sample::figures());
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        // Three rows besides the bare kernel were measured, and three of the operations are drawn.
        assert_eq!(text.matches("fill=\"#2166ac\"").count(), 6);
        assert_eq!(text.matches("fill=\"#b8b8b8\"").count(), 3);
        assert!(!text.contains("Landlock"));
        assert!(text.contains("+2,900"));
    }

    #[test]
    fn names_cannot_become_markup() {
        let mut figures = sample::figures();
        figures.circumstances.release = "<script>&\"".into();
        assert!(svg(&figures).contains("&lt;script&gt;&amp;&quot;"));
    }

    #[test]
    fn without_operations_there_is_nothing_to_draw() {
        let mut figures = sample::figures();
        figures.tables.clear();
        assert_eq!(svg(&figures), "");
    }
}
