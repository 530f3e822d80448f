//! The index changes nothing but the time: what is found with it is what a plain reading of all lines finds.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;

use super::find::{Filter, Search, Sieve};
use super::index::Index;
use super::segment;
use super::{Log, Record};

/// A sequence of numbers that looks random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides.max(1)
    }
}

const AGENTS: [&str; 4] = ["claude", "codex", "demo", "a\\x0ab"];
const RULES: [&str; 3] = ["ssh-keys", "no-force", "secrets"];
const PROGRAMS: [&str; 4] = [
    "/usr/bin/git",
    "/usr/bin/cat",
    "/opt/git",
    "/usr/lib/git core",
];

fn target(dice: &mut Dice) -> String {
    match dice.roll(20) {
        0 => "/home/agent/.ssh/id_rsa".to_owned(),
        1 => format!("/etc/rare-{}", dice.roll(300)),
        _ => format!("/work/dir{}/file{}.c", dice.roll(9), dice.roll(400)),
    }
}

fn make(path: &Path) {
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let mut log = Log::open(path).unwrap();
    for number in 0..9_000_u64 {
        let second = number / 5;
        let time = format!(
            "2026-11-23T{:02}:{:02}:{:02}.{:09}Z",
            second / 3600,
            second / 60 % 60,
            second % 60,
            number % 5
        );
        // Some sessions are short, so that there are frames without them.
        let session = (number / 700) as u32;
        let fork = dice.roll(15) == 0;
        let deny = !fork && dice.roll(30) == 0;
        let mut record = Record {
            time: Cow::Owned(time),
            agent: Some(Cow::Borrowed(AGENTS[(session % 4) as usize])),
            session: Some(session),
            pid: Some(100 + dice.roll(60) as u32 + session * 20),
            exe: Some(Cow::Borrowed(PROGRAMS[dice.roll(4) as usize])),
            target: (!fork).then(|| Cow::Owned(target(&mut dice))),
            verdict: (!fork).then_some(Cow::Borrowed(if deny { "deny" } else { "allow" })),
            rule: deny.then(|| Cow::Borrowed(RULES[(session % 3) as usize])),
            child: fork.then(|| 100 + dice.roll(60) as u32 + session * 20),
            ..Record::new(if fork { "fork" } else { "open" })
        };
        log.append(&mut record).unwrap();
        if number % 2_500 == 2_499 {
            log.flush().unwrap();
            log.turn_for_test(number < 7_000);
        }
    }
    log.flush().unwrap();
}

fn one<T>(dice: &mut Dice, chance: u64, value: impl FnOnce(&mut Dice) -> T) -> Option<T> {
    (dice.roll(chance) == 0).then(|| value(dice))
}

fn filter(dice: &mut Dice) -> Filter {
    let word =
        |list: &[&str], dice: &mut Dice| list[dice.roll(list.len() as u64) as usize].to_owned();
    let globs = [
        "/home/**",
        "**/.ssh/*",
        "/etc/rare-7",
        "/etc/rare-{1,2}",
        "/work/dir3/*",
        "/work/*",
        "/work/d?r1/**",
        "**",
    ];
    let time = |dice: &mut Dice| {
        let second = dice.roll(1_900);
        format!("2026-11-23T00:{:02}:{:02}Z", second / 60, second % 60)
            .parse()
            .unwrap()
    };
    Filter {
        agent: one(dice, 4, |dice| word(&AGENTS, dice)),
        session: one(dice, 5, |dice| dice.roll(14) as u32),
        since: one(dice, 5, time),
        until: one(dice, 5, time),
        verdicts: one(dice, 3, |dice| {
            vec![word(&["deny", "allow", "ask"], dice), "ask".to_owned()]
        })
        .unwrap_or_default(),
        ops: one(dice, 6, |dice| vec![word(&["open", "fork", "exec"], dice)]).unwrap_or_default(),
        rule: one(dice, 6, |dice| word(&RULES, dice)),
        path: one(dice, 3, |dice| {
            let glob = word(&globs, dice);
            let glob = globset::GlobBuilder::new(&glob)
                .literal_separator(true)
                .build();
            glob.unwrap().compile_matcher()
        }),
        name: one(dice, 6, |dice| {
            word(&["git", "/usr/bin/git", "git core", "cat"], dice)
        }),
        pid: one(dice, 8, |dice| 100 + dice.roll(300) as u32),
        tree: one(dice, 6, |dice| 100 + dice.roll(300) as u32),
        text: one(dice, 8, |dice| word(&["rare", "file1", "\"pid\":10"], dice)),
        seqs: one(dice, 8, |dice| {
            let first = dice.roll(9_000);
            (first, first + dice.roll(3_000))
        }),
        child: None,
        exec: None,
    }
}

