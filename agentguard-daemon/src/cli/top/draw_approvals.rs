//! How what waits for an answer looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line as Text;
use ratatui::widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Table, TableState};

use super::approvals::{Line, Standing};
use super::draw::Theme;
use super::state::State;

/// Rows of the list that are there whatever the act that is chosen takes.
const LIST: u16 = 4;

pub fn draw_approvals(frame: &mut Frame<'_>, state: &State, theme: Theme, area: Rect) {
    let block = Block::new()
        .borders(Borders::TOP)
        .title(" what waits for an answer, and what is granted ");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    if state.lines.is_empty() {
        frame.render_widget(
            Paragraph::new("nothing waits, and nothing is granted"),
            inner,
        );
        return;
    }
    let lines = state.line().map(|line| about_it(line, theme, inner.width));
    let lines = lines.unwrap_or_default();
    let wanted = u16::try_from(lines.len()).unwrap_or(u16::MAX);
    let about = wanted.min(inner.height.saturating_sub(LIST));
    let parts = [Constraint::Min(1), Constraint::Length(about)];
    let [list, below] = Layout::vertical(parts).areas(inner);
    let rows = state.lines.iter().map(|line| row(line, theme));
    let widths = [
        Constraint::Length(5),
        Constraint::Length(12),
        Constraint::Length(8),
        Constraint::Length(5),
        Constraint::Length(8),
        Constraint::Length(16),
        Constraint::Min(10),
    ];
    let header = ["ID", "AGENT", "STATE", "TRIES", "LAST", "RULE", "ASKS TO"];
    let table = Table::new(rows, widths)
        .header(Row::new(header).style(Theme::title()))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut at = TableState::default().with_selected(Some(state.at()));
    frame.render_stateful_widget(table, list, &mut at);
    frame.render_widget(Paragraph::new(lines), below);
    if about < wanted && about > 0 {
        // Nobody takes a part for the whole.
        let last = Rect {
            y: below.y + about - 1,
            height: 1,
            ..below
        };
        let more = "… `agentguard approvals list` shows all of it";
        frame.render_widget(Clear, last);
        frame.render_widget(Paragraph::new(more).style(theme.warning()), last);
    }
}

/// A text in rows of this width, however long its words are.
fn rows_of(text: &str, width: u16) -> Vec<String> {
    let mut rows = vec![String::new()];
    let mut taken = 0;
    for character in text.chars() {
        let cells = Text::raw(character.to_string()).width();
        if taken + cells > usize::from(width) {
            rows.push(String::new());
            taken = 0;
        }
        if let Some(row) = rows.last_mut() {
            row.push(character);
        }
        taken += cells;
    }
    rows
}

fn row(line: &Line, theme: Theme) -> Row<'static> {
    let (word, style) = match &line.standing {
        Standing::Waits => ("waits", theme.warning()),
        Standing::Denied(_) => ("denied", Style::new()),
        Standing::Granted(..) => ("granted", theme.bad()),
    };
    Row::new([
        Cell::new(line.id.to_string()),
        Cell::new(line.agent.clone()),
        Cell::new(word).style(style),
        Cell::new(line.tries.to_string()),
        Cell::new(line.last.clone()),
        Cell::new(line.rule.clone()),
        Cell::new(line.deed.clone()),
    ])
}

/// The rule's reason and who tried, and then the whole act: what is permitted has to be seen to its end.
fn about_it(line: &Line, theme: Theme, width: u16) -> Vec<Text<'static>> {
    let Line {
        id,
        agent,
        rule,
        reason,
        program,
        ..
    } = line;
    let mut first = format!("{id}  {agent} by {program}  {rule}");
    if !reason.is_empty() {
        first = format!("{first}: {reason}");
    }
    match &line.standing {
        Standing::Waits => {}
        Standing::Denied(by) => first = format!("{first}  denied by {by}"),
        Standing::Granted(far, by) => first = format!("{first}  granted {far} by {by}"),
    }
    let why = rows_of(&first, width).into_iter();
    let deed = rows_of(&line.deed, width).into_iter();
    why.map(|row| Text::styled(row, theme.warning()))
        .chain(deed.map(Text::raw))
        .collect()
}
