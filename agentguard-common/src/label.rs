//! Who is governed: the label a task carries, and the cgroups that give it.

shared! {
    /// The lineage label. Task storage: set on entry into an agent's cgroup, inherited by children,
    /// kept across exec, setuid and moves to another cgroup. `agent == 0` never occurs.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Label {
        /// Agent slot, 1 to [`crate::table::MAX_AGENTS`] − 1.
        pub agent: u32,
        /// Session of the agent.
        pub session: u32,
        /// The exec record whose program this task runs; 0 before the first.
        pub exec_id: u64,
    }
}

shared! {
    /// Value of the map from cgroup id to agent: tasks that enter the cgroup get this label.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Membership {
        /// Agent slot.
        pub agent: u32,
        /// Session.
        pub session: u32,
    }
}

const _: () = {
    assert!(size_of::<Label>() == 16);
    assert!(size_of::<Membership>() == 8);
};

/// Counters that only the kernel programs write; the daemon reads them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Tasks that entered an agent's cgroup and may lack their label. While it is not zero,
    /// unlabelled tasks are judged by their cgroup.
    pub unsettled: u64,
    /// Number of the last exec of a governed task.
    pub exec_ids: u64,
}

/// What the daemon tells the task iterator.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// 0: label the members of governed cgroups. Else: take the label of this agent away.
    pub unlabel_agent: u64,
    /// Subtracted from [`State::unsettled`] when every task has been seen.
    pub settled: u64,
    /// Set by the iterator: tasks labelled or unlabelled.
    pub changed: u64,
}
