//! What is known, what is chosen, and what a key makes of it. It draws nothing and asks nobody.

use std::collections::{HashMap, VecDeque};

use super::approvals::{Line, Question, lines_of};
use super::keys::{Act, Key};
use super::row::{AgentRow, BudgetRow, Rates, RecordRow, text};
use crate::api::wire::Snapshot;
use crate::approval::Scope;
use crate::audit::Totals;
use crate::session::Amounts;

/// Records that are kept.
const KEPT: usize = 500;

/// Order of agents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// Most refusals first.
    #[default]
    Denials,
    /// Most permitted actions first.
    Allowed,
    /// Most bytes first.
    Traffic,
    /// Most processes first.
    Processes,
    /// Budgets nearest to their end first.
    Budget,
    /// By name.
    Name,
}

impl Sort {
    const ALL: [Self; 6] = [
        Self::Denials,
        Self::Allowed,
        Self::Traffic,
        Self::Processes,
        Self::Budget,
        Self::Name,
    ];

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|it| *it == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Denials => "denials",
            Self::Allowed => "allowed",
            Self::Traffic => "traffic",
            Self::Processes => "processes",
            Self::Budget => "budget",
            Self::Name => "name",
        }
    }

    /// Puts agents in this order; those that are equal by name.
    pub fn order(self, agents: &mut [AgentRow]) {
        agents.sort_by(|a, b| a.name.cmp(&b.name));
        let key = |agent: &AgentRow| match self {
            Self::Denials => agent.refused(),
            Self::Allowed => agent.tally.allowed,
            Self::Traffic => agent
                .traffic
                .bytes_in
                .saturating_add(agent.traffic.bytes_out),
            Self::Processes => agent.processes as u64,
            Self::Budget => agent.nearest.as_ref().map_or(0, |it| it.0 + 1),
            Self::Name => 0,
        };
        agents.sort_by_key(|agent| std::cmp::Reverse(key(agent)));
    }
}

/// Which records are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// Refusals.
    #[default]
    Denials,
    /// All.
    All,
}

/// What is asked of the daemon, or of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// `freeze`, `thaw` or `kill` for an agent.
    Act(&'static str, String),
    /// Answer what waits under a number, or take a grant back.
    Answer(Reply),
    /// Listen to these records from now on.
    Listen(Filter),
    /// Come to an end.
    Quit,
}

/// What an operator says about an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub id: u64,
    pub what: Say,
    /// The act, for people.
    pub deed: String,
}

/// See [`Reply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Say {
    /// Yes, to the act with this key.
    Grant(Scope, String),
    Deny,
    Revoke,
}

/// What is drawn over everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Over {
    /// Nothing.
    #[default]
    Nothing,
    /// The keys.
    Help,
    /// Whether to kill this agent.
    Kill(String),
    /// Whether to permit an act.
    Grant(Box<Question>),
}

/// The lower part of the screen. What else there is to show beside records becomes a pane of its own here, with a key
/// in `keys.rs` and a drawing in `draw.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pane {
    /// The last records.
    #[default]
    Records,
    /// What waits for an answer.
    Approvals,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub colour: bool,
    pub sort: Sort,
    pub filter: Filter,
    pub pane: Pane,
    pub paused: bool,
    pub over: Over,
    /// Whether records of the chosen agent only are shown.
    pub only_chosen: bool,
    pub agents: Vec<AgentRow>,
    pub totals: Totals,
    pub version: String,
    pub pid: u32,
    /// Records in a second.
    pub records_rate: f64,
    /// Newest last.
    pub records: VecDeque<RecordRow>,
    /// Came while it was paused.
    held: VecDeque<RecordRow>,
    /// The agent that is chosen, by name.
    pub chosen: Option<String>,
    /// What waits, what was denied and what is granted.
    pub lines: Vec<Line>,
    /// The number of the act that is chosen.
    pub act: Option<u64>,
    /// What went wrong, or was done.
    pub message: Option<String>,
    before: Option<Snapshot>,
}

impl State {
    pub fn new(sort: Sort, filter: Filter, colour: bool) -> Self {
        Self {
            colour,
            sort,
            filter,
            ..Self::default()
        }
    }

