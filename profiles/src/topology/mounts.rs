//! The lines of /proc/self/mountinfo, and of /proc/mounts where a capture has only that.

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Device numbers, `259:1`.
    pub(crate) numbers: String,
    /// What of the file system is mounted: `/`, or a directory in it.
    pub(crate) root: String,
    /// Where it is mounted.
    pub(crate) point: String,
    /// `ext4`, `cgroup2`.
    pub(crate) filesystem: String,
    /// What is mounted, `/dev/nvme0n1p1` where it is a device.
    pub(crate) source: String,
    /// The file system's own options.
    pub(crate) options: String,
}

/// All mounts, in the order in which they were made; lines that make no sense are left out.
pub(crate) fn mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let mut right = right.split(' ');
    Some(Mount {
        numbers: left.next()?.to_owned(),
        root: unescape(left.next()?),
        point: unescape(left.next()?),
        filesystem: right.next()?.to_owned(),
        source: unescape(right.next()?),
        options: right.next().unwrap_or_default().to_owned(),
    })
}

/// The same of /proc/mounts, which tells neither numbers nor what of a file system is mounted (taken: all of it).
pub(super) fn older_mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let mut fields = line.split(' ');
        let (source, point) = (unescape(fields.next()?), unescape(fields.next()?));
        let (filesystem, options) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        Some(Mount { numbers: String::new(), root: "/".to_owned(), point, filesystem, source, options })
    };
    text.lines().filter_map(mount).collect()
}

/// The kernel writes blanks and backslashes in names as `\` and three octal digits.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Whether `path` is `point` or lies below it.
pub(crate) fn below(path: &str, point: &str) -> bool {
    point == "/" || path == point || path.strip_prefix(point).is_some_and(|rest| rest.starts_with('/'))
}
