//! Operators' answers to what rules ask: from the book to the disk, and from there to the kernel.
//!
//! The disk has a grant before the kernel has it, and the kernel forgets it before the disk does. A grant that a start
//! finds in one of them only is over: nobody may have it back.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SessionError;
use super::engine::{Engine, lock};
use super::store;
use crate::agent::Agent;
use crate::approval::{Approvals, Book, Granted, Granting, Scope, Waiting};
use crate::audit::{Record, record::op};
use crate::disk;
use crate::event::escape::escape;
use crate::kernel::boot_time;

/// Version of the file's format.
const VERSION: u32 = 1;
const FILE: &str = "approvals.json";
const NUMBERS: &str = "approval-numbers";
/// The longest time that can be granted; a session has no end of its own.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// What outlives a daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    boot: String,
    last_id: u64,
    grants: Vec<Granting>,
}

/// The book, and where it is kept.
pub(super) struct Desk {
    book: Book,
    file: Option<PathBuf>,
}

impl Desk {
    /// Only what is pinned has grants that outlive it, and somebody who can answer: `agentguard run` without a daemon
    /// has no socket, and a number of its own would meet a daemon's act under the same one.
    pub(super) fn new(state: &Path, pinned: bool) -> Self {
        let book = if pinned {
            Book::kept_at(state.join(NUMBERS))
        } else {
            Book::closed()
        };
        Self {
            book,
            file: pinned.then(|| state.join(FILE)),
        }
    }

    /// What waits and what is granted.
    pub(super) fn book(&self) -> &Book {
        &self.book
    }

    fn save(&self, also: Option<&Granting>) -> Result<(), SessionError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let mut grants = self.book.grants();
        grants.extend(also.cloned());
        let saved = Saved {
            version: VERSION,
            boot: store::boot(),
            last_id: self.book.last_id(),
            grants,
        };
        let text = serde_json::to_vec_pretty(&saved).map_err(|error| SessionError::State {
            path: file.clone(),
            what: error.to_string(),
        })?;
        disk::make_folder(disk::folder_of(file)).map_err(|source| SessionError::Io {
            call: "make the folder of",
            path: file.clone(),
            source,
        })?;
        disk::replace(file, &text).map_err(|failed| SessionError::Io {
            call: failed.call,
            path: failed.path,
            source: failed.source,
        })
    }

    fn load(&self) -> Result<Option<Saved>, SessionError> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let text = match fs::read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|source| SessionError::Io {
                call: "read",
                path: file.clone(),
                source,
            })?,
        };
        let saved: Result<Saved, _> = serde_json::from_slice(&text);
        match saved {
            Ok(saved) if saved.version == VERSION => Ok(Some(saved)),
            Ok(saved) => {
                tracing::error!(
                    "{}: version {} is not known; every grant is over",
                    file.display(),
                    saved.version
                );
                Ok(None)
            }
            Err(error) => {
                tracing::error!("{}: {error}; every grant is over", file.display());
                Ok(None)
            }
        }
    }
}

impl Engine {
    /// What waits for an operator, and what is granted: of one agent, or of all.
    pub fn approvals(&self, name: Option<&str>) -> Result<Approvals, SessionError> {
        let session = match name {
            Some(name) => Some(lock(&self.state).registry.find(name)?.session),
            None => None,
        };
        let mut approvals = self.desk.book().show(session);
        approvals.webhook = self.webhook();
        for granted in &mut approvals.granted {
            if let Some(granting) = self.desk.book().of_approval(granted.what.id) {
                self.look_at(&granting, granted);
            }
        }
        Ok(approvals)
    }

    /// How far a grant is used.
    fn look_at(&self, granting: &Granting, granted: &mut Granted) {
        let session = granted.what.session;
        let enforcer = lock(&self.enforcer);
        for item in &granting.items {
            let number = u32::from(granting.number);
            match enforcer.approval(item.key(granting.slot, session)) {
                Ok(Some(grant)) if grant.number == number => {
                    granted.used = granted.used.max(grant.used);
                    granted.over |= grant.most != 0 && grant.used >= grant.most;
                }
                Ok(_) => granted.over = true,
                Err(error) => tracing::error!("{error}"),
            }
        }
        if granted.scope == Scope::Once {
            granted.used = granted.used.min(1);
        }
        let now = boot_time().unwrap_or(u64::MAX);
        granted.over |= granting.until != 0 && now >= granting.until;
    }

