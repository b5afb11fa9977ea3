//! The device as one client after the other sees it: what a client has set up, and what follows for the device. The messages
//! that lead here are in [`super::protocol`].

use std::fs::File;
use std::io;

use vmprof_sys::eventfd;
use vmprof_sys::vring::RingError;

use super::error::Refusal;
use super::inflight::{Extent, InflightBuffer};
use super::memory::{Memory, Place};
use super::queue::{Addresses, Base, Queue};
use crate::virtio::device::VirtioDevice;
use crate::virtio::transport::F_VERSION_1;

/// vhost-user: among the device's features, the one that says that there are features of the protocol.
pub(super) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Features of rings that only a transport of our own sets up: packed rings, and the reset of one queue, for which this protocol
/// has GET_VRING_BASE.
const NOT_SET_UP_HERE: u64 = 1 << 34 | 1 << 40;
/// virtio 1.3, 5.2.4: where the configuration has `writeback`, the one byte that a driver may write.
const WRITEBACK_AT: u32 = 32;

pub(super) struct Device {
    served: Box<dyn VirtioDevice>,
    /// The largest size of each virtqueue.
    most_entries: u16,
    features: u64,
    memory: Memory,
    /// Where the client has us write down what is in flight.
    inflight: Option<InflightBuffer>,
    queues: Vec<Queue>,
    /// What the client chose for the write cache, to be chosen again when the device starts again.
    write_back: Option<bool>,
    /// The device was activated, and was not reset since.
    active: bool,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Device").field("served", &self.served.name()).finish_non_exhaustive()
    }
}

impl Device {
    pub(super) fn new(served: Box<dyn VirtioDevice>) -> io::Result<Device> {
        let sizes = served.queue_sizes().to_vec();
        let queues = (0..).zip(&sizes).map(|(index, size)| Queue::new(index, *size));
        let most_entries = sizes.iter().copied().min().unwrap_or(0);
        Ok(Device {
            served,
            most_entries,
            features: 0,
            memory: Memory::default(),
            inflight: None,
            queues: queues.collect::<io::Result<_>>()?,
            write_back: None,
            active: false,
        })
    }

    pub(super) fn offered(&self) -> u64 {
        self.served.features() & !NOT_SET_UP_HERE | F_VERSION_1 | F_PROTOCOL_FEATURES
    }

    pub(super) fn queue_count(&self) -> usize {
        self.queues.len()
    }

    pub(super) fn set_features(&mut self, asked: u64) -> Result<(), Refusal> {
        let offered = self.offered();
        if asked & !offered != 0 {
            return Err(Refusal::Features { asked, offered });
        }
        if asked != self.features && self.queues.iter().any(|queue| queue.running) {
            return Err(Refusal::FeaturesWhileRunning);
        }
        self.features = asked;
        if asked & F_PROTOCOL_FEATURES == 0 {
            // A client that does not know the protocol's features has no message to enable a ring.
            for index in 0..self.queues.len() {
                self.queues[index].enabled = true;
                self.start_where_ready(index)?;
            }
        }
        Ok(())
    }

    /// All memory anew. Rings that run go on in it.
    pub(super) fn set_memory(&mut self, places: &[Place], files: &[File]) -> Result<(), Refusal> {
        self.remap(|memory| {
            *memory = Memory::of(places, files)?;
            Ok(())
        })
    }

    pub(super) fn add_memory(&mut self, place: Place, file: &File) -> Result<(), Refusal> {
        self.remap(|memory| memory.add(place, file))
    }

    pub(super) fn remove_memory(&mut self, guest: u64, user: u64, bytes: u64) -> Result<(), Refusal> {
        self.remap(|memory| memory.remove(guest, user, bytes))
    }

    /// Changes the memory while no ring has it. Rings that are nowhere in the new one wait for the next change: a front end
    /// that replaces a region removes it first.
    fn remap(&mut self, change: impl FnOnce(&mut Memory) -> Result<(), Refusal>) -> Result<(), Refusal> {
        (0..self.queues.len()).for_each(|at| self.halt(at));
        change(&mut self.memory)?;
        for at in 0..self.queues.len() {
            match self.start_where_ready(at) {
                Err(Refusal::RingAddress { .. } | Refusal::Incomplete { .. }) => {}
                Err(Refusal::Ring { source: RingError::OutsideMemory { .. }, .. }) => {}
                started => started?,
            }
        }
        self.settle();
        Ok(())
    }

