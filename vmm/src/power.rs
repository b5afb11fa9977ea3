//! How a run ends from inside, and the one thing the outside can ask of the guest: ACPI's sleep and reset registers, the
//! keyboard controller's and the PCI reset, pvpanic, and the generic event device that carries the power button.

use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::layout::port;

/// What a guest asks for with a register write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEnd {
    PowerOff,
    Reset,
    Panicked,
}

/// ACPI 6.5, 4.8.3.7: the sleep-enable bit, and the type that our DSDT names for S5.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
pub const SLEEP_TYPE_S5: u8 = 5;
/// What the FADT says to write to the reset register.
pub const RESET_VALUE: u8 = 1;
/// Bits of the event register, which the DSDT's event method reads.
pub const EVENT_POWER_BUTTON: u8 = 1;
/// The keyboard controller's command to pulse the processor's reset line.
const I8042_RESET: u8 = 0xfe;
/// PCI's reset control register lies inside the configuration address port.
const RESET_CONTROL: u16 = port::PCI_ADDRESS + 1;
const RESET_CONTROL_CPU: u8 = 1 << 2;
/// The pvpanic interface: events that we understand, of which the first is a panic.
const PVPANIC_PANICKED: u8 = 1;

/// All the BIOS there is: `mov dx, RESET; mov al, RESET_VALUE; out dx, al; hlt`. Linux on reduced hardware takes it for
/// granted that there is EFI to reboot with, and where there is none it jumps to the BIOS.
pub const RESET_CODE: [u8; 7] = {
    let [low, high] = port::RESET.to_le_bytes();
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4]
};

/// The registers. vCPU threads and whoever presses the button meet at the event bits, which are atomic.
#[derive(Debug)]
pub struct Power {
    events: AtomicU8,
    interrupt: EventFd,
}

impl Power {
    /// `interrupt` raises the generic event device's pin.
    pub fn new(interrupt: EventFd) -> Power {
        Power { events: AtomicU8::new(0), interrupt }
    }

    pub fn press_button(&self) {
        self.events.fetch_or(EVENT_POWER_BUTTON, Ordering::AcqRel);
        // Only a counter that is full refuses, and then the interrupt is on its way.
        let _ = self.interrupt.write(1);
    }

    /// `None`: not one of ours.
    pub fn read(&self, port: u16) -> Option<u8> {
        match port {
            port::EVENTS => Some(self.events.swap(0, Ordering::AcqRel)),
            port::SLEEP_CONTROL | port::SLEEP_STATUS | port::RESET => Some(0),
            port::PVPANIC => Some(PVPANIC_PANICKED),
            // No byte waits, and none that was written is still there.
            port::I8042_COMMAND | port::I8042_DATA => Some(0),
            _ => None,
        }
    }

    pub fn write(&self, port: u16, value: u8) -> Option<GuestEnd> {
        match port {
            port::SLEEP_CONTROL if value & SLEEP_ENABLE != 0 => {
                ((value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK == SLEEP_TYPE_S5).then_some(GuestEnd::PowerOff)
            }
            port::RESET if value == RESET_VALUE => Some(GuestEnd::Reset),
            port::I8042_COMMAND if value == I8042_RESET => Some(GuestEnd::Reset),
            RESET_CONTROL if value & RESET_CONTROL_CPU != 0 => Some(GuestEnd::Reset),
            port::PVPANIC if value & PVPANIC_PANICKED != 0 => Some(GuestEnd::Panicked),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn power() -> Power {
        Power::new(EventFd::new(EFD_NONBLOCK).unwrap())
    }

    #[test]
    fn s5_with_its_enable_bit_powers_off_and_nothing_less_does() {
        let s5 = SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT;
        assert_eq!(power().write(port::SLEEP_CONTROL, s5 | SLEEP_ENABLE), Some(GuestEnd::PowerOff));
        assert_eq!(power().write(port::SLEEP_CONTROL, s5), None);
        assert_eq!(power().write(port::SLEEP_CONTROL, SLEEP_ENABLE | 1 << SLEEP_TYPE_SHIFT), None);
    }

    #[test]
    fn each_way_to_reset_a_pc_resets() {
        for (port, value) in [(port::RESET, RESET_VALUE), (port::I8042_COMMAND, 0xfe), (0xcf9, 0x06)] {
            assert_eq!(power().write(port, value), Some(GuestEnd::Reset), "{port:#x}");
        }
        assert_eq!(power().write(port::I8042_COMMAND, 0xad), None);
    }

    #[test]
    fn a_panic_is_a_panic_and_a_crash_kernel_that_takes_over_is_not() {
        assert_eq!(power().write(port::PVPANIC, 1), Some(GuestEnd::Panicked));
        assert_eq!(power().write(port::PVPANIC, 2), None);
    }

    #[test]
    fn the_button_raises_the_pin_and_is_read_once() {
        let power = power();
        power.press_button();
        assert_eq!(power.interrupt.read().unwrap(), 1);
        assert_eq!(power.read(port::EVENTS), Some(EVENT_POWER_BUTTON));
        assert_eq!(power.read(port::EVENTS), Some(0));
    }
}
