//! The layouts that cross the boundary, once as Rust has them here and once as the kernel object's own
//! type information has them.

use core::mem::offset_of;

use agentguard::kernel::{OBJECT, Structs};
use agentguard_common::label::{Control, Label, Membership, State};
use agentguard_common::record::RecordHeader;
use agentguard_common::selftest::Case;
use agentguard_common::traffic::{Account, Counts, Flow, Owner, Row};

macro_rules! same {
    ($structs:ident; $($name:ident { $($field:ident)+ })+) => {
        $($(
            assert_eq!(
                $structs.offset(stringify!($name), stringify!($field)).unwrap() as usize,
                offset_of!($name, $field),
                concat!(stringify!($name), ".", stringify!($field))
            );
        )+)+
    };
}

#[test]
fn the_object_has_the_layouts_of_the_daemon() {
    let object = aya_obj::Object::parse(OBJECT).unwrap();
    let blob = object.btf.unwrap().to_bytes();
    let structs = Structs::parse(&blob).unwrap();
    same! { structs;
        RecordHeader {
            len operation verdict access flags time agent session generation reason errno pid tid ppid uid
            exec_id inode device aux target_len args_len new_exec_id euid name
        }
        Label { agent session exec_id }
        Membership { agent session }
        State { unsettled exec_ids }
        Control { unlabel_agent settled changed }
        Flow { agent session address port protocol }
        Counts { bytes_in packets_in bytes_out packets_out }
        Row { counts name reserved }
        Account { rest rows session reserved }
        Owner { cgroup called reserved }
        Case { kind access path_len args_len count reserved bytes }
    }
    assert!(structs.offset("RecordHeader", "gone").is_err());
}