    pub(super) fn set_size(&mut self, index: u32, asked: u32) -> Result<(), Refusal> {
        let most = self.most_entries;
        let (_, queue) = self.queue(index)?;
        queue.must_not_run("change its size")?;
        let size = u16::try_from(asked).ok().filter(|size| size.is_power_of_two() && *size <= most);
        queue.size = size.ok_or(Refusal::QueueSize { asked, most })?;
        Ok(())
    }

    /// The rings of a queue that runs may move; it goes on where it stands.
    pub(super) fn set_addresses(&mut self, index: u32, addresses: Addresses) -> Result<(), Refusal> {
        self.change(index, |queue| queue.addresses = Some(addresses))
    }

    pub(super) fn set_base(&mut self, index: u32, base: u32) -> Result<(), Refusal> {
        let (_, queue) = self.queue(index)?;
        queue.must_not_run("go on elsewhere")?;
        let available = u16::try_from(base).map_err(|_| Refusal::Base { queue: queue.index, base })?;
        queue.base = Base::Said(available);
        Ok(())
    }

    /// Stops the ring, and answers the next available entry. Nothing that was taken is left to do.
    pub(super) fn stop_and_tell_base(&mut self, index: u32) -> Result<u32, Refusal> {
        let (at, _) = self.queue(index)?;
        self.halt(at);
        let queue = &mut self.queues[at];
        queue.kick = None;
        let base = match queue.base {
            Base::Said(available) => available,
            Base::Stood(position) => position.available,
        };
        self.settle();
        Ok(base.into())
    }

    pub(super) fn set_kick(&mut self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let (_, queue) = self.queue(index)?;
        let queue = queue.index;
        let file = file.ok_or(Refusal::NoKick { queue })?;
        let kick =
            eventfd::adopt(file).map_err(|source| Refusal::Notifier { kind: "kick", queue, source })?;
        self.change(index, |queue| queue.kick = Some(kick))
    }

    /// A ring that runs is not stopped for it: front ends change it whenever the guest masks an interrupt.
    pub(super) fn set_call(&mut self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let (_, queue) = self.queue(index)?;
        let refused = |source| Refusal::Notifier { kind: "call", queue: queue.index, source };
        let client = file.map(eventfd::adopt).transpose().map_err(refused)?;
        queue.set_call(client)
    }

    pub(super) fn set_error(&mut self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let (_, queue) = self.queue(index)?;
        let refused = |source| Refusal::Notifier { kind: "error eventfd", queue: queue.index, source };
        queue.error = file.map(eventfd::adopt).transpose().map_err(refused)?;
        Ok(())
    }

    /// A ring that is disabled stands still, and goes on when it is enabled.
    pub(super) fn set_enabled(&mut self, index: u32, enabled: bool) -> Result<(), Refusal> {
        let (at, queue) = self.queue(index)?;
        queue.enabled = enabled;
        if enabled {
            return self.start_where_ready(at);
        }
        self.halt(at);
        self.settle();
        Ok(())
    }

    /// A file for the client to keep, in which what is in flight will be written down.
    pub(super) fn new_inflight(&self, queues: u16, entries: u16) -> Result<(Extent, File), Refusal> {
        self.check_inflight(queues, entries)?;
        InflightBuffer::file(queues, entries)
    }

    /// Rings that start from now on are written down in `file`, and go on with what stands in it.
    pub(super) fn set_inflight(&mut self, extent: Extent, file: &File) -> Result<(), Refusal> {
        self.check_inflight(extent.queues, extent.entries)?;
        for queue in &self.queues {
            queue.must_not_run("have another inflight buffer")?;
        }
        self.inflight = Some(InflightBuffer::map(extent, file)?);
        Ok(())
    }

    fn check_inflight(&self, queues: u16, entries: u16) -> Result<(), Refusal> {
        let (most_queues, most_entries) = (self.queues.len(), self.most_entries);
        if usize::from(queues) > most_queues || entries > most_entries || !entries.is_power_of_two() {
            return Err(Refusal::InflightSize { queues, entries, most_queues, most_entries });
        }
        Ok(())
    }

    pub(super) fn read_config(&self, offset: u32, data: &mut [u8]) {
        self.served.read_config(offset, data);
    }

