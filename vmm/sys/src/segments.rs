//! The buffers of one request, resolved from guest-physical addresses to the host's: what readv and writev take. They keep
//! the guest's memory mapped, so they stay good wherever they are moved, into an operation of the kernel's included.

// UNSAFETY: iovecs are raw pointers, and the guest writes where they point whenever it likes.
#![allow(unsafe_code, reason = "copies to and from guest memory through resolved addresses")]

use std::sync::Arc;

use libc::iovec;

use crate::memory::GuestRam;
use crate::regions::Regions;

/// readv(2) takes no more (UIO_MAXIOV).
pub const MOST_SEGMENTS: usize = 1_024;

/// Kept below what one iovec can mean to every system call.
const LONGEST_SEGMENT: usize = i32::MAX as usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    #[error("the buffer at {address:#x} ({len} bytes) is not in guest memory")]
    OutsideMemory { address: u64, len: u32 },
    #[error("the request has more than {MOST_SEGMENTS} segments")]
    TooMany,
}

/// A list of pieces of guest memory, in order, that is eaten from the front as a transfer proceeds.
#[derive(Debug)]
pub struct GuestBuffers {
    regions: Regions,
    segments: Vec<iovec>,
    /// Segments before this one are done with.
    first: usize,
    bytes: u64,
}

// SAFETY: the segments point into the mapping that `regions` keeps alive on whatever thread this is.
unsafe impl Send for GuestBuffers {}

impl GuestBuffers {
    pub fn new(ram: &Arc<GuestRam>) -> Self {
        GuestBuffers { regions: Regions::new(ram), segments: Vec::new(), first: 0, bytes: 0 }
    }

    /// An empty list over the same memory, which shares its table.
    pub fn another(&self) -> Self {
        GuestBuffers { regions: self.regions.clone(), segments: Vec::new(), first: 0, bytes: 0 }
    }

    /// Empties the list and keeps its room for the next request.
    pub fn clear(&mut self) {
        self.segments.clear();
        (self.first, self.bytes) = (0, 0);
    }

    /// Appends `len` bytes at `address`, which may cross from one region of guest memory into the next. After an error
    /// the list is to be cleared.
    pub fn push(&mut self, address: u64, len: u32) -> Result<(), SegmentError> {
        let GuestBuffers { regions, segments, bytes, .. } = self;
        let mut error = SegmentError::OutsideMemory { address, len };
        let whole = regions.pieces(address, len.into(), |_, base, piece| {
            *bytes += piece as u64;
            if let Some(last) = segments.last_mut()
                && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base
                && last.iov_len + piece <= LONGEST_SEGMENT
            {
                last.iov_len += piece;
            } else if segments.len() == MOST_SEGMENTS {
                error = SegmentError::TooMany;
                return false;
            } else {
                segments.push(iovec { iov_base: base.cast(), iov_len: piece });
            }
            true
        });
        if whole { Ok(()) } else { Err(error) }
    }

    /// Bytes that are left.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many pieces these are.
    pub fn pieces(&self) -> usize {
        self.segments().len()
    }

    /// The pieces that are left. Good for as long as `self` lives, wherever it is moved: they point into a heap block.
    pub(crate) fn segments(&self) -> &[iovec] {
        &self.segments[self.first..]
    }

    /// Whether every piece begins on a multiple of `address` and is a multiple of `len` long, as O_DIRECT may ask.
    pub fn aligned_to(&self, address: usize, len: usize) -> bool {
        let whole = |piece: &iovec| {
            (piece.iov_base as usize).is_multiple_of(address) && piece.iov_len.is_multiple_of(len)
        };
        self.segments().iter().all(whole)
    }

    /// Drops `bytes` from the front: they are done.
    pub fn advance(&mut self, bytes: u64) {
        let mut left = bytes.min(self.bytes);
        self.bytes -= left;
        while left > 0 {
            let piece = &mut self.segments[self.first];
            if (piece.iov_len as u64) <= left {
                left -= piece.iov_len as u64;
                self.first += 1;
            } else {
                piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(left as usize).cast();
                piece.iov_len -= left as usize;
                left = 0;
            }
        }
    }

    /// Copies from `source` to the front and drops what was filled. Answers how many bytes that were.
    pub fn fill_front(&mut self, source: &[u8]) -> usize {
        self.eat(source.len(), |at, target, len| {
            // SAFETY: `target` holds `len` bytes of guest memory that `regions` keeps mapped; `source` holds them from `at`
            // since `eat` counts to its length; our own memory never overlaps the guest's.
            unsafe { std::ptr::copy_nonoverlapping(source[at..].as_ptr(), target, len) };
        })
    }

    /// Copies `source` to where `skip` bytes come before it, and drops nothing. What does not fit is left out.
    pub fn write_at(&self, skip: usize, source: &[u8]) {
        let mut before = skip;
        let mut at = 0;
        for piece in self.segments() {
            let passed = before.min(piece.iov_len);
            before -= passed;
            let len = (piece.iov_len - passed).min(source.len() - at);
            let (source, target) = (&source[at..at + len], piece.iov_base.cast::<u8>().wrapping_add(passed));
            // SAFETY: `target` holds `len` bytes of guest memory that `regions` keeps mapped, since `passed + len` is no more
            // than the piece has; our own memory never overlaps the guest's.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target, len) };
            at += len;
        }
    }

