//! What a check of a log found.

use serde::Serialize;

/// Findings that are listed; more are only counted.
const LISTED: usize = 100;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A line is not that which was written.
    Changed,
    /// A line is no record.
    NotARecord,
    /// A record does not follow the one before it.
    OutOfPlace,
    /// Records are missing.
    Gap,
    /// The last line has no end: a writer was cut off there, and the next start repairs it.
    Torn,
    /// A compressed segment cannot be read.
    Unreadable,
    /// A compressed segment is not the file that the log speaks of.
    Repacked,
    /// The signature of a checkpoint does not hold.
    Signature,
    /// A mark is signed by a key that is not known.
    OtherKey,
    /// Nothing of the log is signed, or its head is missing.
    Unsigned,
    /// The log is not the one of which the head or an anchor speaks, or is shorter.
    Replaced,
}

/// Something wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub kind: Kind,
    /// The file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// The line in it (of a compressed one: as it is unpacked), from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Where that line begins, in bytes from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub byte: Option<u64>,
    /// Number of the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// gap: how many records are missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
    /// In words.
    pub message: String,
}

/// A loss that the log itself speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// Number of its record.
    pub seq: u64,
    /// Where the records were lost.
    pub class: String,
    /// How many.
    pub lost: u64,
}

/// What was checked, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The log.
    pub log: String,
    /// Files that were read.
    pub segments: u64,
    /// Lines that are records.
    pub records: u64,
    /// Number of the first.
    pub first: Option<u64>,
    /// Number of the last.
    pub last: Option<u64>,
    /// Hash of the last.
    pub hash: Option<String>,
    /// Signatures that hold.
    pub checkpoints: u64,
    /// The last record that is covered by a signature in the log or in its head.
    pub signed_to: u64,
    /// Records after that: they are chained, but not signed yet.
    pub unsigned: u64,
    /// Keys that signatures were checked with.
    pub keys: Vec<String>,
    /// The record that the head speaks of.
    pub head: Option<u64>,
    /// Anchors that were compared.
    pub anchors: u64,
    /// Whether somebody writes the log now.
    pub live: bool,
    /// Losses that are recorded: of the kernel's rings, of the file.
    pub losses: Vec<Loss>,
    /// Repairs that are recorded: lines that were cut off by a loss of power.
    pub repairs: Vec<u64>,
    /// What is wrong, the first first.
    pub findings: Vec<Finding>,
    /// Findings that are not listed.
    pub more: u64,
    /// Records that are missing, of all gaps.
    pub missing: u64,
}

impl Report {
    pub(super) fn add(&mut self, finding: Finding) {
        self.missing += finding.missing.unwrap_or(0);
        if self.findings.len() < LISTED {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }

    /// Whether nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether signatures say so, and not only the chain, which anybody can make.
    pub fn is_proved(&self) -> bool {
        self.is_whole() && !self.keys.is_empty() && self.signed_to > 0
    }
}
