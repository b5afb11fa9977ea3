use super::*;

/// A function that remembers what its BAR was written.
#[derive(Debug)]
struct Scratch {
    config: ConfigSpace,
    memory: [u8; 16],
}

impl Scratch {
    fn boxed(position: usize) -> Box<dyn Function> {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1040 + position as u16,
            revision: 1,
            class: [0xff, 0, 0],
            subsystem_vendor: 0,
            subsystem: 0,
        };
        let mut config = ConfigSpace::new(identity);
        config.set_bar0(first_bar(position), BAR_BYTES);
        Box::new(Scratch { config, memory: [0; 16] })
    }
}

impl Function for Scratch {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }
    fn config_write(&mut self, offset: usize, data: &[u8]) -> Result<(), FunctionError> {
        self.config.write(offset, data);
        Ok(())
    }
    fn set_multifunction(&mut self) {
        self.config.set_multifunction();
    }
    fn bar(&self) -> Option<u64> {
        self.config.bar0()
    }
    fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.memory.get(offset as usize + index).copied().unwrap_or(0);
        }
    }
    fn bar_write(&mut self, offset: u64, data: &[u8]) -> Result<(), FunctionError> {
        for (index, byte) in data.iter().enumerate() {
            if let Some(place) = self.memory.get_mut(offset as usize + index) {
                *place = *byte;
            }
        }
        Ok(())
    }
    fn shut_down(&mut self) {}
}

fn bus(functions: usize) -> PciBus {
    PciBus::new((0..functions).map(Scratch::boxed).collect()).unwrap()
}

fn ecam_u32(bus: &PciBus, slot: u64, function: u64, register: u64) -> u32 {
    let mut data = [0; 4];
    bus.ecam_read(slot << 15 | function << 12 | register, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn the_bus_shows_its_bridge_its_functions_and_nothing_else() {
    let bus = bus(2);
    assert_eq!(ecam_u32(&bus, 0, 0, 0), 0x0008_1b36);
    assert_eq!(ecam_u32(&bus, 1, 0, 0), 0x1040_1af4);
    assert_eq!(ecam_u32(&bus, 2, 0, 0), 0x1041_1af4);
    assert_eq!(ecam_u32(&bus, 3, 0, 0), u32::MAX);
    assert_eq!(ecam_u32(&bus, 1, 1, 0), u32::MAX);
}

#[test]
fn the_ports_show_the_same_registers_as_ecam() {
    let bus = bus(2);
    bus.port_write(0, &(0x8000_0000u32 | 2 << 11).to_le_bytes()).unwrap();
    let mut data = [0; 2];
    bus.port_read(6, &mut data);
    assert_eq!(u16::from_le_bytes(data), 0x1041);
    // Another bus has nothing, and neither has a disabled address.
    for address in [0x8001_0000u32, 2 << 11] {
        bus.port_write(0, &address.to_le_bytes()).unwrap();
        bus.port_read(4, &mut data);
        assert_eq!(data, [0xff; 2]);
    }
}

#[test]
fn a_bar_that_the_guest_moves_answers_at_its_new_place_alone() {
    let bus = bus(2);
    let (old, new) = (first_bar(1), layout::PCI_WINDOW.start + 0x100_0000);
    assert!(bus.memory_write(old + 4, &[7]).unwrap());
    bus.ecam_write(2 << 15 | 0x10, &(new as u32).to_le_bytes()).unwrap();
    let mut data = [0];
    assert!(!bus.memory_read(old + 4, &mut data));
    assert!(bus.memory_read(new + 4, &mut data));
    assert_eq!(data, [7]);
    // Without memory decoding it answers nowhere.
    bus.ecam_write(2 << 15 | 4, &[0, 0]).unwrap();
    assert!(!bus.memory_read(new + 4, &mut data));
}

#[test]
fn an_access_across_the_end_of_a_bar_is_nobodys() {
    let bus = bus(1);
    let end = first_bar(0) + BAR_BYTES;
    assert!(bus.memory_read(end - 4, &mut [0; 4]));
    assert!(!bus.memory_read(end - 3, &mut [0; 4]));
    assert!(!bus.memory_read(u64::MAX, &mut [0; 4]));
}

#[test]
fn more_functions_than_slots_share_slots() {
    let bus = bus(40);
    assert_eq!(ecam_u32(&bus, 1, 1, 0) >> 16, 0x1040 + 31);
    assert_ne!(ecam_u32(&bus, 1, 0, 0x0c) & 0x80_0000, 0, "function 0 says that there are more");
    assert_eq!(
        PciBus::new((0..=MOST_FUNCTIONS).map(Scratch::boxed).collect()).unwrap_err().asked,
        MOST_FUNCTIONS + 1
    );
}

#[test]
fn every_bar_starts_out_inside_the_window() {
    let last = (0..MOST_FUNCTIONS).map(first_bar).max().unwrap();
    assert!(last + BAR_BYTES <= layout::PCI_WINDOW.start + layout::PCI_WINDOW.len);
}
