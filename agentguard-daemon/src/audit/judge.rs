//! Judging each record again with the plain reference matcher of the policy that decided.
//!
//! That names the rule, and proves the kernel right for as long as the daemon runs. It must never
//! change a verdict: the kernel's is recorded, and a different answer here is an alarm.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use agentguard_common::verdict::{Operation, Reason, Verdict, access};

use super::objects::Objects;
use super::spent::Spent;
use crate::approval::{Book, Granting, items_of};
use crate::event::escape::escape;
use crate::event::{Event, Target};
use crate::kernel::NameBook;
use crate::policy::{Action, Judgement, Mode, Policy, RuleRef};

/// Policies that are kept for late records after they were replaced, where nobody says that the rings were read.
const GENERATIONS_KEPT: usize = 64;
/// The same where somebody does: each takes some hundred kilobytes, and nothing is to come for any of them.
const READ_KEPT: usize = 8;
/// Bytes of one generation of remembered judgements.
const REMEMBERED_BYTES: usize = 3 << 20;
/// Bytes that one takes beside its key, with what the allocator and the table need.
const REMEMBERED: usize = 160;

/// A rule as records name it.
#[derive(Debug, PartialEq, Eq)]
pub struct RuleName {
    /// Its id, escaped.
    pub id: String,
    /// Its reason, escaped.
    pub reason: Option<String>,
    /// `file:line`, escaped.
    pub place: String,
}

/// What the reference says.
#[derive(Clone, Debug)]
pub struct Opinion {
    /// Its verdict. `None` where the arguments of an exec have to be seen first.
    pub verdict: Verdict,
    /// Whether a rule or a default decided.
    pub reason: Reason,
    /// The rule.
    pub rule: Option<Arc<RuleName>>,
    /// The name that opened the address.
    pub name: Option<Arc<str>>,
    /// The number of the approval that permits it.
    pub approval: Option<u64>,
}

/// A record judged again.
#[derive(Debug)]
pub enum Review {
    /// The policy has no say in it (life-cycle records; failures, which are always denied).
    NotJudged,
    /// The reference agrees.
    Agrees(Opinion),
    /// The reference says something else, or the policy is not known. Never expected.
    Disagrees(String),
}

/// Policies by generation, with a memory of judgements.
#[derive(Debug, Default)]
pub struct Judge {
    policies: BTreeMap<u32, Arc<Policy>>,
    /// Generations whose policies are lost: of another life of the daemon.
    lost: BTreeSet<u32>,
    objects: Objects,
    spent: Spent,
    names: NameBook,
    approvals: Book,
    young: HashMap<Box<[u8]>, Opinion>,
    old: HashMap<Box<[u8]>, Opinion>,
    young_bytes: usize,
    key: Vec<u8>,
}

impl Judge {
    /// Adds a policy before it is installed. `in_force` are the generations that must not be forgotten.
    pub fn add(&mut self, generation: u32, policy: Arc<Policy>, in_force: &[u32]) {
        self.policies.insert(generation, policy);
        let excess = self.policies.len().saturating_sub(GENERATIONS_KEPT);
        self.drop_policies(excess, |number| {
            number == generation || in_force.contains(&number)
        });
    }

    /// All records of policies that are not among `in_force` were read from the rings: hardly any of these is needed.
    pub fn rings_were_read(&mut self, in_force: &[u32]) {
        let is_over = |number: &&u32| !in_force.contains(number);
        let over = self.policies.keys().filter(is_over).count();
        self.drop_policies(over.saturating_sub(READ_KEPT), |number| {
            in_force.contains(&number)
        });
    }

    /// Drops so many of the oldest, but none that is needed.
    fn drop_policies(&mut self, mut excess: usize, is_needed: impl Fn(u32) -> bool) {
        self.policies.retain(|number, _| {
            let goes = excess > 0 && !is_needed(*number);
            excess -= usize::from(goes);
            !goes
        });
    }

    /// An agent has gone, and all of its records were read from the rings: what stood behind them is dropped.
    pub fn forget_agent(&mut self, slot: u32) {
        self.objects.forget(slot);
        self.spent.forget(slot);
    }

