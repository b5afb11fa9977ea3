//! The PCI capabilities of a virtio function (virtio 1.3, 4.1.4): where in its BAR the driver finds what.

use crate::pci::config::ConfigSpace;

const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;
/// virtio 1.3, 4.1.4: kinds of structure.
pub(super) const COMMON_CFG: u8 = 1;
pub(super) const NOTIFY_CFG: u8 = 2;
pub(super) const ISR_CFG: u8 = 3;
pub(super) const DEVICE_CFG: u8 = 4;
pub(super) const PCI_CFG: u8 = 5;
pub(super) const MSIX_ENABLE: u16 = 1 << 15;
pub(super) const MSIX_ALL_MASKED: u16 = 1 << 14;

/// virtio 1.3, 4.1.4: a vendor capability that says where in BAR 0 a structure lies.
pub(super) fn add_structure(config: &mut ConfigSpace, kind: u8, offset: u64, len: u64, rest: &[u8]) -> usize {
    let mut body = vec![(16 + rest.len()) as u8, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(rest);
    // Where the configuration-access window looks is the guest's to choose: its BAR, offset, length and data.
    let mut writable = vec![0; body.len()];
    if kind == PCI_CFG {
        writable[2] = 0xff;
        writable[6..].fill(0xff);
    }
    config.add_capability(CAPABILITY_VENDOR, &body, &writable)
}

/// PCI 3.0, 6.8.2.
pub(super) fn add_msix(config: &mut ConfigSpace, vectors: u16, table: u64, pending: u64) -> usize {
    let mut body = Vec::with_capacity(10);
    body.extend((vectors - 1).to_le_bytes());
    body.extend((table as u32).to_le_bytes());
    body.extend((pending as u32).to_le_bytes());
    config.add_capability(CAPABILITY_MSIX, &body, &(MSIX_ENABLE | MSIX_ALL_MASKED).to_le_bytes())
}

/// The PCI class that fits: mass storage, or communication.
pub(super) fn class_of(device_id: u16) -> [u8; 3] {
    match device_id {
        1 => [0x02, 0x00, 0],
        2 => [0x01, 0x80, 0],
        3 => [0x07, 0x80, 0],
        _ => [0xff, 0, 0],
    }
}
