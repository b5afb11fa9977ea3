//! A virtio device as a PCI function (virtio 1.3, 4.1): capabilities and one BAR, which holds the transport's registers, the
//! device's configuration, the doorbells and the MSI-X table. It owns the device and does what the registers say.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmprof_sys::memory::GuestRam;
use vmprof_sys::vring::{RingFeatures, RingSetup, Vring};

use super::capability::{
    COMMON_CFG, DEVICE_CFG, ISR_CFG, MSIX_ALL_MASKED, MSIX_ENABLE, NOTIFY_CFG, PCI_CFG, add_msix,
    add_structure, class_of,
};
use super::config_changes::ConfigChanges;
use super::config_signal::ConfigSignal;
use super::device::{ActiveQueue, QueueInterrupt, VirtioDevice};
use super::distress::Distress;
use super::doorbell::Doorbell;
use super::msix::{self, Msix};
use super::transport::{Activation, COMMON_BYTES, Effect, F_EVENT_IDX, F_RING_PACKED, QueueSetup, Transport};
use crate::interrupts::{InterruptError, Interrupts};
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::{BAR_BYTES, Function, FunctionError};

/// virtio 1.3, 4.1.2.1.
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;

/// What is where in the BAR. Each structure has its pages to itself.
mod bar {
    pub(super) const COMMON: u64 = 0x0000;
    pub(super) const ISR: u64 = 0x1000;
    pub(super) const DEVICE: u64 = 0x2000;
    pub(super) const PENDING: u64 = 0x3000;
    pub(super) const TABLE: u64 = 0x4000;
    pub(super) const NOTIFY: u64 = 0xc000;
    pub(super) const DEVICE_BYTES: u64 = 0x1000;
    /// virtio 1.3, 4.1.4.4: each queue has an address of its own, so that KVM tells them apart without looking at data.
    pub(super) const NOTIFY_MULTIPLIER: u64 = 4;
}

#[derive(Debug, thiserror::Error)]
pub enum FunctionSetupError {
    #[error("device `{device}` has {asked} queues, and MSI-X has a vector for at most {} of them", msix::MOST_VECTORS - 1)]
    TooManyQueues { device: String, asked: usize },
    #[error("device `{device}` cannot have its interrupts")]
    Interrupts { device: String, source: InterruptError },
}

pub struct VirtioFunction {
    name: String,
    config: ConfigSpace,
    /// Where the MSI-X and the configuration-access capabilities lie.
    msix_capability: usize,
    access_capability: usize,
    transport: Transport,
    msix: Msix,
    signal: Arc<ConfigSignal>,
    distress: Option<Arc<Distress>>,
    changes: Option<Arc<ConfigChanges>>,
    doorbells: Vec<Doorbell>,
    device: Box<dyn VirtioDevice>,
    interrupts: Arc<Interrupts>,
    ram: Arc<GuestRam>,
}

impl std::fmt::Debug for VirtioFunction {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "VirtioFunction({}, {:?})", self.name, self.transport)
    }
}

