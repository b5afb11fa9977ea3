//! virtio-blk (virtio 1.3, 5.2): the device that the transport sees. What a request is, is in [`request`]; how a queue is
//! served, in `queue`; where the bytes lie, in [`crate::backing`]; on which thread all of it runs, in [`crate::iothread`].

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vmprof_sys::vring::{Position, RingError};

use super::device::{ActivateError, ActiveQueue, VirtioDevice};
use super::distress::Distress;
use super::transport::{F_RING_PACKED, F_RING_RESET};
use crate::backing::{Backing, DiskError, DiskLock, WriteCache};
use crate::config::{self, Engine, OnError};
use crate::iothread::counters::{QueueCounters, QueueSnapshot};
use crate::iothread::service::Begin;
use crate::iothread::{DeviceId, Handle};
use crate::pause::Pause;

mod blocks;
mod erase;
mod in_flight;
mod queue;
pub mod request;
mod space;

use blocks::Blocks;
use in_flight::InFlight;
use queue::{BlkQueue, ID_BYTES};
use request::Limits;
use space::{Space, WRITEBACK_AT};

const DEVICE_ID: u16 = 2;

// virtio 1.3, 5.2.3 and 6: feature bits by number.
const SIZE_MAX: u64 = 1 << 1;
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const TOPOLOGY: u64 = 1 << 10;
const CONFIG_WCE: u64 = 1 << 11;
const MULTI_QUEUE: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;
const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

/// Data buffers of one request. readv takes 1,024 pieces, and a buffer that crosses from one region of guest memory into
/// the next makes two.
const MOST_DATA_SEGMENTS: u32 = 1_008;

/// Bytes of one data buffer. A whole request is then what one readv moves at most, and front ends that multiply the two limits
/// in 31 bits (libblkio does) get what they should.
const LONGEST_SEGMENT: u32 = 2 << 20;
const _: () = assert!(LONGEST_SEGMENT as u64 * MOST_DATA_SEGMENTS as u64 <= 0x7fff_f000);

/// What the queues of one disk share.
#[derive(Debug)]
struct Disk {
    name: String,
    id: [u8; ID_BYTES],
    backing: Backing,
    engine: Engine,
    iopoll: bool,
    cache: WriteCache,
    limits: Limits,
    on_error: OnError,
    /// The machine to stop at a failed request, where there is one.
    pause: Option<Arc<Pause>>,
    distress: Arc<Distress>,
    counters: Vec<Arc<QueueCounters>>,
    in_flight: Vec<Arc<InFlight>>,
    /// What the driver did to need a reset; written by an IOThread, read by whoever asks for a snapshot.
    fault: Mutex<Option<(u16, RingError)>>,
}

impl Disk {
    fn break_down(&self, queue: u16, error: RingError) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some((queue, error));
        self.distress.raise();
    }
}

/// A disk at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSnapshot {
    pub name: String,
    pub virtqueues: Vec<QueueSnapshot>,
    /// Why the device needs a reset, if it does.
    pub fault: Option<String>,
}

/// How a disk's bytes move, as it really is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenAs {
    pub name: String,
    /// What its queues give their requests to.
    pub engine: Engine,
    pub iopoll: bool,
    /// Whether the open file has O_DIRECT, as the kernel has it now (F_GETFL).
    pub direct: bool,
}

/// Reads a disk's counters while the transport has the device.
#[derive(Debug, Clone)]
pub struct DiskStats(Arc<Disk>);

impl DiskStats {
    pub fn open_as(&self) -> std::io::Result<OpenAs> {
        let flags = rustix::fs::fcntl_getfl(&self.0.backing.file)?;
        Ok(OpenAs {
            name: self.0.name.clone(),
            engine: self.0.engine,
            iopoll: self.0.iopoll,
            direct: flags.contains(rustix::fs::OFlags::DIRECT),
        })
    }

    pub fn snapshot(&self) -> DiskSnapshot {
        let fault = *self.0.fault.lock().unwrap_or_else(PoisonError::into_inner);
        DiskSnapshot {
            name: self.0.name.clone(),
            virtqueues: (0..)
                .zip(self.0.counters.iter().zip(&self.0.in_flight))
                .map(|(index, (counters, shown))| {
                    let (in_flight, oldest) = shown.look();
                    QueueSnapshot { in_flight, oldest, ..counters.snapshot(index) }
                })
                .collect(),
            fault: fault.map(|(queue, error)| format!("virtqueue {queue}: {error}")),
        }
    }
}

