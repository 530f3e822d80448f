//! How it looks. Colours only where they are wanted; everything is told by words and signs as well.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Table, TableState};

use super::draw_approvals::draw_approvals;
use super::keys::KEYS;
use super::row::{AgentRow, BudgetRow, RecordRow, bytes, rate};
use super::state::{Filter, Over, Pane, State};

/// Below this nothing sensible can be shown.
const SMALLEST: (u16, u16) = (40, 8);
/// Cells of a bar.
const BAR: usize = 20;
/// Budgets of the chosen agent that are shown.
const BUDGETS: usize = 6;

/// What stands out, and how.
#[derive(Clone, Copy)]
pub(super) struct Theme {
    colour: bool,
}

impl Theme {
    fn of(self, colour: Color) -> Style {
        if self.colour {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    pub(super) fn bad(self) -> Style {
        self.of(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub(super) fn warning(self) -> Style {
        self.of(Color::Yellow)
    }

    pub(super) fn title() -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }
}

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, state: &State) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        frame.render_widget(Paragraph::new("the terminal is too small; q quits"), area);
        return;
    }
    let theme = Theme {
        colour: state.colour,
    };
    let room = area.height - 2;
    let agents = (state.agents.len().max(1) as u16 + 2).min((room / 2).max(3));
    let budgets = state.agent().map_or(0, |it| it.budgets.len().min(BUDGETS)) as u16;
    let detail = if room > agents + budgets + 5 {
        budgets + 1
    } else {
        u16::from(room > agents + 4)
    };
    let parts = [
        Constraint::Length(1),
        Constraint::Length(agents),
        Constraint::Length(detail),
        Constraint::Min(1),
        Constraint::Length(1),
    ];
    let [head, list, about, lower, foot] = Layout::vertical(parts).areas(area);
    frame.render_widget(Paragraph::new(headline(state, theme)), head);
    draw_agents(frame, state, theme, list);
    draw_chosen(frame, state, theme, about);
    match state.pane {
        Pane::Records => draw_records(frame, state, theme, lower),
        Pane::Approvals => draw_approvals(frame, state, theme, lower),
    }
    frame.render_widget(Paragraph::new(footline(state, theme)), foot);
    if state.over == Over::Help {
        draw_help(frame, area);
    }
}

fn headline(state: &State, theme: Theme) -> Line<'static> {
    let totals = &state.totals;
    let mut parts = vec![
        Span::styled(format!("AgentGuard {}", state.version), Theme::title()),
        Span::raw(format!(
            "  {} agents  {} records/s  sorted by {}",
            state.agents.len(),
            rate(state.records_rate),
            state.sort.name()
        )),
    ];
    let lost = totals.lost_allowed + totals.lost_denied;
    for (count, what) in [
        (totals.alarms, "disagreements"),
        (totals.malformed, "malformed"),
        (lost, "records lost"),
        (totals.log_errors, "errors of the log"),
    ] {
        if count > 0 {
            parts.push(Span::styled(format!("  {count} {what}"), theme.bad()));
        }
    }
    let waiting = state.waiting();
    if waiting > 0 {
        let what = format!("  {waiting} for an answer (a)");
        parts.push(Span::styled(what, theme.warning()));
    }
    if state.paused {
        parts.push(Span::styled(
            "  PAUSED",
            Style::new().add_modifier(Modifier::REVERSED),
        ));
    }
    Line::from(parts)
}

fn draw_agents(frame: &mut Frame<'_>, state: &State, theme: Theme, area: Rect) {
    // What there is no room for goes from the right.
    let columns: &[(&str, u16)] = &[
        ("NAME", 16),
        ("STATE", 8),
        ("PROCS", 6),
        ("ALLOW/s", 8),
        ("DENY/s", 8),
        ("DENIED", 8),
        ("BUDGET", 10),
        ("IN/s", 9),
        ("OUT/s", 9),
        ("POLICY", 16),
    ];
    let mut room = area.width.saturating_sub(1);
    let shown = columns.iter().take_while(|(_, width)| {
        let fits = room >= *width;
        room = room.saturating_sub(width + 1);
        fits
    });
    let count = shown.count();
    let header = Row::new(columns[..count].iter().map(|(name, _)| *name)).style(Theme::title());
    let rows = state.agents.iter().map(|agent| {
        let mut cells = agent_cells(agent, theme);
        cells.truncate(count);
        Row::new(cells)
    });
    let widths = columns[..count].iter().enumerate().map(|(at, (_, width))| {
        if at + 1 == count {
            Constraint::Min(*width)
        } else {
            Constraint::Length(*width)
        }
    });
    let table = Table::new(rows, widths)
        .header(header)
        .block(Block::new().borders(Borders::BOTTOM))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let chosen = state
        .agents
        .iter()
        .position(|it| Some(&it.name) == state.chosen.as_ref());
    let mut at = TableState::default().with_selected(chosen);
    frame.render_stateful_widget(table, area, &mut at);
    if state.agents.is_empty() {
        let below = Rect {
            y: area.y + 1,
            height: area.height.min(1),
            ..area
        };
        frame.render_widget(Paragraph::new("no agent is governed"), below);
    }
}

