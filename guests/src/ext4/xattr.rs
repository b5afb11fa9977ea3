//! Extended attributes: in the inode behind its fields, and in one block of their own where that is too small.

// Documentation/filesystems/ext4/attributes.rst.

use std::collections::BTreeMap;

use super::acl;
use super::crc32c::Checksums;
use super::fields::{Get, Put, block};
use super::{BLOCK, INODE_BYTES, INODE_FIELDS};

const MAGIC: u32 = 0xea02_0000;
/// What an inode of ours has for attributes.
const INSIDE_BYTES: usize = INODE_BYTES - INODE_FIELDS;
const INSIDE_HEADER: usize = 4;
const BLOCK_HEADER: usize = 32;
const ENTRY_HEAD: usize = 16;
/// Four zero bytes behind the last entry.
const END_BYTES: usize = 4;
const SUM_AT: usize = 16;

/// The first part of a name is a number on the disk. An access control list has a whole name for itself.
const ACLS: [(u8, &str); 2] = [(2, "system.posix_acl_access"), (3, "system.posix_acl_default")];
const PREFIXES: [(u8, &str); 4] = [(1, "user."), (4, "trusted."), (6, "security."), (7, "system.")];

/// An attribute as the disk has it. The order is that of a block.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Attribute {
    prefix: u8,
    name_length: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// Attributes, ready to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// Behind the inode's fields; empty without attributes.
    pub(super) inside: Vec<u8>,
    /// The block, without its sum: that depends on where it will lie.
    pub(super) outside: Option<Vec<u8>>,
}

/// The attributes of one inode; an error says what is wrong with which.
pub(super) fn encode(xattrs: &BTreeMap<String, Vec<u8>>) -> Result<Stored, String> {
    let mut attributes =
        xattrs.iter().map(|(name, value)| attribute(name, value)).collect::<Result<Vec<_>, _>>()?;
    attributes.sort();
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    let mut room = INSIDE_BYTES - INSIDE_HEADER - END_BYTES;
    for attribute in attributes {
        match room.checked_sub(attribute.size()) {
            Some(left) => {
                room = left;
                inside.push(attribute);
            }
            None => outside.push(attribute),
        }
    }
    let mut stored = Stored::default();
    if !inside.is_empty() {
        stored.inside = vec![0; INSIDE_BYTES];
        stored.inside.put_u32(0, MAGIC);
        place(&mut stored.inside[INSIDE_HEADER..], 0, &inside);
    }
    let needed = BLOCK_HEADER + END_BYTES + outside.iter().map(Attribute::size).sum::<usize>();
    if needed > BLOCK {
        return Err(format!(
            "its extended attributes need {needed} bytes outside of the inode, and ext4 has {BLOCK}"
        ));
    }
    if !outside.is_empty() {
        let mut bytes = block();
        bytes.put_u32(0, MAGIC);
        bytes.put_u32(4, 1); // inode that refers to it
        bytes.put_u32(8, 1); // block
        place(&mut bytes, BLOCK_HEADER, &outside);
        let hash = outside.iter().fold(0, |hash: u32, attribute| hash.rotate_left(16) ^ attribute.hash());
        bytes.put_u32(12, hash);
        stored.outside = Some(bytes);
    }
    Ok(stored)
}

/// Puts the sum of an attribute block into it; it is over the block's number, too.
pub(super) fn seal(bytes: &mut [u8], number: u64, sums: Checksums) {
    bytes.put_u32(SUM_AT, 0);
    let sum = block_sum(bytes, number, sums);
    bytes.put_u32(SUM_AT, sum);
}

fn block_sum(bytes: &[u8], number: u64, sums: Checksums) -> u32 {
    let mut summed = number.to_le_bytes().to_vec();
    summed.extend_from_slice(bytes);
    summed.put_u32(8 + SUM_AT, 0);
    sums.of(&summed)
}

fn attribute(name: &str, value: &[u8]) -> Result<Attribute, String> {
    if let Some((prefix, _)) = ACLS.iter().find(|(_, acl)| *acl == name) {
        let value = acl::to_disk(value).ok_or_else(|| format!("its {name} is not an access control list"))?;
        return Ok(Attribute { prefix: *prefix, name_length: 0, name: Vec::new(), value });
    }
    let (prefix, name) = PREFIXES
        .iter()
        .find_map(|(prefix, word)| Some((*prefix, name.strip_prefix(word)?)))
        .filter(|(_, name)| !name.is_empty() && name.len() <= 255 && !name.contains('\0'))
        .ok_or_else(|| format!("ext4 cannot hold an extended attribute called {name}"))?;
    Ok(Attribute { prefix, name_length: name.len(), name: name.as_bytes().to_vec(), value: value.to_vec() })
}

impl Attribute {
    fn entry_size(&self) -> usize {
        (ENTRY_HEAD + self.name.len()).next_multiple_of(4)
    }

    fn size(&self) -> usize {
        self.entry_size() + self.value.len().next_multiple_of(4)
    }

