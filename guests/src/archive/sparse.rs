//! Files with holes: the map of GNU's old header type, and the three forms that GNU tar writes into extended headers.

use super::header::{BLOCK_BYTES, Header, Parts, sparse_parts};
use super::pax::{Records, decimal};
use super::{Content, Reader};
use crate::packed::MOST_BYTES;

/// The header type `S`: four parts in the header, 21 in each block behind it.
pub(super) fn old_gnu<'a>(
    reader: &mut Reader<'a>,
    header: &Header<'a>,
    stored: u64,
) -> Result<Content<'a>, String> {
    let (mut parts, mut more, bytes) = header.sparse()?;
    while more {
        let (block, rest) = reader.rest.split_first_chunk::<BLOCK_BYTES>().ok_or("its map is cut off")?;
        reader.rest = rest;
        parts.extend(sparse_parts(&block[..504])?);
        more = block[504] != 0;
    }
    let data = reader.data(stored, "a sparse file")?;
    placed(bytes, &parts, data)
}

/// A member whose extended header says that it has holes; `None` where it says nothing of the kind.
pub(super) fn of_pax<'a>(records: &Records, data: &'a [u8]) -> Result<Option<Content<'a>>, String> {
    let major = records.number("GNU.sparse.major")?;
    let minor = records.number("GNU.sparse.minor")?;
    let missing = || "its extended header has no size of the whole file".to_owned();
    match (major, minor) {
        (Some(1), Some(0)) => {
            let bytes = records.number("GNU.sparse.realsize")?.ok_or_else(missing)?;
            let (parts, data) = map_in_data(data).ok_or("its map is damaged")?;
            return placed(bytes, &parts, data).map(Some);
        }
        (None | Some(0), None | Some(0 | 1)) => {}
        _ => return Err("it is a sparse file of a form that is not known".to_owned()),
    }
    let Some(bytes) = records.number("GNU.sparse.size")? else {
        let has_map = records.text("GNU.sparse.map").is_some() || major.is_some();
        return if has_map { Err(missing()) } else { Ok(None) };
    };
    let mut numbers = Vec::new();
    if let Some(map) = records.text("GNU.sparse.map") {
        for part in map.split(|byte| *byte == b',') {
            numbers.push(decimal(part).ok_or("its map is damaged")?);
        }
    } else {
        let keys = ["GNU.sparse.offset", "GNU.sparse.numbytes"];
        for (at, (key, value)) in records.each(&keys).enumerate() {
            let wanted = if at % 2 == 0 { b"GNU.sparse.offset".as_slice() } else { b"GNU.sparse.numbytes" };
            numbers.push(decimal(value).filter(|_| key == wanted).ok_or("its map is damaged")?);
        }
    }
    let (pairs, []) = numbers.as_chunks::<2>() else { return Err("its map is damaged".to_owned()) };
    let parts: Parts = pairs.iter().map(|[at, bytes]| (*at, *bytes)).collect();
    placed(bytes, &parts, data).map(Some)
}

/// The map before the data: a count, then offsets and lengths, each a line; filled up to a whole block.
fn map_in_data(data: &[u8]) -> Option<(Parts, &[u8])> {
    let mut at = 0;
    let mut line = || {
        let rest = data.get(at..)?;
        let end = rest.iter().take(21).position(|byte| *byte == b'\n')?;
        at += end + 1;
        decimal(rest.get(..end)?)
    };
    let count = line()?;
    let mut parts = Vec::new();
    for _ in 0..count {
        parts.push((line()?, line()?));
    }
    Some((parts, data.get(at.next_multiple_of(BLOCK_BYTES)..)?))
}

/// The parts with their bytes: in order, apart from each other, within the file, and all that is stored.
fn placed<'a>(bytes: u64, parts: &[(u64, u64)], mut data: &'a [u8]) -> Result<Content<'a>, String> {
    let bad = || "its map does not fit its data".to_owned();
    if bytes > MOST_BYTES {
        return Err(format!("it has {bytes} bytes, more than {MOST_BYTES}"));
    }
    let mut end = 0;
    let mut filled = Vec::with_capacity(parts.len());
    for (at, length) in parts {
        let next = at.checked_add(*length).filter(|next| *at >= end && *next <= bytes).ok_or_else(bad)?;
        end = next;
        let length = usize::try_from(*length).map_err(|_| bad())?;
        let (part, rest) = data.split_at_checked(length).ok_or_else(bad)?;
        data = rest;
        filled.push((usize::try_from(*at).map_err(|_| bad())?, part));
    }
    if !data.is_empty() {
        return Err(bad());
    }
    Ok(Content::Sparse { bytes: usize::try_from(bytes).map_err(|_| bad())?, parts: filled })
}