#[derive(Debug)]
pub struct Blk {
    disk: Arc<Disk>,
    /// `blk data`, as messages have it.
    title: String,
    blocks: Blocks,
    queue_sizes: Vec<u16>,
    packed: bool,
    /// Which thread serves each queue, by the queue's index.
    iothreads: Vec<Handle>,
    /// While live, the name under which the IOThreads know the queues.
    live: Option<DeviceId>,
}

impl Blk {
    /// Opens the disk, to be served by those of `iothreads` that its mapping names. It has no machine that it could stop.
    pub fn new(config: &config::Disk, iothreads: &[Handle]) -> Result<Blk, DiskError> {
        if config.on_error.may_stop() {
            return Err(DiskError::NothingToPause { disk: config.name.clone() });
        }
        Blk::open(config, iothreads, None, None)
    }

    /// The same for a disk of a machine, which a failed request may stop; `locked` is the lock on it.
    pub fn of_machine(
        config: &config::Disk,
        locked: DiskLock,
        iothreads: &[Handle],
        pause: &Arc<Pause>,
    ) -> Result<Blk, DiskError> {
        Blk::open(config, iothreads, Some(locked), Some(Arc::clone(pause)))
    }

    fn open(
        config: &config::Disk,
        iothreads: &[Handle],
        locked: Option<DiskLock>,
        pause: Option<Arc<Pause>>,
    ) -> Result<Blk, DiskError> {
        let name = config.name.clone();
        let size = config.queue_size;
        if !size.is_power_of_two() || !(config::FEWEST_QUEUE_ENTRIES..=32_768).contains(&size) {
            return Err(DiskError::QueueSize { disk: name, size });
        }
        let mut id = [0; ID_BYTES];
        let Some(serial) = id.get_mut(..name.len()) else {
            return Err(DiskError::NameTooLong { disk: name });
        };
        serial.copy_from_slice(name.as_bytes());
        if config.virtqueues.is_empty() {
            return Err(DiskError::NoQueue { disk: name });
        }
        let iothread = |(queue, id): (usize, &u32)| {
            let found = iothreads.iter().find(|handle| handle.id() == *id).cloned();
            found.ok_or_else(|| DiskError::NoSuchIoThread { disk: config.name.clone(), queue, iothread: *id })
        };
        let served_by = config.virtqueues.iter().enumerate().map(iothread).collect::<Result<Vec<_>, _>>()?;
        if let Some(lacking) = served_by.iter().find(|iothread| !iothread.has(config.engine)) {
            let (engine, iothread) = (config.engine, lacking.name().to_owned());
            return Err(DiskError::EngineNotHere { disk: name, engine, iothread });
        }
        if let Some(lacking) = served_by.iter().find(|iothread| config.iopoll && !iothread.has_iopoll()) {
            return Err(DiskError::IopollNotHere { disk: name, iothread: lacking.name().to_owned() });
        }
        let backing = match locked {
            Some(locked) => Backing::open_locked(config, locked)?,
            None => Backing::open(config)?,
        };
        Blk::with_pause(config, id, served_by, backing, pause)
    }

    #[cfg(test)]
    fn with_backing(
        config: &config::Disk,
        id: [u8; ID_BYTES],
        iothreads: Vec<Handle>,
        backing: Backing,
    ) -> Result<Blk, DiskError> {
        Blk::with_pause(config, id, iothreads, backing, None)
    }

    fn with_pause(
        config: &config::Disk,
        id: [u8; ID_BYTES],
        iothreads: Vec<Handle>,
        backing: Backing,
        pause: Option<Arc<Pause>>,
    ) -> Result<Blk, DiskError> {
        let blocks = Blocks::of(config, &backing)?;
        let limits = Limits {
            capacity_bytes: backing.capacity_bytes,
            read_only: config.read_only,
            most_segments: u32::from(config.queue_size - 2).min(MOST_DATA_SEGMENTS),
            longest_segment: LONGEST_SEGMENT,
        };
        let disk = Disk {
            name: config.name.clone(),
            id,
            backing,
            engine: config.engine,
            iopoll: config.iopoll,
            cache: WriteCache::new(config.cache),
            limits,
            on_error: config.on_error,
            pause,
            distress: Arc::default(),
            in_flight: iothreads.iter().map(|_| Arc::new(InFlight::new(config.queue_size))).collect(),
            counters: iothreads.iter().map(|_| Arc::default()).collect(),
            fault: Mutex::new(None),
        };
        let title = format!("blk {}", config.name);
        let queue_sizes = vec![config.queue_size; iothreads.len()];
        Ok(Blk {
            disk: Arc::new(disk),
            title,
            blocks,
            queue_sizes,
            packed: config.packed,
            iothreads,
            live: None,
        })
    }

