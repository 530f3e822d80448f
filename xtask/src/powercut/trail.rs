//! What guests have said of their logs, and what must be true of it after a cut.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde_json::Value;

/// See the module.
#[derive(Default)]
pub struct Trail {
    /// Denials that were shown since the load began, by number: their hashes. The next boot must have them.
    shown: BTreeMap<u64, String>,
    /// Denials that this boot has found.
    had: HashMap<u64, String>,
    cuts: u32,
    checks: u32,
    starts: u32,
    told: u64,
    torn: u32,
    repairs: u64,
    records: u64,
    segments: u64,
    /// What was not as it must be.
    pub failures: Vec<String>,
}

impl Trail {
    /// The disk is empty.
    pub fn begin_anew(&mut self) {
        self.shown.clear();
        self.had.clear();
    }

    /// Denials that were shown so far.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// Takes what a guest says.
    pub fn hear(&mut self, said: &str) {
        let (what, rest) = said.split_once(' ').unwrap_or((said, ""));
        match what {
            "before" => self.before(rest),
            "had" => {
                if let Some((seq, hash)) = numbered(rest) {
                    self.had.insert(seq, hash);
                }
            }
            "checked" => self.compare(),
            "after" => self.after(rest),
            // From here on denials are asked for that come later.
            "begin" => self.shown.clear(),
            "seen" => {
                if let Some((seq, hash)) = numbered(rest) {
                    self.told += 1;
                    self.shown.insert(seq, hash);
                }
            }
            _ => {}
        }
    }

    /// The power is gone.
    pub fn cut(&mut self) {
        self.cuts += 1;
        self.had.clear();
    }

    fn fail(&mut self, what: &str) {
        println!("FAIL  after cut {}: {what}", self.cuts);
        self.failures
            .push(format!("after cut {}: {what}", self.cuts));
    }

    /// As the cut left it: nothing but a last line may be torn.
    fn before(&mut self, report: &str) {
        let Ok(report) = serde_json::from_str::<Value>(report) else {
            return self.fail(&format!("the log could not be checked: {report}"));
        };
        let findings = report["findings"].as_array().cloned().unwrap_or_default();
        for found in &findings {
            match found["kind"].as_str() {
                Some("torn") => self.torn += 1,
                // A power cut before the first record leaves nothing to sign.
                Some("unsigned") if report["records"] == 0 => {}
                _ => self.fail(&format!("{found}")),
            }
        }
    }

    fn compare(&mut self) {
        self.checks += 1;
        let shown = std::mem::take(&mut self.shown);
        let missing: Vec<u64> = shown
            .iter()
            .filter(|(seq, hash)| self.had.get(seq) != Some(hash))
            .map(|(seq, _)| *seq)
            .collect();
        if !missing.is_empty() {
            self.fail(&format!(
                "{} denials that were shown are not there: {missing:?}",
                missing.len()
            ));
        }
        // A cut before the load begins again leaves them to be found again.
        self.shown = shown;
    }

    /// As the daemon's start left it: whole and signed.
    fn after(&mut self, report: &str) {
        let Ok(report) = serde_json::from_str::<Value>(report) else {
            return self.fail(&format!("the log could not be checked: {report}"));
        };
        self.starts += 1;
        let number = |name: &str| report[name].as_u64().unwrap_or_default();
        let whole = report["findings"].as_array().is_some_and(Vec::is_empty);
        if !whole || number("signed_to") == 0 {
            self.fail(&format!("after the daemon's start: {report}"));
        }
        for loss in report["losses"].as_array().into_iter().flatten() {
            if loss["class"] == "log-cut" {
                self.fail(&format!("what was signed is not there: {loss}"));
            }
        }
        (self.records, self.segments) = (number("records"), number("segments"));
        self.repairs += report["repairs"].as_array().map_or(0, Vec::len) as u64;
    }
}

impl fmt::Display for Trail {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            to,
            "{} cuts: {} logs checked as they were left ({} with a torn last line), {} starts after which the log was \
             whole and signed; {} denials shown before a cut; at the end {} records in {} segments; {} failures",
            // The last boot only checked.
            self.cuts.saturating_sub(1),
            self.checks,
            self.torn,
            self.starts,
            self.told,
            self.records,
            self.segments,
            self.failures.len()
        )
    }
}

fn numbered(text: &str) -> Option<(u64, String)> {
    let (seq, hash) = text.split_once(' ')?;
    Some((seq.parse().ok()?, hash.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str =
        r#"after {"findings":[],"signed_to":9,"losses":[],"repairs":[],"records":9,"segments":1}"#;

    /// What one boot says after denials 7 and 8 were shown and the power went.
    fn failures(lines: &[&str]) -> usize {
        let mut trail = Trail::default();
        for line in ["begin", "load", "seen 7 aa", "seen 8 bb"] {
            trail.hear(line);
        }
        trail.cut();
        for line in lines {
            trail.hear(line);
        }
        trail.failures.len()
    }

    #[test]
    fn what_was_shown_must_be_there() {
        let torn = r#"before {"findings":[{"kind":"torn"}],"records":9}"#;
        assert_eq!(
            failures(&[torn, "had 7 aa", "had 8 bb", "checked", WHOLE]),
            0
        );
        assert_eq!(failures(&["had 7 aa", "checked"]), 1);
        assert_eq!(failures(&["had 7 aa", "had 8 cc", "checked"]), 1);
        assert_eq!(failures(&["before nothing"]), 1);
        assert_eq!(failures(&[r#"before {"findings":[{"kind":"gap"}]}"#]), 1);
        assert_eq!(failures(&[r#"after {"findings":[],"signed_to":0}"#]), 1);
        let cut = r#"after {"findings":[],"signed_to":9,"losses":[{"class":"log-cut"}]}"#;
        assert_eq!(failures(&[cut]), 1);
    }
}
