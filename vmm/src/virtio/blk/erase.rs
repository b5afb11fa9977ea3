//! DISCARD and WRITE_ZEROES (virtio 1.3, 5.2.6): a list of ranges, read once and checked, becomes pieces that are carried out
//! one after the other. What is finer than the backing's blocks is written when it is to be zero, and left alone when it was
//! only to be given back.

use super::request::Status;
use crate::backing::SECTOR_BYTES;
use crate::backing::erase::Erase;

/// struct virtio_blk_discard_write_zeroes: sector, number of sectors, flags.
const RANGE_BYTES: usize = 16;
const UNMAP: u32 = 1;

/// Ranges of one request, and sectors of one range, as the configuration space says.
pub(super) const MOST_RANGES: u32 = 32;
pub(super) const MOST_DISCARD_SECTORS: u32 = (1 << 30) / SECTOR_BYTES as u32;
/// Where a backing has to write its zeros, this is what one request of the guest may cost.
pub(super) const MOST_ZEROES_SECTORS: u32 = (128 << 20) / SECTOR_BYTES as u32;

/// The longest list that is read.
pub(super) const MOST_LIST_BYTES: usize = RANGE_BYTES * MOST_RANGES as usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Gives the space back; it reads as zeros then.
    Punch,
    /// Zeros, and keeps the space.
    Zero,
    /// Zeros by writing them.
    Write,
}

/// A part of the disk and what is to become of it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) how: How,
}

/// One request's way; kept by its slot, with the room that its list once took.
#[derive(Debug, Default)]
pub(super) struct Erasure {
    pieces: Vec<Piece>,
    next: usize,
    /// Of all ranges, also of what is left alone since it is finer than a block.
    bytes: u64,
}