    /// Grants what waits under a number.
    pub async fn approve(&self, id: u64, scope: Scope, by: &str) -> Result<Granted, SessionError> {
        self.approve_if(id, |_| true, scope, by).await
    }

    /// Grants what waits under a number if it is what the one who answers has seen there.
    pub async fn approve_if(
        &self,
        id: u64,
        is_meant: impl Fn(&Waiting) -> bool + Send,
        scope: Scope,
        by: &str,
    ) -> Result<Granted, SessionError> {
        // Nobody ends the session meanwhile, or grants the same.
        let _alone = self.one_at_a_time.lock().await;
        let waiting = self.meant(id, is_meant)?;
        let agent = self.agent_that_asked(&waiting)?;
        self.sweep();
        let now = jiff::Timestamp::now();
        let at = now.to_string();
        let mut granting = self
            .desk
            .book()
            .prepare(id, scope, by, &at)
            .ok_or_else(|| SessionError::Approval("too many grants are in force".to_owned()))?;
        if let Scope::Seconds(seconds) = scope {
            let length = Duration::from_secs(seconds);
            if seconds == 0 || length > LONGEST {
                return Err(SessionError::Approval(
                    "a time must be between one second and a year".to_owned(),
                ));
            }
            let boot = boot_time().map_err(|source| SessionError::Io {
                call: "read the clock of",
                path: "/proc/uptime".into(),
                source,
            })?;
            granting.until = boot.saturating_add(length.as_nanos() as u64);
            granting.granted.until = (now + length).to_string().into();
        }
        self.desk.save(Some(&granting))?;
        self.put(&agent, &granting)?;
        let granted = granting.granted.clone();
        self.note_approval(&granted.what, &format!("granted {} by {by}", scope.text()));
        Ok(granted)
    }

    fn agent_that_asked(&self, waiting: &Waiting) -> Result<Agent, SessionError> {
        let state = lock(&self.state);
        let mut agents = state.registry.iter();
        let there = agents.find(|agent| agent.session == waiting.session);
        there.cloned().ok_or_else(|| {
            let name = &waiting.agent;
            SessionError::Approval(format!("the session of `{name}` that asked is over"))
        })
    }

    /// The kernel learns of a grant that the disk has.
    fn put(&self, agent: &Agent, granting: &Granting) -> Result<(), SessionError> {
        let session = agent.session;
        let replaced = self.desk.book().grant(granting.clone());
        let entered = {
            let mut enforcer = lock(&self.enforcer);
            let mut entries = granting.items.iter();
            entries.try_for_each(|item| {
                enforcer.approve(item.key(granting.slot, session), granting.value())
            })
        };
        for before in &replaced {
            self.end_grant(before);
        }
        if let Err(error) = entered {
            self.end_grant(granting);
            return Err(error.into());
        }
        Ok(())
    }

    /// Takes a grant out of the kernel, then out of the book.
    fn end_grant(&self, granting: &Granting) {
        let session = granting.granted.what.session;
        {
            let mut enforcer = lock(&self.enforcer);
            for item in &granting.items {
                let key = item.key(granting.slot, session);
                if let Err(error) = enforcer.disapprove(key, u32::from(granting.number)) {
                    tracing::error!("a grant may still be in force: {error}");
                    return;
                }
            }
        }
        self.desk.book().end(granting.number);
    }

    /// Grants whose time is over make room.
    fn sweep(&self) {
        let now = boot_time().unwrap_or(0);
        for granting in self.desk.book().grants() {
            if granting.until != 0 && now >= granting.until {
                self.end_grant(&granting);
            }
        }
    }

    /// An operator says no: it is not listed as new again in this session.
    pub async fn refuse(&self, id: u64, by: &str) -> Result<Waiting, SessionError> {
        self.refuse_if(id, |_| true, by).await
    }

    /// Says no to what waits under a number if it is what the one who answers has seen there.
    pub async fn refuse_if(
        &self,
        id: u64,
        is_meant: impl Fn(&Waiting) -> bool + Send,
        by: &str,
    ) -> Result<Waiting, SessionError> {
        let _alone = self.one_at_a_time.lock().await;
        let waiting = self.meant(id, is_meant)?;
        self.desk.book().deny(id, by);
        self.note_approval(&waiting, &format!("denied by {by}"));
        Ok(waiting)
    }

