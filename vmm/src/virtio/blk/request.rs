//! One block request (virtio 1.3, 5.2.6): a chain of descriptors, read once and checked, becomes a [`Request`] that nobody
//! needs to hold against the guest's memory again.

use vm_memory::GuestAddress;
use vmprof_sys::regions::Regions;
use vmprof_sys::segments::GuestBuffers;
use vmprof_sys::vring::{Descriptor, RingError};

use crate::backing::SECTOR_BYTES;

const HEADER_BYTES: usize = 16;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// The status byte that ends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Offsets are bytes, within the capacity with all that the buffers hold.
    Read {
        offset: u64,
    },
    Write {
        offset: u64,
    },
    Flush,
    GetId,
    /// Their ranges are in the buffers, and still to be held against the disk.
    Discard,
    WriteZeroes,
    /// Not to be carried out: the answer is known.
    Refused(Status),
}

/// A request whose buffers are in the [`GuestBuffers`] that were given to [`parse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub kind: Kind,
    /// Where the status byte goes: in guest memory when it was parsed, and that never changes.
    pub status: GuestAddress,
    /// Data bytes that the driver lets us read, and those that it lets us write before the status byte.
    pub readable: u64,
    pub writable: u64,
}

/// What requests are held against.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub capacity_bytes: u64,
    pub read_only: bool,
    /// Data descriptors of one request, as the configuration space says (VIRTIO_BLK_F_SEG_MAX).
    pub most_segments: u32,
    /// Bytes of one of them (VIRTIO_BLK_F_SIZE_MAX).
    pub longest_segment: u32,
}

/// Reads the request that `chain` describes and resolves its data into `buffers`. An error means that there is no request to
/// answer: the driver does not keep the rules, and the device needs a reset.
pub fn parse(
    head: u16,
    chain: &[Descriptor],
    regions: &Regions,
    limits: &Limits,
    buffers: &mut GuestBuffers,
) -> Result<Request, RingError> {
    let broken = |rule| RingError::NoRequest { head, rule };
    buffers.clear();
    let mut parts = Parts::new(buffers);
    for &descriptor in chain {
        if descriptor.writable {
            parts.writable(descriptor);
        } else if parts.last_writable.is_some() {
            return Err(broken("a buffer to read follows one to write"));
        } else {
            parts.readable(descriptor, regions).map_err(broken)?;
        }
    }
    if parts.header_bytes < HEADER_BYTES {
        return Err(broken("its header has less than 16 bytes"));
    }
    let status = parts.finish().ok_or_else(|| broken("no byte for its status"))?;
    if !regions.holds(status.0) {
        return Err(broken("its status byte is not in guest memory"));
    }
    let kind = judge(&parts, limits);
    Ok(Request { kind, status, readable: parts.out_bytes, writable: parts.in_bytes })
}

/// What the walk over the chain has found so far.
#[derive(Debug)]
struct Parts<'buffers> {
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    out_bytes: u64,
    in_bytes: u64,
    segments: u32,
    longest: u32,
    /// The last buffer to write so far: all of it is data if another follows, all but its last byte if none does.
    last_writable: Option<Descriptor>,
    buffers: &'buffers mut GuestBuffers,
    /// A data buffer is not in guest memory, or one too many.
    unusable: bool,
}

impl<'buffers> Parts<'buffers> {
    fn new(buffers: &'buffers mut GuestBuffers) -> Self {
        Parts {
            header: [0; HEADER_BYTES],
            header_bytes: 0,
            out_bytes: 0,
            in_bytes: 0,
            segments: 0,
            longest: 0,
            last_writable: None,
            buffers,
            unusable: false,
        }
    }

