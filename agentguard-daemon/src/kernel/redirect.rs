//! Where an agent's questions to name servers go: its resolver's port, and the programs of its cgroup that send them
//! there. Nothing may be said to be redirected before the programs are there.

use std::os::fd::AsFd as _;
use std::path::Path;

use agentguard_common::opened::Resolver;
use aya::programs::CgroupSockAddr;

use super::attach::{REDIRECTS, of_program, program};
use super::guard::Bytes;
use super::load::failed;
use super::{Guard, KernelError, sys};

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
            self.redirect(cgroup)?;
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
            Self::redirect_no_more(cgroup)?;
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

    /// Attaches the programs that redirect questions to a cgroup. They go with it.
    fn redirect(&mut self, cgroup: &Path) -> Result<(), KernelError> {
        let folder = std::fs::File::open(cgroup).map_err(io("open the agent's cgroup"))?;
        for (name, kind) in REDIRECTS {
            let program: &mut CgroupSockAddr = program(self.object(), name)?;
            let ours = program
                .fd()
                .map_err(|error| of_program("find", name, error))?;
            let id = program
                .info()
                .map_err(|error| of_program("find", name, error))?
                .id();
            let before = sys::attached(folder.as_fd(), *kind)
                .map_err(io("list the programs of the agent's cgroup"))?;
            if before.iter().any(|other| other.id == id) {
                continue;
            }
            sys::attach(folder.as_fd(), ours.as_fd(), *kind)
                .map_err(io("redirect the agent's questions to its resolver"))?;
            // Those of an earlier daemon go; of others nothing is touched.
            for other in before.iter().filter(|other| other.name == *name) {
                let _ = sys::detach(folder.as_fd(), other.descriptor.as_fd(), *kind);
            }
        }
        Ok(())
    }

    /// Takes the programs that redirect questions off a cgroup, if it is still there.
    fn redirect_no_more(cgroup: &Path) -> Result<(), KernelError> {
        let Ok(folder) = std::fs::File::open(cgroup) else {
            return Ok(());
        };
        for (name, kind) in REDIRECTS {
            let found = sys::attached(folder.as_fd(), *kind)
                .map_err(io("list the programs of the agent's cgroup"))?;
            for ours in found.iter().filter(|other| other.name == *name) {
                sys::detach(folder.as_fd(), ours.descriptor.as_fd(), *kind)
                    .map_err(io("stop redirecting the agent's questions"))?;
            }
        }
        Ok(())
    }
}

fn io(action: &'static str) -> impl Fn(std::io::Error) -> KernelError {
    move |error| KernelError::Io { action, error }
}
