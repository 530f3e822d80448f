//! What agents did, counted by agent from the start of the daemon on, beside the log.
//!
//! Counting is by the agent's name, so that it goes on when an agent is detached and attached again. Agents that are
//! gone are forgotten in the end: the number of series is bounded whatever agents do.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use agentguard_common::record::class;
use agentguard_common::verdict::{Operation, Reason, Verdict};

use super::Histogram;
use crate::audit::{Record, is_action, record::op};
use crate::event::Event;
use crate::gateway::Used;
use crate::policy::limits::{Quantity, parse_amount};

/// Agents without a session that are still told of.
const ENDED_KEPT: usize = 64;
/// Rules of one agent that have series of their own.
const RULES: usize = 100;
/// What the others share.
pub const OTHER: &str = "(other)";
/// For what has no value for a label.
const NONE: &str = "";

const OPERATIONS: usize = 32;
const VERDICTS: usize = 8;

/// One of the names that this program gives to operations, verdicts, causes and replies.
pub type Word = Cow<'static, str>;

/// Two of them: what is counted, and how it went.
pub type Words = (Word, Word);

/// Calls of models through the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Calls that were made.
    pub calls: u64,
    /// Tokens read.
    pub input: u64,
    /// Of them, from the cache.
    pub cached: u64,
    /// Tokens written.
    pub output: u64,
    /// Money, in millionths of millionths of a US dollar.
    pub money: u64,
}

/// What one agent did.
#[derive(Clone, Debug, Default)]
pub struct AgentCounts {
    /// Sessions that are there.
    live: usize,
    /// Records of the kernel, by number of operation and verdict.
    kernel: [[u64; VERDICTS]; OPERATIONS],
    /// Records of user space, by operation and verdict.
    own: BTreeMap<Words, u64>,
    /// By rule, cause and verdict.
    denials: HashMap<Box<str>, BTreeMap<Words, u64>>,
    failures: BTreeMap<(Operation, Reason, u16), u64>,
    /// Questions to the resolver, by verdict and reply.
    pub questions: BTreeMap<Words, u64>,
    /// Calls of models that were made, by provider.
    pub made: BTreeMap<Box<str>, Made>,
    /// Calls of models that were refused.
    pub calls_refused: u64,
    /// Policies that came into force.
    pub installed: u64,
    /// Policies that were refused.
    pub refused: u64,
    /// Whether the last one was.
    pub last_refused: bool,
}

impl AgentCounts {
    /// Records by operation and verdict.
    pub fn records(&self) -> BTreeMap<Words, u64> {
        let mut records = self.own.clone();
        for operation in Operation::ALL {
            for verdict in Verdict::ALL {
                let count = self.kernel[*operation as usize][*verdict as usize];
                if count > 0 {
                    let verdict = match verdict {
                        Verdict::None => NONE,
                        verdict => verdict.name(),
                    };
                    let words = (operation.name().into(), verdict.into());
                    *records.entry(words).or_default() += count;
                }
            }
        }
        records
    }

    /// Refusals by rule, cause and verdict.
    pub fn denials(&self) -> impl Iterator<Item = (&str, &Words, u64)> {
        let by_rule = self.denials.iter();
        by_rule
            .flat_map(|(rule, causes)| causes.iter().map(|(cause, count)| (&**rule, cause, *count)))
    }

    /// Failures of what the kernel was asked for, by operation, cause and errno.
    pub fn failures(&self) -> impl Iterator<Item = (Operation, Reason, u16, u64)> {
        self.failures
            .iter()
            .map(|((operation, reason, errno), count)| (*operation, *reason, *errno, *count))
    }

    fn denied(&mut self, rule: &str, cause: Words, acts: u64) {
        if !self.denials.contains_key(rule) {
            let rule = if self.denials.len() < RULES {
                rule
            } else {
                OTHER
            };
            self.denials.entry(rule.into()).or_default();
        }
        let rule = if self.denials.contains_key(rule) {
            rule
        } else {
            OTHER
        };
        if let Some(causes) = self.denials.get_mut(rule) {
            *causes.entry(cause).or_default() += acts;
        }
    }

    fn call(&mut self, record: &Record<'_>) {
        let Some(usage) = &record.usage else {
            self.calls_refused += 1;
            return;
        };
        // Only a provider that is configured is called; the model behind it is what the agent says.
        let target = record.target.as_deref().unwrap_or_default();
        let provider = target.split('/').next().unwrap_or_default();
        if !self.made.contains_key(provider) {
            self.made.insert(provider.into(), Made::default());
        }
        if let Some(made) = self.made.get_mut(provider) {
            made.calls += 1;
            made.add(usage);
        }
    }
}

impl Made {
    fn add(&mut self, usage: &Used) {
        self.input += usage.input_tokens;
        self.cached += usage.cached_tokens;
        self.output += usage.output_tokens;
        let money = usage
            .usd
            .as_deref()
            .map(|usd| parse_amount(Quantity::Money, usd));
        self.money = self
            .money
            .saturating_add(money.and_then(Result::ok).unwrap_or(0));
    }
}