impl VirtioFunction {
    /// Puts `device` on the bus, its BAR at `address` to start with.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        address: u64,
        interrupts: Arc<Interrupts>,
    ) -> Result<VirtioFunction, FunctionSetupError> {
        let name = device.name().to_owned();
        let queues = device.queue_sizes().len();
        // One vector for each queue and one for changes of the configuration.
        let vectors = u16::try_from(queues + 1).ok().filter(|vectors| *vectors <= msix::MOST_VECTORS);
        let vectors = vectors
            .ok_or_else(|| FunctionSetupError::TooManyQueues { device: name.clone(), asked: queues })?;
        let failed = |source| FunctionSetupError::Interrupts { device: name.clone(), source };
        let msix = Msix::new(interrupts.vectors(vectors).map_err(failed)?);
        let doorbell = |_| {
            let event = EventFd::new(EFD_NONBLOCK).map_err(|error| failed(InterruptError::EventFd(error)))?;
            Ok(Doorbell { event, connected: None, live: false })
        };
        let doorbells = (0..queues).map(doorbell).collect::<Result<_, FunctionSetupError>>()?;

        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + device.device_id(),
            revision: 1,
            class: class_of(device.device_id()),
            subsystem_vendor: VENDOR,
            subsystem: device.device_id(),
        });
        config.set_bar0(address, BAR_BYTES);
        add_structure(&mut config, COMMON_CFG, bar::COMMON, COMMON_BYTES as u64, &[]);
        add_structure(&mut config, ISR_CFG, bar::ISR, 1, &[]);
        add_structure(&mut config, DEVICE_CFG, bar::DEVICE, bar::DEVICE_BYTES, &[]);
        let multiplier = (bar::NOTIFY_MULTIPLIER as u32).to_le_bytes();
        add_structure(
            &mut config,
            NOTIFY_CFG,
            bar::NOTIFY,
            queues as u64 * bar::NOTIFY_MULTIPLIER,
            &multiplier,
        );
        let access_capability = add_structure(&mut config, PCI_CFG, 0, 0, &[0; 4]);
        let msix_capability = add_msix(&mut config, vectors, bar::TABLE, bar::PENDING);

        let transport = Transport::new(device.features(), device.queue_sizes(), vectors);
        let ram = interrupts.vm().ram().clone();
        let signal = Arc::<ConfigSignal>::default();
        let distress = device.distress();
        if let Some(distress) = &distress {
            let signal = signal.clone();
            distress.on_raise(move || signal.raise());
        }
        let changes = device.config_changes();
        if let Some(changes) = &changes {
            let signal = signal.clone();
            changes.on_change(move || signal.raise());
        }
        Ok(VirtioFunction {
            name,
            config,
            msix_capability,
            access_capability,
            transport,
            msix,
            signal,
            distress,
            changes,
            doorbells,
            device,
            interrupts,
            ram,
        })
    }

    fn act(&mut self, effect: Effect) -> Result<(), InterruptError> {
        match effect {
            Effect::Nothing => Ok(()),
            Effect::Reset => self.reset(),
            Effect::Activate(activation) => self.activate(activation),
            Effect::StartQueue { features, queue } => self.start_queue(features, &queue),
            Effect::StopQueue(index) => self.stop_queue(index),
        }
    }

    fn reset(&mut self) -> Result<(), InterruptError> {
        self.device.reset();
        for doorbell in &mut self.doorbells {
            doorbell.silence(&self.interrupts)?;
        }
        if let Some(distress) = &self.distress {
            distress.clear();
        }
        self.signal.isr.store(0, Ordering::Release);
        self.msix.clear_pending();
        Ok(())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), InterruptError> {
        let features = activation.features;
        let queues =
            activation.queues.iter().map(|setup| self.queue(setup, features)).collect::<Option<Vec<_>>>();
        let started = queues.is_some_and(|queues| self.device.activate(features, queues).is_ok());
        self.started(started, &activation.queues)
    }

    fn start_queue(&mut self, features: u64, setup: &QueueSetup) -> Result<(), InterruptError> {
        let queue = self.queue(setup, features);
        let started = queue.is_some_and(|queue| self.device.start_queue(queue).is_ok());
        self.started(started, std::slice::from_ref(setup))
    }

    /// The device has taken these queues, or it could not.
    fn started(&mut self, started: bool, queues: &[QueueSetup]) -> Result<(), InterruptError> {
        if !started {
            self.transport.broke();
            self.signal.raise();
            return Ok(());
        }
        for queue in queues {
            if let Some(doorbell) = self.doorbells.get_mut(usize::from(queue.index)) {
                doorbell.live = true;
            }
        }
        self.place_doorbells()
    }

    fn stop_queue(&mut self, index: u16) -> Result<(), InterruptError> {
        // virtio 1.3, 2.6.1.1.1: the queue begins anew, so where it stood is of no use to anyone.
        let _ = self.device.stop_queue(index);
        let doorbell = self.doorbells.get_mut(usize::from(index));
        doorbell.map_or(Ok(()), |doorbell| doorbell.silence(&self.interrupts))
    }

    /// `None`: the driver's ring cannot be used.
    fn queue(&self, setup: &QueueSetup, features: u64) -> Option<ActiveQueue> {
        let features =
            RingFeatures { event_idx: features & F_EVENT_IDX != 0, packed: features & F_RING_PACKED != 0 };
        let areas =
            RingSetup { size: setup.size, descriptors: setup.desc, driver: setup.avail, device: setup.used };
        let ring = Vring::new(&self.ram, &areas, features).ok()?;
        let doorbell = self.doorbells.get(usize::from(setup.index))?.event.try_clone().ok()?;
        let interrupt = QueueInterrupt::new(self.msix.event(setup.vector));
        Some(ActiveQueue { index: setup.index, ring, doorbell, interrupt })
    }

    /// Has KVM ring the live doorbells where the BAR is now.
    fn place_doorbells(&mut self) -> Result<(), InterruptError> {
        let bar = self.config.bar0();
        for (index, doorbell) in self.doorbells.iter_mut().enumerate() {
            let address =
                bar.and_then(|bar| bar.checked_add(bar::NOTIFY + index as u64 * bar::NOTIFY_MULTIPLIER));
            let wanted = address.filter(|_| doorbell.live);
            if doorbell.connected != wanted {
                doorbell.disconnect(&self.interrupts)?;
            }
            if let (None, Some(address)) = (doorbell.connected, wanted) {
                doorbell.connect(&self.interrupts, address)?;
            }
        }
        Ok(())
    }

    /// The guest reads or writes the BAR through configuration space (virtio 1.3, 4.1.4.9): the window it chose.
    fn access_window(&self) -> Option<(u64, usize)> {
        let at = self.access_capability;
        let (offset, len) = (self.config.u32(at + 8), self.config.u32(at + 12));
        let mut chosen_bar = [0];
        self.config.read(at + 4, &mut chosen_bar);
        let sound = chosen_bar == [0] && matches!(len, 1 | 2 | 4) && offset % len == 0;
        (sound && u64::from(offset) < BAR_BYTES).then_some((offset.into(), len as usize))
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) -> Result<(), InterruptError> {
        match offset {
            bar::COMMON..bar::ISR => {
                let effect = self.transport.write(offset as usize, data);
                *self.signal.lock() = QueueInterrupt::new(self.msix.event(self.transport.config_vector()));
                self.act(effect)
            }
            bar::DEVICE..bar::PENDING => {
                self.device.write_config((offset - bar::DEVICE) as u32, data);
                Ok(())
            }
            bar::TABLE..bar::NOTIFY => {
                self.msix.write_table(&self.interrupts, (offset - bar::TABLE) as usize, data)
            }
            bar::NOTIFY..BAR_BYTES => {
                // KVM rings live doorbells by itself; here are those before DRIVER_OK and those it could not connect.
                let queue = (offset - bar::NOTIFY) / bar::NOTIFY_MULTIPLIER;
                if let Some(doorbell) = self.doorbells.get(queue as usize) {
                    // Only a counter that is full refuses, and then the bell has rung.
                    let _ = doorbell.event.write(1);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, source: InterruptError) -> FunctionError {
        FunctionError { device: self.name.clone(), source }
    }
}

impl Function for VirtioFunction {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
        let window = self.access_capability + 16;
        if let (Some(lane), Some((address, len))) = (offset.checked_sub(window), self.access_window())
            && lane < 4
        {
            let mut bytes = [0; 4];
            self.bar_read(address, &mut bytes[..len]);
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = bytes.get(lane + index).copied().unwrap_or(0);
            }
        }
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) -> Result<(), FunctionError> {
        self.config.write(offset, data);
        let window = self.access_capability + 16;
        if let (true, Some((address, len))) = (offset == window, self.access_window())
            && let Some(data) = data.get(..len)
        {
            self.bar_write(address, data)?;
        }
        let control = self.config.u16(self.msix_capability + 2);
        let (enabled, all_masked) = (control & MSIX_ENABLE != 0, control & MSIX_ALL_MASKED != 0);
        let masks = self.msix.set_control(&self.interrupts, enabled, all_masked);
        masks.and_then(|()| self.place_doorbells()).map_err(|source| self.failed(source))
    }

    fn set_multifunction(&mut self) {
        self.config.set_multifunction();
    }

    fn bar(&self) -> Option<u64> {
        self.config.bar0()
    }

    fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
        match offset {
            bar::COMMON..bar::ISR => {
                if self.transport.is_live()
                    && self.distress.as_ref().is_some_and(|distress| distress.is_raised())
                {
                    self.transport.broke();
                }
                if let Some(changes) = &self.changes {
                    self.transport.set_config_generation(changes.generation());
                }
                self.transport.read(offset as usize, data);
            }
            bar::ISR..bar::DEVICE => {
                data.fill(0);
                if let (bar::ISR, Some(byte)) = (offset, data.first_mut()) {
                    // virtio 1.3, 4.1.4.5: reading takes it back.
                    *byte = self.signal.isr.swap(0, Ordering::AcqRel);
                }
            }
            bar::DEVICE..bar::PENDING => {
                data.fill(0);
                self.device.read_config((offset - bar::DEVICE) as u32, data);
            }
            bar::PENDING..bar::TABLE => self.msix.read_pending((offset - bar::PENDING) as usize, data),
            bar::TABLE..bar::NOTIFY => self.msix.read_table((offset - bar::TABLE) as usize, data),
            _ => data.fill(0),
        }
    }

    fn bar_write(&mut self, offset: u64, data: &[u8]) -> Result<(), FunctionError> {
        self.write_bar(offset, data).map_err(|source| self.failed(source))
    }

    fn shut_down(&mut self) {
        self.device.reset();
    }
}
