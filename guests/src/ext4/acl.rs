//! POSIX access control lists: programs and archives have them in one form, ext4 keeps them in a shorter one, in which only
//! named users and groups have an id.

use super::fields::{Get as _, Put as _};

const XATTR_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;
const HEADER_BYTES: usize = 4;
const LONG_BYTES: usize = 8;
const SHORT_BYTES: usize = 4;
/// The id of entries that name nobody.
const NOBODY: u32 = u32::MAX;

/// Whether entries of that tag name a user or a group; `None` for a tag that does not exist.
fn names_someone(tag: u16) -> Option<bool> {
    match tag {
        0x02 | 0x08 => Some(true),
        0x01 | 0x04 | 0x10 | 0x20 => Some(false),
        _ => None,
    }
}

/// From the form of the extended attribute to ext4's; `None` where it is not a list.
pub(super) fn to_disk(value: &[u8]) -> Option<Vec<u8>> {
    if value.u32(0)? != XATTR_VERSION {
        return None;
    }
    let (entries, []) = value.get(HEADER_BYTES..)?.as_chunks::<LONG_BYTES>() else { return None };
    let mut disk = DISK_VERSION.to_le_bytes().to_vec();
    for entry in entries {
        let kept = if names_someone(entry.u16(0)?)? { LONG_BYTES } else { SHORT_BYTES };
        disk.extend_from_slice(&entry[..kept]);
    }
    Some(disk)
}

pub(super) fn from_disk(disk: &[u8]) -> Option<Vec<u8>> {
    if disk.u32(0)? != DISK_VERSION {
        return None;
    }
    let mut value = XATTR_VERSION.to_le_bytes().to_vec();
    let mut rest = disk.get(HEADER_BYTES..)?;
    while !rest.is_empty() {
        let length = if names_someone(rest.u16(0)?)? { LONG_BYTES } else { SHORT_BYTES };
        let mut entry = [0; LONG_BYTES];
        entry.put_u32(SHORT_BYTES, NOBODY);
        entry.put(0, rest.get(..length)?);
        value.extend_from_slice(&entry);
        rest = rest.get(length..)?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_shortened_and_lengthened_again() {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in [
            (0x01u16, 7u16, NOBODY),
            (0x02, 6, 1000),
            (0x04, 5, NOBODY),
            (0x10, 7, NOBODY),
            (0x20, 0, NOBODY),
        ] {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        let disk = to_disk(&value).unwrap();
        assert_eq!(disk.len(), 4 + 4 * 4 + 8);
        assert_eq!(from_disk(&disk), Some(value.clone()));
        assert_eq!(to_disk(&value[..value.len() - 1]), None);
        assert_eq!(to_disk(b""), None);
        assert_eq!(from_disk(&disk[..disk.len() - 1]), None);
    }
}
