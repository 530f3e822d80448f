//! The book: what waits, what is granted, and what was. It must never give a number to two acts, or to two grants whose
//! records may still come.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentguard_common::approval::{Grant, MAX_GRANTS};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::numbers::Numbers;
use super::object::Item;
use super::status::{Approvals, Granted, Scope, Waiting};

/// What may wait in one session.
pub const MOST_WAITING: usize = 200;
/// Grants that are over, and whose records may still come.
const PAST: usize = 1024;

/// What a grant is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Granting {
    /// Its number in records.
    pub number: u16,
    /// Agent slot.
    pub slot: u32,
    /// What it permits.
    pub items: Vec<Item>,
    /// `CLOCK_BOOTTIME` in nanoseconds at which it ends; 0: with the session.
    pub until: u64,
    /// As it was granted.
    pub granted: Granted,
}

impl Granting {
    /// The value of each of its entries.
    pub fn value(&self) -> Grant {
        Grant {
            number: u32::from(self.number),
            until: self.until,
            most: u64::from(self.granted.scope == Scope::Once),
            ..Grant::default()
        }
    }
}

/// Something that waits, with what it would come to.
#[derive(Clone, Debug)]
struct Question {
    slot: u32,
    items: Vec<Item>,
    waiting: Waiting,
}

#[derive(Debug, Default)]
struct Pages {
    numbers: Numbers,
    /// Nobody can answer: nothing is listed.
    is_closed: bool,
    last_number: u16,
    questions: BTreeMap<u64, Question>,
    /// By session and items.
    index: HashMap<(u32, Vec<Item>), u64>,
    per_session: HashMap<u32, usize>,
    dropped: u64,
    granted: BTreeMap<u16, Granting>,
    past: VecDeque<Granting>,
}

/// See the module. Clones are the same book.
#[derive(Clone, Debug, Default)]
pub struct Book {
    pages: Arc<Mutex<Pages>>,
    /// Told when something begins to wait.
    news: Arc<watch::Sender<()>>,
}

impl Book {
    /// One whose numbers go on after those of an earlier daemon.
    pub fn kept_at(numbers: PathBuf) -> Self {
        let book = Self::default();
        book.pages().numbers = Numbers::kept_at(numbers);
        book
    }

