//! Where facts about a host come from: the live /sys and /proc, a captured tree, a capture file, or another tool's
//! description. One small door (`read`, `link`, `list`), so that every source with files runs the very same parsers.
//!
//! Paths are absolute as on the host (`/sys/devices/…`). Links are followed by name and never by the machine that
//! reads, so that a captured tree cannot lead out of itself.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Topology;
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
    /// What another tool (hwloc) says about a host: no files, the facts themselves.
    Described(Box<Topology>),
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
    seen: Option<RefCell<Seen>>,
    /// Which file of a capture was read last.
    last: Cell<usize>,
}

/// What a recording reader has seen.
#[derive(Debug, Default)]
struct Seen {
    files: BTreeMap<String, String>,
    links: BTreeMap<String, String>,
    /// The names as a table of them holds them.
    dirs: BTreeMap<String, String>,
}

impl<'s> Reader<'s> {
    pub(crate) fn new(source: &'s Source) -> Self {
        Reader { source, seen: None, last: Cell::default() }
    }

    pub(crate) fn recording(source: &'s Source) -> Self {
        Reader { seen: Some(RefCell::default()), ..Reader::new(source) }
    }

    pub(super) fn into_capture(self) -> Capture {
        let seen = self.seen.map(RefCell::into_inner).unwrap_or_default();
        Capture {
            files: seen.files.into_iter().collect(),
            links: seen.links.into_iter().collect(),
            dirs: seen.dirs.into_iter().collect(),
            ..Capture::default()
        }
    }

    /// Where a path is found on this machine; `None` for a path that a link inside a captured tree leads out of it.
    fn place(&self, path: &str) -> Option<PathBuf> {
        let Source::Sysroot(root) = self.source else { return Some(PathBuf::from(path)) };
        let path = path.trim_start_matches('/');
        let real = |path: PathBuf| path.canonicalize().ok();
        // DIR/sys and DIR/proc may be links themselves: whoever names DIR means what is there.
        let top = path.split('/').next().and_then(|top| real(root.join(top)))?;
        real(root.join(path)).filter(|found| found.starts_with(top))
    }

    /// The place of a link itself.
    fn place_of_link(&self, path: &str) -> Option<PathBuf> {
        let (dir, name) = path.rsplit_once('/')?;
        Some(self.place(dir)?.join(name))
    }

    /// The text of a file; `None` where it is missing, unreadable or not text.
    pub(crate) fn read(&self, path: &str) -> Option<Cow<'s, str>> {
        self.read_start(path, MOST_BYTES)
    }

    /// The same, at most the first `most` bytes: a recording reader keeps no more.
    pub(crate) fn read_start(&self, path: &str, most: u64) -> Option<Cow<'s, str>> {
        let text = match self.source {
            Source::Capture(capture) => Cow::Borrowed(capture.files.get_after(path, &self.last)?),
            Source::Live => Cow::Owned(text_of(Path::new(path), most)?),
            Source::Sysroot(_) => {
                let place = self.place(path)?;
                // A pipe or a device in a captured tree would never end.
                std::fs::metadata(&place).ok().filter(std::fs::Metadata::is_file)?;
                Cow::Owned(text_of(&place, most)?)
            }
            Source::Described(_) => return None,
        };
        if let Some(seen) = &self.seen {
            seen.borrow_mut().files.insert(path.to_owned(), text.clone().into_owned());
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
        without_end(&self.read(path)?).parse().ok()
    }

    /// The same for a mask.
    pub(crate) fn mask(&self, path: &str) -> Option<super::CpuSet> {
        super::CpuSet::from_mask(without_end(&self.read(path)?)).ok()
    }

    /// Where a link points, as an absolute path with `..` worked out; `None` where it is no link.
    pub(crate) fn link(&self, path: &str) -> Option<String> {
        let target = self.target(path)?;
        if let Some(seen) = &self.seen {
            seen.borrow_mut().links.insert(path.to_owned(), target.clone().into_owned());
        }
        Some(join(parent(path), &target))
    }

    /// The same for a link that need not be in a capture.
    pub(super) fn unrecorded_link(&self, path: &str) -> Option<String> {
        Some(join(parent(path), &self.target(path)?))
    }

    fn target(&self, path: &str) -> Option<Cow<'s, str>> {
        match self.source {
            Source::Capture(capture) => capture.links.get(path).map(Cow::Borrowed),
            Source::Described(_) => None,
            _ => {
                let target = self.place_of_link(path).and_then(|place| std::fs::read_link(place).ok())?;
                target.to_str().map(|target| Cow::Owned(target.to_owned()))
            }
        }
    }

    /// The names in a directory, sorted; none where it is missing.
    pub(crate) fn list(&self, path: &str) -> Vec<Cow<'s, str>> {
        let names = self.unrecorded_list(path);
        if let Some(seen) = &self.seen
            && !names.is_empty()
        {
            let listed = names.iter().fold(String::new(), |all, name| all + name + "/");
            seen.borrow_mut().dirs.insert(path.to_owned(), listed);
        }
        names
    }

    /// The same for a directory that need not be in a capture.
    pub(crate) fn unrecorded_list(&self, path: &str) -> Vec<Cow<'s, str>> {
        let mut names: Vec<Cow<'s, str>> = match self.source {
            Source::Capture(capture) => capture.dirs.names(path).map(Cow::Borrowed).collect(),
            Source::Described(_) => Vec::new(),
            _ => self
                .place(path)
                .and_then(|place| std::fs::read_dir(place).ok())
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .map(Cow::Owned)
                .collect(),
        };
        names.sort();
        names
    }

    /// Whether the facts are this machine's own, so that its other files may be asked too.
    pub(crate) fn live(&self) -> bool {
        self.source.is_live()
    }
}

