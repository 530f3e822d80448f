//! A large policy, for measuring.

use std::fmt::Write as _;

use super::Random;
use super::show::quoted;

/// Words that the names of large policies are made of.
const WORDS: &[&str] = &[
    "alpha", "billing", "cache", "data", "export", "feeds", "gateway", "history", "images",
    "journal", "keys", "ledger", "models", "notes", "orders", "public", "queue", "reports",
    "search", "tenant", "users", "vault", "web",
];

/// A policy of `anchored` rules from the root and `floating` rules at any depth, half of those with
/// `/**` at their end: the size that the project promises to carry. No two rules are alike; their
/// names are words with numbers, as names of projects, tenants and users are.
pub fn large(anchored: usize, floating: usize) -> String {
    let mut random = Random::new(0x6c61_7267_6500);
    let mut lists = [const { String::new() }; 4];
    let mut add = |random: &mut Random, pattern: String| {
        let list = random.below(4);
        let _ = writeln!(lists[list], "      - {}", quoted(&pattern));
    };
    for number in 0..anchored {
        let root = random.pick(&["srv", "home", "opt", "var/lib", "data", "usr/share"]);
        let (team, project) = (random.pick(WORDS), random.pick(WORDS));
        let file = random.pick(WORDS);
        let ending = random.pick(&["log", "conf", "rs", "json", "md"]);
        let pattern = match number % 4 {
            0 => format!("/{root}/{team}/{project}{number}/**"),
            1 => format!("/{root}/{team}/{project}{number}/{file}.{ending}"),
            2 => format!("/{root}/{team}/{project}{number}/*.{ending}"),
            _ => format!("/{root}/{team}/{project}{number}/{file}/**"),
        };
        add(&mut random, pattern);
    }
    for number in 0..floating {
        let (name, ending) = (random.pick(WORDS), random.pick(WORDS));
        let pattern = if number % 2 == 0 {
            format!("**/{name}{number}/**")
        } else {
            format!("**/{name}{number}.{ending}")
        };
        add(&mut random, pattern);
    }
    let [read, hidden, write, kept] = lists;
    format!(
        "version: 1\nfiles:\n  read:\n    allow:\n{read}    deny:\n{hidden}  write:\n    allow:\n{write}    deny:\n{kept}"
    )
}
