//! Discards and write zeroes on their way: piece after piece, each given to the kernel or, where it is too fine for the backing
//! or the backing does not know how, written as zeros.

use std::io;

use rustix::io::Errno;
use vmprof_sys::ring::{Buffers, Operation};

use super::{BlkQueue, Slot, Stage, State};
use crate::backing::transfer::Step;
use crate::iothread::service::Io;
use crate::virtio::blk::erase::{How, MOST_LIST_BYTES, Piece};
use crate::virtio::blk::request::{Kind, Request, Status};

impl BlkQueue {
    /// Reads the ranges of a discard or of write zeroes, and begins with the first.
    pub(super) fn accept_erasure(&mut self, head: u16, request: Request, io: &mut Io<'_>) {
        let Slot { transfer, erasure, .. } = &mut self.slots[usize::from(head)];
        let Some(erase) = &self.disk.backing.erase else {
            return self.finish(head, request, Status::Unsupported);
        };
        let mut list = [0; MOST_LIST_BYTES];
        let Some(list) = usize::try_from(request.readable).ok().and_then(|bytes| list.get_mut(..bytes))
        else {
            return self.finish(head, request, Status::IoError);
        };
        if let Some(buffers) = transfer.guest_mut() {
            buffers.take_front(list);
        }
        let zero = request.kind == Kind::WriteZeroes;
        match erasure.get_or_insert_default().fill(list, zero, self.disk.limits.capacity_bytes, erase) {
            Ok(()) => self.erase(head, request, io),
            Err(status) => self.finish(head, request, status),
        }
    }

    /// What the ranges of the erasure in a slot add up to, as the guest asked for them.
    pub(super) fn erased_bytes(&self, head: u16) -> u64 {
        let erasure = self.slots.get(usize::from(head)).and_then(|slot| slot.erasure.as_ref());
        erasure.map_or(0, |erasure| erasure.bytes())
    }

    /// Begins the next piece of an erasure, or ends it.
    pub(super) fn erase(&mut self, head: u16, request: Request, io: &mut Io<'_>) {
        let slot = &mut self.slots[usize::from(head)];
        let piece = slot.erasure.as_ref().and_then(|erasure| erasure.piece());
        let Some(Piece { offset, bytes, how }) = piece else {
            return self.settle(head, request, false, io);
        };
        let operation = match how {
            How::Punch => Operation::Discard { offset, bytes },
            How::Zero => Operation::WriteZeroes { offset, bytes },
            How::Write => {
                slot.transfer.begin_zeroes(offset, bytes);
                return self.advance_zeroes(head, request, io);
            }
        };
        slot.state = State::Erasing(request);
        self.start(head, operation, Buffers::None, io);
    }

    pub(super) fn erased(&mut self, head: u16, request: Request, result: io::Result<u32>, io: &mut Io<'_>) {
        let error = match result {
            Ok(_) => {
                if let Some(erasure) = &mut self.slots[usize::from(head)].erasure {
                    erasure.advance();
                }
                return self.erase(head, request, io);
            }
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            Some(Errno::INTR) => self.erase(head, request, io),
            Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => self.erase_otherwise(head, request, io),
            _ => self.failed(head, request, Stage::Moving, error),
        }
    }

    /// The backing does not know the operation of this piece.
    pub(super) fn erase_otherwise(&mut self, head: u16, request: Request, io: &mut Io<'_>) {
        let slot = &mut self.slots[usize::from(head)];
        let (Some(erasure), Some(erase)) = (&mut slot.erasure, &self.disk.backing.erase) else {
            return self.finish(head, request, Status::IoError);
        };
        if erasure.piece().is_some_and(|piece| piece.how == How::Zero) {
            erase.cannot_keep_space();
        }
        // What was only to be given back is not worth writing.
        if request.kind == Kind::WriteZeroes && erasure.take_another_way(erase) {
            self.erase(head, request, io);
        } else {
            self.finish(head, request, Status::Unsupported);
        }
    }

    /// The next operation of zeros that are written.
    pub(super) fn advance_zeroes(&mut self, head: u16, request: Request, io: &mut Io<'_>) {
        let slot = &mut self.slots[usize::from(head)];
        match slot.transfer.step_zeroes(&self.disk.backing, &mut self.bounces) {
            Step::Start(operation, buffers) => {
                slot.state = State::Zeroing(request);
                self.start(head, operation, buffers, io);
            }
            Step::Wait => {
                slot.state = State::Stalled(request);
                self.stalled.push_back(head);
            }
            Step::Done => {
                if let Some(erasure) = &mut slot.erasure {
                    erasure.advance();
                }
                self.erase(head, request, io);
            }
        }
    }
}
