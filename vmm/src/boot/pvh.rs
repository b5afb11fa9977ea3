//! The structures of PVH's boot protocol: start_info, which the boot processor's EBX points to, with the memory map and the
//! one module, the initramfs. The layout is Xen's, in include/public/arch-x86/hvm/start_info.h.

use vm_memory::{Bytes, GuestAddress};
use vmprof_sys::memory::GuestRam;

use super::kernel::Loaded;
use crate::layout::{self, MapEntry};

const MAGIC: u32 = 0x336e_c578;
/// The version that brought the memory map.
const VERSION: u32 = 1;
const START_INFO_BYTES: u64 = 56;
const MODULE_BYTES: u64 = 32;

/// Writes start_info and what it points to, from [`layout::START_INFO`] on.
pub fn write(
    ram: &GuestRam,
    loaded: &Loaded,
    map: &[MapEntry],
    rsdp: u64,
) -> Result<(), vm_memory::GuestMemoryError> {
    ram.write_slice(&start_info(loaded, map, rsdp), GuestAddress(layout::START_INFO))
}

fn start_info(loaded: &Loaded, map: &[MapEntry], rsdp: u64) -> Vec<u8> {
    let modules = layout::START_INFO + START_INFO_BYTES;
    let entries = modules + MODULE_BYTES;
    let mut bytes = Vec::new();
    let flags = 0u32;
    let module_count = 1u32;
    for word in [MAGIC, VERSION, flags, module_count] {
        bytes.extend(word.to_le_bytes());
    }
    for address in [modules, layout::CMDLINE, rsdp, entries] {
        bytes.extend(address.to_le_bytes());
    }
    bytes.extend((map.len() as u32).to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    // The module: where, how long, no command line of its own, reserved.
    for value in [loaded.initramfs, loaded.initramfs_bytes, 0, 0] {
        bytes.extend(value.to_le_bytes());
    }
    for entry in map {
        bytes.extend(entry.range.start.to_le_bytes());
        bytes.extend(entry.range.len.to_le_bytes());
        bytes.extend((entry.kind as u32).to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_info_points_at_its_tables() {
        let loaded = Loaded { entry: 0x100_0000, initramfs: 0x700_0000, initramfs_bytes: 1234 };
        let map = layout::map(1 << 30);
        let bytes = start_info(&loaded, &map, 0xe_0000);
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let place = |at: usize| (u64_at(at) - layout::START_INFO) as usize;
        assert_eq!(bytes[..4], MAGIC.to_le_bytes());
        assert_eq!((u64_at(24), u64_at(32)), (layout::CMDLINE, 0xe_0000));
        assert_eq!((u64_at(place(16)), u64_at(place(16) + 8)), (0x700_0000, 1234));
        assert_eq!((u64_at(place(40)), u64_at(place(40) + 8)), (0, layout::LOW_END));
        assert_eq!(bytes.len(), place(40) + map.len() * 24);
        assert_eq!(bytes[48..52], (map.len() as u32).to_le_bytes());
    }

    #[test]
    fn the_largest_start_info_ends_before_the_command_line() {
        let loaded = Loaded { entry: 0, initramfs: 0, initramfs_bytes: 0 };
        let bytes = start_info(&loaded, &layout::map(1 << 40), 0);
        assert!(layout::START_INFO + bytes.len() as u64 <= layout::CMDLINE);
    }
}
