//! Budgets that count what certain rules permit: the marks that stand for those rules in the table.
//!
//! A mark is on everything that a pattern of its rules matches. What is refused is never counted, so a rule that
//! denies is no rule to count by.

use agentguard_common::budget::PER_AGENT;
use agentguard_common::table::{MARKS, MAX_MARKS};
use agentguard_common::verdict::{Verdict, access};

use super::schema::BudgetRule;
use super::{Budget, Quantity};
use crate::policy::diagnostic::{PolicyError, Source};
use crate::policy::schema::At;
use crate::policy::{Matcher, Rule};

/// Finds the rules that the last budget counts by, and gives them their mark: that of another budget by the same
/// rules, or one of its own.
pub fn mark(
    source: &Source,
    written: &At<BudgetRule>,
    budgets: &mut [Budget],
    last: usize,
    (rules, network): (&[Rule], Verdict),
) -> Result<(), PolicyError> {
    // One that closes the network, too, takes two places.
    let places =
        |it: &Budget| usize::from(it.quantity.kinds() != 0) + usize::from(it.closes_network());
    if budgets.iter().map(places).sum::<usize>() > PER_AGENT && budgets[last].is_for_kernel() {
        return Err(PolicyError::at(
            source,
            written.span,
            format!("more than {PER_AGENT} budgets that the kernel charges or acts on"),
            "write fewer, or count several things by one budget",
        ));
    }
    let Some(list) = &written.value.rules else {
        return Ok(());
    };
    let quantity = budgets[last].quantity;
    let mut ids = Vec::new();
    for id in &list.0 {
        let found = rules.iter().find(|rule| rule.id == id.value);
        let wrong = match found {
            None => Some("there is no such rule"),
            Some(rule) => unfit(rule, quantity, network),
        };
        if let Some(what) = wrong {
            return Err(PolicyError::at(
                source,
                id.span,
                format!("`{}`: {what}", id.value.escape_debug()),
                "name rules that permit what is counted, by their `id`",
            ));
        }
        ids.push(id.value.clone());
    }
    let Some(first) = list.0.first() else {
        return Err(PolicyError::at(
            source,
            written.span,
            "the budget counts by no rule",
            "name rules, or remove `rules`: then it counts everything that is permitted",
        ));
    };
    ids.sort();
    ids.dedup();
    let others = &budgets[..last];
    let marks = if let Some(same) = others.iter().find(|it| it.rules == ids) {
        same.marks
    } else {
        let taken = others.iter().fold(0, |all, it| all | it.marks);
        let free = MARKS & !taken;
        if free == 0 {
            return Err(PolicyError::at(
                source,
                first.span,
                format!("more than {MAX_MARKS} different selections of rules"),
                "let several budgets count by the same rules",
            ));
        }
        1 << free.trailing_zeros()
    };
    budgets[last].rules = ids;
    budgets[last].marks = marks;
    Ok(())
}

/// Why nothing could ever be counted by a rule.
fn unfit(rule: &Rule, quantity: Quantity, network: Verdict) -> Option<&'static str> {
    if rule.verdict != Verdict::Allow {
        return Some("it permits nothing");
    }
    let fits = match (&rule.matcher, quantity) {
        (Matcher::Path { access, .. }, Quantity::Opens) => {
            access & (access::READ | access::WRITE) != 0
        }
        (Matcher::Path { access, .. }, Quantity::Execs) => access & access::EXEC != 0,
        (Matcher::Network { listen, .. }, Quantity::Connects) => !listen,
        (Matcher::Command { .. }, _) => return Some("command lines cannot be counted"),
        // Where everything is permitted, an address outlives the name that opened it.
        (Matcher::Name { .. }, Quantity::Connects) if network == Verdict::Allow => {
            return Some("names are counted only where `network: default` denies");
        }
        (Matcher::Name { .. }, Quantity::Connects) => true,
        _ => false,
    };
    (!fits).then_some("it does not permit what the budget counts")
}

/// The marks of each rule.
pub fn marks_of(budgets: &[Budget], rule: &str) -> u32 {
    budgets
        .iter()
        .filter(|budget| budget.rules.iter().any(|id| id == rule))
        .fold(0, |all, budget| all | budget.marks)
}
