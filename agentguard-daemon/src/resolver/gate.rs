//! Where the resolver meets policy and kernel. It must never permit because something failed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agentguard_common::verdict::Verdict;

use crate::policy::names::Grant;

/// Who asks: the agent that a listener belongs to. The kernel sends an agent's queries to that agent's listener
/// and to no other, so nothing in a query can say that it comes from somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Asker {
    /// Slot of the agent.
    pub agent: u32,
    /// Its session.
    pub session: u32,
}

/// What the policy says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// `Allow`, or `WouldDeny` in shadow mode: the name is resolved. Everything else refuses it; `Ask` and `None`
    /// too.
    pub verdict: Verdict,
    /// The rule that decided, or `None` where the section's default did.
    pub rule: Option<Arc<str>>,
    /// The rule's reason.
    pub reason: Option<Arc<str>>,
    /// The rule's file and line.
    pub rule_at: Option<Arc<str>>,
    /// Ports that all permitting rules together give. Empty unless the name is resolved.
    pub grants: Arc<[Grant]>,
    /// Generation of the policy that was asked.
    pub generation: u32,
}

impl Judged {
    /// Whether the name is resolved.
    pub fn passes(&self) -> bool {
        matches!(self.verdict, Verdict::Allow | Verdict::WouldDeny)
    }
}

/// Why an address is not given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The rule that denies the address, or `None` for what is denied without one.
    pub rule: Option<Arc<str>>,
    /// Why, in words that agents may read.
    pub reason: Arc<str>,
}

/// What the policy says of an address in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressVerdict {
    /// It may be given and opened.
    Given,
    /// It is left out; where nothing remains, the query is refused.
    Withheld(Refusal),
    /// It is given and opened only because the policy runs in shadow mode.
    WouldWithhold(Refusal),
}

/// What the kernel is asked to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening<'a> {
    /// The name that was asked for (not where its aliases led): lower case, no dot at the end.
    pub name: &'a str,
    /// The address, never a mapped one: `::ffff:a.b.c.d` comes as `a.b.c.d`.
    pub address: IpAddr,
    /// For these ports.
    pub grants: &'a [Grant],
    /// From now on, for this long. Connections that were made meanwhile stay.
    pub lifetime: Duration,
    /// Generation of the policy that permitted it.
    pub generation: u32,
}

/// What there is to record of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution<'a> {
    /// The name as it was asked for: lower case, no dot at the end; bytes that names of hosts do not have are
    /// written as `\DDD`.
    pub name: &'a str,
    /// `A`, `AAAA`, `HTTPS`, … or `TYPE` and the number.
    pub kind: &'a str,
    /// `Allow`, `Deny` or `WouldDeny`.
    pub verdict: Verdict,
    /// The rule that decided.
    pub rule: Option<Arc<str>>,
    /// Why, in words.
    pub reason: Option<Arc<str>>,
    /// The rule's file and line.
    pub rule_at: Option<Arc<str>>,
    /// Why, by stable name: see `docs/audit.md`.
    pub cause: &'static str,
    /// Addresses that were given (or, with the verdict `Deny`, refused), and names that aliases led to.
    pub answers: Vec<String>,
    /// What the client was told: `NOERROR`, `NXDOMAIN`, `REFUSED`, `SERVFAIL`, …
    pub code: &'static str,
    /// Generation of the policy that was asked, 0 where none was.
    pub generation: u32,
    /// `udp` or `tcp`.
    pub transport: &'static str,
}

/// Policy and kernel, as the resolver needs them. Called from the resolver's threads, several at once; no call
/// may wait for another agent's work, for the network or for the resolver.
pub trait Gate: Send + Sync + 'static {
    /// Whether the agent may have this name resolved, and which ports that opens.
    ///
    /// `name` is lower case, without a dot at the end, 1 to 253 bytes of `a-z 0-9 - _ .`, no label empty; a name
    /// in another script comes in its `xn--` form. Names with other bytes never come here: they are refused.
    /// An agent that has ended, or that no policy is known of, is denied.
    ///
    /// Names that aliases (CNAME) lead to are judged too. They need not be permitted, because whoever permits a name
    /// permits where its owner serves it from; but one that a *rule* denies (`rule` is there) refuses the answer.
    fn judge(&self, asker: Asker, name: &str) -> Judged;

    /// Whether an answer for `name` may hold this address. `address` is never a mapped one, as in [`Opening`]. `judged` is what [`Gate::judge`] said.
    ///
    /// Withheld is what a rule of the policy denies, and what [`super::special`] names, unless a rule permits the
    /// address as an address (or the name's rule says that its addresses may lie there).
    fn address(&self, asker: Asker, name: &str, judged: &Judged, address: IpAddr)
    -> AddressVerdict;

    /// Opens the address for the agent, before the answer leaves. Whoever asks again prolongs it; an opening never
    /// shortens a longer one of the same name.
    ///
    /// # Errors
    /// Where the kernel did not take it (in words), and where another generation than `opening.generation` is in
    /// force by now. The answer then does not leave.
    fn open(&self, asker: Asker, opening: &Opening<'_>) -> Result<(), String>;

    /// Writes the record. Called before the answer leaves: once for each query, and once more where addresses were
    /// left out of an answer that others remain in.
    fn record(&self, asker: Asker, resolution: &Resolution<'_>);
}
