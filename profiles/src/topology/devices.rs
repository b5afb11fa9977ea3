//! The names of block devices below /dev: `/dev/disk/by-id/…` and `/dev/mapper/…` are links, made by udev, to the
//! kernel's own names.

use std::collections::BTreeSet;

use super::source::Reader;

/// How many links in a row are followed.
const LINKS: u32 = 8;

/// The kernel's name of the block device at a path below /dev, as far as links tell it.
pub(crate) fn kernel_name(reader: &Reader<'_>, path: &str) -> Option<String> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match reader.link(&path) {
            Some(target) => path = target,
            None => return path.strip_prefix("/dev/").map(str::to_owned),
        }
    }
    None
}

/// Looks at the links in /dev/disk and /dev/mapper so that a recording reader keeps them: those that lead to one of
/// `devices` (kernel names), and no others.
pub(super) fn record_names(reader: &Reader<'_>, devices: &BTreeSet<String>) {
    let kinds = reader.unrecorded_list("/dev/disk");
    let dirs = kinds.iter().filter(|kind| kind.starts_with("by-")).map(|kind| format!("/dev/disk/{kind}"));
    for dir in dirs.chain(["/dev/mapper".to_owned()]) {
        for name in reader.unrecorded_list(&dir) {
            let path = format!("{dir}/{name}");
            let target = reader.unrecorded_link(&path);
            if target.and_then(|t| t.strip_prefix("/dev/").map(|n| devices.contains(n))) == Some(true) {
                reader.link(&path);
            }
        }
    }
}
