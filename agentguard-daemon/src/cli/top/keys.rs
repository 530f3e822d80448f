//! What keys do: one table, from which help is made too.

use crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};

/// A key, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Letter(char),
    Up,
    Down,
    Home,
    End,
    Escape,
    Enter,
    Backspace,
    /// Ctrl-C.
    Interrupt,
}

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Up,
    Down,
    First,
    Last,
    Freeze,
    Thaw,
    Kill,
    Filter,
    Only,
    Pause,
    Sort,
    Approvals,
    Once,
    ForTime,
    ForSession,
    Deny,
    Revoke,
    Help,
    Quit,
}

/// Each key with what it does, how it is written, and in words. A pane of its own gets its keys here.
pub const KEYS: &[(&[Key], Act, &str, &str)] = &[
    (
        &[Key::Up, Key::Letter('k')],
        Act::Up,
        "↑ k",
        "the agent above, or the act",
    ),
    (
        &[Key::Down, Key::Letter('j')],
        Act::Down,
        "↓ j",
        "the agent below, or the act",
    ),
    (
        &[Key::Home, Key::Letter('g')],
        Act::First,
        "Home g",
        "the first one",
    ),
    (
        &[Key::End, Key::Letter('G')],
        Act::Last,
        "End G",
        "the last one",
    ),
    (
        &[Key::Letter('f')],
        Act::Freeze,
        "f",
        "freeze the agent: every process stops where it is",
    ),
    (&[Key::Letter('t')], Act::Thaw, "t", "let it go on"),
    (
        &[Key::Letter('K')],
        Act::Kill,
        "K",
        "kill every process of it, after a question",
    ),
    (
        &[Key::Letter('d')],
        Act::Filter,
        "d",
        "denials only, or all records",
    ),
    (
        &[Key::Enter, Key::Letter('o')],
        Act::Only,
        "Enter o",
        "records of this agent only, or of all",
    ),
    (
        &[Key::Letter('s')],
        Act::Sort,
        "s",
        "sort by something else",
    ),
    (
        &[Key::Letter('p'), Key::Letter(' ')],
        Act::Pause,
        "p Space",
        "stand still, or go on",
    ),
    (
        &[Key::Letter('a')],
        Act::Approvals,
        "a",
        "what waits for an answer, or records again",
    ),
    (
        &[Key::Letter('1')],
        Act::Once,
        "1",
        "there: permit the act once, after a question",
    ),
    (
        &[Key::Letter('2')],
        Act::ForTime,
        "2",
        "there: permit it for a time that you write",
    ),
    (
        &[Key::Letter('3')],
        Act::ForSession,
        "3",
        "there: permit it until the session ends",
    ),
    (
        &[Key::Letter('n')],
        Act::Deny,
        "n",
        "there: deny it; it stays refused",
    ),
    (
        &[Key::Letter('r')],
        Act::Revoke,
        "r",
        "there: take a grant back; the rule asks again",
    ),
    (
        &[Key::Letter('?'), Key::Letter('h')],
        Act::Help,
        "? h",
        "this list",
    ),
    (
        &[Key::Letter('q'), Key::Escape, Key::Interrupt],
        Act::Quit,
        "q Esc",
        "quit",
    ),
];

impl Act {
    /// What a key does.
    pub fn of(key: Key) -> Option<Self> {
        let found = KEYS.iter().find(|(keys, ..)| keys.contains(&key));
        found.map(|(_, act, ..)| *act)
    }
}

/// The key of an event of the terminal.
pub fn key_of(event: &Event) -> Option<Key> {
    let Event::Key(key) = event else {
        return None;
    };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return (key.code == KeyCode::Char('c')).then_some(Key::Interrupt);
    }
    Some(match key.code {
        KeyCode::Char(letter) => Key::Letter(letter),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Esc => Key::Escape,
        KeyCode::Enter => Key::Enter,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}