    /// How much is kept: policies, agents with protected objects, agents with budgets.
    pub fn kept(&self) -> [usize; 3] {
        [
            self.policies.len(),
            self.objects.agents(),
            self.spent.agents(),
        ]
    }

    /// Records of a generation cannot be judged: nobody knows its policy any more.
    pub fn forget(&mut self, generation: u32) {
        self.lost.insert(generation);
    }

    /// The rules behind protected objects.
    pub fn objects(&mut self) -> &mut Objects {
        &mut self.objects
    }

    /// The budgets behind meters.
    pub fn spent(&mut self) -> &mut Spent {
        &mut self.spent
    }

    /// What stands behind the denial of a protected object, or of what a budget counts.
    pub fn of_denial(&self, event: &Event<'_>) -> Option<Opinion> {
        let rule = self.objects.rule(event);
        let rule = rule.or_else(|| self.spent.budget(event))?;
        Some(Opinion {
            verdict: event.verdict,
            reason: event.reason,
            rule: Some(rule),
            name: None,
            approval: None,
        })
    }

    /// What operators have granted.
    pub fn set_approvals(&mut self, approvals: Book) {
        self.approvals = approvals;
    }

    /// What the numbers of names in records stand for.
    pub fn set_names(&mut self, names: NameBook) {
        self.names = names;
    }

    /// The policy of a generation.
    pub fn policy(&self, generation: u32) -> Option<&Arc<Policy>> {
        self.policies.get(&generation)
    }

    /// Judges a record again.
    pub fn review(&mut self, event: &Event<'_>) -> Review {
        if !is_of_policy(event.reason) {
            return Review::NotJudged;
        }
        if self.lost.contains(&event.generation) {
            return Review::NotJudged;
        }
        let Some(policy) = self.policies.get(&event.generation).cloned() else {
            return Review::Disagrees(format!(
                "no policy of generation {} is known",
                event.generation
            ));
        };
        if event.reason == Reason::Opened {
            return self.review_opened(&policy, event);
        }
        if !self.set_key(event) {
            return Review::Disagrees("a policy decided, but the record has no target".to_owned());
        }
        let opinion = self.opinion(&policy, event);
        if event.reason == Reason::Approved {
            return self.review_approved(&policy, event, opinion);
        }
        let expected = match opinion.verdict {
            // Whose socket it is only the kernel sees. A rule would have won.
            _ if event.reason == Reason::OwnSocket && opinion.reason == Reason::UnixSocket => {
                Verdict::Allow
            }
            // Before the arguments are known, "go on" is all that can be said.
            Verdict::None | Verdict::Allow => Verdict::Allow,
            _ if policy.mode() == Mode::Shadow => Verdict::WouldDeny,
            refused => refused,
        };
        if expected == event.verdict {
            Review::Agrees(opinion)
        } else {
            let rule = opinion.rule.as_ref().map_or("its default", |rule| &rule.id);
            Review::Disagrees(format!(
                "the kernel says {}, the reference says {} by {rule}",
                event.verdict.name(),
                expected.name(),
            ))
        }
    }

    /// What an operator granted: a rule must ask about it, and the grant be for this.
    fn review_approved(&self, policy: &Policy, event: &Event<'_>, opinion: Opinion) -> Review {
        if matches!(opinion.verdict, Verdict::None | Verdict::Allow)
            && let Some(script) = self.approved_script(policy, event)
        {
            return Review::Agrees(script);
        }
        if opinion.verdict != Verdict::Ask {
            return Review::Disagrees(format!(
                "the kernel says that it was approved, and the reference says {}",
                opinion.verdict.name()
            ));
        }
        let asks = |path: &[u8]| asks_to_write(policy, path);
        let permits = |granting: &Granting| {
            let items = items_of(event, asks).unwrap_or_default();
            items.iter().any(|item| granting.items.contains(item))
        };
        match self.approvals.granting(event.errno, event.session) {
            Some(granting) if permits(&granting) => Review::Agrees(Opinion {
                approval: Some(granting.granted.what.id),
                ..opinion
            }),
            _ => Review::Disagrees(
                "the kernel says that it was approved, and nobody approved it".to_owned(),
            ),
        }
    }

