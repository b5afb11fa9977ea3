//! The registers of the virtio PCI transport (virtio 1.3, 4.1.4.3) as a state machine. It holds what the driver wrote and
//! says what follows from it; it touches no device, no memory and no KVM, so that every order of writes can be tried.
//!
//! Out of place, out of range or of the wrong size: a write is ignored, and a read gives zeros.

use super::msix::NO_VECTOR;

pub mod status {
    //! virtio 1.3, 2.1.
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
    pub const FAILED: u8 = 128;
}

/// virtio 1.3, 6: a device of this transport is always a modern one.
pub const F_VERSION_1: u64 = 1 << 32;
/// virtio 1.3, 2.7.10: both sides may say where in the ring they want to be notified.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// virtio 1.3, 2.8: rings are packed; one that is may have any size.
pub const F_RING_PACKED: u64 = 1 << 34;
/// virtio 1.3, 2.6.1: the driver may reset a queue by itself and enable it again. For devices that start and stop queues.
pub const F_RING_RESET: u64 = 1 << 40;
/// The size of the common configuration structure.
pub const COMMON_BYTES: usize = 0x40;

/// virtio 1.3, 4.1.4.3: where the fields of the common configuration are.
mod field {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub(super) const DEVICE_FEATURE: usize = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub(super) const DRIVER_FEATURE: usize = 0x0c;
    pub(super) const CONFIG_VECTOR: usize = 0x10;
    pub(super) const NUM_QUEUES: usize = 0x12;
    pub(super) const STATUS: usize = 0x14;
    pub(super) const CONFIG_GENERATION: usize = 0x15;
    pub(super) const QUEUE_SELECT: usize = 0x16;
    pub(super) const QUEUE_SIZE: usize = 0x18;
    pub(super) const QUEUE_VECTOR: usize = 0x1a;
    pub(super) const QUEUE_ENABLE: usize = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub(super) const QUEUE_DESC: usize = 0x20;
    pub(super) const QUEUE_DRIVER: usize = 0x28;
    pub(super) const QUEUE_DEVICE: usize = 0x30;
    pub(super) const QUEUE_RESET: usize = 0x3a;
}

/// What the driver set up for one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSetup {
    pub index: u16,
    pub size: u16,
    pub vector: u16,
    pub enabled: bool,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

/// DRIVER_OK: what the device is to start with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activation {
    pub features: u64,
    /// The enabled ones, ascending.
    pub queues: Vec<QueueSetup>,
}

/// What follows from a write.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the device has to do what the driver asked for"]
pub enum Effect {
    Nothing,
    /// The device takes its queues; then [`Transport::broke`] if it could not.
    Activate(Activation),
    /// The device gives its queues back.
    Reset,
    /// The device takes one more queue, by the features that it went live with; then [`Transport::broke`] if it could not.
    StartQueue {
        features: u64,
        queue: QueueSetup,
    },
    /// The device gives this queue back. The driver sees the reset as over when it sees anything again: the device has to
    /// be done before the next access.
    StopQueue(u16),
}

#[derive(Debug)]
pub struct Transport {
    offered: u64,
    queue_sizes: Vec<u16>,
    vectors: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    config_generation: u8,
    phase: Phase,
}

/// What the driver has written since the last reset.
#[derive(Debug)]
struct Setup {
    status: u8,
    features: u64,
    config_vector: u16,
    queues: Vec<QueueSetup>,
}

#[derive(Debug)]
enum Phase {
    /// The driver sets up: it may change anything that its status still allows.
    Idle(Setup),
    /// The device has its queues; what they were made of is fixed until the reset.
    Live(Setup),
    /// The device could not start: only a reset helps.
    Broken(Setup),
}

impl Phase {
    fn setup(&self) -> &Setup {
        let (Phase::Idle(setup) | Phase::Live(setup) | Phase::Broken(setup)) = self;
        setup
    }

    fn setup_mut(&mut self) -> &mut Setup {
        let (Phase::Idle(setup) | Phase::Live(setup) | Phase::Broken(setup)) = self;
        setup
    }
}

impl Transport {
    /// A device that offers `features` (VERSION_1 is added) over queues of these largest sizes, with `vectors` MSI-X vectors.
    pub fn new(features: u64, queue_sizes: &[u16], vectors: u16) -> Transport {
        let queue_sizes = queue_sizes.to_vec();
        let phase = Phase::Idle(Setup::new(&queue_sizes));
        Transport {
            offered: features | F_VERSION_1,
            queue_sizes,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            config_generation: 0,
            phase,
        }
    }

