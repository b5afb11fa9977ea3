//! Bounce buffers: where direct I/O would refuse the guest's own buffers, whole blocks of the backing go through these.

use std::ops::Range;

use vmprof_sys::aligned::AlignedBuffer;

use super::Backing;

/// A bounce buffer's size; larger requests take several turns.
pub const BOUNCE_BYTES: usize = 256 << 10;
/// Bounce buffers of one queue: requests beyond these wait for one.
pub(super) const MOST_BOUNCES: usize = 16;

/// The bounce buffers of one queue. Made on the thread that uses them, so that they lie on its node, and no sooner than they
/// are needed. Not of a whole IOThread: a backing that hangs would keep the buffers that other disks of the thread wait for.
#[derive(Debug)]
pub struct BouncePool {
    alignment: usize,
    idle: Vec<AlignedBuffer>,
    made: usize,
}

impl BouncePool {
    pub fn new(backing: &Backing) -> Self {
        let alignment = (backing.alignment.offset as usize).max(backing.alignment.memory);
        BouncePool { alignment, idle: Vec::new(), made: 0 }
    }

    pub(super) fn take(&mut self) -> Option<AlignedBuffer> {
        if let Some(buffer) = self.idle.pop() {
            return Some(buffer);
        }
        (self.made < MOST_BOUNCES).then(|| {
            self.made += 1;
            AlignedBuffer::new(BOUNCE_BYTES, self.alignment)
        })
    }

    pub(super) fn put(&mut self, buffer: AlignedBuffer) {
        self.idle.push(buffer);
    }
}

/// A whole number of blocks of the backing, and the part of them that the guest asked for.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub(super) blocks: Range<u64>,
    /// Where the guest's bytes begin in the blocks, and how many there are.
    pub(super) skip: usize,
    pub(super) want: usize,
}

impl Window {
    pub(super) fn at(offset: u64, bytes: u64, block: u64) -> Self {
        let start = offset - offset % block;
        let skip = (offset - start) as usize;
        let want = bytes.min((BOUNCE_BYTES - skip) as u64) as usize;
        Window { blocks: start..(offset + want as u64).next_multiple_of(block), skip, want }
    }

    pub(super) fn bytes(&self) -> usize {
        (self.blocks.end - self.blocks.start) as usize
    }

    pub(super) fn is_whole(&self) -> bool {
        self.skip == 0 && self.want == self.bytes()
    }
}