    /// Of the name and then of the value, word by word.
    fn hash(&self) -> u32 {
        let name = self.name.iter().fold(0, |hash: u32, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(name, |hash, bytes| {
            let mut word = [0; 4];
            word.put(0, bytes);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// Entries from `at` on, values from the end down; offsets of values count from the start of `bytes`.
fn place(bytes: &mut [u8], mut at: usize, attributes: &[Attribute]) {
    let mut end = bytes.len();
    for attribute in attributes {
        let length = attribute.value.len();
        end -= length.next_multiple_of(4);
        bytes.put_u8(at, attribute.name.len() as u8);
        bytes.put_u8(at + 1, attribute.prefix);
        bytes.put_u16(at + 2, if length == 0 { 0 } else { end as u16 });
        bytes.put_u32(at + 8, length as u32);
        bytes.put_u32(at + 12, attribute.hash());
        bytes.put(at + ENTRY_HEAD, &attribute.name);
        bytes.put(end, &attribute.value);
        at += attribute.entry_size();
    }
}

/// The attributes behind an inode's fields; `None`: damaged.
pub(super) fn decode_inside(inside: &[u8], found: &mut BTreeMap<String, Vec<u8>>) -> Option<()> {
    if inside.u32(0) != Some(MAGIC) {
        return Some(());
    }
    decode(inside.get(INSIDE_HEADER..)?, 0, found)
}

/// The attributes of a block; `None`: damaged.
pub(super) fn decode_block(
    bytes: &[u8],
    number: u64,
    sums: Checksums,
    found: &mut BTreeMap<String, Vec<u8>>,
) -> Option<()> {
    if bytes.u32(0)? != MAGIC || block_sum(bytes, number, sums) != bytes.u32(SUM_AT)? {
        return None;
    }
    decode(bytes, BLOCK_HEADER, found)
}

fn decode(bytes: &[u8], mut at: usize, found: &mut BTreeMap<String, Vec<u8>>) -> Option<()> {
    while bytes.u32(at)? != 0 {
        let name_length = usize::from(bytes.u8(at)?);
        let prefix = bytes.u8(at + 1)?;
        let offset = usize::from(bytes.u16(at + 2)?);
        if bytes.u32(at + 4)? != 0 {
            return None; // in an inode of its own, which no image of ours has
        }
        let length = usize::try_from(bytes.u32(at + 8)?).ok()?;
        let name = bytes.get(at + ENTRY_HEAD..)?.get(..name_length)?;
        let value = bytes.get(offset..)?.get(..length)?;
        let (name, value) = match ACLS.iter().find(|(acl, _)| *acl == prefix) {
            Some((_, name)) => ((*name).to_owned(), acl::from_disk(value)?),
            None => {
                let (_, word) = PREFIXES.iter().find(|(known, _)| *known == prefix)?;
                (format!("{word}{}", std::str::from_utf8(name).ok()?), value.to_vec())
            }
        };
        found.insert(name, value);
        at += (ENTRY_HEAD + name_length).next_multiple_of(4);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_back(xattrs: &BTreeMap<String, Vec<u8>>) -> Result<Stored, String> {
        let sums = Checksums::new(&[9; 16]);
        let mut stored = encode(xattrs)?;
        let mut found = BTreeMap::new();
        decode_inside(&stored.inside, &mut found).unwrap();
        if let Some(block) = &mut stored.outside {
            seal(block, 77, sums);
            decode_block(block, 77, sums, &mut found).unwrap();
        }
        assert_eq!(&found, xattrs);
        Ok(stored)
    }

    #[test]
    fn what_does_not_fit_into_the_inode_goes_into_a_block() {
        let one = |name: &str, length| BTreeMap::from([(name.to_owned(), vec![1; length])]);
        assert_eq!(read_back(&one("security.capability", 20)).unwrap().outside, None);
        assert!(read_back(&one("user.long", 3000)).unwrap().inside.is_empty());
        assert!(read_back(&one("user.long", 5000)).unwrap_err().contains("5056 bytes"));
        assert!(read_back(&one("other.name", 1)).unwrap_err().contains("other.name"));
        assert!(read_back(&one("system.posix_acl_access", 1)).unwrap_err().contains("access control list"));
        assert_eq!(read_back(&BTreeMap::new()), Ok(Stored::default()));
    }

    proptest! {
        #[test]
        fn attributes_are_read_back(xattrs in proptest::collection::btree_map("(user|trusted|security)\\.[a-zä]{1,20}", proptest::collection::vec(any::<u8>(), 0..200), 0..10)) {
            read_back(&xattrs).unwrap();
        }

        #[test]
        fn arbitrary_bytes_are_read_or_refused(bytes in proptest::collection::vec(0u8..9, 0..200)) {
            let mut found = BTreeMap::new();
            if decode(&bytes, 0, &mut found).is_some() {
                prop_assert!(found.len() <= bytes.len() / ENTRY_HEAD);
            }
        }
    }
}