    /// Whether the device has it as it was written. What a driver may not write is left alone, as the device itself does.
    pub(super) fn write_config(&mut self, offset: u32, data: &[u8]) -> bool {
        self.served.write_config(offset, data);
        let at = WRITEBACK_AT.checked_sub(offset).and_then(|at| data.get(at as usize));
        let Some(&wanted) = at else { return true };
        let mut found = [0];
        self.served.read_config(WRITEBACK_AT, &mut found);
        self.write_back = Some(found != [0]);
        (wanted != 0) == (found != [0])
    }

    /// As the client found the device, but for its memory and its features.
    pub(super) fn reset(&mut self) {
        self.stop_all();
        for queue in &mut self.queues {
            (queue.enabled, queue.kick, queue.base) = (false, None, Base::Said(0));
        }
        self.write_back = None;
    }

    /// Ends every request and stops every ring.
    pub(super) fn stop_all(&mut self) {
        // All queues at once, where `halt` is for one after the other.
        self.served.reset();
        self.active = false;
        self.queues.iter_mut().for_each(|queue| queue.running = false);
    }

    /// Nothing of the client is kept; what it had begun ends before this returns. `gone`: nobody is left to hear of it.
    pub(super) fn forget(&mut self, gone: bool) -> io::Result<()> {
        if gone {
            self.queues.iter().for_each(Queue::release_writers);
        }
        self.stop_all();
        for queue in &mut self.queues {
            *queue = Queue::new(queue.index, self.most_entries)?;
        }
        (self.features, self.memory, self.inflight, self.write_back) = (0, Memory::default(), None, None);
        Ok(())
    }

    /// Tells the client by its error eventfds that the device needs a reset.
    pub(super) fn signal_errors(&self) {
        for error in self.queues.iter().filter_map(|queue| queue.error.as_ref()) {
            // One that nobody reads, and that would have us wait, says so already.
            let mut waits = [rustix::event::PollFd::from_borrowed_fd(
                eventfd::borrowed(error),
                rustix::event::PollFlags::OUT,
            )];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            if rustix::event::poll(&mut waits, Some(&now)) == Ok(1) {
                let _ = error.write(1);
            }
        }
    }

    fn queue(&mut self, index: u32) -> Result<(usize, &mut Queue), Refusal> {
        let queues = self.queues.len();
        let queue = self.queues.get_mut(index as usize).ok_or(Refusal::NoSuchQueue { index, queues })?;
        Ok((index as usize, queue))
    }

    /// Changes a queue, which goes on afterwards where it ran, and begins where nothing else was missing.
    fn change(&mut self, index: u32, change: impl FnOnce(&mut Queue)) -> Result<(), Refusal> {
        let (at, _) = self.queue(index)?;
        self.halt(at);
        change(&mut self.queues[at]);
        self.start_where_ready(at)
    }

    fn start_where_ready(&mut self, at: usize) -> Result<(), Refusal> {
        let queue = &self.queues[at];
        if !queue.is_to_start() {
            return Ok(());
        }
        let mut active = queue.active(&self.memory, self.features)?;
        if let Some(inflight) = &self.inflight
            && let Some(region) = inflight.of(queue.index, queue.size)?
        {
            active.ring.track_inflight(region);
        }
        if self.active {
            self.served.start_queue(active)?;
        } else {
            self.served.activate(self.features, vec![active])?;
            self.active = true;
        }
        self.queues[at].running = true;
        Ok(())
    }

    /// Stops one queue, if it runs, and keeps where it stands.
    fn halt(&mut self, at: usize) {
        let queue = &mut self.queues[at];
        if !std::mem::take(&mut queue.running) {
            return;
        }
        match self.served.stop_queue(queue.index) {
            Some(position) => queue.base = Base::Stood(position),
            // The driver broke it: it stands nowhere, and only a new start with a kick of its own makes it another.
            None => queue.kick = None,
        }
    }

    /// When the last ring has stopped, the device is as after a reset, but for what the client chose.
    fn settle(&mut self) {
        if self.active && !self.queues.iter().any(|queue| queue.running) {
            self.stop_all();
            if let Some(write_back) = self.write_back {
                self.served.write_config(WRITEBACK_AT, &[write_back.into()]);
            }
        }
    }
}
