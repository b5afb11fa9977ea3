//! Files whose operations a server answers, in its own time: those of FUSE and of network filesystems. The kernel begins an
//! operation inside the system call that submits it, and counts on it not to wait there. A filesystem that has a `poll`, as
//! FUSE does, is asked once whether it would wait, says no, and then waits all the same: for a server that hangs, the thread
//! stands still with all its other disks (`io_read` → `fuse_direct_io` → `request_wait_answer`, Linux 6.18; before 6.5 every
//! filesystem without a block device is believed like that). IOSQE_ASYNC has a worker of the kernel's begin them instead.

use std::fs::File;

/// `f_type` of statfs(2), as <linux/magic.h> and the filesystems' own headers have them.
const REMOTE: [u32; 11] = [
    0x6573_5546, // FUSE, virtiofs
    0x0000_6969, // NFS
    0xfe53_4d42, // SMB2 and newer
    0xff53_4d42, // CIFS
    0x0000_517b, // SMB
    0x00c3_6400, // Ceph
    0x0102_1997, // 9P
    0x5346_414f, // AFS
    0x6b41_4653, // AFS of the kernel's own
    0x7375_7245, // Coda
    0x0bd0_0bd0, // Lustre
];

/// Whether a server answers for this file. One of which nothing can be said is treated as if.
pub(super) fn is_remote(file: &File) -> bool {
    rustix::fs::fstatfs(file).map_or(true, |statfs| REMOTE.contains(&(statfs.f_type as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_this_machine_have_no_server() {
        assert!(!is_remote(&tempfile::tempfile().unwrap()));
        assert!(!is_remote(&File::open("/dev/null").unwrap()));
    }
}
