//! What sessions ask of the kernel, so that their logic can be tested without one.

use std::os::fd::BorrowedFd;
use std::path::Path;

use agentguard_common::approval::{Grant, Key};
use agentguard_common::budget::{Limits, Meter};
use agentguard_common::label::{Label, Membership};
use agentguard_common::record::class;

use crate::kernel::{
    Counted, Guard, KernelError, NameBook, Opening, Ports, Protection, ResolverPlace,
};

/// The operations of [`Guard`] that sessions use; each means what the method of that name means.
pub trait Enforcer: Send {
    /// Puts a policy in force for an agent in one step.
    fn install(&mut self, agent: u32, table: &[u8]) -> Result<(), KernelError>;
    /// Takes an agent's policy away: what carries its label is denied everything.
    fn uninstall(&mut self, agent: u32) -> Result<(), KernelError>;
    /// Says what an agent's budgets are that programs charge; before a policy that has some.
    fn set_limits(&mut self, agent: u32, limits: &Limits) -> Result<(), KernelError>;
    /// What a meter has.
    fn meter(&self, number: u32) -> Result<Meter, KernelError>;
    /// Replaces the objects that are protected from an agent, whatever their names.
    fn protect(&mut self, agent: u32, objects: &[Protection]) -> Result<(), KernelError>;
    /// Agents from which objects are protected.
    fn protected_from(&self) -> Vec<u32>;
    /// From now on, tasks that enter the cgroup get this label.
    fn govern(&mut self, cgroup: u64, membership: Membership) -> Result<(), KernelError>;
    /// Stops labelling tasks that enter the cgroup.
    fn release(&mut self, cgroup: u64) -> Result<(), KernelError>;
    /// Labels the tasks that are in governed cgroups and have no label.
    fn label_members(&mut self) -> Result<usize, KernelError>;
    /// Takes the label from every task of an agent.
    fn unlabel(&mut self, agent: u32) -> Result<usize, KernelError>;
    /// Tasks that may lack their label.
    fn unsettled(&self) -> Result<u64, KernelError>;
    /// Has the repeats told that threads have counted: all, or those whose time is over.
    fn tell_repeats(&mut self, all: bool) -> Result<(), KernelError>;
    /// The label of the process behind a pidfd.
    fn label_of(&self, pidfd: BorrowedFd<'_>) -> Result<Option<Label>, KernelError>;
    /// Records lost so far, by class.
    fn losses(&self) -> Result<[u64; class::COUNT as usize], KernelError>;
    /// Who is governed in which cgroup.
    fn memberships(&self) -> Result<Vec<(u64, Membership)>, KernelError>;
    /// Opens an address that a name was answered with.
    fn open_address(&mut self, opening: &Opening) -> Result<(), KernelError>;
    /// Judges the addresses that are open for an agent again, by the names that opened them.
    fn judge_addresses(
        &mut self,
        agent: u32,
        marks: u16,
        grants: &mut dyn FnMut(&str) -> Vec<Ports>,
    ) -> Result<(), KernelError>;
    /// Says where an agent's resolver listens.
    fn resolver_at(
        &mut self,
        agent: u32,
        cgroup: &Path,
        place: Option<ResolverPlace>,
    ) -> Result<(), KernelError>;
    /// Where an agent's resolver listens.
    fn resolver_of(&self, agent: u32) -> Result<Option<ResolverPlace>, KernelError>;
    /// The names behind the numbers in records.
    fn names(&self) -> NameBook;
    /// Counts what the sockets of a cgroup send and receive.
    fn count_traffic(&mut self, cgroup: &Path, who: Membership) -> Result<(), KernelError>;
    /// Takes the programs that count off a cgroup.
    fn count_no_more(&mut self, cgroup: &Path) -> Result<(), KernelError>;
    /// What was counted.
    fn traffic(&self) -> Result<Vec<Counted>, KernelError>;
    /// Removes what was counted for an agent, which is released already.
    fn forget_traffic(&mut self, who: Membership) -> Result<(), KernelError>;
    /// Puts a grant in force, in the place of another for the same.
    fn approve(&mut self, key: Key, grant: Grant) -> Result<(), KernelError>;
    /// Takes a grant away, if it is there with this number.
    fn disapprove(&mut self, key: Key, number: u32) -> Result<(), KernelError>;
    /// A grant as it stands.
    fn approval(&self, key: Key) -> Result<Option<Grant>, KernelError>;
    /// Takes away every grant that is not kept.
    fn keep_approvals(&mut self, keep: &dyn Fn(&Key, u32) -> bool) -> Result<(), KernelError>;
    /// Puts the loaded programs into the place of an earlier build's.
    fn take_over(&mut self) -> Result<(), KernelError>;
}

impl Enforcer for Guard {
    fn install(&mut self, agent: u32, table: &[u8]) -> Result<(), KernelError> {
        Guard::install(self, agent, table)
    }

