//! What waits for an answer, as it is shown, and the question before anything is permitted. Printable text only.

use super::keys::Key;
use super::row::text;
use crate::approval::{Approvals, Granted, Scope, Waiting, seconds};

/// The time that is proposed.
const USUAL: &str = "15m";
/// Most characters of a time.
const LONGEST: usize = 16;

/// How an act stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Waits,
    /// With who said no.
    Denied(String),
    /// With how far, and by whom.
    Granted(String, String),
}

/// One act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub id: u64,
    /// What tells the act from every other one.
    pub key: String,
    pub agent: String,
    pub standing: Standing,
    pub deed: String,
    pub rule: String,
    pub reason: String,
    pub program: String,
    pub tries: u64,
    /// The time of the day.
    pub last: String,
}

impl Line {
    fn of(it: &Waiting, standing: Standing) -> Self {
        Self {
            id: it.id,
            key: it.key(),
            agent: text(&it.agent),
            standing,
            deed: it.deed(),
            rule: text(it.rule.as_deref().unwrap_or("default")),
            reason: text(it.reason.as_deref().unwrap_or_default()),
            program: text(it.exe.as_deref().unwrap_or("-")),
            tries: it.tries,
            last: text(it.last.get(11..19).unwrap_or(&it.last)),
        }
    }

    fn of_granted(it: &Granted) -> Self {
        let far = match (&it.scope, it.until.as_deref()) {
            (Scope::Seconds(_), Some(until)) => {
                format!("until {}", text(until.get(..19).unwrap_or(until)))
            }
            (scope, _) => scope.text(),
        };
        Self::of(&it.what, Standing::Granted(far, text(&it.by)))
    }

    /// Whether nobody has answered.
    pub fn waits(&self) -> bool {
        self.standing == Standing::Waits
    }

    /// Whether it is permitted now.
    pub fn is_granted(&self) -> bool {
        matches!(self.standing, Standing::Granted(..))
    }
}

/// What waits, then what was denied, then what is granted.
pub fn lines_of(approvals: &Approvals) -> Vec<Line> {
    let mut lines: Vec<Line> = approvals
        .waiting
        .iter()
        .map(|it| {
            let denied = it.denied_by.as_deref();
            let standing = denied.map_or(Standing::Waits, |by| Standing::Denied(text(by)));
            Line::of(it, standing)
        })
        .collect();
    lines.sort_by_key(|line| (!line.waits(), line.id));
    let granted = approvals.granted.iter().filter(|it| !it.over);
    lines.extend(granted.map(Line::of_granted));
    lines
}

/// Whether to permit an act, and how far. The act stays the same, whatever else is chosen meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub line: Line,
    pub scope: Scope,
    /// The time that is being written.
    time: Option<String>,
    wrong: Option<String>,
}

impl Question {
    fn about(line: Line, scope: Scope) -> Self {
        Self {
            line,
            scope,
            time: None,
            wrong: None,
        }
    }

    pub fn once(line: Line) -> Self {
        Self::about(line, Scope::Once)
    }

    pub fn for_session(line: Line) -> Self {
        Self::about(line, Scope::Session)
    }

    pub fn for_time(line: Line) -> Self {
        Self {
            time: Some(USUAL.to_owned()),
            // Until a time is written that is one, nothing longer than a second can come of it.
            ..Self::about(line, Scope::Seconds(1))
        }
    }

    /// As it is asked.
    pub fn text(&self) -> String {
        let Line {
            id, agent, deed, ..
        } = &self.line;
        match (&self.time, &self.wrong) {
            (None, _) => {
                let far = self.scope.text();
                format!("permit {id} {far}? y permits, any other key does not: {agent}: {deed}")
            }
            (Some(time), None) => {
                format!("permit {id} for: {time}_  Enter permits, Esc does not: {agent}: {deed}")
            }
            (Some(time), Some(wrong)) => format!("permit {id} for: {time}_  {wrong}"),
        }
    }

    /// A key: whether it is permitted, once that is decided.
    pub fn press(&mut self, key: Key) -> Option<bool> {
        let Some(time) = &mut self.time else {
            return Some(key == Key::Letter('y'));
        };
        self.wrong = None;
        match key {
            Key::Escape | Key::Interrupt => return Some(false),
            Key::Backspace => {
                time.pop();
            }
            Key::Letter(letter) if letter.is_ascii_alphanumeric() && time.len() < LONGEST => {
                time.push(letter);
            }
            Key::Enter => match seconds(time) {
                Ok(seconds) => {
                    self.scope = Scope::Seconds(seconds);
                    return Some(true);
                }
                Err(wrong) => self.wrong = Some(wrong),
            },
            _ => {}
        }
        None
    }
}
