//! The DSDT: the devices that cannot be enumerated, in AML.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, Device, EISAName, Equal, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name,
    Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{Machine, OEM, OEM_REVISION, OEM_TABLE};
use crate::layout::{self, gsi, port};
use crate::power;

/// ACPI 6.5, 5.6.6: a notification that a button was pressed.
const NOTIFY_PRESSED: u8 = 0x80;
/// _STA: present, enabled, shown, working.
const STATUS_PRESENT: u8 = 0x0f;

pub(super) fn build(machine: &Machine) -> Vec<u8> {
    let mut code = Vec::new();
    sleep_state(&mut code);
    processors(&mut code, machine.vcpus);
    pci_root(&mut code, machine);
    motherboard(&mut code);
    com1(&mut code);
    pvpanic(&mut code);
    power_button(&mut code);
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&code);
    table.as_slice().to_vec()
}

/// \_S5: what to write to sleep control to power off.
fn sleep_state(code: &mut Vec<u8>) {
    let package = Package::new(vec![&power::SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &package).to_aml_bytes(code);
}

/// A device for each vCPU, which the MADT's entries refer to by their id.
fn processors(code: &mut Vec<u8>, vcpus: u32) {
    let mut devices = Vec::new();
    for id in 0..vcpus {
        let path = Path::new(&format!("C{id:03X}"));
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid = Name::new("_UID".into(), &id);
        Device::new(path, vec![&hid, &uid]).to_aml_bytes(&mut devices);
    }
    code.extend(Scope::raw("\\_SB_".into(), devices));
}

fn pci_root(code: &mut Vec<u8>, machine: &Machine) {
    let window = layout::PCI_WINDOW;
    let buses = AddressSpace::new_bus_number(0u16, 0);
    let ports = IO::new(port::PCI_ADDRESS, port::PCI_ADDRESS, 1, 8);
    let port_window = AddressSpace::new_io(0x1000u16, 0xffff, None);
    let memory = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        window.start as u32,
        (window.start + window.len - 1) as u32,
        None,
    );
    let memory_64 = machine.pci_window_64.map(|range| {
        let end = range.start + range.len - 1;
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, range.start, end, None)
    });
    let mut resources: Vec<&dyn Aml> = vec![&buses, &ports, &port_window, &memory];
    if let Some(memory_64) = &memory_64 {
        resources.push(memory_64);
    }
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let segment = Name::new("_SEG".into(), &ZERO);
    let bus = Name::new("_BBN".into(), &ZERO);
    let uid = Name::new("_UID".into(), &ZERO);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    let root = Device::new("PCI0".into(), vec![&hid, &cid, &segment, &bus, &uid, &crs]);
    in_system_bus(code, &root);
}

/// What nobody else may be given: configuration space.
fn motherboard(code: &mut Vec<u8>) {
    let ecam = Memory32Fixed::new(true, layout::ECAM.start as u32, layout::ECAM.len as u32);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
    let uid = Name::new("_UID".into(), &ZERO);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam]));
    in_system_bus(code, &Device::new("MBRD".into(), vec![&hid, &uid, &crs]));
}

fn com1(code: &mut Vec<u8>) {
    let ports = IO::new(port::COM1, port::COM1, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, gsi::COM1);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &ZERO);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt]));
    in_system_bus(code, &Device::new("COM1".into(), vec![&hid, &uid, &crs]));
}

fn pvpanic(code: &mut Vec<u8>) {
    let ports = IO::new(port::PVPANIC, port::PVPANIC, 1, 1);
    let hid = Name::new("_HID".into(), &"QEMU0001");
    let status = Name::new("_STA".into(), &STATUS_PRESENT);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports]));
    in_system_bus(code, &Device::new("PEVT".into(), vec![&hid, &status, &crs]));
}

/// The power button, and the generic event device that tells of it: on its interrupt, _EVT reads (and so clears) the event
/// register and notifies the button.
fn power_button(code: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    in_system_bus(code, &Device::new("PWRB".into(), vec![&hid]));

    let hid = Name::new("_HID".into(), &"ACPI0013");
    let uid = Name::new("_UID".into(), &ZERO);
    let interrupt = Interrupt::new(true, true, false, false, gsi::EVENTS);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt]));
    let region = OpRegion::new("EREG".into(), OpRegionSpace::SystemIO, &port::EVENTS, &1u8);
    let field = Field::new(
        "EREG".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVTS", 8)],
    );
    let events = Path::new("EVTS");
    let read = Store::new(&Local(0), &events);
    let pressed = And::new(&Local(1), &Local(0), &power::EVENT_POWER_BUTTON);
    let button = Path::new("\\_SB_.PWRB");
    let notify = Notify::new(&button, &NOTIFY_PRESSED);
    let condition = Equal::new(&Local(1), &power::EVENT_POWER_BUTTON);
    let if_pressed = If::new(&condition, vec![&notify]);
    let pin = gsi::EVENTS as u8;
    let ours = Equal::new(&Arg(0), &pin);
    let if_ours = If::new(&ours, vec![&read, &pressed, &if_pressed]);
    let event = Method::new("_EVT".into(), 1, true, vec![&if_ours]);
    in_system_bus(code, &Device::new("GED0".into(), vec![&hid, &uid, &crs, &region, &field, &event]));
}

fn in_system_bus(code: &mut Vec<u8>, device: &dyn Aml) {
    Scope::new("\\_SB_".into(), vec![device]).to_aml_bytes(code);
}