impl Erasure {
    /// Reads the list of a request to zero ranges or to discard them; an error is its status.
    pub(super) fn fill(
        &mut self,
        list: &[u8],
        zero: bool,
        capacity_bytes: u64,
        erase: &Erase,
    ) -> Result<(), Status> {
        self.pieces.clear();
        (self.next, self.bytes) = (0, 0);
        let (ranges, rest) = list.as_chunks::<RANGE_BYTES>();
        if ranges.is_empty() || !rest.is_empty() || ranges.len() > MOST_RANGES as usize {
            return Err(Status::IoError);
        }
        // virtio 1.3, 5.2.6.2: a flag that is not known makes the whole request one that is not supported, and for
        // discards there is none that is.
        let known = if zero { UNMAP } else { 0 };
        if ranges.iter().any(|range| Range::read(range).flags & !known != 0) {
            return Err(Status::Unsupported);
        }
        let most = if zero { MOST_ZEROES_SECTORS } else { MOST_DISCARD_SECTORS };
        for range in ranges.iter().map(Range::read) {
            if range.sectors > most {
                return Err(Status::IoError);
            }
            let (start, end) = range.within(capacity_bytes).ok_or(Status::IoError)?;
            // At most MOST_RANGES of 2^32 sectors each.
            self.bytes += end - start;
            let whole = (start.next_multiple_of(erase.block_bytes), end - end % erase.block_bytes);
            match (zero, whole.0 < whole.1) {
                (false, true) => self.add(whole.0, whole.1, How::Punch),
                (false, false) => {}
                (true, false) => self.add(start, end, How::Write),
                (true, true) => {
                    self.add(start, whole.0, How::Write);
                    let unmap = range.flags & UNMAP != 0;
                    self.add(whole.0, whole.1, if unmap { How::Punch } else { How::Zero });
                    self.add(whole.1, end, How::Write);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, start: u64, end: u64, how: How) {
        if start < end {
            self.pieces.push(Piece { offset: start, bytes: end - start, how });
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The piece that is being carried out.
    pub(super) fn piece(&self) -> Option<Piece> {
        self.pieces.get(self.next).copied()
    }

    /// It is done.
    pub(super) fn advance(&mut self) {
        self.next += 1;
    }

    /// The backing does not do it this way: another one, of those that leave zeros. `false`: there is none.
    pub(super) fn take_another_way(&mut self, erase: &Erase) -> bool {
        let Some(piece) = self.pieces.get_mut(self.next) else { return false };
        piece.how = match piece.how {
            How::Punch if erase.keeps_space() => How::Zero,
            How::Punch | How::Zero => How::Write,
            How::Write => return false,
        };
        true
    }
}

#[derive(Debug, Clone, Copy)]
struct Range {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Range {
    fn read(bytes: &[u8; RANGE_BYTES]) -> Range {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        Range {
            sector: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            sectors: u32::from_le_bytes([i, j, k, l]),
            flags: u32::from_le_bytes([m, n, o, p]),
        }
    }

    /// From where to where, in bytes, when it lies within the capacity.
    fn within(self, capacity_bytes: u64) -> Option<(u64, u64)> {
        let start = self.sector.checked_mul(SECTOR_BYTES)?;
        let end = start.checked_add(u64::from(self.sectors) * SECTOR_BYTES)?;
        (end <= capacity_bytes).then_some((start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: u64 = 1 << 40;

    /// Sector, sectors, flags.
    type Ranges<'a> = &'a [(u64, u32, u32)];
    type Pieces<'a> = &'a [(u64, u64, How)];

    fn list(ranges: Ranges<'_>) -> Vec<u8> {
        let bytes = |(sector, sectors, flags): &(u64, u32, u32)| {
            let sector = sector.to_le_bytes();
            [&sector[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
        };
        ranges.iter().flat_map(bytes).collect()
    }

    fn pieces(ranges: Ranges<'_>, zero: bool, block: u64) -> Result<Vec<(u64, u64, How)>, Status> {
        let mut erasure = Erasure::default();
        erasure.fill(&list(ranges), zero, CAPACITY, &Erase::new(block, block))?;
        let mut found = Vec::new();
        while let Some(Piece { offset, bytes, how }) = erasure.piece() {
            found.push((offset, bytes, how));
            erasure.advance();
        }
        Ok(found)
    }

    #[test]
    fn whole_blocks_are_given_back_and_edges_are_written_only_when_they_must_be_zero() {
        let cases: [(Ranges<'_>, bool, u64, Pieces<'_>); 9] = [
            (&[(8, 8, 0)], false, 512, &[(4096, 4096, How::Punch)]),
            (&[(8, 8, 0)], true, 512, &[(4096, 4096, How::Zero)]),
            (&[(8, 8, 1)], true, 512, &[(4096, 4096, How::Punch)]),
            (&[(7, 10, 0)], false, 4096, &[(4096, 4096, How::Punch)]),
            (
                &[(7, 10, 1)],
                true,
                4096,
                &[(3584, 512, How::Write), (4096, 4096, How::Punch), (8192, 512, How::Write)],
            ),
            (&[(9, 6, 0)], false, 4096, &[]),
            (&[(9, 6, 1)], true, 4096, &[(4608, 3072, How::Write)]),
            (&[(1, 0, 0)], true, 4096, &[]),
            (&[(0, 8, 0), (64, 16, 1)], true, 4096, &[(0, 4096, How::Zero), (32768, 8192, How::Punch)]),
        ];
        for (ranges, zero, block, expected) in cases {
            assert_eq!(pieces(ranges, zero, block).unwrap(), expected, "{ranges:?} {zero} {block}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_touched() {
        let cases: [(Ranges<'_>, bool, Status); 9] = [
            (&[(0, 8, 1)], false, Status::Unsupported),
            (&[(0, 8, 2)], true, Status::Unsupported),
            (&[(u64::MAX, 8, 0), (0, 8, 1 << 31)], true, Status::Unsupported),
            (&[(u64::MAX, 8, 0)], true, Status::IoError),
            (&[(u64::MAX / 512, 8, 0)], false, Status::IoError),
            (&[(CAPACITY / 512 - 7, 8, 0)], true, Status::IoError),
            (&[(0, MOST_DISCARD_SECTORS + 1, 0)], false, Status::IoError),
            (&[(0, MOST_ZEROES_SECTORS + 1, 1)], true, Status::IoError),
            (&[], true, Status::IoError),
        ];
        for (ranges, zero, status) in cases {
            assert_eq!(pieces(ranges, zero, 512), Err(status), "{ranges:?}");
        }
        assert_eq!(pieces(&[(0, 1, 0); 33], false, 512), Err(Status::IoError));
        let mut erasure = Erasure::default();
        let half = erasure.fill(&list(&[(0, 8, 0)])[..15], false, CAPACITY, &Erase::new(512, 512));
        assert_eq!((half, erasure.piece()), (Err(Status::IoError), None));
        assert_eq!(
            pieces(&[(CAPACITY / 512 - 8, 8, 0)], true, 512).unwrap().len(),
            1,
            "the last ones are there"
        );
    }

    #[test]
    fn zeros_have_a_way_on_any_backing() {
        let erase = Erase::new(512, 512);
        let mut erasure = Erasure::default();
        erasure.fill(&list(&[(0, 8, 1)]), true, CAPACITY, &erase).unwrap();
        let ways: Vec<How> = std::iter::from_fn(|| {
            let piece = erasure.piece()?;
            (erasure.take_another_way(&erase)).then_some(piece.how)
        })
        .collect();
        assert_eq!(ways, [How::Punch, How::Zero]);
        assert_eq!(erasure.piece().map(|piece| piece.how), Some(How::Write));
        erase.cannot_keep_space();
        erasure.fill(&list(&[(0, 8, 1)]), true, CAPACITY, &erase).unwrap();
        assert!(erasure.take_another_way(&erase));
        assert_eq!(erasure.piece().map(|piece| piece.how), Some(How::Write));
    }
}