    fn uninstall(&mut self, agent: u32) -> Result<(), KernelError> {
        Guard::uninstall(self, agent)
    }

    fn set_limits(&mut self, agent: u32, limits: &Limits) -> Result<(), KernelError> {
        Guard::set_limits(self, agent, limits)
    }

    fn meter(&self, number: u32) -> Result<Meter, KernelError> {
        Guard::meter(self, number)
    }

    fn protect(&mut self, agent: u32, objects: &[Protection]) -> Result<(), KernelError> {
        Guard::protect(self, agent, objects)
    }

    fn protected_from(&self) -> Vec<u32> {
        Guard::protected_from(self)
    }

    fn govern(&mut self, cgroup: u64, membership: Membership) -> Result<(), KernelError> {
        Guard::govern(self, cgroup, membership)
    }

    fn release(&mut self, cgroup: u64) -> Result<(), KernelError> {
        Guard::release(self, cgroup)
    }

    fn label_members(&mut self) -> Result<usize, KernelError> {
        Guard::label_members(self)
    }

    fn unlabel(&mut self, agent: u32) -> Result<usize, KernelError> {
        Guard::unlabel(self, agent)
    }

    fn unsettled(&self) -> Result<u64, KernelError> {
        Guard::unsettled(self)
    }

    fn tell_repeats(&mut self, all: bool) -> Result<(), KernelError> {
        Guard::tell_repeats(self, all)
    }

    fn label_of(&self, pidfd: BorrowedFd<'_>) -> Result<Option<Label>, KernelError> {
        Guard::label_of(self, pidfd)
    }

    fn losses(&self) -> Result<[u64; class::COUNT as usize], KernelError> {
        Guard::losses(self)
    }

    fn memberships(&self) -> Result<Vec<(u64, Membership)>, KernelError> {
        Guard::memberships(self)
    }

    fn open_address(&mut self, opening: &Opening) -> Result<(), KernelError> {
        Guard::open_address(self, opening)
    }

    fn judge_addresses(
        &mut self,
        agent: u32,
        marks: u16,
        grants: &mut dyn FnMut(&str) -> Vec<Ports>,
    ) -> Result<(), KernelError> {
        Guard::judge_addresses(self, agent, marks, grants)
    }

    fn resolver_at(
        &mut self,
        agent: u32,
        cgroup: &Path,
        place: Option<ResolverPlace>,
    ) -> Result<(), KernelError> {
        Guard::resolver_at(self, agent, cgroup, place)
    }

    fn resolver_of(&self, agent: u32) -> Result<Option<ResolverPlace>, KernelError> {
        Guard::resolver_of(self, agent)
    }

    fn names(&self) -> NameBook {
        Guard::names(self)
    }

    fn count_traffic(&mut self, cgroup: &Path, who: Membership) -> Result<(), KernelError> {
        Guard::count_traffic(self, cgroup, who)
    }

    fn count_no_more(&mut self, cgroup: &Path) -> Result<(), KernelError> {
        Guard::count_no_more(self, cgroup)
    }

    fn traffic(&self) -> Result<Vec<Counted>, KernelError> {
        Guard::traffic(self)
    }

    fn forget_traffic(&mut self, who: Membership) -> Result<(), KernelError> {
        Guard::forget_traffic(self, who)
    }

    fn approve(&mut self, key: Key, grant: Grant) -> Result<(), KernelError> {
        Guard::approve(self, key, grant)
    }

    fn disapprove(&mut self, key: Key, number: u32) -> Result<(), KernelError> {
        Guard::disapprove(self, key, number)
    }

    fn approval(&self, key: Key) -> Result<Option<Grant>, KernelError> {
        Guard::approval(self, key)
    }

    fn keep_approvals(&mut self, keep: &dyn Fn(&Key, u32) -> bool) -> Result<(), KernelError> {
        Guard::keep_approvals(self, keep)
    }

    fn take_over(&mut self) -> Result<(), KernelError> {
        Guard::take_over(self)
    }
}