    /// A script that was granted, in the record of its interpreter's start: a rule must ask about it, and its own
    /// arguments be the last ones.
    fn approved_script(&self, policy: &Policy, event: &Event<'_>) -> Option<Opinion> {
        if event.operation != Operation::Exec {
            return None;
        }
        let granting = self.approvals.granting(event.errno, event.session)?;
        let (path, argv) = granting.items.iter().find_map(|item| item.command())?;
        let given: Vec<&[u8]> = event.argv().collect();
        let own = argv.get(1..)?;
        let judgement = policy.judge(&Action::Exec {
            path,
            argv: Some(&argv),
        });
        (judgement.verdict == Verdict::Ask && given.len() > own.len() && given.ends_with(own)).then(
            || Opinion {
                approval: Some(granting.granted.what.id),
                ..judgement.into()
            },
        )
    }

    /// What a grant of an act that a rule asks about would have to permit; `None` where no grant can.
    pub fn items(&self, event: &Event<'_>) -> Option<Vec<crate::approval::Item>> {
        let policy = self.policies.get(&event.generation)?;
        items_of(event, |path| asks_to_write(policy, path))
    }

    /// What operators have granted.
    pub fn approvals(&self) -> &Book {
        &self.approvals
    }

    /// What a name opened: no rule may speak of the address, and the name must be permitted with that port.
    fn review_opened(&self, policy: &Policy, event: &Event<'_>) -> Review {
        let (Target::Socket(destination), Some(name)) = (event.target, self.names.name(event.name))
        else {
            return Review::Disagrees(
                "an address was opened by a name that nobody knows".to_owned(),
            );
        };
        let by_address = policy.judge(&Action::Network {
            destination: &destination,
        });
        if let Some(rule) = by_address.rule {
            return Review::Disagrees(format!(
                "an address was opened by name, and the rule {} speaks of it",
                rule.id
            ));
        }
        let by_name = policy.judge(&Action::Name {
            name: &name,
            port: destination.port,
            protocol: destination.protocol as u8,
        });
        if by_name.verdict != Verdict::Allow {
            return Review::Disagrees(format!(
                "the kernel says {}, the reference does not permit the name {name}",
                event.verdict.name()
            ));
        }
        Review::Agrees(Opinion {
            name: Some(name),
            ..by_name.into()
        })
    }

    /// What a policy says about a record, whatever was decided. `None` where no policy has a say, or this one is
    /// not known.
    pub fn ask(&mut self, event: &Event<'_>) -> Option<Opinion> {
        if !is_of_policy(event.reason) {
            return None;
        }
        let policy = self.policies.get(&event.generation)?.clone();
        self.set_key(event).then(|| self.opinion(&policy, event))
    }

    /// Writes what the judgement depends on into `self.key`; false if there is no target.
    fn set_key(&mut self, event: &Event<'_>) -> bool {
        self.key.clear();
        self.key.extend_from_slice(&event.generation.to_ne_bytes());
        self.key
            .extend_from_slice(&[event.operation as u8, event.access, form(event)]);
        match event.target {
            Target::Path(path) => {
                self.key.extend_from_slice(path);
                self.key.push(0);
                self.key.extend_from_slice(event.arguments);
            }
            Target::Socket(destination) => self.key.extend_from_slice(&destination.listen_key()),
            Target::Unnamed if event.operation != Operation::Kernel => return false,
            Target::Unix(_, name) => self.key.extend_from_slice(name),
            Target::Unnamed => {}
        }
        if event.operation == Operation::Kernel {
            self.key.extend_from_slice(&event.aux.to_ne_bytes());
        }
        true
    }

