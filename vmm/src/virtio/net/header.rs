//! The header before each frame in a queue (virtio 1.3, 5.1.6): always twelve bytes, as VERSION_1 has it.

pub(super) const HEADER_BYTES: usize = 12;
/// Where `num_buffers` is, 16 bits: over how many buffers a received frame lies.
pub(super) const NUM_BUFFERS_AT: usize = 10;

/// What of a header the device looks at itself. The rest is the kernel's, which checks it when it takes the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
}

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: the frame's checksum is to be filled in.
const NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_NONE: the frame is one packet.
const GSO_NONE: u8 = 0;

impl Header {
    pub(super) fn of(bytes: &[u8; HEADER_BYTES]) -> Header {
        let [flags, gso_type, ..] = *bytes;
        Header { flags, gso_type }
    }

    /// Whether the frame is to be cut into packets.
    pub(super) fn is_segmented(self) -> bool {
        self.gso_type != GSO_NONE
    }

    /// Whether the frame can travel as it is.
    pub(super) fn is_plain(self) -> bool {
        self.flags & NEEDS_CSUM == 0 && !self.is_segmented()
    }
}

/// Of a frame that nothing is left to do for.
pub(super) fn plain(buffers: u16) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[NUM_BUFFERS_AT..].copy_from_slice(&buffers.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_header_that_asks_for_nothing_is_plain() {
        let with = |at: usize, byte: u8| {
            let mut bytes = plain(1);
            bytes[at] = byte;
            Header::of(&bytes)
        };
        assert!(with(0, 0).is_plain() && with(2, 0xff).is_plain(), "lengths of what is not asked for");
        // DATA_VALID and RSC_INFO are for received frames.
        assert!(with(0, 6).is_plain());
        assert!(!with(0, 1).is_plain() && !with(0, 1).is_segmented());
        for kind in [1, 3, 4, 5, 0x80, 0x81, 0xff] {
            assert!(!with(1, kind).is_plain() && with(1, kind).is_segmented(), "{kind}");
        }
        assert_eq!(plain(0x1234), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x34, 0x12]);
    }
}
