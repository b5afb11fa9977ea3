use super::*;

fn tables() -> Tables {
    build(&Machine { vcpus: 4, pci_window_64: Some(Range { start: 1 << 32, len: 1 << 36 }) }).unwrap()
}

fn at(tables: &Tables, address: u64) -> &[u8] {
    &tables.bytes[(address - layout::ACPI.start) as usize..]
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// A table's bytes, found by following the pointers as a kernel does.
fn table<'a>(tables: &'a Tables, signature: &[u8; 4]) -> &'a [u8] {
    let xsdt = at(tables, u64_at(at(tables, tables.rsdp), 24));
    let end = u32_at(xsdt, 4) as usize;
    let found = (36..end)
        .step_by(8)
        .map(|entry| at(tables, u64_at(xsdt, entry)))
        .find(|table| &table[..4] == signature);
    let table = found.unwrap_or_else(|| panic!("no {}", String::from_utf8_lossy(signature)));
    &table[..u32_at(table, 4) as usize]
}

#[test]
fn every_checksum_is_right() {
    let tables = tables();
    let rsdp = at(&tables, tables.rsdp);
    assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp[..36])), (&b"RSD PTR "[..], 0, 0));
    let xsdt = at(&tables, u64_at(rsdp, 24));
    assert_eq!(sum(&xsdt[..u32_at(xsdt, 4) as usize]), 0);
    for signature in [b"FACP", b"APIC", b"MCFG"] {
        assert_eq!(sum(table(&tables, signature)), 0);
    }
    let dsdt = at(&tables, u64_at(table(&tables, b"FACP"), 140));
    assert_eq!((&dsdt[..4], sum(&dsdt[..u32_at(dsdt, 4) as usize])), (&b"DSDT"[..], 0));
}

#[test]
fn the_fadt_says_reduced_hardware_and_where_to_reset_and_sleep() {
    let tables = tables();
    let fadt = table(&tables, b"FACP");
    let flags = u32_at(fadt, 112);
    for bit in [4, 10, 20] {
        assert_ne!(flags & 1 << bit, 0, "flag {bit} of {flags:#x}");
    }
    // Generic addresses: space 1 is I/O ports, the address is 4 bytes on.
    assert_eq!((fadt[116], u64_at(fadt, 120)), (1, layout::port::RESET.into()));
    assert_eq!((fadt[244], u64_at(fadt, 248)), (1, layout::port::SLEEP_CONTROL.into()));
    assert_eq!((fadt[256], u64_at(fadt, 260)), (1, layout::port::SLEEP_STATUS.into()));
}

#[test]
fn the_madt_has_an_enabled_local_apic_for_each_vcpu() {
    let tables = tables();
    let madt = table(&tables, b"APIC");
    let mut ids = Vec::new();
    let mut entry = 44;
    while entry < madt.len() {
        if madt[entry] == 0 && u32_at(madt, entry + 4) == 1 {
            ids.push(madt[entry + 3]);
        }
        entry += usize::from(madt[entry + 1]);
    }
    assert_eq!(ids, [0, 1, 2, 3]);
}

#[test]
fn the_largest_machine_fits_where_the_tables_go() {
    let machine = Machine { vcpus: 254, pci_window_64: None };
    assert!(build(&machine).unwrap().bytes.len() as u64 <= layout::ACPI.len);
}