    fn opinion(&mut self, policy: &Policy, event: &Event<'_>) -> Opinion {
        if let Some(opinion) = self.young.get(&*self.key) {
            return opinion.clone();
        }
        let opinion = self
            .old
            .get(&*self.key)
            .cloned()
            .unwrap_or_else(|| judge(policy, event).into());
        if self.young_bytes > REMEMBERED_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += self.key.len() + REMEMBERED;
        self.young
            .insert(self.key.as_slice().into(), opinion.clone());
        opinion
    }
}

const PROGRAM_ONLY: u8 = 2;
const OTHER: u8 = 0;

/// Which question was asked, where the operation alone does not say.
fn form(event: &Event<'_>) -> u8 {
    let unread = event.arguments.is_empty() && event.aux == 0;
    match event.operation {
        // Where no rule speaks of starting it, the kernel judges it as read, and says so.
        Operation::Open
            if event.has(agentguard_common::record::record_flags::FOR_EXEC)
                && event.access & agentguard_common::verdict::access::EXEC != 0 =>
        {
            PROGRAM_ONLY
        }
        Operation::Exec if unread => PROGRAM_ONLY,
        _ => OTHER,
    }
}

/// The two names of an object that moves are judged as writing, each by itself: the stricter counts.
fn judge_move(policy: &Policy, from: &[u8], to: &[u8]) -> Judgement {
    let write = |path| {
        policy.judge(&Action::Path {
            path,
            access: access::WRITE,
        })
    };
    let (leaves, arrives) = (write(from), write(to));
    if arrives.verdict > leaves.verdict {
        arrives
    } else {
        leaves
    }
}

/// Whether a rule asks about writing a path.
fn asks_to_write(policy: &Policy, path: &[u8]) -> bool {
    let access = access::WRITE;
    policy.judge(&Action::Path { path, access }).verdict == Verdict::Ask
}

/// Asks the reference the question that the kernel was asked.
fn judge(policy: &Policy, event: &Event<'_>) -> Judgement {
    let form = form(event);
    if event.operation == Operation::Kernel {
        return policy.judge(&Action::Kernel { lock: event.aux });
    }
    match event.target {
        Target::Path(path) if event.second_path().is_some() => {
            judge_move(policy, path, event.second_path().unwrap_or_default())
        }
        Target::Path(path) if form == PROGRAM_ONLY => {
            policy.judge(&Action::Exec { path, argv: None })
        }
        Target::Path(path) if event.operation == Operation::Exec => {
            let argv: Vec<&[u8]> = event.argv().collect();
            policy.judge(&Action::Exec {
                path,
                argv: Some(&argv),
            })
        }
        Target::Path(path) => policy.judge(&Action::Path {
            path,
            access: event.access,
        }),
        Target::Unix(_, name) => policy.judge(&Action::Unix {
            name,
            listen: event.operation == Operation::Listen,
        }),
        Target::Socket(destination) if event.operation == Operation::Listen => {
            policy.judge(&Action::Listen { at: &destination })
        }
        Target::Socket(destination) => policy.judge(&Action::Network {
            destination: &destination,
        }),
        Target::Unnamed => Judgement {
            verdict: Verdict::Deny,
            reason: Reason::None,
            rule: None,
        },
    }
}

impl From<Judgement> for Opinion {
    fn from(judgement: Judgement) -> Self {
        let rule = judgement.rule.as_ref();
        Self {
            verdict: judgement.verdict,
            reason: judgement.reason,
            rule: rule.map(|rule| Arc::new(RuleName::from(rule))),
            name: None,
            approval: None,
        }
    }
}

impl From<&RuleRef> for RuleName {
    fn from(rule: &RuleRef) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let file = escape(rule.file.as_os_str().as_bytes());
        let reason = rule.reason.as_ref();
        Self {
            id: escape(rule.id.as_bytes()).into_owned(),
            reason: reason.map(|reason| escape(reason.as_bytes()).into_owned()),
            place: format!("{file}:{}", rule.line),
        }
    }
}

/// Whether a policy has a say in what has this reason.
const fn is_of_policy(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Rule
            | Reason::Default
            | Reason::UnixSocket
            | Reason::OwnSocket
            | Reason::Opened
            | Reason::Approved
            | Reason::Locked
    )
}
