//! What agents send and receive: the counters behind `agentguard_common::traffic`, and the programs of an agent's cgroup
//! that count. It must never remove a row that a program may still count in.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use agentguard_common::label::Membership;
use agentguard_common::traffic::{Account, Counts, Flow, Row};
use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::CgroupSkb;

use super::attach::{of_program, program};
use super::cgroup::{Placed, detach_from};
use super::guard::Bytes;
use super::load::{failed, open};
use super::{Guard, KernelError};

/// The programs, with the numbers of the places that they are attached to.
const COUNTERS: &[Placed] = &[("ag_ingress", 0), ("ag_egress", 1)];

// SAFETY: `repr(C)` structs of integers without padding.
unsafe impl aya::Pod for Bytes<Flow> {}
// SAFETY: as above.
unsafe impl aya::Pod for Bytes<Row> {}
// SAFETY: as above.
unsafe impl aya::Pod for Bytes<Account> {}

/// What was counted for one destination of an agent, or for all that have no row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Whose it is.
    pub who: Membership,
    /// Address, port and protocol; `None` for everything without a row.
    pub flow: Option<Flow>,
    /// The name that had opened the address.
    pub name: Option<Arc<str>>,
    /// Bytes and packets.
    pub counts: Counts,
}

/// The maps.
pub(super) struct Traffic {
    flows: HashMap<MapData, Bytes<Flow>, Bytes<Row>>,
    accounts: Array<MapData, Bytes<Account>>,
}

impl Traffic {
    /// Opens the maps.
    pub fn open([flows, accounts]: [Map; 2]) -> Result<Self, KernelError> {
        Ok(Self {
            flows: open("FLOWS", flows)?,
            accounts: open("ACCOUNTS", accounts)?,
        })
    }

    fn rows(&self) -> Result<Vec<(Flow, Row)>, KernelError> {
        self.flows
            .iter()
            .map(|entry| entry.map(|(flow, row)| (flow.0, row.0)))
            .collect::<Result<_, _>>()
            .map_err(|error| failed("FLOWS", &error))
    }

    fn account(&self, agent: u32) -> Result<Account, KernelError> {
        let account = self.accounts.get(&agent, 0);
        Ok(account.map_err(|error| failed("ACCOUNTS", &error))?.0)
    }

    fn set_account(&mut self, agent: u32, account: Account) -> Result<(), KernelError> {
        self.accounts
            .set(agent, Bytes(account), 0)
            .map_err(|error| failed("ACCOUNTS", &error))
    }

    /// Numbers of names that rows have.
    pub fn names(&self) -> Result<HashSet<u32>, KernelError> {
        let names = self.rows()?.into_iter().map(|(_, row)| row.name);
        Ok(names.filter(|name| *name != 0).collect())
    }

    fn forget(&mut self, who: Membership) -> Result<(), KernelError> {
        for (flow, _) in self.rows()? {
            if (flow.agent, flow.session) == (who.agent, who.session) {
                self.flows
                    .remove(&Bytes(flow))
                    .map_err(|error| failed("FLOWS", &error))?;
            }
        }
        if self.account(who.agent)?.session == who.session {
            self.set_account(who.agent, Account::default())?;
        }
        Ok(())
    }
}

impl Guard {
    /// Loads the programs that count. They are attached when there is an agent.
    #[doc(hidden)]
    pub fn load_counters(&mut self) -> Result<(), KernelError> {
        for (name, _) in COUNTERS {
            let program: &mut CgroupSkb = program(self.object(), name)?;
            program
                .load()
                .map_err(|error| of_program("load", name, error))?;
        }
        Ok(())
    }

    /// Counts what the sockets of a cgroup and of those below it send and receive, for this agent. Numbers of the same
    /// session go on. It holds for sockets that are made there, whoever makes them, from [`Guard::govern`] on.
    pub fn count_traffic(&mut self, cgroup: &Path, who: Membership) -> Result<(), KernelError> {
        if self.traffic.account(who.agent)?.session != who.session {
            let account = Account {
                session: who.session,
                ..Account::default()
            };
            self.traffic.set_account(who.agent, account)?;
        }
        self.attach_to(cgroup, COUNTERS, "count the agent's traffic")
    }

    /// Takes the programs that count off a cgroup, if it is still there.
    pub fn count_no_more(&mut self, cgroup: &Path) -> Result<(), KernelError> {
        detach_from(cgroup, COUNTERS, "stop counting the agent's traffic")
    }

    /// Everything that was counted for agents whose numbers were not forgotten.
    pub fn traffic(&self) -> Result<Vec<Counted>, KernelError> {
        let book = self.names();
        let rows = self.traffic.rows()?.into_iter();
        let mut counted: Vec<Counted> = rows
            .map(|(flow, row)| Counted {
                who: Membership {
                    agent: flow.agent,
                    session: flow.session,
                },
                flow: Some(flow),
                name: (row.name != 0).then(|| book.name(row.name)).flatten(),
                counts: row.counts,
            })
            .collect();
        for agent in 1..agentguard_common::table::MAX_AGENTS {
            let Account { rest, session, .. } = self.traffic.account(agent)?;
            counted.push(Counted {
                who: Membership { agent, session },
                flow: None,
                name: None,
                counts: rest,
            });
        }
        // A row is made before its first packet is counted.
        counted.retain(|it| !it.counts.is_empty());
        Ok(counted)
    }

    /// Removes what was counted for an agent. Nothing may count for it any more: it was released, and then its policy
    /// was taken away, which waits until every program that still knew of it has ended.
    pub fn forget_traffic(&mut self, who: Membership) -> Result<(), KernelError> {
        self.traffic.forget(who)
    }
}
