//! A policy and a kernel in memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard::policy::names::Grant;
use agentguard::resolver::{
    AddressVerdict, Asker, Gate, Judged, Opening, Refusal, Resolution, special,
};
use agentguard_common::verdict::Verdict;

/// A record, as tests look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    pub agent: u32,
    pub name: String,
    pub kind: String,
    pub verdict: Verdict,
    pub cause: &'static str,
    pub code: &'static str,
    pub answers: Vec<String>,
}

/// See the module.
#[derive(Default)]
pub struct Memory {
    /// What each agent may resolve: whole names, or `*.` and the rest for one label before it.
    pub permitted: Mutex<BTreeMap<u32, Vec<String>>>,
    /// Names that a rule denies to everybody.
    pub denied: Mutex<Vec<String>>,
    /// Special addresses that are permitted nevertheless.
    pub special: Mutex<Vec<IpAddr>>,
    /// What is open: agent, name, address.
    pub open: Mutex<Vec<(u32, String, IpAddr)>>,
    pub lifetimes: Mutex<Vec<Duration>>,
    pub records: Mutex<Vec<Noted>>,
    pub refuses_to_open: AtomicBool,
    pub generation: AtomicU32,
    /// For load: nothing is kept.
    pub forgets: AtomicBool,
}

impl Memory {
    pub fn permitting(names: &[&str]) -> Arc<Self> {
        let memory = Self::default();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        memory.permitted.lock().unwrap().insert(1, names);
        Arc::new(memory)
    }

    pub fn opened(&self) -> Vec<(u32, String, String)> {
        let open = self.open.lock().unwrap();
        open.iter()
            .map(|(agent, name, address)| (*agent, name.clone(), address.to_string()))
            .collect()
    }

    pub fn records(&self) -> Vec<Noted> {
        self.records.lock().unwrap().clone()
    }
}

impl Gate for Memory {
    fn judge(&self, asker: Asker, name: &str) -> Judged {
        let permitted = self.permitted.lock().unwrap();
        let matches = |pattern: &String| match pattern.strip_prefix("*.") {
            Some(rest) => name.split_once('.').is_some_and(|(_, after)| after == rest),
            None => pattern == name,
        };
        let (verdict, rule) = if self.denied.lock().unwrap().iter().any(matches) {
            (Verdict::Deny, Some("denied"))
        } else if permitted
            .get(&asker.agent)
            .is_some_and(|names| names.iter().any(matches))
        {
            (Verdict::Allow, Some("permitted"))
        } else {
            (Verdict::Deny, None)
        };
        Judged {
            verdict,
            rule: rule.map(Arc::from),
            reason: None,
            rule_at: None,
            grants: Arc::from([Grant {
                marks: 0,
                low: 443,
                high: 443,
                protocol: Some(6),
            }]),
            generation: self.generation.load(Ordering::Relaxed),
        }
    }

    fn address(&self, _: Asker, _: &str, _: &Judged, address: IpAddr) -> AddressVerdict {
        match special(address) {
            Some(kind) if !self.special.lock().unwrap().contains(&address) => {
                AddressVerdict::Withheld(Refusal {
                    rule: None,
                    reason: format!("{address} is {}", kind.name()).into(),
                })
            }
            _ => AddressVerdict::Given,
        }
    }

    fn open(&self, asker: Asker, opening: &Opening<'_>) -> Result<(), String> {
        if self.refuses_to_open.load(Ordering::Relaxed) {
            return Err("the map is full".to_owned());
        }
        if opening.generation != self.generation.load(Ordering::Relaxed) {
            return Err("another policy is in force".to_owned());
        }
        if !self.forgets.load(Ordering::Relaxed) {
            let opened = (asker.agent, opening.name.to_owned(), opening.address);
            self.open.lock().unwrap().push(opened);
            self.lifetimes.lock().unwrap().push(opening.lifetime);
        }
        Ok(())
    }

    fn record(&self, asker: Asker, resolution: &Resolution<'_>) {
        if self.forgets.load(Ordering::Relaxed) {
            return;
        }
        self.records.lock().unwrap().push(Noted {
            agent: asker.agent,
            name: resolution.name.to_owned(),
            kind: resolution.kind.to_owned(),
            verdict: resolution.verdict,
            cause: resolution.cause,
            code: resolution.code,
            answers: resolution.answers.clone(),
        });
    }
}
