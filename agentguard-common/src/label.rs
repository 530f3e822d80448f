//! Who is governed: the label a task carries, and the cgroups that give it.

/// The lineage label. Task storage: set on entry into an agent's cgroup, inherited by children,
/// kept across exec, setuid and moves to another cgroup. `agent == 0` never occurs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct Label {
    /// Agent slot, 1 to [`crate::table::MAX_AGENTS`] − 1.
    pub agent: u32,
    /// Session of the agent.
    pub session: u32,
    /// The exec record whose program this task runs; 0 before the first.
    pub exec_id: u64,
}

/// Value of the map from cgroup id to agent: tasks that enter the cgroup get this label.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct Membership {
    /// Agent slot.
    pub agent: u32,
    /// Session.
    pub session: u32,
}

const _: () = {
    assert!(size_of::<Label>() == 16);
    assert!(size_of::<Membership>() == 8);
};