    /// Another look at everything.
    pub fn look(&mut self, now: Snapshot) {
        if self.paused {
            return;
        }
        // After a restart of the daemon there is nothing to compare with.
        let before = self
            .before
            .take()
            .filter(|it| it.status.pid == now.status.pid);
        let passed = before.as_ref().map_or(0, |it| now.at.saturating_sub(it.at));
        let each = |now: u64, then: u64| match passed {
            0 => 0.0,
            passed => now.saturating_sub(then) as f64 * 1000.0 / passed as f64,
        };
        let old: HashMap<(String, u32), AgentRow> = std::mem::take(&mut self.agents)
            .into_iter()
            .map(|row| ((row.name.clone(), row.session), row))
            .collect();
        for agent in &now.agents {
            let mut row = AgentRow::of(agent);
            row.traffic = traffic_of(&now, &agent.name);
            row.budgets = budgets_of(&now, &agent.name);
            if let Some(old) = old.get(&(row.name.clone(), row.session)) {
                row.rates = Rates {
                    allowed: each(row.tally.allowed, old.tally.allowed),
                    denied: each(row.refused(), old.refused()),
                    bytes_in: each(row.traffic.bytes_in, old.traffic.bytes_in),
                    bytes_out: each(row.traffic.bytes_out, old.traffic.bytes_out),
                };
            }
            self.agents.push(row);
        }
        let then = before.map_or(now.status.totals.records, |it| it.status.totals.records);
        self.records_rate = each(now.status.totals.records, then);
        self.sort.order(&mut self.agents);
        let is_there = |name: &String| self.agents.iter().any(|it| it.name == *name);
        if !self.chosen.as_ref().is_some_and(is_there) {
            self.chosen = self.agents.first().map(|it| it.name.clone());
        }
        self.lines = lines_of(&now.approvals);
        self.totals = now.status.totals;
        self.version = text(&now.status.version);
        self.pid = now.status.pid;
        self.before = Some(now);
    }

    /// A record came.
    pub fn record(&mut self, record: RecordRow) {
        let records = if self.paused {
            &mut self.held
        } else {
            &mut self.records
        };
        if records.len() == KEPT {
            records.pop_front();
        }
        records.push_back(record);
    }

    /// The records that are shown, newest first.
    pub fn shown(&self) -> impl Iterator<Item = &RecordRow> {
        let chosen = self.chosen.as_deref().filter(|_| self.only_chosen);
        let wanted = self.filter;
        self.records
            .iter()
            .rev()
            .filter(move |it| it.refused || wanted == Filter::All)
            .filter(move |it| chosen.is_none_or(|name| it.agent == name))
    }

    /// The agent that is chosen.
    pub fn agent(&self) -> Option<&AgentRow> {
        let chosen = self.chosen.as_ref()?;
        self.agents.iter().find(|it| it.name == *chosen)
    }

    /// A key was pressed.
    pub fn press(&mut self, key: Key) -> Option<Order> {
        match std::mem::take(&mut self.over) {
            Over::Kill(name) => {
                if key == Key::Letter('y') {
                    return Some(Order::Act("kill", name));
                }
                self.message = Some(format!("{name} was not killed"));
                return None;
            }
            Over::Grant(question) => return self.press_answer(*question, key),
            // Any key closes it.
            Over::Help => return None,
            Over::Nothing => {}
        }
        self.message = None;
        let name = self.chosen.clone();
        match Act::of(key)? {
            Act::Quit => return Some(Order::Quit),
            Act::Help => self.over = Over::Help,
            Act::Up => self.go(-1),
            Act::Down => self.go(1),
            Act::First => self.go(isize::MIN),
            Act::Last => self.go(isize::MAX),
            Act::Approvals => {
                self.pane = match self.pane {
                    Pane::Records => Pane::Approvals,
                    Pane::Approvals => Pane::Records,
                };
            }
            Act::Once => self.ask(Question::once),
            Act::ForTime => self.ask(Question::for_time),
            Act::ForSession => self.ask(Question::for_session),
            Act::Deny => return self.say(Line::waits, Say::Deny, "does not wait"),
            Act::Revoke => return self.say(Line::is_granted, Say::Revoke, "is not granted"),
            Act::Freeze => return name.map(|name| Order::Act("freeze", name)),
            Act::Thaw => return name.map(|name| Order::Act("thaw", name)),
            Act::Kill => self.over = name.map_or(Over::Nothing, Over::Kill),
            Act::Filter => {
                self.filter = match self.filter {
                    Filter::Denials => Filter::All,
                    Filter::All => Filter::Denials,
                };
                return Some(Order::Listen(self.filter));
            }
            Act::Only => self.only_chosen = !self.only_chosen,
            Act::Pause => self.pause(),
            Act::Sort => {
                self.sort = self.sort.next();
                self.sort.order(&mut self.agents);
            }
        }
        None
    }

