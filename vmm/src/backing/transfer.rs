//! Moving the bytes of one read or write: as many operations as it takes. Short reads and writes go on where they stopped;
//! EAGAIN and EINTR try again; what O_DIRECT would refuse goes through a bounce buffer, block by block, and so do zeros that
//! nobody sent.

use std::io;
use std::ops::Range;

use rustix::io::Errno;
use vmprof_sys::aligned::AlignedBuffer;
use vmprof_sys::ring::{Buffers, Operation};
use vmprof_sys::segments::GuestBuffers;

use super::Backing;
use super::bounce::{BouncePool, Window};

/// How often one operation may come back with nothing done before its error is believed.
const PATIENCE: u16 = 1_000;
/// Stands for a result that is to be had again; the kernel never moves as much.
const AGAIN: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Read,
    /// `durable`: each operation completes only with its data on stable storage.
    Write {
        durable: bool,
    },
}

/// What a transfer wants next.
#[derive(Debug)]
pub enum Step {
    Start(Operation, Buffers),
    /// A bounce buffer, or a block that another write holds: ask again.
    Wait,
    Done,
}

#[derive(Debug)]
enum Phase {
    /// Nothing is in flight.
    Idle,
    Direct,
    BounceRead(Window),
    /// The blocks are read, to be written with the guest's part changed.
    Fetch(Window),
    BounceWrite(Window),
}

/// One request's way; kept by its slot and used again for the next.
#[derive(Debug)]
pub struct Transfer {
    direction: Direction,
    offset: u64,
    /// Away while the kernel has it.
    guest: Option<Box<GuestBuffers>>,
    phase: Phase,
    /// What this transfer holds of the backing's gate.
    gate: Option<Range<u64>>,
    /// A buffer whose operation is to be repeated as it is.
    again: Option<(Operation, AlignedBuffer, usize)>,
    patience: u16,
    /// Zeros that are to be written in place of the guest's bytes.
    zeroes: u64,
}

impl Transfer {
    pub fn new(guest: Box<GuestBuffers>) -> Self {
        Transfer {
            direction: Direction::Read,
            offset: 0,
            guest: Some(guest),
            phase: Phase::Idle,
            gate: None,
            again: None,
            patience: PATIENCE,
            zeroes: 0,
        }
    }

    /// The guest's buffers, to be filled for the next request. `None` only while the kernel has them.
    pub fn guest_mut(&mut self) -> Option<&mut GuestBuffers> {
        self.guest.as_deref_mut()
    }

    /// Sets out to move all of the guest's buffers from or to `offset`, which was checked against the capacity.
    pub fn begin(&mut self, direction: Direction, offset: u64) {
        (self.direction, self.offset, self.phase, self.patience) = (direction, offset, Phase::Idle, PATIENCE);
        self.zeroes = 0;
    }

    /// Sets out to write `bytes` zeros to `offset`: to be stepped by [`step_zeroes`](Self::step_zeroes). They are durable
    /// after a flush.
    pub fn begin_zeroes(&mut self, offset: u64, bytes: u64) {
        self.begin(Direction::Write { durable: false }, offset);
        self.zeroes = bytes;
    }

    /// After an error: the next step tries again what failed, with new patience.
    pub fn retry(&mut self) {
        self.patience = PATIENCE;
    }

    pub fn is_durable(&self) -> bool {
        self.direction == Direction::Write { durable: true }
    }

    /// The next operation.
    pub fn step(&mut self, backing: &Backing, pool: &mut BouncePool) -> Step {
        if let Some((operation, buffer, bytes)) = self.again.take() {
            return Step::Start(operation, Buffers::Bounce { buffer, bytes });
        }
        let Some(guest) = &mut self.guest else { return Step::Wait };
        let bytes = guest.bytes();
        if bytes == 0 {
            self.leave(backing);
            return Step::Done;
        }
        let block = backing.alignment.offset;
        let aligned = self.offset.is_multiple_of(block)
            && bytes.is_multiple_of(block)
            && guest.aligned_to(backing.alignment.memory, block as usize);
        if !aligned {
            return self.bounce(backing, pool, bytes);
        }
        if !self.enter(backing, self.offset..self.offset + bytes) {
            return Step::Wait;
        }
        self.phase = Phase::Direct;
        let operation = self.operation(self.offset);
        self.guest.take().map_or(Step::Wait, |guest| Step::Start(operation, Buffers::Guest(guest)))
    }