/// Some kernels of the 5.15 days hand out the NUL behind the text of a list, and of a mask, as a part of it.
fn without_end(text: &str) -> &str {
    text.trim_end_matches('\0')
}

fn text_of(place: &Path, most: u64) -> Option<String> {
    let mut text = String::new();
    // Files of sysfs and procfs say nothing of their length; most have a line.
    let read = File::open(place).ok()?.take(most.saturating_add(1)).read_to_string(&mut text).ok()?;
    if read as u64 <= most {
        return Some(text);
    }
    // A whole file that is longer than any of these is something else; a start ends where it was to end.
    (most < MOST_BYTES).then(|| text.chars().take(usize::try_from(most).unwrap_or(usize::MAX)).collect())
}

/// The paths below one directory, one at a time: naming thousands of files costs no allocation each.
#[derive(Debug)]
pub(super) struct Below {
    path: String,
    base: usize,
}

impl Below {
    pub(super) fn new(dir: String) -> Self {
        Below { base: dir.len(), path: dir }
    }

    pub(super) fn dir(&mut self) -> &str {
        self.path.truncate(self.base);
        &self.path
    }

    /// The path of `name` in the directory.
    pub(super) fn file(&mut self, name: &str) -> &str {
        self.path.truncate(self.base);
        self.path.push('/');
        self.path.push_str(name);
        &self.path
    }
}

/// More than any file of /sys or /proc that is read here.
const MOST_BYTES: u64 = 16 << 20;

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
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

    #[test]
    fn a_link_out_of_a_sysroot_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let cpu = dir.path().join("root/sys/devices/system/cpu");
        std::fs::create_dir_all(&cpu).unwrap();
        std::fs::write(dir.path().join("outside"), "0-7\n").unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), cpu.join("online")).unwrap();
        std::os::unix::fs::symlink("isolated", cpu.join("isolated")).unwrap();
        std::os::unix::fs::symlink(dir.path(), cpu.join("up")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", cpu.join("zero")).unwrap();
        let source = Source::Sysroot(dir.path().join("root"));
        let reader = Reader::new(&source);
        let base = "/sys/devices/system/cpu";
        for name in ["online", "isolated", "up/outside", "zero"] {
            assert_eq!(reader.read(&format!("{base}/{name}")), None, "{name}");
        }
        assert!(reader.list(&format!("{base}/up")).is_empty());
        assert_eq!(text_of(Path::new("/dev/zero"), MOST_BYTES), None);
    }
}
