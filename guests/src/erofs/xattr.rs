//! Extended attributes, between an inode and what it holds. None is shared between inodes: of Debian's packages a handful
//! of programs carry one each, `security.capability`.

use std::collections::BTreeMap;

use super::problem;
use super::superblock::little;
use crate::error::Result;

/// Prefixes that have a number. A name that is a prefix exactly is an access list's: no other has an empty rest.
const PREFIXES: [(u8, &str); 5] = [
    (2, "system.posix_acl_access"),
    (3, "system.posix_acl_default"),
    (1, "user."),
    (4, "trusted."),
    (6, "security."),
];
/// Before the entries: a filter of names that is not used here, and how many shared attributes follow.
const HEADER_BYTES: usize = 12;

/// The attributes as they follow the inode of `path`; empty for none.
pub(super) fn encode(path: &str, xattrs: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut encoded = vec![0; HEADER_BYTES];
    for (name, value) in xattrs {
        let refused = |reason: &str| problem(format!("/{path} has the extended attribute {name}: {reason}"));
        let (index, rest) =
            split(name).ok_or_else(|| refused("EROFS has no place for names of that kind"))?;
        let length = u8::try_from(rest.len()).map_err(|_| refused("a name ends at 255 bytes"))?;
        let size = u16::try_from(value.len()).map_err(|_| refused("a value ends at 65,535 bytes"))?;
        encoded.extend([length, index]);
        encoded.extend(size.to_le_bytes());
        encoded.extend(rest.as_bytes());
        encoded.extend(value);
        encoded.resize(encoded.len().next_multiple_of(4), 0);
    }
    if count(&encoded) > usize::from(u16::MAX) {
        return Err(problem(format!("/{path} has more than 256 KiB of extended attributes")));
    }
    Ok(encoded)
}

/// What the inode says of their length.
pub(super) fn count(encoded: &[u8]) -> usize {
    if encoded.is_empty() { 0 } else { (encoded.len() - HEADER_BYTES) / 4 + 1 }
}

/// Their length by what the inode says.
pub(super) fn bytes(count: u16) -> usize {
    if count == 0 { 0 } else { HEADER_BYTES + 4 * (usize::from(count) - 1) }
}

pub(super) fn decode(encoded: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut xattrs = BTreeMap::new();
    if encoded.is_empty() {
        return Ok(xattrs);
    }
    if little(encoded, 4, 1)? != 0 {
        return Err(problem("shared extended attributes, which no build makes"));
    }
    let mut left = encoded.get(HEADER_BYTES..).unwrap_or_default();
    while !left.is_empty() {
        let (length, index) = (little(left, 0, 1)? as usize, little(left, 1, 1)?);
        let size = little(left, 2, 2)? as usize;
        let cut = || problem("an extended attribute is cut off");
        let rest = left.get(4..4 + length).ok_or_else(cut)?;
        let value = left.get(4 + length..4 + length + size).ok_or_else(cut)?;
        let prefix = PREFIXES.iter().find(|(number, _)| u64::from(*number) == index);
        let (_, prefix) = prefix.ok_or_else(|| problem("an extended attribute of an unknown kind"))?;
        let rest =
            std::str::from_utf8(rest).map_err(|_| problem("an extended attribute's name is not text"))?;
        xattrs.insert(format!("{prefix}{rest}"), value.to_vec());
        left = left.get((4 + length + size).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(xattrs)
}

fn split(name: &str) -> Option<(u8, &str)> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(prefix)?;
        (rest.is_empty() != prefix.ends_with('.')).then_some((*index, rest))
    })
}