    /// Fills `data` from the common configuration at `offset`.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let registers = self.registers();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = offset.checked_add(index).and_then(|at| registers.get(at)).copied().unwrap_or(0);
        }
    }

    pub fn write(&mut self, offset: usize, data: &[u8]) -> Effect {
        // virtio 1.3, 4.1.3.1: fields are written whole, 64-bit ones also as two halves.
        match (offset, data) {
            (field::DEVICE_FEATURE_SELECT, &[a, b, c, d]) => {
                self.device_feature_select = u32::from_le_bytes([a, b, c, d]);
            }
            (field::DRIVER_FEATURE_SELECT, &[a, b, c, d]) => {
                self.driver_feature_select = u32::from_le_bytes([a, b, c, d]);
            }
            (field::DRIVER_FEATURE, &[a, b, c, d]) => self.accept(u32::from_le_bytes([a, b, c, d])),
            (field::CONFIG_VECTOR, &[a, b]) => {
                self.phase.setup_mut().config_vector = self.known_vector(u16::from_le_bytes([a, b]));
            }
            (field::STATUS, &[value]) => return self.set_status(value),
            (field::QUEUE_SELECT, &[a, b]) => self.queue_select = u16::from_le_bytes([a, b]),
            _ => return self.write_queue(offset, data),
        }
        Effect::Nothing
    }

    /// The vector for configuration changes.
    pub fn config_vector(&self) -> u16 {
        self.phase.setup().config_vector
    }

    /// How often the device's configuration changed by itself, as the driver is to read it next.
    pub fn set_config_generation(&mut self, generation: u8) {
        self.config_generation = generation;
    }

    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live(_))
    }

    /// The device could not take its queues: DEVICE_NEEDS_RESET.
    pub fn broke(&mut self) {
        let fresh = Phase::Idle(Setup::new(&[]));
        let mut setup = match std::mem::replace(&mut self.phase, fresh) {
            Phase::Idle(setup) | Phase::Live(setup) | Phase::Broken(setup) => setup,
        };
        setup.status |= status::NEEDS_RESET;
        self.phase = Phase::Broken(setup);
    }

    fn set_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            // Whoever was never given anything has nothing to give back, but a reset is cheap and always right.
            self.phase = Phase::Idle(Setup::new(&self.queue_sizes));
            self.queue_select = 0;
            return Effect::Reset;
        }
        let offered = self.offered;
        let Phase::Idle(setup) = &mut self.phase else {
            // virtio 1.3, 2.1.1: a driver only adds bits; FAILED is the one that still says something.
            self.phase.setup_mut().status |= value & status::FAILED;
            return Effect::Nothing;
        };
        let mut status = setup.status | value & !status::NEEDS_RESET;
        let newly = status & !setup.status;
        // virtio 1.3, 2.2: the driver accepts a subset, and without VERSION_1 there is no modern device to talk to.
        let acceptable = setup.features & !offered == 0 && setup.features & F_VERSION_1 != 0;
        if newly & status::FEATURES_OK != 0 && !acceptable {
            status &= !status::FEATURES_OK;
        }
        // virtio 1.3, 3.1.1: the features are settled before the driver goes live.
        if newly & status::DRIVER_OK != 0 && status & status::FEATURES_OK == 0 {
            status &= !status::DRIVER_OK;
        }
        setup.status = status;
        if newly & status & status::DRIVER_OK == 0 {
            return Effect::Nothing;
        }
        let queues = setup.queues.iter().filter(|queue| queue.enabled).copied().collect();
        let activation = Activation { features: setup.features, queues };
        if let Phase::Idle(setup) = std::mem::replace(&mut self.phase, Phase::Idle(Setup::new(&[]))) {
            self.phase = Phase::Live(setup);
        }
        Effect::Activate(activation)
    }

    fn accept(&mut self, word: u32) {
        let Phase::Idle(setup) = &mut self.phase else { return };
        // virtio 1.3, 2.2.1: once the features are settled they stay.
        if setup.status & status::FEATURES_OK != 0 {
            return;
        }
        match self.driver_feature_select {
            0 => setup.features = setup.features & !0xffff_ffff | u64::from(word),
            1 => setup.features = setup.features & 0xffff_ffff | u64::from(word) << 32,
            // Bits from 64 on: we offer none, and a driver that takes one anyway may not go on.
            _ if word != 0 => setup.features &= !F_VERSION_1,
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: usize, data: &[u8]) -> Effect {
        let selected = usize::from(self.queue_select);
        let most = self.queue_sizes.get(selected).copied().unwrap_or(0);
        let vector = match (offset, data) {
            (field::QUEUE_VECTOR, &[a, b]) => Some(self.known_vector(u16::from_le_bytes([a, b]))),
            _ => None,
        };
        let (setup, live) = match &mut self.phase {
            Phase::Idle(setup) => (setup, false),
            // virtio 1.3, 2.6.1: the queues of a live device are fixed but for those that were reset or never enabled.
            Phase::Live(setup) if setup.features & F_RING_RESET != 0 => (setup, true),
            Phase::Live(_) | Phase::Broken(_) => return Effect::Nothing,
        };
        let features = setup.features;
        let Some(queue) = setup.queues.get_mut(selected) else { return Effect::Nothing };
        if queue.enabled {
            // virtio 1.3, 4.1.4.3.2: a queue is configured first and enabled last, and no queue is reset before that.
            if let (field::QUEUE_RESET, &[1, 0], true) = (offset, data, live) {
                *queue = QueueSetup::new(queue.index, most);
                return Effect::StopQueue(queue.index);
            }
            return Effect::Nothing;
        }
        match (offset, data) {
            (field::QUEUE_SIZE, &[a, b]) => {
                let size = u16::from_le_bytes([a, b]);
                // virtio 1.3, 2.7 and 2.8: only a packed ring may have a size that is no power of two.
                let sound = size.is_power_of_two() || features & F_RING_PACKED != 0 && size > 0;
                if sound && size <= most {
                    queue.size = size;
                }
            }
            (field::QUEUE_VECTOR, _) => queue.vector = vector.unwrap_or(queue.vector),
            (field::QUEUE_ENABLE, &[1, 0]) => {
                queue.enabled = true;
                if live {
                    return Effect::StartQueue { features, queue: *queue };
                }
            }
            (field::QUEUE_DESC..field::QUEUE_DRIVER, _) => {
                put(&mut queue.desc, offset - field::QUEUE_DESC, data);
            }
            (field::QUEUE_DRIVER..field::QUEUE_DEVICE, _) => {
                put(&mut queue.avail, offset - field::QUEUE_DRIVER, data);
            }
            (field::QUEUE_DEVICE..0x38, _) => put(&mut queue.used, offset - field::QUEUE_DEVICE, data),
            _ => {}
        }
        Effect::Nothing
    }

    /// virtio 1.3, 4.1.5.1.2.1: a vector that there is none of is not taken, and reads back as "no vector".
    fn known_vector(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    fn registers(&self) -> [u8; COMMON_BYTES] {
        let setup = self.phase.setup();
        let queue = setup.queues.get(usize::from(self.queue_select));
        let offered = match self.device_feature_select {
            0 => self.offered as u32,
            1 => (self.offered >> 32) as u32,
            _ => 0,
        };
        let accepted = match self.driver_feature_select {
            0 => setup.features as u32,
            1 => (setup.features >> 32) as u32,
            _ => 0,
        };
        let mut bytes = [0; COMMON_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(field::DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(field::DEVICE_FEATURE, &offered.to_le_bytes());
        put(field::DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(field::DRIVER_FEATURE, &accepted.to_le_bytes());
        put(field::CONFIG_VECTOR, &setup.config_vector.to_le_bytes());
        put(field::NUM_QUEUES, &(self.queue_sizes.len() as u16).to_le_bytes());
        put(field::STATUS, &[setup.status]);
        put(field::CONFIG_GENERATION, &[self.config_generation]);
        put(field::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // virtio 1.3, 4.1.4.3: a queue that is not there has size 0.
        if let Some(queue) = queue {
            put(field::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(field::QUEUE_VECTOR, &queue.vector.to_le_bytes());
            put(field::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(field::QUEUE_NOTIFY_OFF, &queue.index.to_le_bytes());
            put(field::QUEUE_DESC, &queue.desc.to_le_bytes());
            put(field::QUEUE_DRIVER, &queue.avail.to_le_bytes());
            put(field::QUEUE_DEVICE, &queue.used.to_le_bytes());
        }
        bytes
    }
}

impl QueueSetup {
    /// A queue as the driver finds it.
    fn new(index: u16, size: u16) -> QueueSetup {
        QueueSetup { index, size, vector: NO_VECTOR, enabled: false, desc: 0, avail: 0, used: 0 }
    }
}

impl Setup {
    fn new(queue_sizes: &[u16]) -> Setup {
        let queues = (0..).zip(queue_sizes).map(|(index, size)| QueueSetup::new(index, *size)).collect();
        Setup { status: 0, features: 0, config_vector: NO_VECTOR, queues }
    }
}

/// Writes a half or the whole of a 64-bit field.
fn put(field: &mut u64, offset: usize, data: &[u8]) {
    match (offset, data.len()) {
        (0, 8) | (0 | 4, 4) => {
            let mut bytes = field.to_le_bytes();
            bytes[offset..offset + data.len()].copy_from_slice(data);
            *field = u64::from_le_bytes(bytes);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
