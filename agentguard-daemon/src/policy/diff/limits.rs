//! Budgets, schedules and models: what user space holds, compared by what they say and not by their ids.

use super::{Found, recorded};
use crate::policy::limits::{Budget, Hours, Limits, Schedule, UnknownPrice};
use crate::policy::{Policy, RepeatedActs};

const ABSENT: &str = "none";

fn budget(budget: &Budget) -> String {
    format!(
        "{}, then {}, warning at {:?} %",
        budget.text(),
        budget.at_limit.name(),
        budget.warn
    )
}

fn schedule(schedule: &Schedule) -> String {
    let mut hours: Vec<String> = schedule.hours.iter().map(Hours::plainly).collect();
    hours.sort();
    let until = schedule.until.map(|until| format!(", until {until}"));
    let outside = format!("{:?}", schedule.outside).to_lowercase();
    format!(
        "{}{}, outside: {outside}",
        hours.join(" or "),
        until.unwrap_or_default()
    )
}

fn models(limits: &Limits) -> String {
    let Some(models) = &limits.models else {
        return "no model may be called".to_owned();
    };
    let mut providers = models.providers.clone();
    providers.sort();
    format!(
        "{}; {} and {} tokens reserved; without a price: {}",
        providers.join(", "),
        models.output_tokens,
        models.outside_tokens,
        format!("{:?}", models.unknown_price).to_lowercase()
    )
}

impl Found<'_> {
    pub(super) fn limits(&mut self) {
        let (a, b) = (self.a.limits().clone(), self.b.limits().clone());
        let budgets = |limits: &Limits| limits.budgets.iter().map(budget).collect::<Vec<_>>();
        self.held("budgets", &budgets(&a), &budgets(&b));
        let schedules = |limits: &Limits| limits.schedules.iter().map(schedule).collect::<Vec<_>>();
        self.held("schedule", &schedules(&a), &schedules(&b));
        let widens = b.models.as_ref().is_some_and(|new| {
            let old = a.models.as_ref();
            let known = |name| old.is_some_and(|old| old.providers.contains(name));
            let freer = old.is_some_and(|old| old.unknown_price != new.unknown_price)
                && new.unknown_price != UnknownPrice::Deny;
            freer || !new.providers.iter().all(known)
        });
        self.tell_setting(
            "models",
            "which models may be called",
            [models(&a), models(&b)],
            widens,
        );
        // Levels are compared by the acts that they are about.
        let repeats = |policy: &Policy| match policy.repeats() {
            RepeatedActs::Each => "recorded, each".to_owned(),
            RepeatedActs::Fold => "counted in one record".to_owned(),
        };
        self.tell_setting(
            recorded::SECTION,
            "what a thread repeats",
            [self.a, self.b].map(repeats),
            false,
        );
    }

    /// All of them hold, so that one less permits more.
    fn held(&mut self, section: &'static str, was: &[String], is: &[String]) {
        for text in was.iter().filter(|text| !is.contains(text)) {
            self.tell_setting(section, "no more", [text.clone(), ABSENT.to_owned()], true);
        }
        for text in is.iter().filter(|text| !was.contains(text)) {
            self.tell_setting(section, "new", [ABSENT.to_owned(), text.clone()], false);
        }
    }
}
