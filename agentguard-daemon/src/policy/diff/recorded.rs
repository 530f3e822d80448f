//! What one policy records and the other does not: refusals always are recorded, and of what is permitted that which levels
//! of rules or of the policy want. It must never take an act for recorded because a rule of the same name permits it.

use agentguard_common::table::{flags, level};
use agentguard_common::verdict::Verdict;

use super::walk::Side;
use super::{Change, Found, by};
use crate::policy::Policy;
use crate::policy::rule::Action;

/// The section of these differences.
pub const SECTION: &str = "audit";
/// What is said of an act that has a record …
pub const RECORDED: &str = "recorded";
/// … and of one that has none.
pub const UNRECORDED: &str = "not recorded";

/// What a table says of recording an act that it permits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Whether it has a record.
    pub is_recorded: bool,
    /// Whether no rule says so, but the policy.
    pub by_policy: bool,
}

impl Side {
    /// For the labels of all states that an act ends in, and the place of its verdict there.
    pub fn heard(&self, labels: u32, shift: u32, opens: bool) -> Heard {
        let quiet = if opens {
            flags::QUIET_OPENS
        } else {
            flags::QUIET
        };
        match labels >> (shift + level::ABOVE) & level::LOUD {
            level::UNSAID => Heard {
                is_recorded: self.header.flags & quiet == 0,
                by_policy: true,
            },
            said => Heard {
                is_recorded: said == level::LOUD,
                by_policy: false,
            },
        }
    }
}

/// Which states of a walk are worth asking the reference about.
#[derive(Default)]
pub struct Ears {
    /// Places of verdicts for which a difference between the policies' own levels is told.
    told: u32,
}

impl Ears {
    /// Whether two sides may record otherwise what both permit. `offer` tells it, and says whether it did.
    pub fn compare(&mut self, shift: u32, was: Heard, is: Heard, offer: impl FnOnce() -> bool) {
        // Where both go by the level of the policy, one example is as good as thousands.
        let by_policies = was.by_policy && is.by_policy;
        if was.is_recorded == is.is_recorded || (by_policies && self.told & 1 << shift != 0) {
            return;
        }
        if offer() && by_policies {
            self.told |= 1 << shift;
        }
    }
}

/// Whether an act has a record, and by whose word.
fn recorded(policy: &Policy, action: &Action<'_>) -> (bool, String) {
    let judgement = policy.judge(action);
    if judgement.verdict != Verdict::Allow {
        return (true, by(judgement.rule.as_ref()));
    }
    let recording = policy.recording(action);
    let by = match recording.rule {
        Some(rule) => by(Some(&policy.rule_ref(rule))),
        None => format!("audit: {}", policy.audit().name()),
    };
    (recording.is_recorded, by)
}

/// What is done to what an example of a section names.
pub fn verb(section: &str) -> &'static str {
    match section {
        "read" => "read",
        "write" => "write",
        "listen" => "listen at",
        "names" => "reach",
        "kernel" => "use",
        _ => "connect to",
    }
}

impl Found<'_> {
    /// Tells whether one act has a record under one policy alone, if none of its kind is told yet.
    pub(super) fn offer_recording(
        &mut self,
        section: &'static str,
        example: &str,
        action: &Action<'_>,
    ) {
        // Programs always are, under every policy.
        if matches!(action, Action::Exec { .. }) {
            return;
        }
        let ((was, was_by), (is, is_by)) = (recorded(self.a, action), recorded(self.b, action));
        if was == is {
            return;
        }
        let word = |is_recorded| if is_recorded { RECORDED } else { UNRECORDED };
        let change = Change {
            section: SECTION,
            example: format!("{} {example}", verb(section)),
            was: word(was).to_owned(),
            was_by,
            is: word(is).to_owned(),
            is_by,
            widens: false,
        };
        self.tell(section, change);
    }
}
