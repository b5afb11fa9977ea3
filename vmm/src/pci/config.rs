//! The configuration space of one PCI function: bytes, and for each bit whether the guest may write it. Everything a guest
//! can do here is a masked copy; what a write means is the function's business, which looks at the result.

/// What the conventional registers and our capabilities need. ECAM shows 4 KiB of each function; beyond this it reads as
/// zero, which also says that there is no extended capability.
const BYTES: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITY_POINTER: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_OFF: u16 = 1 << 10;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const HEADER_MULTIFUNCTION: u8 = 1 << 7;
/// A memory BAR of 64 bits, not prefetchable.
const BAR_64: u32 = 0b100;

/// What a function says it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Base class, subclass, programming interface.
    pub class: [u8; 3],
    pub subsystem_vendor: u16,
    pub subsystem: u16,
}

pub struct ConfigSpace {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    /// Where the last capability's "next" byte is, and where the next one goes.
    last_link: usize,
    next_capability: usize,
}

impl std::fmt::Debug for ConfigSpace {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "ConfigSpace({:04x}:{:04x})", self.u16(0), self.u16(2))
    }
}

impl ConfigSpace {
    pub fn new(identity: Identity) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            last_link: CAPABILITY_POINTER,
            next_capability: FIRST_CAPABILITY,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &[identity.revision, identity.class[2], identity.class[1], identity.class[0]]);
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        // The interrupt line is scratch space for the guest; the pin stays 0: there is no INTx.
        space.allow(0x3c, &[0xff]);
        space.allow(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_OFF).to_le_bytes());
        space
    }

    pub fn set_multifunction(&mut self) {
        self.bytes[0x0e] |= HEADER_MULTIFUNCTION;
    }

    /// Makes BAR 0 a 64-bit memory BAR of `size` bytes (a power of two) at `address`, decoded from the start.
    pub fn set_bar0(&mut self, address: u64, size: u64) {
        let mask = !(size - 1);
        self.put(BAR0, &(address as u32 | BAR_64).to_le_bytes());
        self.put(BAR0 + 4, &((address >> 32) as u32).to_le_bytes());
        self.allow(BAR0, &(mask as u32).to_le_bytes());
        self.allow(BAR0 + 4, &((mask >> 32) as u32).to_le_bytes());
        let command = self.u16(COMMAND) | COMMAND_MEMORY;
        self.put(COMMAND, &command.to_le_bytes());
    }

    /// Where BAR 0 is, while the guest has memory decoding on.
    pub fn bar0(&self) -> Option<u64> {
        let low = u64::from(self.u32(BAR0) & !0xf);
        let high = u64::from(self.u32(BAR0 + 4));
        (self.u16(COMMAND) & COMMAND_MEMORY != 0).then_some(high << 32 | low)
    }

    /// Appends a capability whose bytes after the two of its header are `body`; set bits of `writable` (as long as `body` or
    /// shorter) are the guest's to change. Returns where it lies.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.bytes[self.last_link] = at as u8;
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.last_link = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Fills `data` from `offset`; what lies beyond the end is zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = offset.checked_add(index).and_then(|at| self.bytes.get(at)).copied().unwrap_or(0);
        }
    }

    /// Writes what the guest may write of `data`.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            let Some(at) = offset.checked_add(index).filter(|at| *at < BYTES) else { return };
            self.bytes[at] = self.bytes[at] & !self.writable[at] | byte & self.writable[at];
        }
    }

    pub fn u16(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    pub fn u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Ours alone: `offset` is never the guest's.
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [1, 0x80, 0],
            subsystem_vendor: 0x1af4,
            subsystem: 2,
        });
        space.set_bar0(0xc001_0000, 0x1_0000);
        space
    }

    #[test]
    fn what_a_function_is_cannot_be_overwritten() {
        let mut space = space();
        space.write(0, &[0; 64]);
        assert_eq!((space.u16(0), space.u16(2), space.u16(0x2e)), (0x1af4, 0x1042, 2));
        assert_eq!(space.u32(8), 0x0180_0001);
    }

    #[test]
    fn writing_ones_to_a_bar_reads_back_its_size() {
        let mut space = space();
        space.write(BAR0, &u64::MAX.to_le_bytes());
        assert_eq!((space.u32(BAR0), space.u32(BAR0 + 4)), (0xffff_0004, 0xffff_ffff));
    }

    #[test]
    fn a_bar_is_decoded_where_the_guest_put_it_while_memory_is_on() {
        let mut space = space();
        assert_eq!(space.bar0(), Some(0xc001_0000));
        space.write(COMMAND, &[0, 0]);
        assert_eq!(space.bar0(), None);
        space.write(BAR0, &0x1_2345_6789_u64.to_le_bytes());
        space.write(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        assert_eq!(space.bar0(), Some(0x1_2345_0000));
    }

    #[test]
    fn capabilities_form_a_list_that_ends() {
        let mut space = space();
        assert_eq!(space.add_capability(9, &[14; 14], &[]), 0x40);
        assert_eq!(space.add_capability(0x11, &[0; 10], &[0, 0xc0]), 0x50);
        assert_eq!((space.bytes[CAPABILITY_POINTER], space.bytes[0x41], space.bytes[0x51]), (0x40, 0x50, 0));
        assert_ne!(space.bytes[STATUS] & STATUS_CAPABILITIES, 0);
        space.write(0x50, &[0xff; 4]);
        assert_eq!(space.u32(0x50), 0xc000_0011);
    }

    #[test]
    fn beyond_the_end_reads_zero_and_writes_are_lost() {
        let mut space = space();
        let mut data = [0xff; 4];
        space.read(254, &mut data);
        assert_eq!(data[2..], [0, 0]);
        space.write(254, &[1; 8]);
        space.write(usize::MAX, &[1; 8]);
        space.read(usize::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
