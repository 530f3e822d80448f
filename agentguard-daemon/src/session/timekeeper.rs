//! What passes with time: budgets of time and of refusals, schedules, and what is to be done at the end of a budget.
//!
//! Once a second every agent that has some is looked at (and nothing is while none has), charged, and frozen or killed where a budget or a schedule
//! says so. What cannot be found out counts against the agent.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::engine::{Engine, lock};
use crate::agent::Agent;
use crate::audit::{Record, record::op};
use crate::budget::{Event, Overrun, Sight};
use crate::event::escape::escape;
use crate::policy::limits::{AtLimit, Outside, Schedule};

/// How often the timekeeper looks.
const LOOK: Duration = Duration::from_secs(1);
/// The same where kernel programs charge: before they come to the end of what they were told.
const GLANCE: Duration = Duration::from_millis(250);
/// After so many looks what changed is written down.
const LOOKS: u32 = 5;

impl Engine {
    /// Begins to hold budgets and schedules; ends with the engine.
    pub(super) async fn keep_time(self: &Arc<Self>) {
        for (agent, policy) in self.limited() {
            if let Err(error) = self.prepare_limits(&policy).await {
                let what =
                    format!("calls of models fail, and what needs the ledger is denied: {error}");
                tracing::error!("`{}`: {what}", agent.name);
                self.note_of(&agent, op::ALARM, None, None, &what);
            }
        }
        let Some(mut events) = lock(&self.limits.listener).take() else {
            return;
        };
        let (engine, alert) = (Arc::downgrade(self), self.limits.alert.clone());
        let mut agents = self.agents.subscribe();
        tokio::spawn(async move {
            let (mut looks, mut looked) = (0u32, Instant::now());
            let (mut pause, mut has_limits) = (LOOK, true);
            loop {
                let alerted = tokio::select! {
                    () = tokio::time::sleep(pause), if has_limits => false,
                    () = alert.notified() => true,
                    changed = agents.changed() => match changed {
                        Ok(()) => false,
                        Err(_) => return,
                    },
                };
                let Some(engine) = engine.upgrade() else {
                    return;
                };
                let ledger = engine.limits.ledger.get();
                has_limits =
                    !engine.limited().is_empty() || ledger.is_some_and(|it| it.has_changed());
                let whole = alerted || looked.elapsed() >= LOOK;
                if whole {
                    looked = Instant::now();
                    looks = looks.wrapping_add(1);
                    while let Ok(event) = events.try_recv() {
                        engine.note_event(&event);
                    }
                }
                let work = move || {
                    let charged = engine.charge_all();
                    if whole {
                        engine.look(looks % LOOKS == 0);
                    }
                    charged
                };
                pause = match tokio::task::spawn_blocking(work).await {
                    Ok(true) => GLANCE,
                    Ok(false) => LOOK,
                    Err(error) => {
                        tracing::error!("ALARM: the timekeeper failed: {error}");
                        LOOK
                    }
                };
            }
        });
    }

    /// One look at every agent.
    fn look(&self, write: bool) {
        for (agent, policy) in self.limited() {
            let running = lock(&self.limits.running).clone();
            let active = running.is_some_and(|it| it.is_active(agent.session));
            // What cannot be read is not less than before.
            let cpu = agent.cgroup.cpu_usage().unwrap_or(u64::MAX);
            let overruns = self.ledger().observe(
                agent.account.as_str(),
                agent.session,
                &policy.limits().budgets,
                Sight {
                    cpu,
                    active,
                    denied: self.recorder().tally(agent.session).denied,
                },
            );
            for overrun in overruns {
                self.overrun(&agent, &overrun);
            }
            self.hold_schedules(&agent, &policy.limits().schedules);
        }
        if write
            && let Some(ledger) = self.limits.ledger.get()
            && ledger.has_changed()
            && let Err(error) = ledger.checkpoint()
        {
            tracing::error!("{error}");
        }
    }

    fn overrun(&self, agent: &Agent, overrun: &Overrun) {
        let what = match overrun.at_limit {
            AtLimit::Kill => self.end_by_limit(agent, &overrun.what),
            // What only denies is denied where it is counted.
            AtLimit::Deny | AtLimit::DenyNetwork => return,
            AtLimit::Freeze => self.freeze_by_limit(agent, &overrun.what),
        };
        if let Some(what) = what {
            let reason = overrun.reason.as_deref();
            self.note_of(agent, op::BUDGET, Some(&overrun.budget), reason, &what);
        }
    }

    /// Freezes; says so, or nothing where it stood still already.
    fn freeze_by_limit(&self, agent: &Agent, why: &str) -> Option<String> {
        if agent.cgroup.is_frozen() {
            return None;
        }
        Some(match self.freeze(agent.name.as_str()) {
            Ok(()) => format!("frozen: {why}"),
            Err(error) => format!("not frozen ({error}): {why}"),
        })
    }

    fn end_by_limit(&self, agent: &Agent, why: &str) -> Option<String> {
        if agent.cgroup.is_empty() {
            return None;
        }
        Some(match self.kill(agent.name.as_str()) {
            Ok(()) => format!("killed: {why}"),
            Err(error) => format!("not killed ({error}): {why}"),
        })
    }

    /// All schedules must hold, by the clock as it is and by the latest that it ever was.
    fn hold_schedules(&self, agent: &Agent, schedules: &[Schedule]) {
        if schedules.is_empty() {
            return;
        }
        let (latest, now) = self.ledger().wall();
        let moment = |nanoseconds: u64| Timestamp::from_nanosecond(i128::from(nanoseconds)).ok();
        let moments = [moment(latest), moment(now)];
        // A clock that cannot be read is no working hour.
        let is_open = |schedule: &&Schedule| {
            moments
                .iter()
                .all(|it| it.is_some_and(|it| schedule.at(it).open))
        };
        let account = agent.account.as_str();
        let rests = self.ledger().rests(account, agent.session);
        let Some(closed) = schedules.iter().find(|it| !is_open(it)) else {
            if rests {
                self.ledger().set_rests(account, agent.session, false);
                if agent.cgroup.is_frozen() {
                    let what = match self.thaw(agent.name.as_str()) {
                        Ok(()) => "thawed: its hours have begun".to_owned(),
                        Err(error) => format!("not thawed: {error}"),
                    };
                    self.note_of(agent, op::BUDGET, Some("schedule"), None, &what);
                }
            }
            return;
        };
        let why = format!("outside of {} ({})", closed.text(), closed.place);
        let what = match closed.outside {
            Outside::Kill => self.end_by_limit(agent, &why),
            Outside::Freeze => {
                let what = self.freeze_by_limit(agent, &why);
                if what.is_some() {
                    self.ledger().set_rests(account, agent.session, true);
                }
                what
            }
        };
        if let Some(what) = what {
            self.note_of(
                agent,
                op::BUDGET,
                Some("schedule"),
                closed.reason.as_deref(),
                &what,
            );
        }
    }

    fn note_event(&self, event: &Event) {
        let name = self.agent_of_session(event.session);
        self.note(Record {
            agent: name.map(Cow::Owned),
            session: Some(event.session),
            rule: Some(escape(event.budget.as_bytes())),
            detail: Some(escape(event.what.as_bytes())),
            ..Record::new(op::BUDGET)
        });
    }
}
