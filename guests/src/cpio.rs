//! Newc cpio archives, the form of an initramfs: written sorted, with times 0 and inodes counted from 1, and read back to
//! compare two of them. The kernel reads several archives one after another, so one can be appended in memory.

use crate::error::Result;
use crate::tree::{Kind, Node, Origin, Tree, TreeError};

const MAGIC: &[u8] = b"070701";
const TRAILER: &str = "TRAILER!!!";
/// Header fields and names are aligned to this; so must be where a following archive starts.
const ALIGN: usize = 4;

const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// Packs the tree, its root left out: that is there before any archive is read.
pub(crate) fn pack(tree: &Tree) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut inode = 0;
    for (path, node) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        inode += 1;
        write_member(&mut out, inode, path, node)?;
    }
    let end = Node::file(0, []);
    write_header(&mut out, 0, TRAILER, 0, &end, 0, (0, 0));
    pad(&mut out);
    Ok(out)
}

/// A small archive to put behind an initramfs in memory: files with the directories above them, which the archive before
/// it may already have. Both lengths are multiples of four, as the kernel wants between archives.
pub fn append_archive(files: &[(&str, u16, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    for (path, mode, content) in files {
        tree.put(path, Node::file(*mode, content.as_slice()), &Origin::Recipe)?;
    }
    pack(&tree)
}

fn write_member(out: &mut Vec<u8>, inode: u32, path: &str, node: &Node) -> Result<()> {
    let (kind, data, device): (u32, &[u8], _) = match &node.kind {
        Kind::Directory => (S_IFDIR, &[], (0, 0)),
        Kind::File(content) => (S_IFREG, content, (0, 0)),
        Kind::Link(target) => (S_IFLNK, target.as_bytes(), (0, 0)),
        Kind::CharDevice { major, minor } => (S_IFCHR, &[], (*major, *minor)),
        Kind::BlockDevice { major, minor } => (S_IFBLK, &[], (*major, *minor)),
        Kind::Fifo => (S_IFIFO, &[], (0, 0)),
    };
    let size = u32::try_from(data.len()).map_err(|_| TreeError::BadPath {
        path: path.to_owned(),
        by: "an initramfs".to_owned(),
        reason: "a file in a cpio archive is smaller than 4 GiB".to_owned(),
    })?;
    write_header(out, inode, path, kind, node, size, device);
    out.extend_from_slice(data);
    pad(out);
    Ok(())
}

fn write_header(
    out: &mut Vec<u8>,
    inode: u32,
    path: &str,
    kind: u32,
    node: &Node,
    size: u32,
    device: (u32, u32),
) {
    let links = if kind == S_IFDIR { 2 } else { 1 };
    // Names come from paths, which no build makes longer than 4 GiB.
    let name_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
    let fields = [
        inode,
        kind | u32::from(node.mode),
        node.uid,
        node.gid,
        links,
        0, // time
        size,
        0, // device the file lies on
        0,
        device.0,
        device.1,
        name_size,
        0, // checksum, of another form
    ];
    out.extend_from_slice(MAGIC);
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGN), 0);
}

/// Reads one archive: path, whole mode with its kind, content.
pub(crate) fn members(archive: &[u8]) -> Option<Vec<(String, u32, &[u8])>> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let header = archive.get(at..at + 110)?;
        if !header.starts_with(MAGIC) {
            return None;
        }
        let field = |n: usize| {
            let text = std::str::from_utf8(header.get(6 + 8 * n..14 + 8 * n)?).ok()?;
            usize::from_str_radix(text, 16).ok()
        };
        let (mode, size, name_size) = (field(1)?, field(6)?, field(11)?);
        let name = archive.get(at + 110..(at + 110).checked_add(name_size)?)?;
        let name = std::str::from_utf8(name.strip_suffix(&[0])?).ok()?;
        let data = (at + 110 + name_size).next_multiple_of(ALIGN);
        if name == TRAILER {
            return Some(found);
        }
        let end = data.checked_add(size)?;
        found.push((name.to_owned(), u32::try_from(mode).ok()?, archive.get(data..end)?));
        at = end.next_multiple_of(ALIGN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_tree_reads_back_in_path_order() {
        let mut tree = Tree::default();
        let by = Origin::Builder;
        tree.put("init", Node::file(0o755, *b"#!"), &by).unwrap();
        tree.put("dev/console", Node::new(Kind::CharDevice { major: 5, minor: 1 }, 0o600), &by).unwrap();
        tree.put("bin", Node::link("usr/bin"), &by).unwrap();
        let packed = pack(&tree).unwrap();
        assert_eq!(packed.len() % ALIGN, 0);
        let read = members(&packed).unwrap();
        let short: Vec<_> = read.iter().map(|(path, mode, data)| (path.as_str(), *mode, *data)).collect();
        assert_eq!(
            short,
            [
                ("bin", S_IFLNK | 0o777, &b"usr/bin"[..]),
                ("dev", S_IFDIR | 0o755, b""),
                ("dev/console", S_IFCHR | 0o600, b""),
                ("init", S_IFREG | 0o755, b"#!"),
            ]
        );
    }

    #[test]
    fn an_appended_archive_brings_its_directories() {
        let archive = append_archive(&[("vmprof/job.json", 0o600, b"{}".to_vec())]).unwrap();
        let read = members(&archive).unwrap();
        assert_eq!(read[0].0, "vmprof");
        assert_eq!(read[1], ("vmprof/job.json".to_owned(), S_IFREG | 0o600, &b"{}"[..]));
        assert_eq!(archive.len() % ALIGN, 0);
    }

    #[test]
    fn a_torn_archive_is_not_read() {
        let archive = append_archive(&[("a", 0o600, b"content".to_vec())]).unwrap();
        assert!(members(&archive[..archive.len() / 2]).is_none());
        assert!(members(b"not an archive").is_none());
    }
}
