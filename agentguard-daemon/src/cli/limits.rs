//! `policy explain --model` and `--time`: what budgets and schedules say.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;

use super::exit::Exit;
use super::print;
use super::report::{CliError, has_colour, red};
use crate::policy::Policy;
use crate::policy::limits::{Budget, Schedule};

/// A budget of an explanation.
#[derive(Debug, Serialize)]
struct Explained<'a> {
    id: &'a str,
    says: String,
    warn_percent: &'a [u8],
    at_limit: &'static str,
    reason: Option<&'a str>,
    place: &'a str,
}

impl<'a> Explained<'a> {
    fn of(budget: &'a Budget) -> Self {
        Self {
            id: &budget.id,
            says: budget.text(),
            warn_percent: &budget.warn,
            at_limit: budget.at_limit.name(),
            reason: budget.reason.as_deref(),
            place: &budget.place,
        }
    }
}

/// What holds for calls of a model.
#[derive(Debug, Serialize)]
struct Model<'a> {
    #[serde(rename = "model")]
    name: &'a str,
    permitted: bool,
    providers: &'a [String],
    budgets: Vec<Explained<'a>>,
}

/// What holds at a moment.
#[derive(Debug, Serialize)]
struct Moment<'a> {
    time: Timestamp,
    open: bool,
    schedules: Vec<Hours<'a>>,
}

#[derive(Debug, Serialize)]
struct Hours<'a> {
    says: String,
    open: bool,
    until: Option<Timestamp>,
    reason: Option<&'a str>,
    place: &'a str,
}

/// Which budgets a call of this model is charged to.
pub fn model(policy: &Policy, model: &str, json: bool) -> Result<Exit, CliError> {
    let limits = policy.limits();
    let budgets = limits.budgets.iter();
    let explained = Model {
        name: model,
        permitted: limits.models.is_some(),
        providers: limits.models.as_ref().map_or(&[], |it| &it.providers),
        budgets: budgets
            .filter(|it| it.quantity.is_of_calls() && it.covers(model))
            .map(Explained::of)
            .collect(),
    };
    let exit = Exit::of(explained.permitted);
    if json {
        super::print_json(&explained)?;
        return Ok(exit);
    }
    let colour = has_colour(&std::io::stdout());
    let model = model.escape_debug();
    let mut text = if explained.permitted {
        format!(
            "ALLOWED  call {model} through the gateway\n  providers: {}\n",
            explained.providers.join(", ")
        )
    } else {
        format!(
            "{}  call {model} through the gateway\n  cause:   {} has no section `models`\n",
            red("DENIED", colour),
            policy.name()
        )
    };
    if !explained.budgets.is_empty() {
        text.push_str("  charged to:\n");
    }
    for budget in &explained.budgets {
        let _ = writeln!(
            text,
            "    {} ({}): {}; then {}",
            budget.id, budget.place, budget.says, budget.at_limit
        );
    }
    print(&text)?;
    Ok(exit)
}

/// Whether the schedules permit working at a moment.
pub fn time(policy: &Policy, now: Timestamp, json: bool) -> Result<Exit, CliError> {
    let said = |schedule: &'_ Schedule| schedule.at(now);
    let schedules = &policy.limits().schedules;
    let explained = Moment {
        time: now,
        open: schedules.iter().all(|it| said(it).open),
        schedules: schedules
            .iter()
            .map(|schedule| Hours {
                says: schedule.text(),
                open: said(schedule).open,
                until: said(schedule).until,
                reason: schedule.reason.as_deref(),
                place: &schedule.place,
            })
            .collect(),
    };
    let exit = Exit::of(explained.open);
    if json {
        super::print_json(&explained)?;
        return Ok(exit);
    }
    let colour = has_colour(&std::io::stdout());
    let word = if explained.open {
        "ALLOWED".to_owned()
    } else {
        red("DENIED", colour)
    };
    let mut text = format!("{word}  work at {now}\n");
    if explained.schedules.is_empty() {
        let _ = writeln!(text, "  cause:   {} has no schedule", policy.name());
    }
    for hours in &explained.schedules {
        let word = if hours.open { "open" } else { "closed" };
        let until = hours
            .until
            .map_or(String::new(), |until| format!(" until {until}"));
        let _ = writeln!(text, "  {} ({}): {word}{until}", hours.says, hours.place);
        if let Some(reason) = hours.reason {
            let _ = writeln!(text, "    reason:  {reason}");
        }
    }
    print(&text)?;
    Ok(exit)
}
