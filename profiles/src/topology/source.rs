//! Where facts about a host come from: the live /sys and /proc, a captured tree, or a capture file. One small door
//! (`read`, `link`, `list`), so that every source runs the very same parsers.
//!
//! Paths are absolute as on the host (`/sys/devices/…`). Links are followed by name and never by the machine that
//! reads, so that a captured tree cannot lead out of itself.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::capture::Capture;

/// Where to read a host's topology from.
#[derive(Debug, Clone)]
pub enum Source {
    /// This machine.
    Live,
    /// A tree with `sys` and `proc` below this directory.
    Sysroot(PathBuf),
    /// What `vmprof host --capture` wrote.
    Capture(Capture),
}

impl Source {
    /// Whether the facts are this machine's own, now.
    pub fn is_live(&self) -> bool {
        matches!(self, Source::Live)
    }
}

/// A source being read, with a memory of what was read: that memory is what a capture file holds.
#[derive(Debug)]
pub(crate) struct Reader<'s> {
    source: &'s Source,
    seen: RefCell<Capture>,
    record: bool,
}

impl<'s> Reader<'s> {
    pub(crate) fn new(source: &'s Source) -> Self {
        Reader { source, seen: RefCell::default(), record: false }
    }

    pub(crate) fn recording(source: &'s Source) -> Self {
        Reader { record: true, ..Reader::new(source) }
    }

    pub(crate) fn into_capture(self) -> Capture {
        self.seen.into_inner()
    }

    fn place(&self, path: &str) -> PathBuf {
        match self.source {
            Source::Sysroot(root) => root.join(path.trim_start_matches('/')),
            _ => PathBuf::from(path),
        }
    }

    /// The text of a file; `None` where it is missing, unreadable or not text.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        let text = match self.source {
            Source::Capture(capture) => capture.files.get(path).cloned(),
            _ => std::fs::read_to_string(self.place(path)).ok(),
        }?;
        if self.record {
            self.seen.borrow_mut().files.insert(path.to_owned(), text.clone());
        }
        Some(text)
    }

    /// The text of a file without blanks around it.
    pub(crate) fn word(&self, path: &str) -> Option<String> {
        self.read(path).map(|t| t.trim().to_owned())
    }

    /// A number that is the whole text of a file. Nonsense counts as unknown.
    pub(crate) fn number<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        self.read(path)?.trim().parse().ok()
    }

    /// A CPU list that is the whole text of a file. Nonsense counts as unknown.
    pub(crate) fn set(&self, path: &str) -> Option<super::CpuSet> {
        self.read(path)?.parse().ok()
    }

    /// Where a link points, as an absolute path with `..` worked out; `None` where it is no link.
    pub(crate) fn link(&self, path: &str) -> Option<String> {
        let target = match self.source {
            Source::Capture(capture) => capture.links.get(path).cloned(),
            _ => std::fs::read_link(self.place(path)).ok().and_then(|t| t.to_str().map(str::to_owned)),
        }?;
        if self.record {
            self.seen.borrow_mut().links.insert(path.to_owned(), target.clone());
        }
        let base = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        Some(join(base, &target))
    }

    /// The names in a directory, sorted; none where it is missing.
    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = match self.source {
            Source::Capture(capture) => capture.dirs.get(path).cloned().unwrap_or_default(),
            _ => std::fs::read_dir(self.place(path))
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect(),
        };
        names.sort();
        if self.record && !names.is_empty() {
            self.seen.borrow_mut().dirs.insert(path.to_owned(), names.clone());
        }
        names
    }

    /// Whether the facts are this machine's own, so that its other files may be asked too.
    pub(crate) fn live(&self) -> bool {
        self.source.is_live()
    }
}

/// `base` and `relative` as one absolute path without `.` and `..`.
fn join(base: &str, relative: &str) -> String {
    let mut parts: Vec<&str> = if relative.starts_with('/') {
        Vec::new()
    } else {
        base.split('/').filter(|p| !p.is_empty()).collect()
    };
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The absolute form of a path a profile names, without looking at any file system.
pub(crate) fn plain_path(path: &Path) -> Option<String> {
    path.is_absolute().then(|| path.to_str()).flatten().map(|p| join("", p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_worked_out_by_name() {
        assert_eq!(join("/sys/block", "../devices/pci0/nvme0n1"), "/sys/devices/pci0/nvme0n1");
        assert_eq!(join("/sys/block", "/abs/./x"), "/abs/x");
        assert_eq!(join("/a", "../../../../b"), "/b");
    }

    #[test]
    fn a_sysroot_is_read_below_its_own_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("sys/x")).unwrap();
        std::fs::write(dir.path().join("sys/x/n"), " 7\n").unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("sys/out")).unwrap();
        let source = Source::Sysroot(dir.path().to_owned());
        let reader = Reader::new(&source);
        assert_eq!(reader.number::<u32>("/sys/x/n"), Some(7));
        assert_eq!(reader.number::<u32>("/sys/x/missing"), None);
        assert_eq!(reader.list("/sys"), ["out", "x"]);
        // The link's target is a name inside the captured host, not a place on this machine.
        assert_eq!(reader.link("/sys/out").as_deref(), Some("/etc"));
        assert_eq!(reader.read("/etc/hostname"), None);
    }
}
