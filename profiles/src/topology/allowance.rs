//! What of the host the caller may use: its affinity, its cgroup's cpuset (v1 or v2), and the nodes it may take memory
//! from.

use std::borrow::Cow;

use super::mounts::{Mount, below, mounts, older_mounts};
use super::source::Reader;
use super::{CpuSet, NodeSet};

/// How far up from its own cgroup a process's cpuset is looked for.
const DEPTH: usize = 64;

/// `None` is unknown.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    pub(super) affinity: Option<CpuSet>,
    pub(super) cgroup_cpus: Option<CpuSet>,
    pub(super) nodes: Option<NodeSet>,
}

pub(super) fn read(reader: &Reader<'_>) -> Allowance {
    let status = reader.read("/proc/self/status").unwrap_or_default();
    let listed = |key| some(field(&status, key)?.parse().ok()?);
    let (cgroup_cpus, cgroup_nodes) = cgroup(reader).unwrap_or_default();
    let nodes = match (listed("Mems_allowed_list:"), cgroup_nodes) {
        (Some(own), Some(cgroup)) => some(own.and(&cgroup)),
        (one, other) => one.or(other),
    };
    Allowance { affinity: listed("Cpus_allowed_list:"), cgroup_cpus, nodes }
}

fn some(set: CpuSet) -> Option<CpuSet> {
    (!set.is_empty()).then_some(set)
}

/// The text behind `key` in a file of lines such as `Key:\tvalue`.
pub(super) fn field<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}

/// The CPUs and nodes in force for the caller's cgroup: those of the nearest cgroup upwards that has a cpuset.
fn cgroup(reader: &Reader<'_>) -> Option<(Option<CpuSet>, Option<NodeSet>)> {
    let membership = membership(reader)?;
    let mounts = match reader.read("/proc/self/mountinfo") {
        Some(text) => mounts(&text),
        None => older_mounts(&reader.read("/proc/mounts")?),
    };
    // A cpuset of the old hierarchy, where there is one, is the one in force: a controller belongs to one hierarchy.
    let (mount, path) = v1(&membership, &mounts).or_else(|| v2(&membership, &mounts))?;
    let (cpu_files, node_files) = match mount.filesystem.as_str() {
        // What is not `effective` is only a wish there.
        "cgroup2" => (["cpuset.cpus.effective"; 2], ["cpuset.mems.effective"; 2]),
        _ if unprefixed(mount) => (["effective_cpus", "cpus"], ["effective_mems", "mems"]),
        _ => (["cpuset.effective_cpus", "cpuset.cpus"], ["cpuset.effective_mems", "cpuset.mems"]),
    };
    let mut dir = inside(mount, path);
    for _ in 0..DEPTH {
        let set = |names: [&str; 2]| {
            names.iter().find_map(|name| some(reader.set(&format!("{}/{name}", dir.trim_end_matches('/')))?))
        };
        let cpus = set(cpu_files);
        if cpus.is_some() {
            return Some((cpus, set(node_files)));
        }
        if dir.len() <= mount.point.len() {
            break;
        }
        dir.truncate(dir.rfind('/')?);
    }
    None
}

/// The lines of /proc/self/cgroup; of captures that lack it, one made of the cpuset's path alone, good for either
/// version.
fn membership<'s>(reader: &Reader<'s>) -> Option<Cow<'s, str>> {
    reader.read("/proc/self/cgroup").or_else(|| {
        let path = reader.word("/proc/self/cpuset").filter(|path| path.starts_with('/'))?;
        Some(Cow::Owned(format!("1:cpuset:{path}\n0::{path}\n")))
    })
}

/// Whether the files of a mount have no `cpuset.` before their names: so it was when cpusets were a file system of
/// their own, and with the option that keeps it so.
fn unprefixed(mount: &Mount) -> bool {
    mount.filesystem == "cpuset" || mount.options.split(',').any(|word| word == "noprefix")
}

fn v1<'t, 'm>(membership: &'t str, mounts: &'m [Mount]) -> Option<(&'m Mount, &'t str)> {
    let cpuset = |list: &str| list.split(',').any(|word| word == "cpuset");
    let path = hierarchies(membership).find_map(|(controllers, path)| cpuset(controllers).then_some(path))?;
    let holds = |m: &&Mount| m.filesystem == "cpuset" || m.filesystem == "cgroup" && cpuset(&m.options);
    let mount = mounts.iter().find(holds)?;
    Some((mount, path))
}

fn v2<'t, 'm>(membership: &'t str, mounts: &'m [Mount]) -> Option<(&'m Mount, &'t str)> {
    let path = hierarchies(membership).find_map(|(names, path)| names.is_empty().then_some(path))?;
    Some((mounts.iter().find(|m| m.filesystem == "cgroup2")?, path))
}

/// The controllers and the path of each line such as `4:cpuset,cpu:/user`; those of v2 name no controllers.
fn hierarchies(membership: &str) -> impl Iterator<Item = (&str, &str)> {
    membership.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'))
}

/// Where a cgroup's directory is below its mount. In a container the mount shows a part of the tree, and a path out of
/// that part (`/..`) is not to be seen: then the mount's own directory stands for it.
fn inside(mount: &Mount, path: &str) -> String {
    let visible = below(path, &mount.root) && path.split('/').all(|part| part != "..");
    let rest = if mount.root == "/" { Some(path) } else { path.strip_prefix(mount.root.as_str()) };
    let rest = rest.filter(|_| visible).unwrap_or_default();
    format!("{}{}", mount.point.trim_end_matches('/'), rest.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_below_its_mount() {
        let mount = |root: &str, point: &str| Mount {
            numbers: "0:30".into(),
            root: root.into(),
            point: point.into(),
            filesystem: "cgroup2".into(),
            source: "cgroup2".into(),
            options: String::new(),
        };
        for (root, point, path, dir) in [
            ("/", "/sys/fs/cgroup", "/user.slice/x", "/sys/fs/cgroup/user.slice/x"),
            ("/", "/sys/fs/cgroup", "/", "/sys/fs/cgroup"),
            ("/docker/1", "/sys/fs/cgroup", "/docker/1", "/sys/fs/cgroup"),
            ("/docker/1", "/sys/fs/cgroup", "/docker/1/a", "/sys/fs/cgroup/a"),
            ("/docker/1", "/sys/fs/cgroup", "/docker/12", "/sys/fs/cgroup"),
            ("/", "/sys/fs/cgroup", "/../../x", "/sys/fs/cgroup"),
            ("/", "/", "/a", "/a"),
        ] {
            assert_eq!(inside(&mount(root, point), path), dir, "{root} {path}");
        }
    }
}
