//! One look, as plain text.

use std::fmt::Write as _;

use super::row::bytes;
use super::state::{Filter, Sort, State};
use crate::api::wire::Snapshot;

/// The text of a look.
pub fn text(snapshot: &Snapshot, sort: Sort) -> String {
    let mut state = State::new(sort, Filter::default(), false);
    state.look(snapshot.clone());
    let totals = &state.totals;
    let mut text = format!(
        "AgentGuard {} (pid {}): {} agents, {} records, {} lost, {} disagreements\n",
        state.version,
        state.pid,
        state.agents.len(),
        totals.records,
        totals.lost_allowed + totals.lost_denied,
        totals.alarms
    );
    let header = [
        "NAME",
        "STATE",
        "PROCESSES",
        "ALLOWED",
        "DENIED",
        "BUDGET",
        "IN",
        "OUT",
        "POLICY",
    ];
    let mut table = crate::cli::table(&header);
    for agent in &state.agents {
        let word = match (agent.frozen, agent.shadow) {
            (true, _) => "frozen",
            (false, true) => "shadow",
            (false, false) => "enforce",
        };
        let budget = agent.nearest.as_ref();
        table.add_row([
            agent.name.clone(),
            word.to_owned(),
            agent.processes.to_string(),
            agent.tally.allowed.to_string(),
            agent.refused().to_string(),
            budget.map_or("-".to_owned(), |(percent, id)| format!("{percent} % {id}")),
            bytes(agent.traffic.bytes_in as f64),
            bytes(agent.traffic.bytes_out as f64),
            agent.policy.clone(),
        ]);
    }
    // Writing to a `String` cannot fail.
    let _ = writeln!(text, "{table}");
    text
}
