//! From bytes of a ring to lines of the log: decoded, judged again, named, chained, published.
//!
//! Every record that arrives ends in exactly one line. Nothing here can fail towards silence.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use agentguard_common::record::{class, record_flags};
use agentguard_common::verdict::{Operation, Reason, Verdict};
use tokio::sync::broadcast;

use super::clock::Clock;
use super::judge::{Judge, Opinion, Review};
use super::log::{Log, LogError, Written};
use super::programs::Programs;
use super::record::{Record, op};
use super::{kernel_words, words};
use crate::approval::Waiting;
use crate::event::escape::escape;
use crate::event::{Event, Target, decode};
use crate::metrics::Counts;

/// Refusals that are kept for `why`, for each session.
const REFUSALS_KEPT: usize = 100;
/// Ended sessions whose refusals are kept: those of the latest.
pub(super) const REFUSED_KEPT: usize = 32;
/// Ended sessions whose late records still get a name.
const ENDED_KEPT: usize = 1024;
/// Lines that a subscriber may be behind.
const BACKLOG: usize = 16_384;

/// What happened in one session so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Actions that went ahead.
    pub allowed: u64,
    /// Actions that were refused.
    pub denied: u64,
    /// Actions that went ahead only because the policy runs in shadow mode.
    pub would_deny: u64,
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Totals {
    /// Records from the kernel.
    pub records: u64,
    /// Records that could not be decoded.
    pub malformed: u64,
    /// Disagreements between kernel and reference.
    pub alarms: u64,
    /// Records of allowed actions that did not fit into the kernel's ring.
    pub lost_allowed: u64,
    /// Records of denials that did not fit into the kernel's ring.
    pub lost_denied: u64,
    /// Lines that could not be made or writes that failed.
    pub log_errors: u64,
}

/// One line of the log, for those who listen.
#[derive(Debug)]
pub struct Notice {
    /// Session that it belongs to; 0 for none.
    pub session: u32,
    /// Whether it records a refusal (or, in shadow mode, what would be one).
    pub refused: bool,
    /// The line as in the log, without newline.
    pub line: Box<str>,
}

#[derive(Debug)]
struct Session {
    name: Arc<str>,
    tally: Tally,
    refusals: VecDeque<Arc<Notice>>,
}

/// Texts that each record needs.
#[derive(Debug, Default)]
struct Texts {
    time: String,
    /// A device, which is mostly that of the record before.
    device: (u32, String),
}

/// The one writer of the audit trail.
#[derive(Debug)]
pub struct Recorder {
    log: Log,
    clock: Clock,
    judge: Judge,
    programs: Programs,
    sessions: HashMap<u32, Session>,
    ended: VecDeque<u32>,
    totals: Totals,
    counts: Counts,
    losses: [u64; class::COUNT as usize],
    all: broadcast::Sender<Arc<Notice>>,
    refused: broadcast::Sender<Arc<Notice>>,
    /// Memory for the texts of a record, used again.
    texts: Texts,
    /// Those that are told, with their numbers, when they are written, and denials when they are on the disk.
    untold: VecDeque<(u64, Arc<Notice>)>,
}

impl Recorder {
    /// A recorder that writes to `log`. `losses` are the kernel's counters now.
    pub fn new(log: Log, losses: [u64; class::COUNT as usize]) -> Self {
        Self {
            log,
            clock: Clock::new(),
            judge: Judge::default(),
            programs: Programs::new(),
            sessions: HashMap::new(),
            ended: VecDeque::new(),
            totals: Totals::default(),
            counts: Counts::default(),
            losses,
            all: broadcast::Sender::new(BACKLOG),
            refused: broadcast::Sender::new(BACKLOG),
            texts: Texts::default(),
            untold: VecDeque::new(),
        }
    }

    /// The policies that records are judged by.
    pub fn judge(&mut self) -> &mut Judge {
        &mut self.judge
    }

