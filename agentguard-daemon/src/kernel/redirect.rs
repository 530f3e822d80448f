//! Where an agent's questions to name servers go: its resolver's port, and the programs of its cgroup that send them
//! there. Nothing may be said to be redirected before the programs are there.

use std::path::Path;

use agentguard_common::opened::Resolver;
use aya::programs::CgroupSockAddr;

use super::attach::{of_program, program};
use super::cgroup::{Placed, detach_from};
use super::guard::Bytes;
use super::load::failed;
use super::{Guard, KernelError};

/// The programs that redirect, with the numbers of the places that they are attached to.
const REDIRECTS: &[Placed] = &[
    ("ag_connect4", 10),
    ("ag_connect6", 11),
    ("ag_sendmsg4", 14),
    ("ag_sendmsg6", 15),
    ("ag_recvmsg4", 19),
    ("ag_recvmsg6", 20),
    ("ag_getpeername4", 29),
    ("ag_getpeername6", 30),
];

/// Where the resolver of an agent listens, on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolverPlace {
    /// Session of the agent.
    pub session: u32,
    /// Inode of the network namespace.
    pub namespace: u32,
    /// The port.
    pub port: u16,
}

impl Guard {
    /// Attached when an agent's resolver listens.
    pub(super) fn load_redirects(&mut self) -> Result<(), KernelError> {
        for (name, _) in REDIRECTS {
            let program: &mut CgroupSockAddr = program(self.object(), name)?;
            program
                .load()
                .map_err(|error| of_program("load", name, error))?;
        }
        Ok(())
    }

    /// Where the resolver of an agent listens, if it does.
    pub fn resolver_of(&self, agent: u32) -> Result<Option<ResolverPlace>, KernelError> {
        let found = self
            .names
            .resolvers
            .get(&agent, 0)
            .map_err(|error| failed("RESOLVERS", &error))?
            .0;
        Ok((found.port != 0).then_some(ResolverPlace {
            session: found.session,
            namespace: found.namespace,
            port: found.port as u16,
        }))
    }

    /// Says where the resolver of an agent listens: questions of processes in `cgroup` go there from now on. With
    /// `None` no question gets anywhere while the policy has rules by name, and none is redirected.
    pub fn resolver_at(
        &mut self,
        agent: u32,
        cgroup: &Path,
        place: Option<ResolverPlace>,
    ) -> Result<(), KernelError> {
        let before = self.resolver_of(agent)?;
        if place.is_some() {
            // Only when the programs are there may anything be permitted to go to them.
            self.attach_to(
                cgroup,
                REDIRECTS,
                "redirect the agent's questions to its resolver",
            )?;
        }
        let value = place.map_or_else(Resolver::default, |place| Resolver {
            session: place.session,
            namespace: place.namespace,
            port: u32::from(place.port),
            reserved: 0,
        });
        if let Some(place) = place {
            self.mark_port(place.port, true)?;
        }
        self.names
            .resolvers
            .set(agent, Bytes(value), 0)
            .map_err(|error| failed("RESOLVERS", &error))?;
        if let Some(before) = before
            && place.is_none_or(|place| place.port != before.port)
        {
            self.mark_port(before.port, false)?;
        }
        if place.is_none() {
            // Sockets that were told of the resolver are as any others again.
            detach_from(cgroup, REDIRECTS, "stop redirecting the agent's questions")?;
        }
        Ok(())
    }

    fn mark_port(&mut self, port: u16, on: bool) -> Result<(), KernelError> {
        let (word, bit) = (u32::from(port) / 64, 1u64 << (port % 64));
        let ports = &mut self.names.ports;
        let error = |error| failed("RESOLVER_PORTS", &error);
        let bits = ports.get(&word, 0).map_err(error)?;
        let bits = if on { bits | bit } else { bits & !bit };
        ports.set(word, bits, 0).map_err(error)
    }
}