    /// The first 16 bytes are the header, however they are cut (virtio 1.3, 2.7.4: no framing is assumed).
    fn readable(&mut self, buffer: Descriptor, regions: &Regions) -> Result<(), &'static str> {
        let of_header = (HEADER_BYTES - self.header_bytes).min(buffer.len as usize);
        if of_header == HEADER_BYTES {
            self.header = regions.read_array(buffer.address).ok_or("its header is not in guest memory")?;
            self.header_bytes = HEADER_BYTES;
        } else if of_header > 0 {
            let target = &mut self.header[self.header_bytes..][..of_header];
            if !regions.read(buffer.address, target) {
                return Err("its header is not in guest memory");
            }
            self.header_bytes += of_header;
        }
        let data = buffer.len - of_header as u32;
        if data > 0 {
            self.out_bytes += u64::from(data);
            // Cannot wrap around: either no byte was taken off, or they were read from memory.
            self.data(buffer.address + of_header as u64, data);
        }
        Ok(())
    }

    fn writable(&mut self, buffer: Descriptor) {
        if buffer.len == 0 {
            // Nothing in it, and its last byte is none.
            self.last_writable = self.last_writable.or(Some(buffer));
            return;
        }
        if let Some(earlier) = self.last_writable.replace(buffer)
            && earlier.len > 0
        {
            self.in_bytes += u64::from(earlier.len);
            self.data(earlier.address, earlier.len);
        }
    }

    /// Whether the data has more or longer pieces than the driver was told that it may.
    fn exceed(&self, limits: &Limits) -> bool {
        self.segments > limits.most_segments || self.longest > limits.longest_segment
    }

    /// Parts the status byte from the data before it.
    fn finish(&mut self) -> Option<GuestAddress> {
        let last = self.last_writable.filter(|last| last.len > 0)?;
        let before = last.len - 1;
        let status = last.address.checked_add(u64::from(before))?;
        if before > 0 {
            self.in_bytes += u64::from(before);
            self.data(last.address, before);
        }
        Some(GuestAddress(status))
    }

    fn data(&mut self, address: u64, len: u32) {
        self.segments += 1;
        self.longest = self.longest.max(len);
        self.unusable |= self.buffers.push(address, len).is_err();
    }
}

/// Everything that can be wrong with a request that has an answer.
fn judge(parts: &Parts<'_>, limits: &Limits) -> Kind {
    // virtio 1.3, 5.2.6: type (le32), reserved (le32), sector (le64).
    let header = u128::from_le_bytes(parts.header);
    let (kind, sector) = (header as u32, (header >> 64) as u64);
    if !matches!(kind, TYPE_IN | TYPE_OUT | TYPE_FLUSH | TYPE_GET_ID | TYPE_DISCARD | TYPE_WRITE_ZEROES) {
        return Kind::Refused(Status::Unsupported);
    }
    let (wrong_side, too_much) = match kind {
        TYPE_IN => (parts.out_bytes > 0, parts.exceed(limits)),
        TYPE_OUT => (parts.in_bytes > 0, parts.exceed(limits)),
        TYPE_GET_ID => (parts.out_bytes > 0, false),
        TYPE_DISCARD | TYPE_WRITE_ZEROES => (parts.in_bytes > 0, false),
        _ => (false, false),
    };
    if parts.unusable || wrong_side || too_much {
        return Kind::Refused(Status::IoError);
    }
    match kind {
        TYPE_FLUSH => Kind::Flush,
        TYPE_GET_ID => Kind::GetId,
        // virtio 1.3, 5.2.6.2: a write to a read-only device is an I/O error.
        TYPE_OUT | TYPE_DISCARD | TYPE_WRITE_ZEROES if limits.read_only => Kind::Refused(Status::IoError),
        TYPE_DISCARD => Kind::Discard,
        TYPE_WRITE_ZEROES => Kind::WriteZeroes,
        _ => match range(sector, parts.out_bytes + parts.in_bytes, limits.capacity_bytes) {
            Some(offset) if kind == TYPE_IN => Kind::Read { offset },
            Some(offset) => Kind::Write { offset },
            None => Kind::Refused(Status::IoError),
        },
    }
}

/// Where `bytes` from `sector` on begin, when they are whole sectors within the capacity.
fn range(sector: u64, bytes: u64, capacity_bytes: u64) -> Option<u64> {
    // virtio 1.3, 5.2.6.1: reads and writes are whole 512-byte sectors.
    let offset = sector.checked_mul(SECTOR_BYTES)?;
    let end = offset.checked_add(bytes)?;
    (bytes.is_multiple_of(SECTOR_BYTES) && end <= capacity_bytes).then_some(offset)
}

#[cfg(test)]
mod tests;
