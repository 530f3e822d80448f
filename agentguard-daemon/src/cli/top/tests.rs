//! What is drawn, on a terminal in memory, and what keys do.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;

use super::draw::draw;
use super::keys::{Act, KEYS, Key};
use super::once;
use super::row::{RecordRow, bytes, rate};
use super::state::{Filter, Order, Over, Sort, State};
use crate::api::wire::{Snapshot, Status, TrafficSum};
use crate::approval::Approvals;
use crate::audit::{Record, Tally, Totals};
use crate::budget::{AccountStatus, BudgetStatus};
use crate::session::{AgentInfo, Amounts, Nearest};

fn agent(name: &str, session: u32, allowed: u64, denied: u64) -> AgentInfo {
    AgentInfo {
        name: name.to_owned(),
        session,
        policy: "coding-agent".to_owned(),
        mode: if name == "look" { "shadow" } else { "enforce" }.to_owned(),
        generation: 2,
        files: Vec::new(),
        cgroup: format!("/sys/fs/cgroup/{name}").into(),
        processes: 3,
        frozen: name == "cold",
        since: 0,
        tally: Tally {
            allowed,
            denied,
            would_deny: 0,
        },
        budget: (name == "claude").then(|| Nearest {
            id: "tokens".to_owned(),
            percent: 85,
        }),
        environment: Vec::new(),
    }
}

fn budget(id: &str, spent: u64, reserved: u64) -> BudgetStatus {
    BudgetStatus {
        id: id.to_owned(),
        says: "100 tokens per day".to_owned(),
        quantity: "tokens".to_owned(),
        limit: 100,
        granted: 0,
        spent,
        reserved,
        left: 100 - spent - reserved,
        percent: spent + reserved,
        spent_text: spent.to_string(),
        reserved_text: reserved.to_string(),
        left_text: (100 - spent - reserved).to_string(),
        resets_in: None,
        exhausted_in: None,
        at_limit: "freeze".to_owned(),
        reason: None,
        place: "p.yaml:3".to_owned(),
    }
}

pub fn snapshot(at: u64, times: u64) -> Snapshot {
    let account = AccountStatus {
        agent: "claude".to_owned(),
        account: "claude".to_owned(),
        session: 1,
        frozen: false,
        budgets: vec![budget("opens", 10, 0), budget("tokens", 60, 25)],
        schedule: Vec::new(),
        broken: None,
    };
    Snapshot {
        at,
        status: Status {
            version: "0.1.0".to_owned(),
            pid: 42,
            log: "/var/log/agentguard/audit.jsonl".into(),
            agents: 3,
            totals: Totals {
                records: 1000 * times,
                ..Totals::default()
            },
        },
        agents: vec![
            agent("claude", 1, 500 * times, 4 * times),
            agent("cold", 2, 20, 0),
            agent("look", 3, 20, 9),
        ],
        budgets: vec![account],
        traffic: vec![TrafficSum {
            agent: "claude".to_owned(),
            amounts: Amounts {
                bytes_in: 1_843_220 * times,
                bytes_out: 402_117,
                ..Amounts::default()
            },
        }],
        approvals: Approvals::default(),
    }
}

fn record(agent: &'static str, target: &'static str, verdict: &'static str) -> RecordRow {
    RecordRow::of_record(&Record {
        time: "2026-11-26T08:09:10.000000000Z".into(),
        agent: Some(agent.into()),
        exe: Some("/usr/bin/cat".into()),
        target: Some(target.into()),
        access: Some("read".into()),
        verdict: Some(verdict.into()),
        rule: Some("ssh-keys".into()),
        reason: Some("Keys are secret.".into()),
        ..Record::new("open")
    })
}

fn state(colour: bool) -> State {
    let mut state = State::new(Sort::Denials, Filter::Denials, colour);
    state.look(snapshot(1000, 1));
    state.look(snapshot(3000, 2));
    state.record(record("claude", "/home/a/.ssh/id_rsa", "deny"));
    state.record(record("claude", "/work/x", "allow"));
    state.record(record("look", "/etc/shadow", "would-deny"));
    state
}

pub fn drawn(state: &State, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state)).unwrap();
    terminal
}

pub fn text(state: &State, width: u16, height: u16) -> String {
    drawn(state, width, height).backend().to_string()
}

#[test]
fn agents_budgets_and_denials_are_on_one_screen() {
    let mut state = state(false);
    state.chosen = Some("claude".to_owned());
    insta::assert_snapshot!(text(&state, 120, 20));
}

#[test]
fn a_small_terminal_shows_what_there_is_room_for() {
    insta::assert_snapshot!(text(&state(false), 60, 10));
    assert!(text(&state(false), 30, 10).contains("too small"));
    // Nothing of it panics, whatever the size.
    for width in 0..140 {
        for height in 0..40 {
            let mut state = state(true);
            drawn(&state, width, height);
            state.over = Over::Help;
            drawn(&state, width, height);
        }
    }
}

#[test]
fn help_lists_every_key() {
    let mut state = state(false);
    assert_eq!(state.press(Key::Letter('?')), None);
    let text = text(&state, 90, 30);
    for (.., what) in KEYS {
        assert!(text.contains(what), "{what}\n{text}");
    }
    state.press(Key::Letter('x'));
    assert_eq!(state.over, Over::Nothing);
}

#[test]
fn without_colour_there_is_none() {
    for colour in [false, true] {
        let mut state = state(colour);
        state.over = Over::Kill("claude".to_owned());
        let terminal = drawn(&state, 120, 20);
        let cells = &terminal.backend().buffer().content;
        let coloured = cells
            .iter()
            .any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
        assert_eq!(coloured, colour);
    }
}

