//! What the kernel is told of each operation: the submission queue's entries, whose memory the ring holds meanwhile.

use io_uring::{opcode, squeue, types};

use super::registered::Registered;
use super::{Buffers, Operation};

/// Marks the completion of a cancellation; the rest of its user_data is the slot that was to end.
pub(super) const CANCELLATION: u64 = 1 << 63;

/// The entry for an operation whose buffers are where they will stay.
pub(super) fn operation(
    fd: types::Fd,
    operation: Operation,
    buffers: &mut Buffers,
    registered: Option<&Registered>,
) -> squeue::Entry {
    let segments: &[libc::iovec] = match buffers {
        Buffers::None => &[],
        Buffers::Guest(guest) => guest.segments(),
        Buffers::Bounce { buffer, bytes } => {
            let len = (*bytes).min(buffer.size()) as u32;
            let base = buffer.as_mut_slice().as_mut_ptr();
            return match operation {
                Operation::Read { offset } => opcode::Read::new(fd, base, len).offset(offset).build(),
                Operation::Write { offset, durable } => {
                    opcode::Write::new(fd, base, len).offset(offset).rw_flags(durability(durable)).build()
                }
                other => without_buffers(fd, other),
            };
        }
    };
    if let Some(buffer) = registered.and_then(|registered| registered.buffer_of(segments)) {
        return fixed(fd, operation, segments, buffer);
    }
    match (operation, segments) {
        // One piece needs no array for the kernel to copy in.
        (Operation::Read { offset }, [one]) => {
            opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32).offset(offset).build()
        }
        (Operation::Read { offset }, many) => {
            opcode::Readv::new(fd, many.as_ptr(), many.len() as u32).offset(offset).build()
        }
        (Operation::Write { offset, durable }, [one]) => {
            let write = opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32);
            write.offset(offset).rw_flags(durability(durable)).build()
        }
        (Operation::Write { offset, durable }, many) => {
            let write = opcode::Writev::new(fd, many.as_ptr(), many.len() as u32);
            write.offset(offset).rw_flags(durability(durable)).build()
        }
        (other, _) => without_buffers(fd, other),
    }
}

/// On memory that the kernel knows as `buffer`.
fn fixed(fd: types::Fd, operation: Operation, segments: &[libc::iovec], buffer: u16) -> squeue::Entry {
    let count = segments.len() as u32;
    match (operation, segments) {
        (Operation::Read { offset }, [one]) => {
            let read = opcode::ReadFixed::new(fd, one.iov_base.cast(), one.iov_len as u32, buffer);
            read.offset(offset).build()
        }
        (Operation::Read { offset }, many) => {
            opcode::ReadvFixed::new(fd, many.as_ptr(), count, buffer).offset(offset).build()
        }
        (Operation::Write { offset, durable }, [one]) => {
            let write = opcode::WriteFixed::new(fd, one.iov_base.cast(), one.iov_len as u32, buffer);
            write.offset(offset).rw_flags(durability(durable)).build()
        }
        (Operation::Write { offset, durable }, many) => {
            let write = opcode::WritevFixed::new(fd, many.as_ptr(), count, buffer);
            write.offset(offset).rw_flags(durability(durable)).build()
        }
        (other, _) => without_buffers(fd, other),
    }
}

fn without_buffers(fd: types::Fd, operation: Operation) -> squeue::Entry {
    let allocate = |offset, bytes, mode| opcode::Fallocate::new(fd, bytes).offset(offset).mode(mode).build();
    match operation {
        Operation::Discard { offset, bytes } => {
            allocate(offset, bytes, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
        }
        Operation::WriteZeroes { offset, bytes } => {
            allocate(offset, bytes, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE)
        }
        // A read or write without buffers is the caller's mistake, and moves nothing.
        Operation::Read { .. } | Operation::Write { .. } => opcode::Nop::new().build(),
        Operation::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
    }
}

pub(super) fn poll(fd: i32, events: u32, index: usize) -> squeue::Entry {
    opcode::PollAdd::new(types::Fd(fd), events).multi(true).build().user_data(index as u64)
}

/// Not POLL_REMOVE: that one gives up on a poll that is just firing, and leaves it armed.
pub(super) fn cancellation(index: usize) -> squeue::Entry {
    opcode::AsyncCancel::new(index as u64).build().user_data(CANCELLATION | index as u64)
}

fn durability(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}