    /// The log's file.
    pub fn log_path(&self) -> &std::path::Path {
        self.log.path()
    }

    /// Listens to all lines from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Notice>> {
        self.all.subscribe()
    }

    /// Listens to refusals only.
    pub fn subscribe_refusals(&self) -> broadcast::Receiver<Arc<Notice>> {
        self.refused.subscribe()
    }

    /// A session begins: its records get this name.
    pub fn begin_session(&mut self, session: u32, name: &str) {
        let name: Arc<str> = Arc::from(escape(name.as_bytes()).as_ref());
        self.counts.begin(&name);
        self.sessions.insert(
            session,
            Session {
                name,
                tally: Tally::default(),
                refusals: VecDeque::new(),
            },
        );
    }

    /// A session ended. Late records still get its name, for a while.
    pub fn end_session(&mut self, session: u32) {
        self.judge.approvals().forget_session(session);
        if let Some(Session { name, .. }) = self.sessions.get(&session) {
            self.counts.end(name);
        }
        self.ended.push_back(session);
        let forgotten = self.ended.len().checked_sub(REFUSED_KEPT + 1);
        if let Some(session) = forgotten.and_then(|at| self.ended.get(at))
            && let Some(session) = self.sessions.get_mut(session)
        {
            session.refusals = VecDeque::new();
        }
        if self.ended.len() > ENDED_KEPT
            && let Some(oldest) = self.ended.pop_front()
        {
            self.sessions.remove(&oldest);
        }
    }

    /// Which program an exec id means, where no record of this life says it.
    pub fn name_program(&mut self, exec_id: u64, path: &str) {
        self.programs.started(exec_id, 0, path.as_bytes());
    }

    /// The last session of an agent, also one that has ended.
    pub fn last_session(&self, name: &str) -> Option<u32> {
        let of_name = self
            .sessions
            .iter()
            .filter(|(_, session)| &*session.name == name);
        of_name.map(|(number, _)| *number).max()
    }

    /// What happened in a session so far.
    pub fn tally(&self, session: u32) -> Tally {
        self.sessions
            .get(&session)
            .map(|s| s.tally)
            .unwrap_or_default()
    }

    /// The number that the next line gets.
    pub fn next_seq(&self) -> u64 {
        self.log.next_seq()
    }

    /// What the log has of a batch whose writer died: see [`Log::written_of`].
    pub fn written_of(&self, first: u64, end: u64) -> Result<Written, LogError> {
        self.log.written_of(first, end)
    }

    /// Takes notice of a record whose line is in the log already.
    pub fn replay(&mut self, bytes: &[u8]) {
        self.totals.records += 1;
        if let Ok(event) = decode(bytes) {
            self.learn(&event);
            self.count(&event);
        }
    }

    /// The losses that have their gap records: those from before the start, where the log knows of them.
    pub fn account(&mut self, losses: [u64; class::COUNT as usize]) {
        self.losses = losses;
    }

    /// The losses that have their gap records.
    pub fn accounted(&self) -> [u64; class::COUNT as usize] {
        self.losses
    }

    /// Whether lines wait to be written.
    pub fn has_waiting(&self) -> bool {
        self.log.has_waiting()
    }

    /// The last refusals of a session, oldest first.
    pub fn refusals(&self, session: u32) -> Vec<Arc<Notice>> {
        self.sessions
            .get(&session)
            .map(|s| s.refusals.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// What happened since the start.
    pub fn totals(&self) -> Totals {
        Totals {
            log_errors: self.totals.log_errors + self.log.failures(),
            ..self.totals
        }
    }

    /// What happened since the start, by agent.
    pub fn counts(&mut self) -> &mut Counts {
        &mut self.counts
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Records the bytes of one ring record.
    pub fn record(&mut self, bytes: &[u8]) {
        self.totals.records += 1;
        match decode(bytes) {
            Ok(event) => self.event(&event),
            Err(malformed) => {
                self.totals.malformed += 1;
                let shown = &bytes[..bytes.len().min(512)];
                let detail = format!("{malformed}: {}", escape(shown));
                tracing::error!("the kernel sent a malformed record: {malformed}");
                self.note(Record {
                    detail: Some(detail.into()),
                    ..Record::new(op::MALFORMED)
                });
            }
        }
    }

    /// Compares the kernel's loss counters with the last; each difference becomes a gap record.
    pub fn losses(&mut self, now: [u64; class::COUNT as usize]) {
        for (index, name) in [(class::ALLOWED, "allowed"), (class::DENIED, "denied")] {
            let index = index as usize;
            let lost = now[index].wrapping_sub(self.losses[index]);
            self.losses[index] = now[index];
            if lost == 0 {
                continue;
            }
            if name == "denied" {
                self.totals.lost_denied += lost;
            } else {
                self.totals.lost_allowed += lost;
            }
            tracing::warn!("{lost} audit records of the class `{name}` were lost in the kernel");
            self.note(Record {
                class: Some(name.into()),
                lost: Some(lost),
                ..Record::new(op::GAP)
            });
        }
    }

    /// Records something of our own; the time is now.
    pub fn note(&mut self, mut record: Record<'_>) {
        let time = self.clock.now().to_owned();
        record.time = Cow::Owned(time);
        self.counts.own(&record);
        let session = record.session.unwrap_or(0);
        self.write(&mut record, session, false);
    }

    /// Records what user space decided; the time is now.
    pub fn decided(&mut self, mut record: Record<'_>) {
        record.time = Cow::Owned(self.clock.now().to_owned());
        self.counts.own(&record);
        let session = record.session.unwrap_or(0);
        let verdict = record.verdict.as_deref();
        let refused = matches!(verdict, Some("deny" | "would-deny"));
        if let Some(session) = self.sessions.get_mut(&session) {
            match verdict {
                Some("deny") => session.tally.denied += 1,
                Some("would-deny") => session.tally.would_deny += 1,
                _ => session.tally.allowed += 1,
            }
        }
        self.write(&mut record, session, refused);
    }

    /// Hands the lines over to be written, and waits for nobody; whether they are where our death does not matter. An
    /// error is counted and told; the lines wait.
    pub fn flush(&mut self) -> bool {
        self.clock.refresh();
        let outcome = self.log.hand_over();
        self.tell();
        self.went_well(outcome)
    }

    /// Signs and hands the lines over, to be on the disk.
    pub fn sync(&mut self) {
        let outcome = self.log.order_sync();
        self.went_well(outcome.map(|()| true));
    }

    /// Checkpoints and closing segments: what is due. Not while a batch is open.
    pub fn tend(&mut self) {
        let outcome = self.log.tend();
        self.went_well(outcome.map(|()| true));
    }

    fn went_well(&mut self, outcome: Result<bool, LogError>) -> bool {
        outcome.unwrap_or_else(|error| {
            self.totals.log_errors += 1;
            tracing::error!("{error}; audit records wait in memory");
            false
        })
    }

    /// Waits until what was handed over is written and on the disk, as far as it has to be, and tells it. Not where
    /// others need the recorder meanwhile: see [`Log::waiter`].
    pub fn settle(&mut self) -> bool {
        let outcome = self.log.flush();
        self.tell();
        self.went_well(outcome.map(|()| true))
    }

    /// Whether everything up to a record was told.
    pub fn has_told(&self, seq: u64) -> bool {
        self.log.reached().0 >= seq && self.untold.front().is_none_or(|(next, _)| *next > seq)
    }

    /// Hands what is in the log to those who listen, denials when they are on the disk.
    pub fn tell(&mut self) {
        if self.untold.is_empty() {
            return;
        }
        let (written, durable) = self.log.reached();
        let holds = self.log.holds_denials();
        while let Some((seq, notice)) = self.untold.front() {
            let reached = if notice.refused && holds {
                durable
            } else {
                written
            };
            if *seq > reached {
                return;
            }
            let Some((_, notice)) = self.untold.pop_front() else {
                return;
            };
            // Sending fails where nobody listens: fine.
            if self.all.receiver_count() > 0 {
                let _ = self.all.send(notice.clone());
            }
            if !notice.refused {
                continue;
            }
            let _ = self.refused.send(notice.clone());
            if let Some(session) = self.sessions.get_mut(&notice.session) {
                if session.refusals.len() == REFUSALS_KEPT {
                    session.refusals.pop_front();
                }
                session.refusals.push_back(notice);
            }
        }
    }

    fn event(&mut self, event: &Event<'_>) {
        let exe = self.programs.name(event.exec_id, event.pid);
        self.learn(event);
        let review = self.judge.review(event);
        let (opinion, alarm) = match review {
            Review::Agrees(opinion) => (Some(opinion), None),
            Review::NotJudged => (self.judge.of_denial(event), None),
            Review::Disagrees(what) => (None, Some(what)),
        };
        let name = self.count(event);
        let rule = opinion.as_ref().and_then(|it| it.rule.as_ref());
        self.counts
            .event(name.as_deref(), event, rule.map(|rule| rule.id.as_str()));
        let policy = self.judge.policy(event.generation).cloned();
        let mut texts = std::mem::take(&mut self.texts);
        texts.time.clear();
        texts.time.push_str(self.clock.at_boot_time(event.time));
        let mut record = lay_out(event, opinion.as_ref());
        record.time = Cow::Borrowed(&texts.time);
        if event.inode != 0 {
            if texts.device.0 != event.device || texts.device.1.is_empty() {
                texts.device = (event.device, words::device_text(event.device));
            }
            record.device = Some(Cow::Borrowed(&texts.device.1));
        }
        if let Some(since) = event.since() {
            record.repeats = Some(event.acts());
            record.since = Some(Cow::Owned(self.clock.at_boot_time(since).to_owned()));
        }
        record.agent = name.as_deref().map(Cow::Borrowed);
        record.exe = exe.as_deref().map(Cow::Borrowed);
        record.policy = policy
            .as_deref()
            .map(|policy| escape(policy.name().as_bytes()));
        if event.verdict == Verdict::Ask {
            record.approval = wait_for(&self.judge, event, &record);
        }
        let refused = matches!(
            event.verdict,
            Verdict::Deny | Verdict::Ask | Verdict::WouldDeny
        );
        self.write(&mut record, event.session, refused);
        let seq = record.seq;
        drop(record);
        self.texts = texts;
        if let Some(what) = alarm {
            self.alarm(event, seq, &what);
        }
    }

    /// Which program acts from now on.
    fn learn(&mut self, event: &Event<'_>) {
        match (event.operation, event.path()) {
            (Operation::Exec, Some(path)) if event.new_exec_id != 0 => {
                self.programs.started(event.new_exec_id, event.pid, path);
            }
            (Operation::Exit, _) => self.programs.ended(event.pid),
            _ => {}
        }
    }

    /// Counts an event in its session, and gives the name of that.
    fn count(&mut self, event: &Event<'_>) -> Option<Arc<str>> {
        let session = self.sessions.get_mut(&event.session)?;
        match event.verdict {
            Verdict::Deny | Verdict::Ask => session.tally.denied += event.acts(),
            Verdict::WouldDeny => session.tally.would_deny += event.acts(),
            Verdict::Allow if is_action(event.operation) => session.tally.allowed += event.acts(),
            _ => {}
        }
        Some(session.name.clone())
    }

    /// Kernel and reference disagree: never expected, never silent.
    fn alarm(&mut self, event: &Event<'_>, seq: u64, what: &str) {
        self.totals.alarms += 1;
        let target = target_text(event);
        tracing::error!(
            operation = event.operation.name(),
            target = target.as_deref().unwrap_or_default(),
            "ALARM: {what} (record {seq}); please report this"
        );
        let mut record = lay_out(event, None);
        record.device = (event.inode != 0).then(|| words::device_text(event.device).into());
        record.op = Cow::Borrowed(op::ALARM);
        record.detail = Some(format!("record {seq} ({}): {what}", event.operation.name()).into());
        self.note(record);
    }

    /// Seals a record, and keeps the line for those who listen.
    fn write(&mut self, record: &mut Record<'_>, session: u32, refused: bool) {
        let line = match self.log.append(record) {
            Ok(line) => line,
            Err(error) => {
                self.totals.log_errors += 1;
                tracing::error!("{error}");
                return;
            }
        };
        let heard = self.all.receiver_count() > 0;
        // What became part of a gap has no line.
        if line.is_empty() || !(heard || refused) {
            return;
        }
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let notice = Notice {
            session,
            refused,
            line: String::from_utf8_lossy(line).into(),
        };
        self.untold.push_back((record.seq, Arc::new(notice)));
    }
}

/// Lets an act that a rule asks about wait for an operator; the number that it waits under.
fn wait_for(judge: &Judge, event: &Event<'_>, record: &Record<'_>) -> Option<u64> {
    let items = judge.items(event)?;
    let text = |text: &Option<Cow<'_, str>>| text.as_deref().map(str::to_owned);
    let argv = record.argv.as_ref();
    let waiting = Waiting {
        id: 0,
        agent: text(&record.agent)?,
        session: event.session,
        op: record.op.clone().into_owned(),
        target: text(&record.target)?,
        to: text(&record.to),
        access: text(&record.access),
        argv: argv.map(|argv| argv.iter().map(|it| it.clone().into_owned()).collect()),
        exe: text(&record.exe),
        pid: event.pid,
        uid: event.uid,
        rule: text(&record.rule),
        reason: text(&record.reason),
        first: record.time.clone().into_owned(),
        last: record.time.clone().into_owned(),
        tries: 1,
        denied_by: None,
    };
    judge.approvals().ask(event.agent, items, waiting)
}

/// Whether an operation is decided on, and not only recorded.
pub(crate) fn is_action(operation: Operation) -> bool {
    !matches!(
        operation,
        Operation::Fork | Operation::Exit | Operation::Attach
    )
}

/// Whether the kernel refused before it looked at what was asked for: then the record says nothing of that.
fn is_unseen(event: &Event<'_>) -> bool {
    match (event.operation, event.reason) {
        (Operation::Kernel, _) => false,
        (_, Reason::LabelUnavailable) => true,
        (Operation::Socket, _) => false,
        (_, Reason::NoPolicy | Reason::ScratchUnavailable) => {
            matches!(event.target, Target::Unnamed)
        }
        _ => false,
    }
}

/// What was acted on, escaped.
fn target_text<'a>(event: &Event<'a>) -> Option<Cow<'a, str>> {
    if event.operation == Operation::Kernel {
        return Some(kernel_words::target_text(event));
    }
    if event.operation == Operation::Socket && !is_unseen(event) {
        return Some(words::socket_text(event.aux, event.new_exec_id).into());
    }
    Some(match event.target {
        Target::Unnamed => return None,
        Target::Path(path) => escape(path),
        Target::Socket(destination) => {
            let mut text = String::with_capacity(48);
            if matches!(destination.family, 0 | 2 | 10) {
                words::destination_text(&mut text, &destination);
            } else {
                text.push_str(words::family_name(destination.family).unwrap_or("socket"));
                text.push(':');
            }
            text.into()
        }
        Target::Unix(_, name) => {
            let mut text = String::with_capacity(5 + name.len());
            words::unix_text(&mut text, name);
            text.into()
        }
    })
}

