//! File systems without files of anybody's: the search for protected objects does not enter them.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::statfs::fstatfs;

use crate::agent::cgroup::unoctal;

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

/// Where FUSE is mounted. Even asking such a place what it is may take for ever, if its server stands still: it must
/// be known without.
pub struct Served(Vec<PathBuf>);

impl Served {
    /// As the mounts are now. Where they cannot be read there are none.
    pub fn now() -> Self {
        Self::of(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    fn of(mounts: &str) -> Self {
        let point = |line: &str| {
            let (mount, kind) = line.split_once(" - ")?;
            let kind = kind.split(' ').next()?;
            let served = kind == "fuse" || kind == "fuseblk" || kind.starts_with("fuse.");
            let point = mount.split(' ').nth(4)?;
            served.then(|| unoctal(point))
        };
        Self(mounts.lines().filter_map(point).collect())
    }

    /// Whether a path, in which there is no symbolic link, is that of such a mount or lies below one.
    pub fn holds(&self, path: &Path) -> bool {
        self.0.iter().any(|point| path.starts_with(point))
    }
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

    #[test]
    fn what_a_process_serves_is_known_by_the_mounts() {
        let served = Served::of(
            "36 35 98:0 / /srv/a\\040b rw,noatime master:1 - fuse.sshfs host: rw,user_id=0\n\
             37 35 98:1 / /mnt/ntfs rw - fuseblk /dev/sda1 rw\n\
             38 35 0:40 / /sys/fs/fuse/connections rw - fusectl fusectl rw\n",
        );
        assert!(served.holds(Path::new("/srv/a b")));
        assert!(served.holds(Path::new("/mnt/ntfs/deep/file")));
        assert!(!served.holds(Path::new("/srv/a bc")));
        assert!(!served.holds(Path::new("/sys/fs/fuse/connections")));
    }
}
