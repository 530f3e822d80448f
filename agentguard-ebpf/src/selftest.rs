//! The decide code driven in bulk: a classifier that `BPF_PROG_TEST_RUN` runs, also on kernels that
//! load no LSM program. Loaded by tests alone; it is attached to nothing and can change no verdict.

use agentguard_common::record::Destination;
use agentguard_common::selftest::{Case, kind};
use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

use crate::bound::{at_most, at_most_64};
use crate::budget::charged;
use agentguard_common::label::Label;
use agentguard_common::table::{MARKS, flags};
use agentguard_common::verdict::{Operation, Reason, Verdict};
use aya_ebpf::helpers::generated::bpf_get_current_task_btf;

use crate::decide::{self, Command, Decision, Moved, Place, with_table};
use crate::emit::{self, Facts};
use crate::label::Subject;
use crate::maps::{ExecScratch, NameScratch, SHORT_PATH};
use crate::scratch;

/// The case to judge. Written by the test.
#[btf_map]
pub static SELFTEST: Array<Case, 1> = Array::new();

/// Judges the case under the policy of agent 1; `verdict << 16 | reason`, above them [`flags::QUIET`] and
/// [`flags::QUIET_OPENS`] from bit 19 on and [`MARKS`] from bit 24 on; or 0 if it cannot.
#[classifier]
pub fn selftest(_ctx: TcContext) -> i32 {
    let (Some(case), Some(policy)) = (SELFTEST.get_ptr(0), decide::policy(1)) else {
        return 0;
    };
    // SAFETY: a live map value; lengths are bounded before use.
    let decision = unsafe {
        let buffer = &raw const (*case).bytes as *const u8;
        let path_len = at_most((*case).path_len, 4095);
        let limit = at_most(
            (*case).args_len,
            agentguard_common::table::MAX_COMMAND as u32,
        );
        match (*case).kind {
            // As the hook does: short paths have a walk of their own.
            kind::FILE if path_len < SHORT_PATH as u32 => {
                let len = at_most_64(u64::from(path_len), SHORT_PATH as u64 - 1);
                let label = with_table!(policy, t => decide::label_of_short(t, buffer, len));
                if policy.flags() & flags::QUIET_OPENS != 0 {
                    with_table!(policy, t => decide::file_labelled(t, label, (*case).access))
                } else {
                    let mut decision = decide::file_aloud(policy.head(), label, (*case).access);
                    if decide::is_hushed(label, (*case).access) {
                        decision.flags |= flags::QUIET_OPENS;
                    }
                    decision
                }
            }
            kind::FILE => {
                with_table!(policy, t => decide::file(t, buffer, path_len, (*case).access))
            }
            kind::PROGRAM => with_table!(policy, t => decide::program(t, buffer, path_len)),
            kind::COMMAND => {
                let Some(scratch) = scratch::claim::<ExecScratch>() else {
                    return 0;
                };
                let walk = &raw mut (*scratch).walk;
                (*walk).left = u64::from((*case).count);
                let command = Command {
                    buffer,
                    path_len,
                    limit,
                    walk,
                };
                let decision = with_table!(policy, t => decide::command(t, decide::label_of(t, buffer, path_len), command));
                scratch::release(scratch);
                decision
            }
            kind::NETWORK => {
                let destination = *buffer.cast::<Destination>();
                let mut name = 0;
                with_table!(policy, t => decide::destination(t, (1, 1), &destination, &mut name))
            }
            kind::UNIX => {
                with_table!(policy, t => decide::unix(t, decide::label_of(t, buffer, path_len)))
            }
            kind::ABSTRACT => {
                with_table!(policy, t => decide::abstract_name(t, decide::label_of(t, buffer, path_len)))
            }
            kind::LISTEN => {
                let destination = *buffer.cast::<Destination>();
                with_table!(policy, t => decide::listen(t, &destination))
            }
            kind::LOCK => with_table!(policy, t => decide::lock(t, (*case).access)),
            kind::MOVE => {
                let second = buffer.add(path_len as usize);
                let second_len = at_most((*case).args_len, 4095);
                let from = with_table!(policy, t => decide::place_of(t, buffer, path_len));
                let to = with_table!(policy, t => decide::place_of(t, second, second_len));
                let Some(scratch) = scratch::claim::<NameScratch>() else {
                    return 0;
                };
                let kept = &raw mut (*scratch).decision;
                let decision = with_table!(policy, t => decide::moved(t, (Place::new(t, from), Place::new(t, to)), Moved::Folder, 0, kept));
                scratch::release(scratch);
                decision
            }
            kind::CHARGE => {
                return charged(1, (*case).access | (*case).args_len, (*case).count) as i32;
            }
            kind::RECORD => {
                record(path_len);
                return 0;
            }
            _ => return 0,
        }
    };
    let quiet = decision.flags & (flags::QUIET | flags::QUIET_OPENS);
    ((decision.flags & MARKS) << 12 | quiet << 18 | decision.verdict << 16 | decision.reason) as i32
}

/// What an open does from its verdict on, and before that for the space; the current task stands for a governed one.
fn record(path_len: u32) {
    let mut label = Label {
        agent: 1,
        session: 1,
        exec_id: 1,
    };
    let Some(chunk) = emit::reserve() else {
        return;
    };
    // SAFETY: the chunk is this program's until it is delivered; the task is live while it runs.
    unsafe {
        let subject = Subject {
            task: bpf_get_current_task_btf() as *const u8,
            label: &raw mut label,
        };
        let len = at_most_64(u64::from(path_len), SHORT_PATH as u64 - 1);
        let decision = Decision::failure(Reason::Rule).with(Verdict::Allow, Reason::Rule);
        let outcome = emit::outcome(decision);
        let facts = Facts {
            target_len: len,
            ..Facts::default()
        };
        let header = &mut (*chunk).header;
        emit::complete(header, subject, Operation::Open, decision, outcome, facts);
        emit::deliver(chunk, len, decision, outcome);
    }
}