/// Every line of every file, judged one by one.
fn plainly(path: &Path, filter: &Filter) -> Vec<Vec<u8>> {
    let mut family: HashSet<u32> = filter.tree.into_iter().collect();
    let mut fits = |line: &[u8]| {
        let record: Record<'_> = serde_json::from_slice(line).unwrap();
        let text = filter.text.as_deref().unwrap_or_default();
        let has_text = String::from_utf8_lossy(line).contains(text);
        filter.takes(&record, &mut family) && has_text
    };
    let mut found = Vec::new();
    for segment in segment::all_of(path).unwrap() {
        let text = segment.read().unwrap();
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        found.extend(lines.filter(|line| fits(line)).map(<[u8]>::to_vec));
    }
    found
}

#[test]
fn what_is_found_with_an_index_is_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    make(&path);
    let mut dice = Dice(42);
    let segments = segment::all_of(&path).unwrap();
    let all: Vec<u8> = segments.iter().flat_map(|it| it.read().unwrap()).collect();
    let (mut skipped, mut results) = (0, HashSet::new());
    for round in 0..60 {
        let filter = filter(&mut dice);
        let expected = plainly(&path, &filter);
        let mut search = Search::default();
        let mut found = Vec::new();
        let each = search.each(&path, &filter, |line, _| {
            found.push(line.to_vec());
            true
        });
        each.unwrap();
        assert!(
            found == expected,
            "round {round}: {} of {} by {filter:?}",
            found.len(),
            expected.len()
        );
        let mut sieve = Sieve::new(filter.clone());
        let text = all.split(|byte| *byte == b'\n');
        let sifted = text.filter(|line| !line.is_empty() && sieve.takes(line));
        assert_eq!(
            sifted.count(),
            expected.len(),
            "round {round}: by {filter:?}"
        );
        let counted = search.count(&path, &filter).unwrap();
        assert_eq!(
            counted,
            expected.len() as u64,
            "round {round}: by {filter:?}"
        );
        let count = dice.roll(40) as usize;
        let last = search.last(&path, &filter, count).unwrap();
        assert!(
            last == expected[expected.len().saturating_sub(count)..],
            "round {round}: the last {count} by {filter:?}"
        );
        skipped += search.skipped;
        results.insert(expected.len());
    }
    assert!(skipped > 60, "only {skipped} frames were skipped");
    assert!(results.len() > 15, "the filters are too much alike");
}

#[test]
fn a_wrong_index_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    make(&path);
    let packed = segment::closed_of(&path).unwrap().remove(0);
    assert!(packed.packed);
    let file = Index::path(&packed.path);
    let good = std::fs::read(&file).unwrap();
    let filter = Filter {
        rule: Some("ssh-keys".to_owned()),
        ..Filter::default()
    };
    let expected = plainly(&path, &filter);
    let made = |what: &str| {
        let mut search = Search::default();
        let found = search.last(&path, &filter, usize::MAX).unwrap();
        assert!(found == expected, "{what}");
        search.made
    };
    assert_eq!(made("it is good"), 0);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(made("it is missing"), 1);
    assert_eq!(made("it was made again"), 0);
    for at in [0, 40, good.len() - 1] {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        std::fs::write(&file, damaged).unwrap();
        assert_eq!(made("it is damaged"), 1);
    }
    // One of another file: of the other packed segment.
    let other = segment::closed_of(&path).unwrap().remove(1);
    std::fs::copy(Index::path(&other.path), &file).unwrap();
    assert_eq!(made("it is another's"), 1);
}