fn agent_cells(agent: &AgentRow, theme: Theme) -> Vec<Cell<'static>> {
    let (word, style) = match (agent.frozen, agent.shadow) {
        (true, _) => ("frozen", theme.warning()),
        (false, true) => ("shadow", theme.of(Color::Cyan)),
        (false, false) => ("enforce", Style::new()),
    };
    let denied = if agent.rates.denied > 0.0 {
        theme.bad()
    } else {
        Style::new()
    };
    let budget = agent.nearest.as_ref();
    vec![
        Cell::new(agent.name.clone()),
        Cell::new(word).style(style),
        Cell::new(agent.processes.to_string()),
        Cell::new(rate(agent.rates.allowed)),
        Cell::new(rate(agent.rates.denied)).style(denied),
        Cell::new(agent.refused().to_string()),
        Cell::new(budget.map_or("-".to_owned(), |(percent, id)| format!("{percent}% {id}")))
            .style(budget.map_or(Style::new(), |it| filled(it.0, theme))),
        Cell::new(bytes(agent.rates.bytes_in)),
        Cell::new(bytes(agent.rates.bytes_out)),
        Cell::new(agent.policy.clone()),
    ]
}

fn filled(percent: u64, theme: Theme) -> Style {
    match percent {
        100.. => theme.bad(),
        80.. => theme.warning(),
        _ => Style::new(),
    }
}

/// The chosen agent: its traffic, and its budgets as bars.
fn draw_chosen(frame: &mut Frame<'_>, state: &State, theme: Theme, area: Rect) {
    let Some(agent) = state.agent().filter(|_| area.height > 0) else {
        return;
    };
    let mut lines = vec![Line::from(vec![
        Span::styled(agent.name.clone(), Theme::title()),
        Span::raw(format!(
            "  session {}  {} allowed  {} denied  {} in, {} out",
            agent.session,
            agent.tally.allowed,
            agent.refused(),
            bytes(agent.traffic.bytes_in as f64),
            bytes(agent.traffic.bytes_out as f64)
        )),
    ])];
    lines.extend(agent.budgets.iter().map(|it| budget_line(it, theme)));
    frame.render_widget(Paragraph::new(lines), area);
}

#[expect(clippy::cast_sign_loss, reason = "parts are between 0 and 1")]
fn cells(part: f64) -> usize {
    (part * BAR as f64).round() as usize
}

/// Spent as `█`, reserved as `▒`.
fn budget_line(budget: &BudgetRow, theme: Theme) -> Line<'static> {
    let spent = cells(budget.spent).min(BAR);
    let reserved = cells(budget.reserved).min(BAR - spent);
    let bar = "█".repeat(spent) + &"▒".repeat(reserved) + &"·".repeat(BAR - spent - reserved);
    Line::from(vec![
        Span::raw(format!("  {:<14} ", budget.id)),
        Span::styled(bar, filled(budget.percent, theme)),
        Span::raw(format!(
            " {:>3} %  {} spent, {} left, then {}",
            budget.percent, budget.spent_text, budget.left_text, budget.at_limit
        )),
    ])
}

fn draw_records(frame: &mut Frame<'_>, state: &State, theme: Theme, area: Rect) {
    let what = match state.filter {
        Filter::Denials => "denials",
        Filter::All => "all records",
    };
    let of = match state.chosen.as_ref().filter(|_| state.only_chosen) {
        Some(name) => format!(" of {name}"),
        None => String::new(),
    };
    let block = Block::new()
        .borders(Borders::TOP)
        .title(format!(" {what}{of}, the newest first "));
    let room = usize::from(area.height);
    let lines: Vec<Line<'_>> = state
        .shown()
        .take(room)
        .map(|it| record_line(it, theme))
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn record_line(record: &RecordRow, theme: Theme) -> Line<'static> {
    let style = if record.refused {
        theme.bad()
    } else {
        Style::new()
    };
    Line::from(vec![
        Span::raw(format!("{} {:<12} ", record.time, record.agent)),
        Span::styled(format!("{:<10} ", record.verdict), style),
        Span::raw(format!("{:<12} {}", record.program, record.action)),
        Span::styled(
            if record.why.is_empty() {
                String::new()
            } else {
                format!("  {}", record.why)
            },
            theme.warning(),
        ),
    ])
}

fn footline(state: &State, theme: Theme) -> Line<'static> {
    if let Over::Kill(name) = &state.over {
        let question = format!("kill every process of {name}? y kills, any other key does not");
        return Line::styled(question, theme.bad().add_modifier(Modifier::REVERSED));
    }
    if let Over::Grant(question) = &state.over {
        let style = theme.bad().add_modifier(Modifier::REVERSED);
        return Line::styled(question.text(), style);
    }
    if let Some(message) = &state.message {
        return Line::styled(message.clone(), theme.warning());
    }
    if state.pane == Pane::Approvals {
        return Line::raw(
            "? help  1 once  2 for a time  3 for the session  n deny  r revoke  a records  q quit",
        );
    }
    Line::raw(
        "? help  f freeze  t thaw  K kill  d denials/all  o this agent  a approvals  s sort  p pause  q quit",
    )
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let lines: Vec<Line<'_>> = KEYS
        .iter()
        .map(|(.., written, what)| Line::raw(format!(" {written:<8} {what}")))
        .collect();
    let height = (lines.len() as u16 + 2).min(area.height);
    let width = 62.min(area.width);
    let middle = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, middle);
    let block = Block::bordered().title(" keys; any key closes this ");
    frame.render_widget(Paragraph::new(lines).block(block), middle);
}