#[test]
fn nothing_that_an_agent_chose_reaches_the_terminal_unescaped() {
    let mut state = State::new(Sort::Denials, Filter::All, false);
    let evil = "x\u{1b}[2J\u{202e}\u{7}\n\r\u{9b}31m";
    let mut snapshot = snapshot(1000, 1);
    snapshot.agents[0].name = evil.to_owned();
    snapshot.agents[0].policy = evil.to_owned();
    snapshot.budgets[0].agent = evil.to_owned();
    snapshot.budgets[0].budgets[0].id = evil.to_owned();
    snapshot.status.version = evil.to_owned();
    state.look(snapshot.clone());
    let line = serde_json::to_string(&Record {
        time: evil.into(),
        agent: Some(evil.into()),
        exe: Some(evil.into()),
        target: Some(evil.into()),
        verdict: Some("deny".into()),
        rule: Some(evil.into()),
        reason: Some(evil.into()),
        ..Record::new(evil)
    });
    state.record(RecordRow::of(&line.unwrap()).unwrap());
    let once = once::text(&snapshot, Sort::Name);
    let screen = text(&state, 200, 20);
    for shown in [screen, once] {
        let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!shown.contains(bad), "{shown:?}");
        assert!(shown.contains(r"x\x1b[2J"), "{shown}");
    }
}

#[test]
fn rates_are_of_the_time_between_two_looks() {
    let state = state(false);
    let claude = state.agents.iter().find(|it| it.name == "claude").unwrap();
    assert!((claude.rates.allowed - 250.0).abs() < 1e-9);
    assert!((claude.rates.denied - 2.0).abs() < 1e-9);
    assert!((state.records_rate - 500.0).abs() < 1e-9);
    // Another daemon, and an agent that was attached again: nothing is compared.
    let mut again = state.clone();
    let mut now = snapshot(10, 1);
    now.status.pid = 43;
    again.look(now);
    assert!(again.agents.iter().all(|it| it.rates.allowed == 0.0));
    let mut again = state;
    let mut now = snapshot(4000, 1);
    now.agents[0].session = 9;
    again.look(now);
    assert!(again.agents.iter().all(|it| it.rates.allowed == 0.0));
}

#[test]
fn killing_needs_a_yes() {
    let mut state = state(false);
    state.chosen = Some("claude".to_owned());
    assert_eq!(state.press(Key::Letter('K')), None);
    assert!(text(&state, 90, 20).contains("kill every process of claude?"));
    assert_eq!(state.press(Key::Enter), None);
    assert!(text(&state, 90, 20).contains("claude was not killed"));
    state.press(Key::Letter('K'));
    // What is chosen meanwhile does not matter.
    state.chosen = Some("cold".to_owned());
    let order = state.press(Key::Letter('y'));
    assert_eq!(order, Some(Order::Act("kill", "claude".to_owned())));
    assert_eq!(state.press(Key::Letter('y')), None);
}

#[test]
fn keys_choose_filter_sort_and_stand_still() {
    let mut state = state(false);
    let names =
        |state: &State| -> Vec<String> { state.agents.iter().map(|it| it.name.clone()).collect() };
    assert_eq!(names(&state), ["look", "claude", "cold"]);
    state.press(Key::Home);
    assert_eq!(state.chosen.as_deref(), Some("look"));
    state.press(Key::Up);
    state.press(Key::Down);
    assert_eq!(state.chosen.as_deref(), Some("claude"));
    state.press(Key::End);
    state.press(Key::Down);
    assert_eq!(state.chosen.as_deref(), Some("cold"));
    let freeze = Some(Order::Act("freeze", "cold".to_owned()));
    assert_eq!(state.press(Key::Letter('f')), freeze);
    state.press(Key::Letter('s'));
    assert_eq!(names(&state)[0], "claude");
    assert_eq!(state.shown().count(), 2);
    let all = state.press(Key::Letter('d'));
    assert_eq!(all, Some(Order::Listen(Filter::All)));
    assert_eq!(state.shown().count(), 3);
    state.press(Key::Up);
    state.chosen = Some("look".to_owned());
    state.press(Key::Letter('o'));
    assert_eq!(state.shown().count(), 1);
    state.press(Key::Letter('o'));
    // Nothing moves while it is paused, and nothing is missing afterwards.
    state.press(Key::Letter('p'));
    state.record(record("cold", "/late", "deny"));
    state.look(snapshot(9000, 9));
    assert_eq!(state.shown().count(), 3);
    assert!((state.records_rate - 500.0).abs() < 1e-9);
    state.press(Key::Letter(' '));
    assert_eq!(state.shown().count(), 4);
    assert_eq!(state.shown().next().unwrap().action, "read /late");
    assert_eq!(state.press(Key::Escape), Some(Order::Quit));
}

#[test]
fn no_key_does_two_things() {
    for (at, (keys, act, ..)) in KEYS.iter().enumerate() {
        for key in *keys {
            assert_eq!(Act::of(*key), Some(*act));
            let others = KEYS[at + 1..].iter().filter(|it| it.0.contains(key));
            assert_eq!(others.count(), 0, "{key:?}");
        }
    }
}

#[test]
fn one_look_is_a_table() {
    insta::assert_snapshot!(once::text(&snapshot(1000, 1), Sort::Name));
}

#[test]
fn numbers_are_short() {
    let shown: Vec<String> = [0.0, 999.0, 1234.0, 99_999.0, 1_500_000.0, 2e12, 3e15]
        .map(bytes)
        .to_vec();
    let wanted = [
        "0 B",
        "999 B",
        "1.2 kB",
        "100 kB",
        "1.5 MB",
        "2.0 TB",
        "3000.0 TB",
    ];
    assert_eq!(shown, wanted);
    assert_eq!([0.0, 0.25, 12.4].map(rate), ["0", "0.2", "12"]);
}
