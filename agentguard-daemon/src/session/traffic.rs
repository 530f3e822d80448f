//! What agents sent and received: for those who ask, and into the log when an agent goes.
//!
//! The kernel counts. What it has for an agent is forgotten only when it is in the log.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};

use agentguard_common::traffic::{Counts, Flow, UNREADABLE};
use serde::{Deserialize, Serialize};

use super::SessionError;
use super::engine::{Engine, lock};
use crate::agent::Agent;
use crate::audit::{Record, record::op, words::protocol_name};
use crate::event::escape::escape;
use crate::kernel::{Counted, KernelError};
use agentguard_common::label::Membership;

/// Destinations of an agent that have a record of their own, those with the most bytes; the others share the last.
const RECORDS: usize = 1_000;
/// What that one says first.
const REST: &str = "everything else";

/// Bytes, of IP with its headers, and packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Packets received.
    pub packets_in: u64,
    /// Packets sent.
    pub packets_out: u64,
}

impl From<Counts> for Amounts {
    fn from(counts: Counts) -> Self {
        Self {
            bytes_in: counts.bytes_in,
            bytes_out: counts.bytes_out,
            packets_in: counts.packets_in,
            packets_out: counts.packets_out,
        }
    }
}

/// What an agent exchanged with one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// `tcp`, `udp`, … or the number; none where destinations had no room of their own.
    pub protocol: Option<String>,
    /// The other side.
    pub address: Option<IpAddr>,
    /// Its port; none where the protocol has none, and where the agent was the one that was called.
    pub port: Option<u16>,
    /// The name that opened the address.
    pub name: Option<String>,
    /// How much.
    #[serde(flatten)]
    pub amounts: Amounts,
}

impl Destination {
    fn of(counted: &Counted) -> Self {
        let flow = counted.flow.filter(|flow| flow.protocol != UNREADABLE);
        Self {
            protocol: counted.flow.map(|flow| protocol_text(flow.protocol)),
            address: flow.map(|flow| address_of(&flow)),
            port: flow.map(|flow| flow.port).filter(|port| *port != 0),
            name: counted.name.as_deref().map(str::to_owned),
            amounts: counted.counts.into(),
        }
    }

    /// `address:port`, or the address alone.
    pub fn place(&self) -> Option<String> {
        Some(match (self.address?, self.port) {
            (address, None) => address.to_string(),
            (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
            (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
        })
    }
}

/// What an agent exchanged with everybody, the most bytes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentTraffic {
    /// The agent.
    pub agent: String,
    /// Its session: counting begins with it.
    pub session: u32,
    /// The sum.
    #[serde(flatten)]
    pub amounts: Amounts,
    /// By destination.
    pub destinations: Vec<Destination>,
}

fn protocol_text(protocol: u16) -> String {
    match protocol {
        UNREADABLE => "unreadable".to_owned(),
        protocol => protocol_name(protocol).map_or_else(|| protocol.to_string(), str::to_owned),
    }
}

fn address_of(flow: &Flow) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(flow.address)).to_canonical()
}

/// The rows of one agent, the most bytes first.
fn of_agent(counted: &[Counted], who: Membership) -> Vec<&Counted> {
    let mut own: Vec<&Counted> = counted.iter().filter(|it| it.who == who).collect();
    own.sort_by_key(|it| (std::cmp::Reverse(it.counts.bytes()), it.flow));
    own
}

fn sum<'a>(counted: impl IntoIterator<Item = &'a Counted>) -> Counts {
    let counted = counted.into_iter();
    counted.fold(Counts::default(), |sum, it| sum.plus(it.counts))
}

/// The records of an agent that goes, from its rows in their order. Together they are all that was counted for it.
fn records(agent: Option<&str>, session: u32, rows: &[&Counted]) -> Vec<Record<'static>> {
    let (named, unnamed): (Vec<&Counted>, Vec<&Counted>) =
        rows.iter().partition(|it| it.flow.is_some());
    let (own, shared) = named.split_at(named.len().min(RECORDS));
    let mut records: Vec<Record<'static>> = own.iter().map(|it| record_of(it)).collect();
    let rest = sum(shared.iter().chain(&unnamed).copied());
    if !rest.is_empty() {
        let detail = match shared.len() {
            0 => REST.to_owned(),
            count => format!("{REST}, among it {count} destinations with few bytes"),
        };
        records.push(Record {
            detail: Some(detail.into()),
            ..amounts(rest)
        });
    }
    for record in &mut records {
        record.agent = agent.map(|agent| Cow::Owned(agent.to_owned()));
        record.session = Some(session);
    }
    records
}