    fn pause(&mut self) {
        self.paused = !self.paused;
        if !self.paused {
            for record in std::mem::take(&mut self.held) {
                self.record(record);
            }
        }
    }

    /// Chooses another agent, or another act.
    fn go(&mut self, by: isize) {
        let to =
            |at: usize, count: usize| at.saturating_add_signed(by).min(count.saturating_sub(1));
        if self.pane == Pane::Approvals {
            let at = to(self.at(), self.lines.len());
            self.act = self.lines.get(at).map(|it| it.id);
            return;
        }
        let chosen = self.chosen.as_ref();
        let at = self.agents.iter().position(|it| Some(&it.name) == chosen);
        let at = to(at.unwrap_or(0), self.agents.len());
        self.chosen = self.agents.get(at).map(|it| it.name.clone());
    }

    /// The place of the act that is chosen; the first where it is not there any more.
    pub fn at(&self) -> usize {
        let mut lines = self.lines.iter();
        lines.position(|it| Some(it.id) == self.act).unwrap_or(0)
    }

    /// The act that is chosen, where acts are shown.
    pub fn line(&self) -> Option<&Line> {
        self.lines
            .get(self.at())
            .filter(|_| self.pane == Pane::Approvals)
    }

    /// How many wait for an answer.
    pub fn waiting(&self) -> usize {
        self.lines.iter().filter(|it| it.waits()).count()
    }

    /// Before anything is permitted there is a question.
    fn ask(&mut self, question: fn(Line) -> Question) {
        let Some(line) = self.line().cloned() else {
            return;
        };
        if line.is_granted() {
            self.message = Some(format!("{} is granted already; r takes it back", line.id));
        } else {
            self.over = Over::Grant(Box::new(question(line)));
        }
    }

    fn say(&mut self, may: fn(&Line) -> bool, what: Say, is_not: &str) -> Option<Order> {
        let line = self.line()?;
        if !may(line) {
            self.message = Some(format!("{} {is_not}", line.id));
            return None;
        }
        Some(Order::Answer(Reply {
            id: line.id,
            what,
            deed: line.deed.clone(),
        }))
    }

    /// A key, while it is asked whether an act is to be permitted.
    fn press_answer(&mut self, mut question: Question, key: Key) -> Option<Order> {
        match question.press(key) {
            Some(true) => {
                let Question { line, scope, .. } = question;
                return Some(Order::Answer(Reply {
                    id: line.id,
                    what: Say::Grant(scope, line.key),
                    deed: line.deed,
                }));
            }
            Some(false) => self.message = Some(format!("{} was not permitted", question.line.id)),
            None => self.over = Over::Grant(Box::new(question)),
        }
        None
    }
}

fn traffic_of(now: &Snapshot, agent: &str) -> Amounts {
    let mut sums = now.traffic.iter();
    let found = sums.find(|it| it.agent == agent);
    found.map(|it| it.amounts).unwrap_or_default()
}

fn budgets_of(now: &Snapshot, agent: &str) -> Vec<BudgetRow> {
    let mut accounts = now.budgets.iter();
    let Some(account) = accounts.find(|it| it.agent == agent) else {
        return Vec::new();
    };
    let mut rows: Vec<BudgetRow> = account
        .budgets
        .iter()
        .map(|it| {
            let limit = it.limit.saturating_add(it.granted).max(1) as f64;
            BudgetRow {
                id: text(&it.id),
                spent: (it.spent as f64 / limit).min(1.0),
                reserved: (it.reserved as f64 / limit).min(1.0),
                percent: it.percent,
                spent_text: text(&it.spent_text),
                left_text: text(&it.left_text),
                at_limit: text(&it.at_limit),
            }
        })
        .collect();
    rows.sort_by_key(|it| std::cmp::Reverse(it.percent));
    rows
}