    /// An operator takes a grant back. From then on the rule asks again.
    pub async fn revoke(&self, id: u64, by: &str) -> Result<Granted, SessionError> {
        let _alone = self.one_at_a_time.lock().await;
        let granting = self.desk.book().of_approval(id).ok_or_else(|| {
            SessionError::NoApproval(format!(
                "nothing is granted under {id}; `agentguard approvals list` shows what is"
            ))
        })?;
        let mut granted = granting.granted.clone();
        self.look_at(&granting, &mut granted);
        self.end_grant(&granting);
        if self.desk.book().of_approval(id).is_some() {
            return Err(SessionError::Approval(
                "the kernel did not take it back; see the daemon's log".to_owned(),
            ));
        }
        self.desk.save(None)?;
        self.note_approval(&granted.what, &format!("taken back by {by}"));
        Ok(granted)
    }

    fn waiting(&self, id: u64) -> Result<Waiting, SessionError> {
        let book = self.desk.book();
        book.waiting(id).ok_or_else(|| {
            let what = if let Some(granting) = book.of_approval(id) {
                let deed = granting.granted.what.deed();
                format!("{id} is granted already ({deed}); `agentguard approvals list --all` shows how far")
            } else if (1..=book.last_id()).contains(&id) {
                format!("{id} does not wait any more: it was answered, its session is over, or the daemon was started again since. Nothing was changed; if the agent tries again, it has a new number in `agentguard approvals list`")
            } else {
                format!("nothing waits under {id}; `agentguard approvals list` shows what does")
            };
            SessionError::NoApproval(what)
        })
    }

    fn meant(&self, id: u64, is_meant: impl Fn(&Waiting) -> bool) -> Result<Waiting, SessionError> {
        let waiting = self.waiting(id)?;
        if is_meant(&waiting) {
            return Ok(waiting);
        }
        Err(SessionError::NoApproval(format!(
            "what waits under {id} is not what was answered: look again with `agentguard approvals list`"
        )))
    }

    fn note_approval(&self, what: &Waiting, detail: &str) {
        tracing::warn!("`{}`: {} {}: {detail}", what.agent, what.op, what.target);
        self.note(Record {
            agent: Some(what.agent.as_str().into()),
            session: Some(what.session),
            target: Some(what.target.as_str().into()),
            to: what.to.as_deref().map(Into::into),
            access: what.access.as_deref().map(Into::into),
            argv: what
                .argv
                .as_ref()
                .map(|argv| argv.iter().map(|it| it.as_str().into()).collect()),
            rule: what.rule.as_deref().map(Into::into),
            approval: Some(what.id),
            detail: Some(
                escape(format!("{}: {detail}", what.op).as_bytes())
                    .into_owned()
                    .into(),
            ),
            ..Record::new(op::APPROVAL)
        });
    }

    /// An agent is gone: its grants go too.
    pub(super) fn end_approvals(&self, agent: &Agent) {
        let mut ended = false;
        for granting in self.desk.book().grants() {
            if granting.granted.what.session == agent.session {
                self.end_grant(&granting);
                ended = true;
            }
        }
        if ended && let Err(error) = self.desk.save(None) {
            tracing::error!("{error}");
        }
    }

    /// After a start: grants of agents that are there still. What only the disk or only the kernel has is over.
    pub(super) fn restore_approvals(&self) -> Result<(), SessionError> {
        let sessions: HashSet<(u32, u32)> = lock(&self.state)
            .registry
            .iter()
            .map(|agent| (agent.slot, agent.session))
            .collect();
        let saved = self.desk.load()?;
        let (last_id, mut grants) = saved.map_or((0, Vec::new()), |saved| {
            let same = saved.boot == store::boot();
            (saved.last_id, if same { saved.grants } else { Vec::new() })
        });
        let mut enforcer = lock(&self.enforcer);
        grants.retain(|granting| {
            let session = granting.granted.what.session;
            sessions.contains(&(granting.slot, session))
                && granting.items.iter().all(|item| {
                    let there = enforcer.approval(item.key(granting.slot, session));
                    matches!(there, Ok(Some(grant)) if grant.number == u32::from(granting.number))
                })
        });
        let numbers: HashSet<(u32, u32, u32)> = grants
            .iter()
            .map(|it| (it.slot, it.granted.what.session, u32::from(it.number)))
            .collect();
        enforcer
            .keep_approvals(&|key, number| numbers.contains(&(key.agent, key.session, number)))?;
        drop(enforcer);
        self.desk.book().adopt(last_id, grants);
        if self.desk.file.as_deref().is_some_and(Path::exists) {
            self.desk.save(None)?;
        }
        Ok(())
    }
}