    /// Copies from the front into `target` and drops what was read. Answers how many bytes that were.
    pub fn take_front(&mut self, target: &mut [u8]) -> usize {
        let done = self.read_front(target);
        self.advance(done as u64);
        done
    }

    /// Copies from the front into `target` and keeps it, to be read again or dropped by [`advance`](Self::advance).
    pub fn read_front(&self, target: &mut [u8]) -> usize {
        self.walk(target.len(), |at, source, len| {
            // SAFETY: as in `fill_front`, the other way around.
            unsafe { std::ptr::copy_nonoverlapping(source, target[at..].as_mut_ptr(), len) };
        })
    }

    /// Writes zeros over the front `bytes` and drops them.
    pub fn zero_front(&mut self, bytes: u64) {
        let bytes = usize::try_from(bytes.min(self.bytes)).expect("guest memory is addressable");
        self.eat(bytes, |_, target, len| {
            // SAFETY: `target` holds `len` bytes of guest memory that `regions` keeps mapped.
            unsafe { std::ptr::write_bytes(target, 0, len) };
        });
    }

    /// Goes over the front `bytes` piece by piece (offset so far, address, length) and drops them.
    fn eat(&mut self, bytes: usize, each: impl FnMut(usize, *mut u8, usize)) -> usize {
        let done = self.walk(bytes, each);
        self.advance(done as u64);
        done
    }

    /// The same without dropping them.
    fn walk(&self, bytes: usize, mut each: impl FnMut(usize, *mut u8, usize)) -> usize {
        let mut done = 0;
        for piece in self.segments() {
            let len = piece.iov_len.min(bytes - done);
            each(done, piece.iov_base.cast(), len);
            done += len;
            if done == bytes {
                break;
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;

    fn ram() -> Arc<GuestRam> {
        let (low, high) = ((GuestAddress(0), 0x4000), (GuestAddress(0x4000), 0x4000));
        Arc::new(GuestRam::from_ranges(&[low, high, (GuestAddress(0x10000), 0x1000)]).unwrap())
    }

    #[test]
    fn a_buffer_may_cross_regions_that_touch_but_no_hole() {
        let ram = ram();
        let mut buffers = GuestBuffers::new(&ram);
        buffers.push(0x3ff0, 32).unwrap();
        assert_eq!(buffers.bytes(), 32);
        let bytes: Vec<u8> = (0..32).collect();
        assert_eq!(buffers.fill_front(&bytes), 32);
        let mut found = [0; 32];
        ram.read_slice(&mut found, GuestAddress(0x3ff0)).unwrap();
        assert_eq!(found[..], bytes);
        for (address, len) in [(0x7ff0, 32), (0x8000, 1), (0x10ff0, 17), (u64::MAX, 2), (0, u32::MAX)] {
            let mut buffers = GuestBuffers::new(&ram);
            assert_eq!(buffers.push(address, len), Err(SegmentError::OutsideMemory { address, len }));
        }
    }

    #[test]
    fn neighbours_become_one_segment_and_the_rest_is_counted() {
        let ram = ram();
        let mut buffers = GuestBuffers::new(&ram);
        buffers.push(0x1000, 512).unwrap();
        buffers.push(0x1200, 512).unwrap();
        buffers.push(0x3000, 512).unwrap();
        assert_eq!(buffers.segments().len(), 2);
        assert!(buffers.aligned_to(4096, 512) && !buffers.aligned_to(512, 4096));
        buffers.advance(1000);
        assert!(buffers.aligned_to(8, 8) && !buffers.aligned_to(512, 8));
        assert_eq!((buffers.bytes(), buffers.segments().len()), (536, 2));
        buffers.advance(24);
        assert_eq!((buffers.bytes(), buffers.segments().len()), (512, 1));
        buffers.advance(9999);
        assert_eq!((buffers.bytes(), buffers.segments().len()), (0, 0));
    }

    #[test]
    fn more_segments_than_readv_takes_are_refused() {
        let ram = ram();
        let mut buffers = GuestBuffers::new(&ram);
        for _ in 0..MOST_SEGMENTS {
            buffers.push(0x1000, 8).unwrap();
        }
        assert_eq!(buffers.push(0x1000, 8), Err(SegmentError::TooMany));
        buffers.clear();
        buffers.push(0x1000, 8).unwrap();
    }

    #[test]
    fn copies_eat_from_the_front() {
        let ram = ram();
        ram.write_slice(b"abcdefgh", GuestAddress(0x1000)).unwrap();
        let mut buffers = GuestBuffers::new(&ram);
        buffers.push(0x1004, 4).unwrap();
        buffers.push(0x1000, 4).unwrap();
        let mut found = [0; 6];
        assert_eq!((buffers.read_front(&mut found), &found), (6, b"efghab"));
        assert_eq!(buffers.take_front(&mut found), 6);
        assert_eq!(&found, b"efghab");
        buffers.write_at(1, b"!");
        assert_eq!(ram.read_obj::<[u8; 4]>(GuestAddress(0x1000)).unwrap(), *b"abc!");
        buffers.write_at(1, b"dxyz");
        assert_eq!(
            ram.read_obj::<[u8; 5]>(GuestAddress(0x1000)).unwrap(),
            *b"abcde",
            "no more than there is room"
        );
        buffers.zero_front(100);
        assert_eq!(buffers.bytes(), 0);
        assert_eq!(ram.read_obj::<[u8; 4]>(GuestAddress(0x1000)).unwrap(), *b"ab\0\0");
    }
}
