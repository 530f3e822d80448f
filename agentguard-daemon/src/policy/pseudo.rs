//! File systems without files of anybody's: the search for protected objects does not enter them.

use std::os::fd::AsFd;

use nix::sys::statfs::fstatfs;

/// `f_type` of each. What a FUSE server says about inodes is its own affair, and asking it may take for ever.
/// An automount point is not mounted for our sake.
const PSEUDO: [i64; 20] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x1cd1,      // devpts
    0xcafe_4a11, // bpf
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x6265_6570, // configfs
    0x6573_5543, // fusectl
    0x6573_5546, // fuse
    0x9584_58f6, // hugetlbfs
    0x1980_0202, // mqueue
    0x4249_4e4d, // binfmt_misc
    0x6759_6969, // rpc_pipefs
    0x0187,      // autofs
];

/// Whether an open object lies on one.
pub fn is_pseudo(object: impl AsFd) -> bool {
    fstatfs(object).map_or(true, |found| {
        PSEUDO.contains(&(found.filesystem_type().0 & 0xffff_ffff))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_one_and_a_folder_is_none() {
        let open = |path: &str| std::fs::File::open(path).unwrap();
        assert!(is_pseudo(open("/proc")));
        assert!(is_pseudo(open("/sys")));
        assert!(!is_pseudo(open(env!("CARGO_MANIFEST_DIR"))));
    }
}
