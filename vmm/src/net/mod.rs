//! What carries the frames of a network device outside the machine: a [`tap`] device, or a [`stream`] socket. What the guest
//! sees of it is in [`crate::virtio::net`].

use std::io;

pub(crate) mod stream;

pub use stream::{FrameStream, StreamEnd};

/// An Ethernet header, the least that a frame is.
pub(crate) const ETHERNET_BYTES: usize = 14;
/// Header and one VLAN's tag: what a frame is longer than its payload, at most.
pub(crate) const MOST_ETHERNET_BYTES: usize = ETHERNET_BYTES + 4;
/// The longest frame: an IP packet of 65,535 bytes behind that.
pub(crate) const LONGEST_FRAME: usize = 65_535 + MOST_ETHERNET_BYTES;

/// Why a network device is not there as asked.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("frames travel over a connected stream socket, and this is something else")]
    NotAStream { source: Option<io::Error> },
}