    /// The next operation of writing zeros.
    pub fn step_zeroes(&mut self, backing: &Backing, pool: &mut BouncePool) -> Step {
        if let Some((operation, buffer, bytes)) = self.again.take() {
            return Step::Start(operation, Buffers::Bounce { buffer, bytes });
        }
        if self.zeroes == 0 {
            self.leave(backing);
            return Step::Done;
        }
        self.bounce(backing, pool, self.zeroes)
    }

    /// The next turn of a transfer that has `bytes` left and cannot use the guest's own buffers.
    fn bounce(&mut self, backing: &Backing, pool: &mut BouncePool, bytes: u64) -> Step {
        let window = Window::at(self.offset, bytes, backing.alignment.offset);
        if !self.enter(backing, window.blocks.clone()) {
            return Step::Wait;
        }
        let Some(mut buffer) = pool.take() else {
            self.leave(backing);
            return Step::Wait;
        };
        let (start, bytes) = (window.blocks.start, window.bytes());
        let operation = match self.direction {
            Direction::Read => {
                self.phase = Phase::BounceRead(window);
                Operation::Read { offset: start }
            }
            Direction::Write { .. } if window.is_whole() => {
                self.source(&mut buffer.as_mut_slice()[..bytes]);
                self.phase = Phase::BounceWrite(window);
                self.operation(start)
            }
            Direction::Write { .. } => {
                self.phase = Phase::Fetch(window);
                Operation::Read { offset: start }
            }
        };
        Step::Start(operation, Buffers::Bounce { buffer, bytes })
    }

    /// Takes the outcome of the operation that `step` started; call `step` again after it. An error ends the transfer.
    pub fn completed(
        &mut self,
        result: io::Result<u32>,
        buffers: Buffers,
        backing: &Backing,
        pool: &mut BouncePool,
    ) -> io::Result<()> {
        let outcome = self.settle(result, buffers, backing, pool);
        if outcome.is_err() {
            self.leave(backing);
        }
        outcome
    }

    fn settle(
        &mut self,
        result: io::Result<u32>,
        buffers: Buffers,
        backing: &Backing,
        pool: &mut BouncePool,
    ) -> io::Result<()> {
        let phase = std::mem::replace(&mut self.phase, Phase::Idle);
        let (mut buffer, bytes) = match buffers {
            Buffers::None => return Ok(()),
            Buffers::Guest(guest) => {
                self.guest = Some(guest);
                return self.settle_direct(result, backing);
            }
            Buffers::Bounce { buffer, bytes } => (buffer, bytes),
        };
        let moved = match result.or_else(|error| self.try_again(error).map(|()| AGAIN)) {
            Ok(AGAIN) => {
                self.repeat(phase, buffer, bytes);
                return Ok(());
            }
            Ok(moved) => moved as usize,
            Err(error) => {
                pool.put(buffer);
                return Err(error);
            }
        };
        match phase {
            // Something came, but nothing of what was asked for, and the file goes on: once more.
            Phase::BounceRead(window)
                if (1..=window.skip).contains(&moved)
                    && window.blocks.start + (moved as u64) < backing.size_bytes =>
            {
                self.repeat_short(Phase::BounceRead(window), buffer, bytes, pool, Errno::IO)
            }
            Phase::BounceRead(window) => {
                let found = moved.saturating_sub(window.skip).min(window.want);
                if let Some(guest) = &mut self.guest {
                    guest.fill_front(&buffer.as_slice()[window.skip..][..found]);
                }
                self.offset += found as u64;
                pool.put(buffer);
                if found == 0 { self.end_of_file(backing) } else { Ok(()) }
            }
            Phase::Fetch(window)
                if moved < bytes && window.blocks.start + (moved as u64) < backing.size_bytes =>
            {
                self.repeat_short(Phase::Fetch(window), buffer, bytes, pool, Errno::IO)
            }
            Phase::Fetch(window) => {
                let blocks = &mut buffer.as_mut_slice()[..bytes];
                blocks[moved.min(bytes)..].fill(0);
                self.source(&mut blocks[window.skip..][..window.want]);
                self.repeat(Phase::BounceWrite(window), buffer, bytes);
                Ok(())
            }
            Phase::BounceWrite(window) if moved < bytes => {
                // Whole again: half a block cannot be written.
                self.repeat_short(Phase::BounceWrite(window), buffer, bytes, pool, Errno::NOSPC)
            }
            Phase::BounceWrite(window) => {
                self.offset += window.want as u64;
                let want = window.want as u64;
                self.zeroes = self.zeroes.saturating_sub(want);
                if let Some(guest) = &mut self.guest {
                    // Of zeros there is none.
                    guest.advance(want);
                }
                self.patience = PATIENCE;
                pool.put(buffer);
                self.leave(backing);
                Ok(())
            }
            Phase::Idle | Phase::Direct => {
                pool.put(buffer);
                Ok(())
            }
        }
    }

