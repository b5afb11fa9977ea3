//! An operation done here and now, on the thread that calls: what the threads of a pool do.

// UNSAFETY: no safe interface takes the flags of preadv2 and pwritev2 with memory that the guest shares.
#![allow(unsafe_code, reason = "preadv2 and pwritev2 on guest memory")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use libc::iovec;
use rustix::fs::FallocateFlags;

use crate::ring::{Buffers, Operation};

/// Bytes that were moved, as the kernel has it: perhaps fewer than asked for.
pub fn perform(file: &File, operation: Operation, buffers: &mut Buffers) -> io::Result<u32> {
    let own;
    let segments: &[iovec] = match buffers {
        Buffers::None => &[],
        Buffers::Guest(guest) => guest.segments(),
        Buffers::Bounce { buffer, bytes } => {
            let len = (*bytes).min(buffer.size());
            own = [iovec { iov_base: buffer.as_mut_slice().as_mut_ptr().cast(), iov_len: len }];
            &own
        }
    };
    let allocate = |mode, offset, bytes| {
        rustix::fs::fallocate(file, mode | FallocateFlags::KEEP_SIZE, offset, bytes)?;
        Ok(0)
    };
    match operation {
        Operation::Read { offset } => at(offset, |at| {
            let (fd, count) = (file.as_raw_fd(), segments.len() as i32);
            // SAFETY: the segments lie in memory that `buffers` owns or keeps mapped, borrowed for the whole call.
            unsafe { libc::preadv2(fd, segments.as_ptr(), count, at, 0) }
        }),
        Operation::Write { offset, durable } => at(offset, |at| {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            let (fd, count) = (file.as_raw_fd(), segments.len() as i32);
            // SAFETY: as above.
            unsafe { libc::pwritev2(fd, segments.as_ptr(), count, at, flags) }
        }),
        Operation::Sync => {
            rustix::fs::fdatasync(file)?;
            Ok(0)
        }
        Operation::Discard { offset, bytes } => allocate(FallocateFlags::PUNCH_HOLE, offset, bytes),
        Operation::WriteZeroes { offset, bytes } => allocate(FallocateFlags::ZERO_RANGE, offset, bytes),
    }
}

/// Moves bytes at `offset`; in a stream, which has no offsets, where it stands (-1), as io_uring does.
fn at(offset: u64, moves: impl Fn(i64) -> isize) -> io::Result<u32> {
    let counted = |moved: isize| u32::try_from(moved).map_err(|_| io::Error::last_os_error());
    match counted(moves(offset as i64)) {
        Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => counted(moves(-1)),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::sync::Arc;

    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::aligned::AlignedBuffer;
    use crate::memory::GuestRam;
    use crate::segments::GuestBuffers;

    #[test]
    fn every_operation_does_to_a_file_what_it_says() {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap());
        let file = tempfile::tempfile().unwrap();
        ram.write_slice(&[7; 8192], GuestAddress(0)).unwrap();
        let mut guest = GuestBuffers::new(&ram);
        guest.push(0, 4096).unwrap();
        guest.push(0x3000, 4096).unwrap();
        let write = Operation::Write { offset: 100, durable: true };
        assert_eq!(perform(&file, write, &mut Buffers::Guest(Box::new(guest))).unwrap(), 8192);
        let mut found = [0; 4096];
        file.read_exact_at(&mut found, 100).unwrap();
        assert_eq!(found, [7; 4096]);
        let mut bounce = Buffers::Bounce { buffer: AlignedBuffer::new(4096, 512), bytes: 512 };
        assert_eq!(perform(&file, Operation::Read { offset: 50 }, &mut bounce).unwrap(), 512);
        let Buffers::Bounce { buffer, .. } = bounce else { panic!() };
        assert_eq!((buffer.as_slice()[..50].to_vec(), buffer.as_slice()[50]), (vec![0; 50], 7));
        perform(&file, Operation::Sync, &mut Buffers::None).unwrap();
        let outcome = perform(&file, Operation::Discard { offset: 0, bytes: 4096 }, &mut Buffers::None);
        if outcome.is_ok_and(|moved| moved == 0) {
            file.read_exact_at(&mut found, 0).unwrap();
            assert_eq!((found, file.metadata().unwrap().len()), ([0; 4096], 8292));
        }
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut one = Buffers::Bounce { buffer: AlignedBuffer::new(512, 512), bytes: 512 };
        let error = perform(&full, Operation::Write { offset: 0, durable: false }, &mut one).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
}