/// The record of an event, without time, device and names.
fn lay_out<'a>(event: &Event<'a>, opinion: Option<&'a Opinion>) -> Record<'a> {
    let action = is_action(event.operation);
    let decided = action || event.is_denied();
    let rule = opinion.and_then(|opinion| opinion.rule.as_deref());
    let mut record = Record {
        session: Some(event.session),
        pid: Some(event.pid),
        ppid: Some(event.ppid),
        uid: Some(event.uid),
        op: Cow::Borrowed(event.operation.name()),
        target: target_text(event),
        to: event.second_path().map(escape),
        access: words::access_name(event.access).map(Cow::Borrowed),
        verdict: decided.then(|| Cow::Borrowed(event.verdict.name())),
        rule: rule.map(|rule| Cow::Borrowed(rule.id.as_str())),
        reason: rule
            .and_then(|rule| rule.reason.as_deref())
            .or_else(|| words::reason_text(event))
            .map(Cow::Borrowed),
        cause: decided.then(|| Cow::Borrowed(event.reason.name())),
        rule_at: rule.map(|rule| Cow::Borrowed(rule.place.as_str())),
        generation: (event.generation != 0).then_some(event.generation),
        exec_id: Some(event.exec_id),
        tid: (event.tid != event.pid).then_some(event.tid),
        euid: (event.euid != event.uid).then_some(event.euid),
        // That of a budget is the number of a meter, that of an approval of a grant.
        errno: (event.errno != 0 && !matches!(event.reason, Reason::Budget | Reason::Approved))
            .then_some(event.errno),
        approval: opinion.and_then(|opinion| opinion.approval),
        ..Record::default()
    };
    let flags = event.flags & !record_flags::REPEATED;
    if flags != 0 {
        record.flags = Some(words::flag_names(flags).map(Cow::Borrowed).collect());
    }
    if event.inode != 0 {
        record.inode = Some(event.inode);
    }
    match event.target {
        Target::Socket(destination) | Target::Unix(destination, _) => {
            record.family = Some(name_or_number(words::family_name, destination.family));
            record.protocol = Some(name_or_number(words::protocol_name, destination.protocol));
            record.port = (destination.port != 0).then_some(destination.port);
            record.name = opinion
                .and_then(|opinion| opinion.name.as_deref())
                .map(|name| escape(name.as_bytes()));
        }
        Target::Unnamed | Target::Path(_) => {}
    }
    if is_unseen(event) {
        return record;
    }
    match event.operation {
        Operation::Exec => {
            record.new_exec_id = (event.new_exec_id != 0).then_some(event.new_exec_id);
            record.argv = (!event.arguments.is_empty()).then(|| event.argv().map(escape).collect());
            record.argc = (!event.argv_is_complete() && event.aux != 0).then_some(event.aux);
        }
        Operation::Open => record.open_flags = Some(event.aux),
        Operation::Fork => record.child = (event.aux != 0).then_some(event.aux),
        Operation::Exit => record.status = Some(event.aux),
        Operation::Receive => {
            record.open_flags = event.path().is_some().then_some(event.aux);
        }
        Operation::Mkdir | Operation::Create | Operation::Mknod | Operation::Chmod => {
            record.mode = Some(format!("{:o}", event.aux).into());
        }
        Operation::Socket => {
            let (family, protocol) = (event.aux as u16, event.new_exec_id as u16);
            record.family = Some(name_or_number(words::family_name, family));
            record.protocol = Some(name_or_number(words::protocol_name, protocol));
        }
        Operation::Connect
        | Operation::Send
        | Operation::Listen
        | Operation::Attach
        | Operation::Rename
        | Operation::Link
        | Operation::Unlink
        | Operation::Rmdir
        | Operation::Symlink
        | Operation::Truncate
        | Operation::Chown
        | Operation::Attribute
        | Operation::Map
        | Operation::Kernel => {}
    }
    record
}

fn name_or_number(name: fn(u16) -> Option<&'static str>, number: u16) -> Cow<'static, str> {
    name(number).map_or_else(|| number.to_string().into(), Cow::Borrowed)
}
