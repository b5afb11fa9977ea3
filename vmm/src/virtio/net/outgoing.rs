//! Which of a driver's frames may go out: what is looked at of each before the backend sees it.

use vmprof_sys::segments::GuestBuffers;

use super::header::{HEADER_BYTES, Header};
use crate::net::{ETHERNET_BYTES, LONGEST_FRAME};

/// What a device's frames may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of a frame that is one packet, in bytes without the header.
    pub longest_frame: usize,
    /// Whether the driver may leave checksums and segments to the backend.
    pub offloads: bool,
}

/// Whether the bytes of a chain, header included, are a frame that may go.
pub fn may_go(buffers: &GuestBuffers, limits: &Limits) -> bool {
    let mut header = [0; HEADER_BYTES];
    if buffers.read_front(&mut header) < HEADER_BYTES {
        return false;
    }
    let header = Header::of(&header);
    let frame = usize::try_from(buffers.bytes()).unwrap_or(usize::MAX) - HEADER_BYTES;
    let longest = if header.is_segmented() { LONGEST_FRAME } else { limits.longest_frame };
    (ETHERNET_BYTES..=longest).contains(&frame) && (limits.offloads || header.is_plain())
}
