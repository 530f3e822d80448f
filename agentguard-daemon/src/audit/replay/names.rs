//! Names that were resolved, asked again.

use agentguard_common::record::Destination;
use agentguard_common::verdict::{Reason, Verdict};

use crate::audit::judge::Opinion;
use crate::audit::record::Record;
use crate::policy::Policy;
use crate::policy::names::normal;

/// The port of name servers, and the protocols by which they are asked.
const PORT: u16 = 53;
const PROTOCOLS: [u16; 2] = [6, 17];

/// Whether it is a question to a name server, which no rule decides where names are resolved by AgentGuard.
pub fn is_question(destination: &Destination) -> bool {
    destination.port == PORT && PROTOCOLS.contains(&destination.protocol)
}

/// What a policy says of a name that was asked for, and what was decided. `None` where something else than the name
/// decided, and where the policy has no rules by name: it would have been asked of whom the addresses permit.
pub fn ask(policy: &Policy, record: &Record<'_>) -> Option<(Opinion, Verdict)> {
    let name = record.target.as_deref()?;
    let by_name = [Reason::Rule.name(), Reason::Default.name()];
    if !policy.has_name_rules()
        || !by_name.contains(&record.cause.as_deref()?)
        || normal(name).ok()? != name
    {
        return None;
    }
    let was = match record.verdict.as_deref()? {
        "allow" => Verdict::Allow,
        "would-deny" => Verdict::WouldDeny,
        // A name that is to be asked for is refused like one that is denied.
        _ => Verdict::Deny,
    };
    let judged = policy.judge_name(name);
    let opinion = Opinion::from(crate::policy::Judgement {
        verdict: match judged.verdict {
            Verdict::Allow => Verdict::Allow,
            _ => Verdict::Deny,
        },
        reason: judged.reason,
        rule: judged.rule,
    });
    Some((opinion, was))
}