    /// One in which nothing waits, where nobody could answer.
    pub fn closed() -> Self {
        let book = Self::default();
        book.pages().is_closed = true;
        book
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is told when something begins to wait.
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Notes an act that was refused because a rule asks about it; the number that it waits under. `None` where too
    /// many wait, or there is no number for it.
    pub fn ask(&self, slot: u32, items: Vec<Item>, waiting: Waiting) -> Option<u64> {
        let mut pages = self.pages();
        if pages.is_closed {
            return None;
        }
        let key = (waiting.session, items);
        if let Some(id) = pages.index.get(&key).copied() {
            let known = &mut pages.questions.get_mut(&id)?.waiting;
            known.tries += 1;
            known.last = waiting.last;
            (known.pid, known.uid) = (waiting.pid, waiting.uid);
            return Some(id);
        }
        let session = waiting.session;
        let count = pages.per_session.get(&session).copied().unwrap_or_default();
        let has_room = count < MOST_WAITING;
        let Some(id) = has_room.then(|| pages.numbers.next()).flatten() else {
            pages.dropped += 1;
            return None;
        };
        pages.per_session.insert(session, count + 1);
        let question = Question {
            slot,
            items: key.1.clone(),
            waiting: Waiting { id, ..waiting },
        };
        pages.index.insert(key, id);
        pages.questions.insert(id, question);
        drop(pages);
        self.news.send_replace(());
        Some(id)
    }

    /// What waits under a number.
    pub fn waiting(&self, id: u64) -> Option<Waiting> {
        let pages = self.pages();
        Some(pages.questions.get(&id)?.waiting.clone())
    }

    /// Number and session of all that waits, without what was denied.
    pub fn open(&self) -> Vec<(u64, u32)> {
        let pages = self.pages();
        let questions = pages.questions.values().map(|question| &question.waiting);
        let open = questions.filter(|waiting| waiting.denied_by.is_none());
        open.map(|waiting| (waiting.id, waiting.session)).collect()
    }

    /// What granting it would be, with a number of its own. Nothing is granted yet.
    pub fn prepare(&self, id: u64, scope: Scope, by: &str, at: &str) -> Option<Granting> {
        let mut pages = self.pages();
        let question = pages.questions.get(&id)?.clone();
        let number = pages.next_number()?;
        Some(Granting {
            number,
            slot: question.slot,
            items: question.items,
            until: 0,
            granted: Granted {
                what: question.waiting,
                scope,
                by: by.to_owned(),
                at: at.to_owned(),
                until: None,
                used: 0,
                over: false,
            },
        })
    }

    /// A grant is in force, before the kernel knows of it. What it was asked under waits no more. Gives the grants
    /// that it takes the place of.
    pub fn grant(&self, granting: Granting) -> Vec<Granting> {
        let mut pages = self.pages();
        pages.remove(granting.granted.what.id);
        let session = granting.granted.what.session;
        let replaced: Vec<Granting> = pages
            .granted
            .values()
            .filter(|other| {
                other.granted.what.session == session
                    && other.items.iter().any(|item| granting.items.contains(item))
            })
            .cloned()
            .collect();
        pages.granted.insert(granting.number, granting);
        replaced
    }

    /// Somebody says no. False if nothing waits under that number.
    pub fn deny(&self, id: u64, by: &str) -> bool {
        let mut pages = self.pages();
        let question = pages.questions.get_mut(&id);
        question
            .map(|question| question.waiting.denied_by = Some(by.to_owned()))
            .is_some()
    }

    /// A grant is over: its entries are not in the kernel any more.
    pub fn end(&self, number: u16) -> Option<Granting> {
        let mut pages = self.pages();
        let granting = pages.granted.remove(&number)?;
        if pages.past.len() == PAST {
            pages.past.pop_front();
        }
        pages.past.push_back(granting.clone());
        Some(granting)
    }

    /// The grant of an approval.
    pub fn of_approval(&self, id: u64) -> Option<Granting> {
        let pages = self.pages();
        pages
            .granted
            .values()
            .find(|granting| granting.granted.what.id == id)
            .cloned()
    }

    /// The grant behind a number in a record, also one that is over.
    pub fn granting(&self, number: u16, session: u32) -> Option<Granting> {
        let pages = self.pages();
        let now = pages.granted.get(&number).into_iter();
        now.chain(pages.past.iter().rev())
            .find(|it| it.number == number && it.granted.what.session == session)
            .cloned()
    }

    /// All that is granted.
    pub fn grants(&self) -> Vec<Granting> {
        self.pages().granted.values().cloned().collect()
    }

    /// A session is over, and what waits in it.
    pub fn forget_session(&self, session: u32) {
        let mut pages = self.pages();
        let of_session = |question: &&Question| question.waiting.session == session;
        let ids: Vec<u64> = pages
            .questions
            .values()
            .filter(of_session)
            .map(|question| question.waiting.id)
            .collect();
        for id in ids {
            pages.remove(id);
        }
        pages.per_session.remove(&session);
    }

    /// Takes over what an earlier daemon granted. `last_id` was the last number that it had given out by then.
    pub fn adopt(&self, last_id: u64, grants: Vec<Granting>) {
        let mut pages = self.pages();
        pages.numbers.skip_to(last_id);
        for granting in grants {
            pages.last_number = pages.last_number.max(granting.number);
            pages.granted.insert(granting.number, granting);
        }
    }

    /// The last number that may have been given out.
    pub fn last_id(&self) -> u64 {
        self.pages().numbers.last()
    }

    /// For people and programs; of one session, or of all.
    pub fn show(&self, session: Option<u32>) -> Approvals {
        let pages = self.pages();
        let of = |it: &&Waiting| session.is_none_or(|session| session == it.session);
        let waiting = pages.questions.values().map(|question| &question.waiting);
        let mut granted: Vec<Granted> = pages
            .granted
            .values()
            .map(|granting| granting.granted.clone())
            .filter(|granted| of(&&granted.what))
            .collect();
        granted.sort_by_key(|granted| granted.what.id);
        Approvals {
            waiting: waiting.filter(of).cloned().collect(),
            granted,
            dropped: pages.dropped,
            webhook: None,
        }
    }
}

impl Pages {
    fn remove(&mut self, id: u64) {
        if let Some(question) = self.questions.remove(&id) {
            let session = question.waiting.session;
            self.index.remove(&(session, question.items));
            if let Some(count) = self.per_session.get_mut(&session) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// A number that no grant has whose records may still come; `None` where as many as can be are in force.
    fn next_number(&mut self) -> Option<u16> {
        if self.granted.len() >= MAX_GRANTS / 4 {
            return None;
        }
        loop {
            self.last_number = self.last_number.wrapping_add(1).max(1);
            let number = self.last_number;
            let known = |it: &Granting| it.number == number;
            if !self.granted.contains_key(&number) && !self.past.iter().any(known) {
                return Some(number);
            }
        }
    }
}
