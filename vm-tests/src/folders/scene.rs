//! Governed processes that open files as they are told to, and what must come of it: for each act its errno, and a record
//! with the name that the file has at that moment.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::ground::{ROOT, forget, place};
use crate::dialogue::Dialogue;
use crate::guard::{Agent, write_policy};
use crate::trail::{Trail, Wanted};

/// How long records may take to be in the log.
const SOON: Duration = Duration::from_mins(1);

/// What one record must say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    op: String,
    target: String,
    verdict: String,
}

/// A governed process, and what its records must say, in their order.
struct Opener {
    dialogue: Dialogue,
    said: Vec<Said>,
    /// A part of paths that is denied to it.
    denied: &'static str,
}

/// How a file is reached.
pub struct Way<'a> {
    /// By which process.
    who: usize,
    /// From which folder that it holds, or from its working directory.
    at: &'a str,
    path: &'a str,
    /// Under which name it is then judged.
    target: &'a str,
    /// Whether it is outside of the process's root, where only opens have names.
    pub outside: bool,
}

/// The way of this process, from this folder that it holds (or from its working directory), by this path, to this name.
pub const fn way<'a>(who: usize, at: &'a str, path: &'a str, target: &'a str) -> Way<'a> {
    Way {
        who,
        at,
        path,
        target,
        outside: false,
    }
}

impl Way<'_> {
    /// From where the process's root is not on the way up.
    pub const fn outside(self) -> Self {
        Self {
            outside: true,
            ..self
        }
    }
}

/// The processes, and the log from where they begin.
pub struct Scene {
    trail: Trail,
    openers: Vec<Opener>,
    /// One open may be several: of a file, and of that in its layer, which has another name or none.
    pub layered: bool,
}

impl Scene {
    /// No process yet.
    pub fn at(trail: Trail) -> Self {
        Self {
            trail,
            openers: Vec::new(),
            layered: false,
        }
    }

    /// A process of the agent; its number.
    pub fn opener(&mut self, agent: &Agent) -> Result<usize> {
        let mut dialogue = Dialogue::start(Command::new(std::env::current_exe()?).arg("opener"))?;
        ensure!(dialogue.hear()? == "ready", "the opener did not start");
        agent.group.take(dialogue.pid())?;
        self.openers.push(Opener {
            dialogue,
            said: Vec::new(),
            denied: "/denied/",
        });
        Ok(self.openers.len() - 1)
    }

    fn ask(&mut self, who: usize, words: &[&str]) -> Result<String> {
        let dialogue = &mut self.openers[who].dialogue;
        dialogue.say(&serde_json::to_string(words)?)?;
        dialogue.hear()
    }

    /// Has a process do what must succeed, and has no record that matters.
    pub fn tell(&mut self, who: usize, words: &[&str]) -> Result<()> {
        let answer = self.ask(who, words)?;
        ensure!(answer == "0", "{words:?} gave errno {answer}");
        Ok(())
    }

    /// The first process, whose working directory is a folder, which it also holds.
    pub fn start(&mut self, agent: &Agent, folder: &str) -> Result<()> {
        let who = self.opener(agent)?;
        self.tell(who, &["hold", "it", &place(folder)])?;
        self.tell(who, &["go", &place(folder)])
    }

    /// The first process opens a file and holds it.
    pub fn keep(&mut self, name: &str, path: &str) -> Result<()> {
        self.judged(0, "open", &["keep", name, path], path)
            .map(drop)
    }

    /// The first process maps a file that it holds, as code. Where that is permitted there is no record.
    pub fn maps(&mut self, name: &str, target: &str) -> Result<()> {
        let (answer, said) = self.expected(0, "map", target);
        for _ in 0..3 {
            let given = self.ask(0, &["map", name])?;
            ensure!(
                given == answer,
                "mapping {name}, which is {target}, gave errno {given}"
            );
            if answer != "0" {
                self.openers[0].said.push(said.clone());
            }
        }
        Ok(())
    }

    /// From now on another part of paths is denied to a process.
    pub fn denies(&mut self, who: usize, part: &'static str) {
        self.openers[who].denied = part;
    }

    /// A file in the folder of [`Self::start`], as what is held, in the working directory, and by its name.
    pub fn in_folder(&mut self, folder: &str) -> Result<()> {
        let target = place(folder) + "/f";
        self.are(&[
            way(0, "it", "f", &target),
            way(0, "", "f", &target),
            way(0, "", &target, &target),
        ])
    }

