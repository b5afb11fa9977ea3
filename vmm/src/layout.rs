//! Where things are in the guest's physical address space, in its I/O ports and on its interrupt pins. One table for everyone
//! who must agree: memory, boot, ACPI, PCI and the devices.

use vmprof_sys::memory::Range;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Descriptor table of the boot processor.
pub const GDT: u64 = 0x500;
/// PVH's start_info with its tables (memory map, modules).
pub const START_INFO: u64 = 0x6000;
pub const CMDLINE: u64 = 0x2_0000;
/// Linux on x86 takes no more than this, terminator included (COMMAND_LINE_SIZE).
pub const CMDLINE_BYTES: u64 = 2048;
/// End of what a PC calls conventional memory.
pub const LOW_END: u64 = 0x9_fc00;
/// ACPI tables and then the BIOS, as on a PC: reserved in the memory map.
pub const ACPI: Range = Range { start: 0xe_0000, len: 0x1_0000 };
pub const BIOS: Range = Range { start: 0xf_0000, len: 0x1_0000 };
/// Where a kernel that has no better way to reboot jumps to, in real mode: the BIOS's first instruction.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Where kernels are linked to at the earliest.
pub const HIGH_START: u64 = MIB;

/// Memory ends here and goes on at 4 GiB: between them are the devices.
pub const HOLE_START: u64 = 3 * GIB;
const HOLE_END: u64 = 4 * GIB;
/// BARs are placed here, and the guest may move them within it.
pub const PCI_WINDOW: Range = Range { start: HOLE_START, len: 0x2000_0000 };
/// PCI configuration space of bus 0 (ECAM).
pub const ECAM: Range = Range { start: 0xe000_0000, len: MIB };
pub const IO_APIC: u32 = 0xfec0_0000;
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Intel's KVM wants one page for an identity map and three for a task state segment somewhere without memory.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
pub const TASK_STATE: u64 = 0xfffb_d000;

/// The 64-bit window for BARs begins above all memory.
const PCI_WINDOW_64_BYTES: u64 = 64 * GIB;

pub mod port {
    //! I/O ports.

    pub const I8042_DATA: u16 = 0x60;
    pub const I8042_COMMAND: u16 = 0x64;
    pub const COM1: u16 = 0x3f8;
    pub const PVPANIC: u16 = 0x505;
    /// ACPI's sleep control, sleep status, reset and the event flags of our generic event device, one byte each.
    pub const SLEEP_CONTROL: u16 = 0x600;
    pub const SLEEP_STATUS: u16 = 0x601;
    pub const RESET: u16 = 0x602;
    pub const EVENTS: u16 = 0x603;
    pub const PCI_ADDRESS: u16 = 0xcf8;
    pub const PCI_DATA: u16 = 0xcfc;
}

pub mod gsi {
    //! Global system interrupts: pins of the I/O APIC, then messages.

    pub const COM1: u32 = 4;
    pub const EVENTS: u32 = 5;
    pub const PINS: u32 = 24;
    /// Pins that lead to two chips, and so have two entries of the routing table.
    pub const PIC_PINS: u32 = 16;
    /// KVM takes no larger routing table (KVM_MAX_IRQ_ROUTES).
    pub const MOST_ROUTES: u32 = 4096;
    /// All numbers below it can have their routes at once.
    pub const END: u32 = MOST_ROUTES - PIC_PINS;
}

/// Guest memory of `bytes`: below the hole, and what does not fit there above 4 GiB.
pub fn memory(bytes: u64) -> Vec<Range> {
    let low = Range { start: 0, len: bytes.min(HOLE_START) };
    let high = Range { start: HOLE_END, len: bytes - low.len };
    [low, high].into_iter().filter(|range| range.len > 0).collect()
}

/// The window for 64-bit BARs above `bytes` of memory, where the processor's `address_bits` leave room for one.
pub fn pci_window_64(bytes: u64, address_bits: u8) -> Option<Range> {
    let memory_end = memory(bytes).last().map_or(0, |range| range.start + range.len).max(HOLE_END);
    let start = memory_end.next_multiple_of(GIB);
    let end = start.checked_add(PCI_WINDOW_64_BYTES)?;
    (address_bits >= 64 || end <= 1 << address_bits).then_some(Range { start, len: PCI_WINDOW_64_BYTES })
}

/// What the guest is told about its address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    pub range: Range,
    pub kind: MapKind,
}

/// The kinds of PVH's memory map, which are the e820 numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    Ram = 1,
    Reserved = 2,
}

/// The memory map for `bytes` of guest memory, ascending.
pub fn map(bytes: u64) -> Vec<MapEntry> {
    let ram = |start, end: u64| MapEntry { range: Range { start, len: end - start }, kind: MapKind::Ram };
    let reserved = |range| MapEntry { range, kind: MapKind::Reserved };
    let mut map = vec![
        ram(0, LOW_END),
        reserved(Range { start: LOW_END, len: 0xa_0000 - LOW_END }),
        reserved(ACPI),
        reserved(BIOS),
        ram(HIGH_START, bytes.min(HOLE_START)),
        // Linux uses ECAM only where the memory map or ACPI keeps it from being given away.
        reserved(ECAM),
    ];
    map.extend(memory(bytes).get(1).map(|high| ram(high.start, high.start + high.len)));
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_stays_below_the_hole() {
        assert_eq!(memory(512 * MIB), [Range { start: 0, len: 512 * MIB }]);
        assert_eq!(memory(HOLE_START), [Range { start: 0, len: HOLE_START }]);
    }

    #[test]
    fn large_memory_goes_on_at_4_gib_and_loses_nothing() {
        let ranges = memory(5 * GIB);
        assert_eq!(ranges, [Range { start: 0, len: 3 * GIB }, Range { start: 4 * GIB, len: 2 * GIB }]);
    }

    #[test]
    fn the_memory_map_is_ascending_and_without_overlap() {
        for bytes in [64 * MIB, 3 * GIB, 100 * GIB] {
            let map = map(bytes);
            for pair in map.windows(2) {
                assert!(pair[0].range.start + pair[0].range.len <= pair[1].range.start, "{pair:?}");
            }
            let ram: u64 =
                map.iter().filter(|entry| entry.kind == MapKind::Ram).map(|entry| entry.range.len).sum();
            // All but the part between conventional memory and 1 MiB.
            assert_eq!(ram, bytes - (MIB - LOW_END));
        }
    }

    #[test]
    fn nothing_of_the_machine_lies_in_memory_or_on_something_else() {
        let mut ranges = vec![
            PCI_WINDOW,
            ECAM,
            Range { start: IO_APIC.into(), len: 0x1000 },
            Range { start: LOCAL_APIC.into(), len: 0x1000 },
            Range { start: IDENTITY_MAP, len: 0x1000 },
            Range { start: TASK_STATE, len: 0x3000 },
        ];
        ranges.extend(memory(8 * GIB));
        ranges.extend(pci_window_64(8 * GIB, 46));
        ranges.sort_by_key(|range| range.start);
        for pair in ranges.windows(2) {
            assert!(pair[0].start + pair[0].len <= pair[1].start, "{pair:?}");
        }
    }

    #[test]
    fn a_processor_with_few_address_bits_gets_no_64_bit_window() {
        assert_eq!(pci_window_64(8 * GIB, 36), None);
        assert!(pci_window_64(8 * GIB, 40).is_some());
    }
}
