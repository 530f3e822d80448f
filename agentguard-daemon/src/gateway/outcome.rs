//! What came of a call: charged first, then written into the log.

use std::borrow::Cow;
use std::time::Instant;

use super::asked::Asked;
use super::prices::Price;
use super::provider::Endpoint;
use super::record::Used;
use super::serve::{Caller, Shared};
use super::usage::{Tracker, Usage};
use crate::audit::{Record, record::op};
use crate::budget::{Amounts, Refusal, Reservation, Why};
use crate::event::escape::escape;

/// A call that budgets had room for.
pub struct Call {
    pub caller: Caller,
    pub provider: String,
    pub endpoint: Endpoint,
    pub asked: Asked,
    pub price: Option<Price>,
    pub reservation: Reservation,
    pub begun: Instant,
}

/// How an answer ended.
#[derive(Clone, Debug)]
pub enum Ended {
    /// Nothing was sent, or the provider refused: nothing was taken.
    Free(String),
    /// To its end.
    Whole,
    /// Before its end, or nobody knows.
    Cut(String),
}

impl Call {
    /// Charges what the call took, and records it.
    pub async fn settle(self, shared: &Shared, tracker: &Tracker, events: u64, ended: &Ended) {
        let is_partial = matches!(self.endpoint, Endpoint::Generate | Endpoint::GenerateStream);
        let said = tracker.usage();
        let reserved = self.reservation.amounts();
        let (usage, estimated) = match (ended, said) {
            (Ended::Free(_), _) => (Usage::default(), false),
            (Ended::Whole, Some(usage)) => (usage, false),
            // These speak of usage only at the end; others repeat it, and may not be there yet.
            (Ended::Cut(_), Some(usage)) if !is_partial => (usage, false),
            (Ended::Whole, None) if !self.endpoint.is_metered() => (Usage::default(), false),
            (Ended::Whole, None) => {
                let usage = tracker.input().unwrap_or(Usage {
                    input: self.asked.guess,
                    ..Usage::default()
                });
                let output = reserved.output.max(events).max(usage.output);
                (Usage { output, ..usage }, true)
            }
            (Ended::Cut(_), said) => {
                let known = tracker.input();
                let usage = known.or(said).unwrap_or(Usage {
                    input: reserved.input,
                    ..Usage::default()
                });
                let output = reserved.output.max(events).max(usage.output);
                (Usage { output, ..usage }, self.endpoint.is_metered())
            }
        };
        let money = self.price.map(|price| match (ended, estimated) {
            (Ended::Cut(_), true) if tracker.input().is_none() => {
                price.most(usage.input, usage.output)
            }
            _ => price.cost(&usage),
        });
        let spent = Amounts {
            input: usage.input,
            output: usage.output,
            cached: usage.cached,
            money: money.unwrap_or(0),
        };
        let detail = format!(
            "{}{}, {:.3} s",
            self.endpoint.name(),
            match ended {
                Ended::Free(what) | Ended::Cut(what) => format!(", {what}"),
                Ended::Whole => String::new(),
            },
            self.begun.elapsed().as_secs_f64()
        );
        let target = format!("{}/{}", self.provider, self.asked.model);
        shared.host.record(
            Record {
                agent: Some(Cow::Borrowed(&self.caller.name)),
                session: Some(self.caller.session),
                target: Some(escape(target.as_bytes())),
                verdict: Some("allow".into()),
                policy: Some(escape(self.caller.policy.name().as_bytes())),
                usage: Some(Used::of(&usage, money, estimated)),
                detail: Some(escape(detail.as_bytes())),
                ..Record::new(op::MODEL)
            },
            false,
        );
        shared.ended(self.caller.session);
        let reservation = self.reservation;
        let settled = tokio::task::spawn_blocking(move || reservation.settle(&spent)).await;
        if let Err(error) = settled {
            // The reservation was dropped with it, and so counts as spent.
            tracing::error!("a call was not settled: {error}");
        }
    }
}

/// The line about a call that was refused.
pub fn refused(
    shared: &Shared,
    caller: Option<&Caller>,
    target: &str,
    refusal: Option<&Refusal>,
    message: &str,
) {
    let (rule, cause) = match refusal.map(|it| &it.why) {
        Some(Why::Spent { budget, .. }) => (Some(budget.as_str()), "budget"),
        Some(Why::Ledger) => (None, "ledger"),
        None => (None, "gateway"),
    };
    shared.host.record(
        Record {
            agent: caller.map(|it| Cow::Borrowed(it.name.as_str())),
            session: caller.map(|it| it.session),
            target: Some(escape(target.as_bytes())),
            verdict: Some("deny".into()),
            rule: rule.map(Cow::Borrowed),
            reason: Some(escape(message.as_bytes())),
            policy: caller.map(|it| escape(it.policy.name().as_bytes())),
            cause: Some(cause.into()),
            ..Record::new(op::MODEL)
        },
        true,
    );
}