fn record_of(counted: &Counted) -> Record<'static> {
    let to = Destination::of(counted);
    let name = to.name.as_deref();
    Record {
        target: to.place().map(Cow::Owned),
        port: to.port,
        name: name.map(|name| Cow::Owned(escape(name.as_bytes()).into_owned())),
        protocol: to.protocol.map(Cow::Owned),
        ..amounts(counted.counts)
    }
}

fn amounts(counts: Counts) -> Record<'static> {
    Record {
        bytes_in: Some(counts.bytes_in),
        bytes_out: Some(counts.bytes_out),
        packets_in: Some(counts.packets_in),
        packets_out: Some(counts.packets_out),
        ..Record::new(op::TRAFFIC)
    }
}

impl Engine {
    /// What agents sent and received since they came under governance: one of them, or all.
    pub fn traffic(&self, name: Option<&str>) -> Result<Vec<AgentTraffic>, SessionError> {
        let agents: Vec<Agent> = {
            let state = lock(&self.state);
            match name {
                Some(name) => vec![state.registry.find(name)?.clone()],
                None => state.registry.iter().cloned().collect(),
            }
        };
        let counted = lock(&self.enforcer).traffic()?;
        let of = |agent: &Agent| {
            let rows = of_agent(&counted, agent.membership());
            AgentTraffic {
                agent: agent.name.to_string(),
                session: agent.session,
                amounts: sum(rows.iter().copied()).into(),
                destinations: rows.into_iter().map(Destination::of).collect(),
            }
        };
        Ok(agents.iter().map(of).collect())
    }

    fn names_there(&self) -> Vec<String> {
        let state = lock(&self.state);
        let agents = state.registry.iter();
        agents.map(|agent| agent.name.to_string()).collect()
    }

    /// What agents sent and received over all their sessions, those that went lately among them.
    pub(super) fn all_traffic(&self) -> Result<BTreeMap<String, Counts>, KernelError> {
        let mut growth = lock(&self.growth);
        let agents: Vec<Agent> = lock(&self.state).registry.iter().cloned().collect();
        let counted = lock(&self.enforcer).traffic()?;
        for agent in &agents {
            let who = agent.membership();
            let now = sum(counted.iter().filter(|it| it.who == who));
            growth.observe(agent.name.as_str(), who, now);
        }
        growth.retain(&agents.iter().map(|agent| agent.name.as_str()).collect());
        Ok(growth.sums().clone())
    }

    /// Counts for an agent from now on. What is counted for its session goes on.
    pub(super) fn count_traffic(&self, agent: &Agent) -> Result<(), KernelError> {
        lock(&self.enforcer).count_traffic(agent.cgroup.path(), agent.membership())
    }

    /// An agent goes, and the kernel knows its cgroup no more: its numbers go into the log.
    pub(super) fn settle_traffic(&self, agent: &Agent) {
        let stopped = lock(&self.enforcer).count_no_more(agent.cgroup.path());
        let settled = stopped.and_then(|()| {
            let counted = lock(&self.enforcer).traffic()?;
            self.settle(Some(agent.name.as_str()), agent.membership(), &counted)
        });
        if let Err(error) = settled {
            // It went all the same. What the kernel still has of it, the next start finds.
            tracing::error!("the traffic of `{}` is not in the log: {error}", agent.name);
        }
    }

    /// After a restart: what is left of agents that are no more. `names` are those of sessions that ended just now.
    pub(super) fn settle_strangers(&self, names: &[(u32, String)]) -> Result<(), KernelError> {
        let counted = lock(&self.enforcer).traffic()?;
        let known: HashSet<(u32, u32)> = {
            let state = lock(&self.state);
            let agents = state.registry.iter();
            agents.map(|agent| (agent.slot, agent.session)).collect()
        };
        let mut done = HashSet::new();
        for Counted { who, .. } in &counted {
            let id = (who.agent, who.session);
            if known.contains(&id) || !done.insert(id) {
                continue;
            }
            let name = names.iter().find(|(session, _)| *session == who.session);
            let name = name.map(|(_, name)| name.as_str());
            self.settle(name, *who, &counted)?;
        }
        Ok(())
    }

