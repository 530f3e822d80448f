//! Time budgets, held by the daemon against the agent's own processes: what is spent freezes or kills the
//! agent's cgroup, an operator grants more, and each step is in the trail.

use anyhow::{Context as _, Result, ensure};

use crate::fixture;
use crate::guard::{Agent, Inside, agentguard, agentguard_ok, write_policy};
use crate::run::PERMISSIVE;
use crate::trail::{Trail, Wanted};

/// A policy that permits everything and counts one thing.
fn policy(budget: &str) -> String {
    format!("{PERMISSIVE}budgets:\n  - {{id: limit, {budget}, per: session}}\n")
}

fn event(agent: &str, op: &str) -> Wanted {
    Wanted {
        agent: Some(agent.into()),
        op: Some(op.into()),
        ..Wanted::default()
    }
}

/// A busy loop is killed when its processor time is spent; an agent beside it goes on.
pub fn processor_time(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    write_policy("busy", &policy("cpu_time: 2s, at_limit: kill"))?;
    write_policy("beside", &policy("cpu_time: 24h, at_limit: kill"))?;
    let (busy, beside) = (
        Agent::attach("busy", "busy")?,
        Agent::attach("beside", "beside")?,
    );
    let mut other = Inside::script(&beside, "exec sleep 3600")?;
    let mark = trail.mark()?;
    let mut inside = Inside::script(&busy, "while :; do :; done")?;
    trail.wait(mark, &event("busy", "kill"))?;
    let status = inside.0.wait()?;
    ensure!(!status.success(), "the busy loop ended well: {status}");
    ensure!(
        matches!(other.0.try_wait(), Ok(None)),
        "an agent with a budget of its own was stopped"
    );
    // Behind the warnings on the way, and behind the kill's own.
    let killed = Wanted {
        rule: Some("limit".into()),
        detail: Some("killed".into()),
        ..event("busy", "budget")
    };
    trail.wait(mark, &killed)?;
    Ok(())
}

/// An agent whose time is spent is frozen; it goes on when it is granted more, and only then.
pub fn wall_time(trail: &mut Trail) -> Result<()> {
    fixture::make(&[])?;
    write_policy("slow", &policy("wall_time: 3s, at_limit: freeze"))?;
    let mark = trail.mark()?;
    let agent = Agent::attach("slow", "slow")?;
    let _inside = Inside::script(&agent, "exec sleep 3600")?;
    trail.wait(mark, &event("slow", "freeze"))?;
    let frozen = || -> Result<bool> {
        let events = std::fs::read_to_string(agent.group.path().join("cgroup.events"))?;
        Ok(events.contains("frozen 1"))
    };
    ensure!(frozen()?, "the agent is not frozen");
    let shown = agentguard_ok(&["budget", "show", "slow", "--json"])?;
    let shown: serde_json::Value =
        serde_json::from_str(&shown).context("`budget show --json` is no JSON")?;
    ensure!(
        shown.to_string().contains("limit"),
        "the budget is not shown: {shown}"
    );
    // Thawed without more time, it would be frozen again.
    let again = trail.mark()?;
    if agentguard(&["thaw", "slow"])?.status.success() {
        trail.wait(again, &event("slow", "freeze"))?;
    }
    ensure!(frozen()?, "a thaw gave the agent time");
    let mark = trail.mark()?;
    agentguard_ok(&["budget", "grant", "slow", "limit", "1h"])?;
    trail.wait(mark, &event("slow", "budget"))?;
    agentguard_ok(&["thaw", "slow"])?;
    trail.wait(mark, &event("slow", "thaw"))?;
    ensure!(!frozen()?, "the agent is frozen though it has time");
    Ok(())
}