    pub fn stats(&self) -> DiskStats {
        DiskStats(Arc::clone(&self.disk))
    }

    fn space(&self) -> Space {
        Space {
            capacity_bytes: self.disk.limits.capacity_bytes,
            longest_segment: self.disk.limits.longest_segment,
            most_segments: self.disk.limits.most_segments,
            blocks: self.blocks,
            queues: self.queue_sizes.len() as u16,
            write_back: self.disk.cache.is_write_back(),
            discard_bytes: self.disk.backing.erase.as_ref().map(|erase| erase.granularity_bytes),
        }
    }

    fn serve(&self, device: DeviceId, queue: ActiveQueue) -> Result<(), ActivateError> {
        let index = queue.index;
        let refused = |reason| ActivateError { device: self.title.clone(), queue: index, reason };
        let at = usize::from(index);
        let (Some(iothread), Some(counters), Some(shown)) =
            (self.iothreads.get(at), self.disk.counters.get(at), self.disk.in_flight.get(at))
        else {
            return Err(refused("the disk has no such queue".to_owned()));
        };
        let doorbell =
            queue.doorbell.try_clone().map_err(|error| refused(format!("its doorbell: {error}")))?;
        let (disk, counters, shown) = (Arc::clone(&self.disk), Arc::clone(counters), Arc::clone(shown));
        let begin: Begin =
            Box::new(move |io| Ok(Box::new(BlkQueue::begin(disk, queue, counters, shown, io)?)));
        iothread.serve(device, index, begin, doorbell).map_err(|error| {
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            refused(format!("{error}{cause}"))
        })
    }
}

impl VirtioDevice for Blk {
    fn name(&self) -> &str {
        &self.title
    }

    fn device_id(&self) -> u16 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        let mut features = SIZE_MAX | SEG_MAX | BLK_SIZE | TOPOLOGY;
        features |= INDIRECT_DESCRIPTORS | EVENT_IDX | F_RING_RESET;
        if self.packed {
            features |= F_RING_PACKED;
        }
        if self.queue_sizes.len() > 1 {
            features |= MULTI_QUEUE;
        }
        if self.disk.limits.read_only {
            features |= READ_ONLY;
        }
        if self.disk.cache.is_offered() {
            features |= FLUSH | CONFIG_WCE;
        }
        if self.disk.backing.erase.is_some() {
            features |= DISCARD | WRITE_ZEROES;
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        self.space().read(offset, data);
    }

    /// The driver may switch its write cache. Blocks the vCPU while what was written so far becomes durable.
    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let cache = &self.disk.cache;
        let at = WRITEBACK_AT.checked_sub(offset).and_then(|at| data.get(at as usize));
        let (Some(&wanted), true) = (at, cache.is_offered()) else { return };
        if wanted != 0 {
            cache.set_write_back(true);
        } else if cache.is_write_back() {
            // From here on completed writes are durable. Those that completed before are made so now; should that fail,
            // the cache stays on, as the driver sees when it reads the field back.
            cache.set_write_back(false);
            if cache.flush_is_kept() && (cache.is_lost() || self.disk.backing.file.sync_data().is_err()) {
                cache.flush_failed();
                cache.set_write_back(true);
            }
        }
    }

    fn activate(&mut self, features: u64, queues: Vec<ActiveQueue>) -> Result<(), ActivateError> {
        if self.live.is_some() {
            self.reset();
        }
        if features & FLUSH == 0 {
            // virtio 1.3, 5.2.5.2: a driver that cannot flush is promised durable writes.
            self.disk.cache.set_write_back(false);
        }
        let device = DeviceId::unique();
        self.live = Some(device);
        for queue in queues {
            if let Err(error) = self.serve(device, queue) {
                self.reset();
                return Err(error);
            }
        }
        Ok(())
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        let device = *self.live.get_or_insert_with(DeviceId::unique);
        self.serve(device, queue)
    }

    fn stop_queue(&mut self, index: u16) -> Option<Position> {
        let iothread = self.iothreads.get(usize::from(index))?;
        iothread.release_queue(self.live?, index).wait().first().map(|(_, position)| *position)
    }

    fn reset(&mut self) {
        if let Some(device) = self.live.take() {
            // All are told before any is waited for.
            let releases: Vec<_> = self.iothreads.iter().map(|iothread| iothread.release(device)).collect();
            releases.into_iter().for_each(|release| drop(release.wait()));
        }
        self.disk.cache.set_write_back(true);
        self.disk.distress.clear();
        *self.disk.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn distress(&self) -> Option<Arc<Distress>> {
        Some(Arc::clone(&self.disk.distress))
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests;
