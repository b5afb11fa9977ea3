//! `mount "/srv" disk=data format=ext4` and `mount "/scratch" tmpfs="512MiB"`.

use std::collections::BTreeMap;

use vmprof_document::{Block, Node};
use vmprof_job::{Filesystem, Mount, Mounted};

use super::users::People;
use super::{MOUNTED_OVER, absolute, formed, mode};
use crate::recipe::GuestMount;
use crate::recipe::words::DISK;

const OPTIONAL_HELP: &str = "a filesystem in memory is always there and always empty: remove it";

/// Sorted by path, so that a mount comes after the one it lies in.
pub(super) fn mounts(body: &Block<'_>, people: &People) -> Vec<GuestMount> {
    let found = body.findings();
    let mut mounts: Vec<GuestMount> = Vec::new();
    let mut places = BTreeMap::new();
    let mut formats: BTreeMap<String, (Filesystem, _)> = BTreeMap::new();
    for node in body.all("mount") {
        let place = node.name_span();
        let read = mount(&node, people);
        node.finish();
        let Some(read) = read else { continue };
        let path = &read.mount.path;
        if let Some(first) = places.insert(path.clone(), place) {
            let problem = found.error("duplicate_path", format!("{path} is mounted twice"));
            let problem = problem.at(place, "again here").at(first, "first here");
            found.push(problem.help("keep one of them"));
        }
        if let (Mounted::Disk { serial }, Some(format)) = (&read.mount.what, read.format)
            && let Some((other, first)) = formats.insert(serial.clone(), (format, place))
            && other != format
        {
            let (other, format) = (other.name(), format.name());
            let message = format!("disk `{serial}` is to become {other} and {format}");
            let problem =
                found.error("contradiction", message).at(place, "again here").at(first, "first here");
            found.push(problem.help("a disk has one filesystem: write the same `format=` in both"));
        }
        mounts.push(read);
    }
    mounts.sort_by(|a, b| a.mount.path.cmp(&b.mount.path));
    mounts
}

fn mount(node: &Node<'_>, people: &People) -> Option<GuestMount> {
    let found = node.findings();
    let path = node.required_arg("where", "write `mount \"/srv/data\" disk=data`");
    let path = path.and_then(|value| {
        let path = absolute(found, value)?;
        if MOUNTED_OVER.contains(&path.as_str()) {
            let problem = value.problem("hidden_path", format!("the kernel's own filesystem is at {path}"));
            found.push(problem.help("choose another path; one below it is possible"));
            return None;
        }
        Some(path)
    });
    let what = match (node.prop("disk"), node.prop("tmpfs")) {
        (Some(disk), None) => formed(found, disk, &DISK).map(|serial| Mounted::Disk { serial }),
        (None, Some(tmpfs)) => tmpfs.bytes().and_then(|bytes| {
            if bytes < 4096 {
                let problem = tmpfs.problem("bad_size", "a filesystem in memory has at least one page");
                found.push(problem.help("write \"4KiB\" or more"));
                return None;
            }
            Some(Mounted::Tmpfs { bytes })
        }),
        (Some(_), Some(tmpfs)) => {
            let problem = tmpfs.problem("contradiction", "the mount is of a disk and in memory at once");
            found.push(problem.help("keep `disk=` or `tmpfs=`"));
            None
        }
        (None, None) => {
            let problem = node.problem("missing_property", "`mount` does not say what is mounted");
            found.push(problem.help(
                "write `disk=NAME`, a disk of the profile, or `tmpfs=\"512MiB\"` for a filesystem in memory",
            ));
            None
        }
    };
    let formats = [("ext4", Filesystem::Ext4), ("xfs", Filesystem::Xfs)];
    let (format, optional) = (node.prop("format"), node.prop("optional"));
    if let Some(Mounted::Tmpfs { .. }) = what {
        for (value, key) in [(format, "format"), (optional, "optional")] {
            if let Some(value) = value {
                let message = format!("`{key}=` is about a disk, and this mount is in memory");
                found.push(value.problem("contradiction", message).help(OPTIONAL_HELP));
            }
        }
    }
    let format = match format {
        None => Some(None),
        Some(value) => value.word(&formats).map(Some),
    };
    let optional = optional.map_or(Some(false), |value| value.bool());
    let options = match node.prop("options") {
        None => Some(Vec::new()),
        Some(value) => value.text().and_then(|text| {
            let words: Vec<String> = text.split(',').map(str::to_owned).collect();
            if words
                .iter()
                .any(|word| word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control()))
            {
                let problem = value.problem("bad_options", format!("`{text}` is no list of mount options"));
                found.push(problem.help("write words with commas between them: `options=\"noatime,nodev\"`"));
                return None;
            }
            Some(words)
        }),
    };
    let owner = people.owner(node).said();
    // 0 is a mode, so what is not said must be told from it.
    let has_mode = node.prop("mode").is_some();
    let mode = if has_mode { Some(mode(node, 0)?) } else { None };
    Some(GuestMount {
        mount: Mount { path: path?, what: what?, options: options?, owner, mode },
        format: format?,
        optional: optional?,
    })
}