    /// What is to be written next.
    fn source(&self, target: &mut [u8]) {
        if self.zeroes > 0 {
            target.fill(0);
        } else if let Some(guest) = &self.guest {
            // Dropped when it is written: what fails may be tried again.
            guest.read_front(target);
        }
    }

    /// Has the next step do `phase` with this buffer.
    fn repeat(&mut self, phase: Phase, buffer: AlignedBuffer, bytes: usize) {
        let operation = match &phase {
            Phase::BounceWrite(window) => self.operation(window.blocks.start),
            Phase::BounceRead(window) | Phase::Fetch(window) => {
                Operation::Read { offset: window.blocks.start }
            }
            Phase::Idle | Phase::Direct => return,
        };
        self.phase = phase;
        self.again = Some((operation, buffer, bytes));
    }

    /// The same for an operation that fell short, while there is patience.
    fn repeat_short(
        &mut self,
        phase: Phase,
        buffer: AlignedBuffer,
        bytes: usize,
        pool: &mut BouncePool,
        error: Errno,
    ) -> io::Result<()> {
        if self.try_again(Errno::AGAIN.into()).is_err() {
            pool.put(buffer);
            return Err(error.into());
        }
        self.repeat(phase, buffer, bytes);
        Ok(())
    }

    fn settle_direct(&mut self, result: io::Result<u32>, backing: &Backing) -> io::Result<()> {
        match result {
            Ok(0) if self.direction == Direction::Read => self.end_of_file(backing),
            Ok(0) => Err(Errno::NOSPC.into()),
            Ok(moved) => {
                let Some(guest) = &mut self.guest else { return Ok(()) };
                guest.advance(u64::from(moved));
                self.offset += u64::from(moved);
                self.patience = PATIENCE;
                Ok(())
            }
            Err(error) => self.try_again(error),
        }
    }

    /// A read met the end of the file. What lies between the file's size and its last sector's end is zeros; a file that
    /// ends before the size it had was cut short under us, and what it held is not zeros but gone.
    fn end_of_file(&mut self, backing: &Backing) -> io::Result<()> {
        if self.offset < backing.size_bytes {
            return Err(Errno::IO.into());
        }
        if let Some(guest) = &mut self.guest {
            guest.zero_front(u64::MAX);
        }
        Ok(())
    }

    fn try_again(&mut self, error: io::Error) -> io::Result<()> {
        let passing = matches!(Errno::from_io_error(&error), Some(Errno::AGAIN | Errno::INTR));
        if !passing || self.patience == 0 {
            return Err(error);
        }
        self.patience -= 1;
        Ok(())
    }

    fn operation(&self, offset: u64) -> Operation {
        match self.direction {
            Direction::Read => Operation::Read { offset },
            Direction::Write { durable } => Operation::Write { offset, durable },
        }
    }

    fn enter(&mut self, backing: &Backing, blocks: Range<u64>) -> bool {
        let shared = backing.alignment.offset > super::SECTOR_BYTES && self.direction != Direction::Read;
        if !shared || self.gate.is_some() {
            return true;
        }
        let entered = backing.gate.enter(&blocks);
        self.gate = entered.then_some(blocks);
        entered
    }

    fn leave(&mut self, backing: &Backing) {
        if let Some(blocks) = self.gate.take() {
            backing.gate.leave(&blocks);
        }
    }
}

#[cfg(test)]
mod tests;