    /// Writes the records of an agent, and forgets what they say when they are in the file. A daemon that dies in
    /// between writes them twice.
    fn settle(
        &self,
        agent: Option<&str>,
        who: Membership,
        counted: &[Counted],
    ) -> Result<(), KernelError> {
        let written = {
            let mut recorder = self.recorder();
            for record in records(agent, who.session, &of_agent(counted, who)) {
                recorder.note(record);
            }
            recorder.flush()
        };
        if written {
            // Who looks meanwhile sees all of it, and afterwards nothing that is new.
            let mut growth = lock(&self.growth);
            if let Some(agent) = agent {
                let counts = sum(counted.iter().filter(|it| it.who == who));
                growth.observe(agent, who, counts);
            }
            growth.end(who);
            growth.retain(&self.names_there().iter().map(String::as_str).collect());
            lock(&self.enforcer).forget_traffic(who)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(port: u16, bytes_in: u64, bytes_out: u64) -> Counted {
        Counted {
            who: Membership {
                agent: 1,
                session: 5,
            },
            flow: (port != 0).then(|| Flow {
                agent: 1,
                session: 5,
                address: std::net::Ipv4Addr::new(192, 0, 2, 1)
                    .to_ipv6_mapped()
                    .octets(),
                port,
                protocol: 6,
            }),
            name: (port == 443).then(|| "a.test".into()),
            counts: Counts {
                bytes_in,
                packets_in: 1,
                bytes_out,
                packets_out: 1,
            },
        }
    }

    #[test]
    fn destinations_are_written_as_people_write_them() {
        let named = Destination::of(&counted(443, 1, 2));
        assert_eq!(named.place().as_deref(), Some("192.0.2.1:443"));
        assert_eq!(named.protocol.as_deref(), Some("tcp"));
        assert_eq!(named.name.as_deref(), Some("a.test"));
        let rest = Destination::of(&counted(0, 1, 2));
        assert_eq!((rest.place(), rest.protocol), (None, None));
        let mut called = counted(1, 1, 2);
        let flow = called.flow.as_mut().unwrap();
        (flow.port, flow.protocol, flow.address) = (0, 253, Ipv6Addr::LOCALHOST.octets());
        let called = Destination::of(&called);
        assert_eq!(called.place().as_deref(), Some("::1"));
        assert_eq!(called.protocol.as_deref(), Some("253"));
    }

    #[test]
    fn records_are_few_and_their_sum_is_exact() {
        let all: Vec<Counted> = (0..=2 * RECORDS as u16)
            .map(|port| counted(port, u64::from(port) * 3, u64::from(port)))
            .collect();
        let rows = of_agent(&all, all[0].who);
        let records = records(Some("a"), 5, &rows);
        assert_eq!(records.len(), RECORDS + 1);
        assert_eq!(records[0].target.as_deref(), Some("192.0.2.1:2000"));
        assert_eq!(records[0].port, Some(2000));
        let last = &records[RECORDS];
        assert_eq!((last.target.as_deref(), last.session), (None, Some(5)));
        assert_eq!(
            last.detail.as_deref(),
            Some("everything else, among it 1000 destinations with few bytes")
        );
        let total = |field: fn(&Record<'_>) -> Option<u64>| -> u64 {
            records.iter().filter_map(field).sum()
        };
        let all = sum(&all);
        assert_eq!(total(|it| it.bytes_in), all.bytes_in);
        assert_eq!(total(|it| it.bytes_out), all.bytes_out);
        assert_eq!(total(|it| it.packets_in), all.packets_in);
        assert_eq!(total(|it| it.packets_out), all.packets_out);
    }

    #[test]
    fn an_agent_without_traffic_has_no_records() {
        assert!(records(Some("a"), 5, &[]).is_empty());
    }
}
