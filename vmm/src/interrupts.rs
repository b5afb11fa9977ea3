//! Interrupt numbers and where they lead. KVM takes its routing table only as a whole, so one owner keeps all of it: the
//! fixed pins of the chips, and a message for each MSI-X vector that has been unmasked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmprof_sys::eventfd;
use vmprof_sys::kvm::{GuestVm, Route};

use crate::layout::gsi;

#[derive(Debug, thiserror::Error)]
pub enum InterruptError {
    #[error(
        "the machine's devices ask for {asked} more MSI-X vectors, but only {left} of KVM's interrupt routes are left"
    )]
    Exhausted { asked: u32, left: u32 },
    #[error("no eventfd could be made for an interrupt")]
    EventFd(#[source] std::io::Error),
    #[error("KVM did not take the interrupt's {what}")]
    Kvm { what: &'static str, source: kvm_ioctls::Error },
}

/// The routing table and the numbers that are still free.
#[derive(Debug)]
pub struct Interrupts {
    vm: Arc<GuestVm>,
    /// vCPU threads meet here when they unmask vectors of different functions at once.
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    next_gsi: u32,
    messages: BTreeMap<u32, (u64, u32)>,
}

impl Interrupts {
    /// Sets the chips' fixed routes.
    pub fn new(vm: Arc<GuestVm>) -> Result<Interrupts, InterruptError> {
        let table = Table { next_gsi: gsi::PINS, messages: BTreeMap::new() };
        vm.set_routes(&table.routes()).map_err(|source| InterruptError::Kvm { what: "routes", source })?;
        Ok(Interrupts { vm, table: Mutex::new(table) })
    }

    pub fn vm(&self) -> &Arc<GuestVm> {
        &self.vm
    }

    /// An edge-triggered pin of the I/O APIC: the eventfd raises it.
    pub fn pin(&self, gsi: u32) -> Result<EventFd, InterruptError> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(InterruptError::EventFd)?;
        self.vm.connect_irq(&event, gsi).map_err(|source| InterruptError::Kvm { what: "irqfd", source })?;
        Ok(event)
    }

    /// `count` message-signalled vectors, each masked.
    pub fn vectors(&self, count: u16) -> Result<Vec<Vector>, InterruptError> {
        let first = {
            let mut table = self.lock();
            let left = gsi::END - table.next_gsi;
            if u32::from(count) > left {
                return Err(InterruptError::Exhausted { asked: count.into(), left });
            }
            let first = table.next_gsi;
            table.next_gsi += u32::from(count);
            first
        };
        (first..first + u32::from(count))
            .map(|gsi| {
                let event = EventFd::new(EFD_NONBLOCK).map_err(InterruptError::EventFd)?;
                Ok(Vector { gsi, event: Arc::new(event), connected: false })
            })
            .collect()
    }

    fn route(&self, gsi: u32, message: (u64, u32)) -> Result<(), InterruptError> {
        let mut table = self.lock();
        if table.messages.insert(gsi, message) == Some(message) {
            return Ok(());
        }
        self.vm.set_routes(&table.routes()).map_err(|source| InterruptError::Kvm { what: "route", source })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        // A panic in a holder leaves the table as the last whole insertion had it.
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Table {
    fn routes(&self) -> Vec<Route> {
        let pins = (0..gsi::PINS).flat_map(|gsi| {
            // Pins 0 to 15 reach both the PICs and the I/O APIC, as KVM's own table has it.
            let pic = (gsi < gsi::PIC_PINS).then_some(Route::Pin { gsi, chip: gsi / 8, pin: gsi % 8 });
            [pic, Some(Route::Pin { gsi, chip: 2, pin: gsi })].into_iter().flatten()
        });
        let messages = self.messages.iter();
        pins.chain(messages.map(|(&gsi, &(address, data))| Route::Message { gsi, address, data })).collect()
    }
}

/// One MSI-X vector of one function. A signal on its eventfd becomes an interrupt while it is unmasked, and waits in the
/// eventfd while it is masked.
#[derive(Debug)]
pub struct Vector {
    gsi: u32,
    event: Arc<EventFd>,
    connected: bool,
}

impl Vector {
    pub fn event(&self) -> &Arc<EventFd> {
        &self.event
    }

    /// Lets signals through as this message; one that waits goes at once.
    pub fn unmask(&mut self, interrupts: &Interrupts, address: u64, data: u32) -> Result<(), InterruptError> {
        interrupts.route(self.gsi, (address, data))?;
        if !self.connected {
            interrupts
                .vm
                .connect_irq(&self.event, self.gsi)
                .map_err(|source| InterruptError::Kvm { what: "irqfd", source })?;
            self.connected = true;
        }
        Ok(())
    }

    pub fn mask(&mut self, interrupts: &Interrupts) -> Result<(), InterruptError> {
        if self.connected {
            interrupts
                .vm
                .disconnect_irq(&self.event, self.gsi)
                .map_err(|source| InterruptError::Kvm { what: "irqfd", source })?;
            self.connected = false;
        }
        Ok(())
    }

    /// Whether a signal waits: only a masked vector lets one wait.
    pub fn is_pending(&self) -> bool {
        if self.connected {
            return false;
        }
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            eventfd::borrowed(&self.event),
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(ready) if ready > 0)
    }

    /// Forgets a signal that waits: the function was reset.
    pub fn clear(&self) {
        // Nothing waiting is EAGAIN, and as good.
        let _ = self.event.read();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_routes_cover_each_pin_of_each_chip_once() {
        let table = Table { next_gsi: gsi::PINS, messages: BTreeMap::new() };
        let routes = table.routes();
        assert_eq!(routes.len(), 16 + 24);
        assert!(routes.contains(&Route::Pin { gsi: 9, chip: 1, pin: 1 }));
        assert!(routes.contains(&Route::Pin { gsi: 23, chip: 2, pin: 23 }));
    }

    #[test]
    fn the_table_that_kvm_takes_has_room_for_every_number_that_is_given_out() {
        let messages = (gsi::PINS..gsi::END).map(|gsi| (gsi, (0, 0))).collect();
        let table = Table { next_gsi: gsi::END, messages };
        assert_eq!(table.routes().len(), gsi::MOST_ROUTES as usize);
    }

    #[test]
    fn a_message_is_added_to_the_fixed_routes() {
        let messages = BTreeMap::from([(24, (0xfee0_0000, 0x41))]);
        let table = Table { next_gsi: 25, messages };
        assert_eq!(
            table.routes().last(),
            Some(&Route::Message { gsi: 24, address: 0xfee0_0000, data: 0x41 })
        );
    }
}
