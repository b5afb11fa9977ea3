//! The inodes and directories of an EROFS image, read with nothing but the kernel's `erofs_fs.h` at hand: numbers of inodes,
//! counts of links and extended attributes are what no tool of erofs-utils tells of a whole image at once. Contents of files
//! come from `fsck.erofs`.

use std::collections::BTreeMap;
use std::path::Path;

use super::facts::{BLOCK_DEVICE, CHAR_DEVICE, DIRECTORY, Facts, LINK, Listed, TYPE};
use super::images::Inode;

const BLOCK: usize = 4096;
const SUPERBLOCK: usize = 1024;
const SLOT: usize = 32;

fn number(image: &[u8], at: usize, bytes: usize) -> usize {
    image[at..at + bytes].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

struct Raw {
    facts: Facts,
    links: u64,
    /// Of directories and links, which are never compressed.
    data: Vec<u8>,
}

fn inode(image: &[u8], at: usize) -> Raw {
    let word = |offset: usize| number(image, at + offset, 4);
    let half = |offset: usize| number(image, at + offset, 2);
    let is_extended = half(0) & 1 == 1;
    let layout = half(0) >> 1 & 7;
    let mode = half(4) as u32;
    let own = if is_extended { 64 } else { 32 };
    let (size, uid, gid, links) = match is_extended {
        true => (number(image, at + 8, 8), word(24), word(28), word(44)),
        false => (word(8), half(24), half(26), half(6)),
    };
    let attributes = match half(2) {
        0 => 0,
        count => 12 + 4 * (count - 1),
    };
    let xattrs = xattrs(&image[at + own..at + own + attributes]);
    let value = word(16);
    let mut data = Vec::new();
    if matches!(mode & TYPE, DIRECTORY | LINK) {
        let whole = match layout {
            0 => size,
            2 => size / BLOCK * BLOCK,
            other => panic!("a directory or a link of layout {other}"),
        };
        if whole > 0 {
            data.extend_from_slice(&image[value * BLOCK..value * BLOCK + whole]);
        }
        let tail = at + own + attributes;
        data.extend_from_slice(&image[tail..tail + size - whole]);
    }
    let target = (mode & TYPE == LINK).then(|| String::from_utf8(data.clone()).unwrap());
    let is_device = matches!(mode & TYPE, CHAR_DEVICE | BLOCK_DEVICE);
    let device =
        is_device.then_some(((value >> 8 & 0xfff) as u32, (value & 0xff | value >> 12 & 0xfff00) as u32));
    let facts = Facts { mode, uid: uid as u32, gid: gid as u32, target, device, xattrs };
    Raw { facts, links: links as u64, data }
}

fn xattrs(area: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    if area.is_empty() {
        return found;
    }
    assert_eq!(area[4], 0, "no attribute is shared");
    let mut at = 12;
    while at < area.len() {
        let (length, size) = (usize::from(area[at]), number(area, at + 2, 2));
        let prefix = match area[at + 1] {
            1 => "user.",
            2 => "system.posix_acl_access",
            3 => "system.posix_acl_default",
            4 => "trusted.",
            6 => "security.",
            other => panic!("the prefix {other} of an attribute"),
        };
        let name = std::str::from_utf8(&area[at + 4..at + 4 + length]).unwrap();
        let value = area[at + 4 + length..at + 4 + length + size].to_vec();
        assert_eq!(found.insert(format!("{prefix}{name}"), value), None);
        at = (at + 4 + length + size).next_multiple_of(4);
    }
    found
}

/// Every path, with its inode.
pub fn list(image: &[u8], extracted: &Path) -> BTreeMap<String, (Listed, Inode)> {
    assert_eq!(number(image, SUPERBLOCK, 4), 0xe0f5_e1e2);
    let inodes = number(image, SUPERBLOCK + 40, 4) * BLOCK;
    let mut found = BTreeMap::new();
    let mut left = vec![(String::new(), number(image, SUPERBLOCK + 14, 2))];
    while let Some((path, nid)) = left.pop() {
        let raw = inode(image, inodes + nid * SLOT);
        if raw.facts.is(DIRECTORY) {
            let mut dots = 0;
            for block in raw.data.chunks(BLOCK) {
                let count = number(block, 8, 2) / 12;
                let mut before: &[u8] = b"";
                for entry in 0..count {
                    let start = number(block, entry * 12 + 8, 2);
                    let end = if entry + 1 < count { number(block, entry * 12 + 20, 2) } else { block.len() };
                    let name = block[start..end].split(|byte| *byte == 0).next().unwrap();
                    assert!(before < name, "/{path}: the kernel looks names up by halves");
                    before = name;
                    let name = std::str::from_utf8(name).unwrap();
                    if matches!(name, "." | "..") {
                        dots += 1;
                        continue;
                    }
                    let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
                    left.push((below, number(block, entry * 12, 8)));
                }
            }
            assert_eq!(dots, 2, "/{path}");
        }
        let at = extracted.join(&path);
        let listed = Listed { facts: raw.facts, at, same_as: None };
        let inode = Inode { number: nid as u64, links: raw.links };
        assert!(found.insert(path.clone(), (listed, inode)).is_none(), "/{path} is there twice");
    }
    found
}
