//! Bytes of a ring buffer to a line of the log: each record becomes exactly one line (and an alarm, where
//! the reference disagrees), in one piece, sealed, from which the name is restored.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use agentguard::audit::chain::{self, GENESIS, Hash};
use agentguard::audit::record::op;
use agentguard::audit::{Log, Notice, Record, Recorder};
use agentguard::event::escape::unescape;
use agentguard::event::{Event, Target, decode};
use agentguard::policy::{LoadOptions, load_text};
use agentguard_common::record::RecordHeader;
use agentguard_common::verdict::Operation;

use tokio::sync::broadcast::Receiver;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::escape::{printable, restored};

/// Generation of the policy that records may name.
pub const GENERATION: u32 = 1;
/// Session that has a name.
pub const SESSION: u32 = 1;
/// Records until the log is begun anew.
const RECORDS: u32 = 500;

const POLICY: &str = "\
version: 1
files:
  read: {default: allow, deny: [{id: env, path: \"**/.env\", reason: secrets}, \"/secret/**\"]}
  write: {allow: [\"/work/**\"]}
exec: {default: allow, deny: [{id: force, command: \"git ** push ** --force **\"}]}
network: {allow: [\"10.0.0.0/8:80/tcp\"]}
";

struct Stage {
    recorder: Recorder,
    lines: Receiver<Arc<Notice>>,
    before: Hash,
    records: u32,
    _folder: tempfile::TempDir,
}

thread_local! {
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

fn stage() -> Stage {
    let folder = tempfile::tempdir().expect("a folder");
    let log = Log::open(&folder.path().join("audit.jsonl")).expect("a log");
    let mut recorder = Recorder::new(log, Default::default());
    let policy =
        load_text(Path::new("fuzz.yaml"), POLICY, &LoadOptions::default()).expect("a policy");
    recorder
        .judge()
        .add(GENERATION, Arc::new(policy), &[GENERATION]);
    recorder.begin_session(SESSION, "agent");
    Stage {
        lines: recorder.subscribe(),
        recorder,
        before: GENESIS,
        records: 0,
        _folder: folder,
    }
}

/// The bytes as one record, and once more with lengths that fit: the fuzzer need not guess them.
pub fn run(data: &[u8]) {
    one(data);
    if let Ok((mut header, tail)) = RecordHeader::read_from_prefix(data) {
        header.target_len = header.target_len.min(tail.len() as u32);
        header.args_len = tail.len() as u32 - header.target_len;
        header.len = data.len() as u32;
        one(&[header.as_bytes(), tail].concat());
    }
}

fn one(data: &[u8]) {
    STAGE.with_borrow_mut(|kept| {
        let stage = kept.get_or_insert_with(stage);
        stage.records += 1;
        let alarms = stage.recorder.totals().alarms;
        stage.recorder.record(data);
        // Lines are told when the file has them, and denials when the disk has.
        assert!(stage.recorder.flush(), "there is no room for lines");
        assert!(stage.recorder.settle(), "the log was not written");
        let event = decode(data).ok();
        let first = stage.line();
        match &event {
            Some(event) => held(event, &first),
            None => assert_eq!(first.op, op::MALFORMED),
        }
        if stage.recorder.totals().alarms > alarms {
            assert_eq!(stage.line().op, op::ALARM);
        }
        assert!(stage.lines.try_recv().is_err(), "one line too many");
        if stage.records > RECORDS {
            *kept = None;
        }
    });
}

impl Stage {
    /// The next line, which must be one and follow the one before.
    fn line(&mut self) -> Record<'static> {
        let notice = self.lines.try_recv().expect("a line for each record");
        let line = &*notice.line;
        printable(line);
        self.before = chain::verify(line.as_bytes(), &self.before).expect("a sealed line");
        serde_json::from_str(line).expect("a record")
    }
}

/// The line says what the event was.
fn held(event: &Event<'_>, record: &Record<'_>) {
    assert_eq!(record.pid, Some(event.pid));
    if let Target::Path(path) = event.target
        && event.operation != Operation::Kernel
    {
        let target = record.target.as_deref().expect("a target");
        assert_eq!(unescape(target).as_deref(), Ok(path));
    }
    if let Some(second) = event.second_path() {
        let to = record.to.as_deref().expect("a second path");
        assert_eq!(unescape(to).as_deref(), Ok(second));
    }
    let count = event.argv().count();
    assert!(!event.argv_is_complete() || count == event.aux as usize);
    for argument in event.argv() {
        restored(argument);
    }
}
