//! Where two files differ first, found a piece at a time: a disk image may be far larger than the memory, and mostly holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

const PIECE_BYTES: usize = 1 << 20;

/// What two files have not in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Difference {
    /// The first byte that is another one.
    At(u64),
    /// One ends where the other goes on.
    Length { stored: u64, again: u64 },
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(at) => write!(f, "they differ first at byte {at}"),
            Self::Length { stored, again } => write!(f, "{stored} bytes are in the store, {again} came out"),
        }
    }
}

/// Of bytes in memory.
pub(super) fn of_bytes(stored: &[u8], again: &[u8]) -> Option<Difference> {
    let at = stored.iter().zip(again).position(|(a, b)| a != b);
    let length = || Difference::Length { stored: stored.len() as u64, again: again.len() as u64 };
    match at {
        Some(at) => Some(Difference::At(at as u64)),
        None => (stored.len() != again.len()).then(length),
    }
}

/// Of files. What is a hole in both is not read.
pub(super) fn of_files(stored: &File, again: &File) -> io::Result<Option<Difference>> {
    let (left, right) = (stored.metadata()?.len(), again.metadata()?.len());
    let end = left.min(right);
    let (mut one, mut other) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut at = 0;
    loop {
        at = data_after(stored, at, end)?.min(data_after(again, at, end)?);
        let length = (end - at).min(PIECE_BYTES as u64) as usize;
        let (Some(one), Some(other)) = (one.get_mut(..length), other.get_mut(..length)) else { break };
        if length == 0 {
            break;
        }
        stored.read_exact_at(one, at)?;
        again.read_exact_at(other, at)?;
        if let Some(Difference::At(inside)) = of_bytes(one, other) {
            return Ok(Some(Difference::At(at + inside)));
        }
        at += length as u64;
    }
    Ok((left != right).then_some(Difference::Length { stored: left, again: right }))
}

/// The first place at or after `at` that is no hole; `end` where there is none.
fn data_after(file: &File, at: u64, end: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(data.clamp(at, end)),
        Err(Errno::NXIO) => Ok(end),
        // A filesystem without holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(at),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: u64, written: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        for (at, content) in written {
            file.write_all_at(content, *at).unwrap();
        }
        file
    }

    #[test]
    fn the_first_difference_is_found_past_holes_and_across_pieces() {
        // A tebibyte each: read, it would take minutes.
        const TIB: u64 = 1 << 40;
        let left = file(TIB, &[(10, b"same"), (TIB / 2, b"ab"), (TIB - 1, b"x")]);
        let found = |right: &[(u64, &[u8])]| of_files(&left, &file(TIB, right)).unwrap();
        assert_eq!(found(&[(10, b"same"), (TIB / 2, b"ab"), (TIB - 1, b"x")]), None);
        assert_eq!(
            found(&[(10, b"same"), (TIB / 2, b"aX"), (TIB - 1, b"x")]),
            Some(Difference::At(TIB / 2 + 1))
        );
        assert_eq!(found(&[(10, b"same"), (TIB / 2, b"ab"), (TIB - 1, b"y")]), Some(Difference::At(TIB - 1)));
        assert_eq!(
            found(&[(10, b"same"), (TIB - 1, b"x")]),
            Some(Difference::At(TIB / 2)),
            "a hole is zeros"
        );
        let piece = vec![7; 3 * PIECE_BYTES];
        let mut other = piece.clone();
        other[2 * PIECE_BYTES] = 8;
        let length = piece.len() as u64;
        let found = of_files(&file(length, &[(0, &piece)]), &file(length, &[(0, &other)])).unwrap();
        assert_eq!(found, Some(Difference::At(2 * PIECE_BYTES as u64)));
    }

    #[test]
    fn zeros_that_are_written_are_the_same_as_a_hole_and_a_longer_file_is_another() {
        let (hole, zeros) = (file(8192, &[]), file(8192, &[(0, &[0; 8192])]));
        assert_eq!(of_files(&hole, &zeros).unwrap(), None);
        let longer = of_files(&hole, &file(8193, &[])).unwrap().unwrap();
        assert_eq!(longer.to_string(), "8192 bytes are in the store, 8193 came out");
    }
}