/// Everything that is counted beside the log.
#[derive(Clone, Debug)]
pub struct Counts {
    agents: HashMap<Arc<str>, AgentCounts>,
    /// Agents whose last session ended, the oldest first.
    ended: VecDeque<Arc<str>>,
    /// What belongs to no agent, or to one that is forgotten.
    nobody: AgentCounts,
    /// Alarms of every kind.
    pub alarms: u64,
    /// Records of one batch.
    pub batches: Histogram,
    /// Bytes in the rings when they were last looked at, by class.
    pub ring_used: [u64; class::COUNT as usize],
    /// The most that there were.
    pub ring_peak: [u64; class::COUNT as usize],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            agents: HashMap::new(),
            ended: VecDeque::new(),
            nobody: AgentCounts::default(),
            alarms: 0,
            batches: Histogram::new(Histogram::BATCH),
            ring_used: [0; class::COUNT as usize],
            ring_peak: [0; class::COUNT as usize],
        }
    }
}

impl Counts {
    /// All agents by name, and under no name what belongs to none.
    pub fn agents(&self) -> BTreeMap<&str, &AgentCounts> {
        let named = self.agents.iter().map(|(name, counts)| (&**name, counts));
        named.chain([(NONE, &self.nobody)]).collect()
    }

    /// A session of an agent begins.
    pub fn begin(&mut self, agent: &Arc<str>) {
        self.agents.entry(agent.clone()).or_default().live += 1;
        self.ended.retain(|name| name != agent);
    }

    /// A session of an agent ended.
    pub fn end(&mut self, agent: &Arc<str>) {
        let Some(counts) = self.agents.get_mut(agent) else {
            return;
        };
        counts.live = counts.live.saturating_sub(1);
        if counts.live > 0 {
            return;
        }
        self.ended.push_back(agent.clone());
        if self.ended.len() > ENDED_KEPT
            && let Some(oldest) = self.ended.pop_front()
        {
            self.agents.remove(&oldest);
        }
    }

    fn of(&mut self, agent: Option<&str>) -> &mut AgentCounts {
        match agent.and_then(|name| self.agents.get_mut(name)) {
            Some(counts) => counts,
            None => &mut self.nobody,
        }
    }

    /// A record of the kernel, and the rule that decided.
    pub fn event(&mut self, agent: Option<&str>, event: &Event<'_>, rule: Option<&str>) {
        let counts = self.of(agent);
        // Births and deaths are recorded, and not judged.
        let verdict = match event.verdict {
            Verdict::Allow if !is_action(event.operation) => Verdict::None,
            verdict => verdict,
        };
        let acts = event.acts();
        counts.kernel[event.operation as usize][verdict as usize] += acts;
        if matches!(
            event.verdict,
            Verdict::Deny | Verdict::Ask | Verdict::WouldDeny
        ) {
            let cause = (event.reason.name().into(), event.verdict.name().into());
            counts.denied(rule.unwrap_or_default(), cause, acts);
        }
        // That of a budget is the number of a meter.
        let has_errno = event.errno != 0 && event.reason != Reason::Budget;
        if has_errno || is_failure(event.reason) {
            let errno = if has_errno { event.errno } else { 0 };
            let site = (event.operation, event.reason, errno);
            *counts.failures.entry(site).or_default() += acts;
        }
    }

    /// A record of user space.
    pub fn own(&mut self, record: &Record<'_>) {
        self.alarms += u64::from(record.op == op::ALARM);
        let counts = self.of(record.agent.as_deref());
        let verdict = word(record.verdict.as_deref());
        if matches!(&*verdict, "deny" | "ask" | "would-deny") {
            let cause = (word(record.cause.as_deref()), verdict.clone());
            counts.denied(record.rule.as_deref().unwrap_or_default(), cause, 1);
        }
        match &*record.op {
            op::RESOLVE => {
                let answer = (verdict.clone(), word(record.reply.as_deref()));
                *counts.questions.entry(answer).or_default() += 1;
            }
            op::MODEL => counts.call(record),
            op::POLICY_INSTALL => {
                counts.installed += 1;
                counts.last_refused = false;
            }
            op::POLICY_ERROR => {
                counts.refused += 1;
                counts.last_refused = true;
            }
            _ => {}
        }
        let words = (word(Some(&record.op)), verdict);
        *counts.own.entry(words).or_default() += 1;
    }

    /// How full the rings are.
    pub fn rings(&mut self, used: [u64; class::COUNT as usize]) {
        self.ring_used = used;
        for (peak, used) in self.ring_peak.iter_mut().zip(used) {
            *peak = used.max(*peak);
        }
    }
}

/// Whether a reason says that something could not be found out, so that the action was denied.
fn is_failure(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoPolicy
            | Reason::PathUnreadable
            | Reason::ScratchUnavailable
            | Reason::ArgumentsUnreadable
            | Reason::AddressUnreadable
            | Reason::TableDamaged
            | Reason::LabelUnavailable
    )
}

/// A word of a record of our own, which is one of few.
fn word(text: Option<&str>) -> Word {
    text.map_or(Cow::Borrowed(NONE), |text| Cow::Owned(text.to_owned()))
}

#[cfg(test)]
#[path = "counts_tests.rs"]
mod tests;