    /// Every way leads to a file of this name: now, again when they are remembered, each instead of the others, and
    /// when all of them are forgotten.
    pub fn are(&mut self, ways: &[Way<'_>]) -> Result<()> {
        for _ in 0..2 {
            for way in ways {
                self.is(way)?;
            }
        }
        forget()?;
        for way in ways {
            self.is(way)?;
        }
        Ok(())
    }

    /// One way, as often as it takes to remember the folder.
    pub fn is(&mut self, way: &Way<'_>) -> Result<()> {
        let Way {
            who,
            at,
            path,
            target,
            outside,
        } = *way;
        self.opens(way, 2)?;
        // Other files in the folder, and other calls. What was opened before has none.
        if outside {
            self.refused(who, "chmod", &["chmod", at, path])?;
            self.refused(who, "mkdir", &["mkdir", at, &sibling(path)])?;
        } else if !path.starts_with('=') {
            self.judged(who, "chmod", &["chmod", at, path], target)?;
            let (beside, target) = (sibling(path), sibling(target));
            if self.judged(who, "mkdir", &["mkdir", at, &beside], &target)? {
                self.judged(who, "rmdir", &["rmdir", at, &beside], &target)?;
            }
        }
        self.opens(way, 4)
    }

    /// One way, and nothing but opens.
    pub fn opens(&mut self, way: &Way<'_>, times: usize) -> Result<()> {
        let Way {
            who,
            at,
            path,
            target,
            ..
        } = *way;
        let (answer, said) = self.expected(who, "open", target);
        let answers = self.ask(who, &["open", at, path, &times.to_string()])?;
        ensure!(
            answers == vec![answer; times].join(" "),
            "opening {path} from `{at}`, which is {target}, gave {answers}"
        );
        self.openers[who].said.extend(vec![said; times]);
        Ok(())
    }

    /// Whether it is permitted, as it must be.
    pub fn judged(&mut self, who: usize, op: &str, words: &[&str], target: &str) -> Result<bool> {
        let (answer, said) = self.expected(who, op, target);
        let given = self.ask(who, words)?;
        ensure!(
            given == answer,
            "{words:?}, which is {target}, gave errno {given}"
        );
        self.openers[who].said.push(said);
        Ok(answer == "0")
    }

    /// What has no name is denied.
    fn refused(&mut self, who: usize, op: &str, words: &[&str]) -> Result<()> {
        let given = self.ask(who, words)?;
        ensure!(given == "1", "{words:?}, of no name, gave errno {given}");
        self.openers[who].said.push(Said {
            op: op.to_owned(),
            target: String::new(),
            verdict: "deny".to_owned(),
        });
        Ok(())
    }

    fn expected(&self, who: usize, op: &str, target: &str) -> (&'static str, Said) {
        let denied = target.contains(self.openers[who].denied);
        let said = Said {
            op: op.to_owned(),
            target: target.to_owned(),
            verdict: if denied { "deny" } else { "allow" }.to_owned(),
        };
        // `EPERM`.
        (if denied { "1" } else { "0" }, said)
    }

    /// The records of each process are those of what it did, one for one. What is denied comes by another way than what is
    /// allowed, and each in its order.
    pub fn is_recorded(&mut self) -> Result<()> {
        for who in 0..self.openers.len() {
            let pid = self.openers[who].dialogue.pid();
            let expected = self.parts(&self.openers[who].said);
            let count = |parts: &[Vec<Said>; 2]| parts[0].len() + parts[1].len();
            let started = Instant::now();
            let records = loop {
                let records = self.said_by(pid)?;
                let records = self.parts(&records);
                if count(&records) >= count(&expected) || started.elapsed() > SOON {
                    break records;
                }
                thread::sleep(Duration::from_millis(5));
            };
            ensure!(count(&records) > 0, "nothing is recorded of {pid}");
            for (expected, records) in expected.iter().zip(&records) {
                same(expected, records)?;
            }
        }
        Ok(())
    }

    /// What was allowed and what was denied. What is said several times in a row counts once where one open may be several.
    fn parts(&self, said: &[Said]) -> [Vec<Said>; 2] {
        ["allow", "deny"].map(|verdict| {
            let part = said.iter().filter(|said| said.verdict == verdict);
            let mut part: Vec<Said> = part.cloned().collect();
            if self.layered {
                part.dedup();
            }
            part
        })
    }

    /// What the records of a process say of files.
    fn said_by(&mut self, pid: u32) -> Result<Vec<Said>> {
        let records = self.trail.since(0)?.iter().filter(|record| {
            let op = record["op"].as_str().unwrap_or_default();
            record["pid"].as_u64() == Some(pid.into())
                && ["open", "chmod", "mkdir", "rmdir", "map"].contains(&op)
        });
        let text = |record: &Value, key: &str| record[key].as_str().unwrap_or_default().to_owned();
        Ok(records
            .map(|record| Said {
                op: text(record, "op"),
                target: text(record, "target"),
                verdict: text(record, "verdict"),
            })
            .filter(|said| !self.layered || said.target.starts_with(ROOT))
            .collect())
    }

    /// Waits until a policy is in force.
    pub fn installs(&mut self, name: &str, policy: &str) -> Result<()> {
        let mark = self.trail.mark()?;
        write_policy(name, policy)?;
        let installed = Wanted {
            agent: Some(name.into()),
            op: Some("policy-install".into()),
            ..Wanted::default()
        };
        self.trail.wait(mark, &installed).map(drop)
    }
}

/// Equal, or equal up to a final `*`.
fn fits(expected: &str, target: &str) -> bool {
    expected
        .strip_suffix('*')
        .map_or(expected == target, |start| target.starts_with(start))
}

/// The same with another last name.
fn sibling(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/beside"),
        None => "beside".to_owned(),
    }
}

/// Each record says what it must.
fn same(expected: &[Said], records: &[Said]) -> Result<()> {
    for (at, (expected, said)) in expected.iter().zip(records).enumerate() {
        ensure!(
            said.op == expected.op && fits(&expected.target, &said.target),
            "act {at} was {expected:?} and is recorded as {said:?}; before and after it: {:?}",
            &records[at.saturating_sub(8)..records.len().min(at + 8)]
        );
    }
    ensure!(
        records.len() == expected.len(),
        "{} acts have {} records",
        expected.len(),
        records.len()
    );
    Ok(())
}
