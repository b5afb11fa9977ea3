//! virtio-net (virtio 1.3, 5.1): the device that the transport sees, and what its queues share. How they are served is in
//! [`receive`], [`transmit`] and [`control`]; what carries the frames outside, in [`crate::net`].

use std::sync::Arc;

use vmprof_sys::tap::offload;
use vmprof_sys::vring::Position;

use super::config_changes::ConfigChanges;
use super::device::{ActivateError, ActiveQueue, VirtioDevice};
use super::distress::Distress;
use super::transport::F_RING_RESET;
use crate::config::{self, FEWEST_NET_QUEUE_ENTRIES, LEAST_MTU, NetBackend};
use crate::iothread::service::{Begin, QueueService};
use crate::iothread::{DeviceId, Handle};
use crate::net::tap::Tap;
use crate::net::{Backend, FrameStream, NetError};

mod adapter;
mod chains;
mod control;
mod counters;
mod header;
mod offered;
pub mod outgoing;
mod receive;
mod transmit;
mod watching;

use adapter::Adapter;
pub use adapter::NetStats;
use control::ControlQueue;
pub use counters::{NetQueueSnapshot, NetSnapshot, QueueKind};
use header::HEADER_BYTES;
use receive::RxQueue;
use transmit::TxQueue;

const DEVICE_ID: u16 = 1;

// virtio 1.3, 5.1.3 and 6: feature bits by number.
const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const MERGEABLE_BUFFERS: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const CONTROL_QUEUE: u64 = 1 << 17;
const MULTI_QUEUE: u64 = 1 << 22;
const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

/// What a tap device can do for the guest, and the guest for the host.
const OFFLOADS: u64 = CSUM | GUEST_CSUM | GUEST_TSO | GUEST_ECN | HOST_TSO | HOST_ECN;
const GUEST_TSO: u64 = GUEST_TSO4 | GUEST_TSO6;
const HOST_TSO: u64 = HOST_TSO4 | HOST_TSO6;

/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;
/// As many as the kernel's tap devices have queues, half of what virtio-net does (virtio 1.3, 5.1.4.1).
const MOST_PAIRS: u16 = 128;
/// What is there while the driver has the device.
#[derive(Debug, Clone, Copy)]
struct Live {
    /// The name under which the IOThreads know the queues.
    device: DeviceId,
    features: u64,
}

#[derive(Debug)]
pub struct Net {
    adapter: Arc<Adapter>,
    /// `net net0`, as messages have it.
    title: String,
    backend: Backend,
    queue_sizes: Vec<u16>,
    /// Which thread serves each queue, by the queue's index.
    iothreads: Vec<Handle>,
    live: Option<Live>,
}

impl Net {
    /// All devices of a machine, in their order; `streams` are for those whose backend is one, in the same order.
    pub fn of_machine(
        configs: &[config::Net],
        streams: Vec<FrameStream>,
        iothreads: &[Handle],
    ) -> Result<Vec<Net>, NetError> {
        let is_stream = |config: &&config::Net| config.backend == NetBackend::Stream;
        let (wanted, given) = (configs.iter().filter(is_stream).count(), streams.len());
        if wanted != given {
            return Err(NetError::Streams { wanted, given });
        }
        let mut streams = streams.into_iter();
        let made = configs.iter().map(|config| {
            let stream = if is_stream(&config) { streams.next() } else { None };
            Net::new(config, stream, iothreads)
        });
        made.collect()
    }

    /// One device, served by those of `iothreads` that its mapping names; `stream` is for one whose backend is that.
    pub fn new(
        config: &config::Net,
        stream: Option<FrameStream>,
        iothreads: &[Handle],
    ) -> Result<Net, NetError> {
        let pairs = check(config)?;
        let net = || config.name.clone();
        let iothread = |(queue, id): (usize, &u32)| {
            let found = iothreads.iter().find(|handle| handle.id() == *id).cloned();
            found.ok_or_else(|| NetError::NoSuchIoThread { net: net(), queue, iothread: *id })
        };
        let served_by = config.virtqueues.iter().enumerate().map(iothread).collect::<Result<Vec<_>, _>>()?;
        let backend = match (&config.backend, stream) {
            (NetBackend::Stream, Some(stream)) => Backend::Stream(stream),
            (NetBackend::Stream, None) => return Err(NetError::Streams { wanted: 1, given: 0 }),
            (NetBackend::Tap { name }, _) => {
                Backend::Tap(Arc::new(Tap::open(name, pairs.into(), HEADER_BYTES as i32)?))
            }
        };
        let mut awake: Vec<u32> = config.virtqueues.clone();
        awake.sort_unstable();
        awake.dedup();
        let of = |id: &u32| served_by.iter().find(|handle| handle.id() == *id);
        let wakers = awake.iter().filter_map(of).map(Handle::waker).collect::<Result<_, _>>();
        let wakers = wakers.map_err(|source| NetError::Waker { net: net(), source })?;
        let adapter = Arc::new(Adapter::new(config, pairs, wakers));
        if let Backend::Stream(stream) = &backend {
            let noted = Arc::downgrade(&adapter);
            stream.tell_device(move |end| {
                if let Some(adapter) = noted.upgrade() {
                    adapter.lost(end.to_string());
                }
            });
        }
        let queue_sizes = vec![config.queue_size; served_by.len()];
        let title = format!("net {}", config.name);
        Ok(Net { adapter, title, backend, queue_sizes, iothreads: served_by, live: None })
    }

    pub fn stats(&self) -> NetStats {
        NetStats(Arc::clone(&self.adapter))
    }

    fn serve(&self, live: Live, queue: ActiveQueue) -> Result<(), ActivateError> {
        let index = queue.index;
        let refused = |reason| ActivateError { device: self.title.clone(), queue: index, reason };
        let at = usize::from(index);
        let (Some(iothread), Some(counters)) = (self.iothreads.get(at), self.adapter.counters.get(at)) else {
            return Err(refused("the device has no such queue".to_owned()));
        };
        let features = live.features;
        // virtio 1.3, 5.1.2: without MQ the control queue follows the first pair.
        let pairs = (features & MULTI_QUEUE != 0).then_some(self.adapter.pairs);
        let control = 2 * pairs.unwrap_or(1);
        if index > control || index == control && features & CONTROL_QUEUE == 0 {
            return Err(refused("the driver did not take what the queue is for".to_owned()));
        }
        let doorbell =
            queue.doorbell.try_clone().map_err(|error| refused(format!("its doorbell: {error}")))?;
        let (adapter, backend) = (Arc::clone(&self.adapter), self.backend.clone());
        let counters = Arc::clone(counters);
        let begin: Begin = Box::new(move |io| {
            let service: Box<dyn QueueService> = match QueueKind::of(index, control) {
                QueueKind::Receive => {
                    let form = (features & MERGEABLE_BUFFERS != 0, features & GUEST_TSO != 0);
                    Box::new(RxQueue::begin(adapter, queue, backend, form, counters, io))
                }
                QueueKind::Transmit => {
                    let offloads = features & CSUM != 0;
                    Box::new(TxQueue::begin(adapter, queue, backend, offloads, counters, io))
                }
                QueueKind::Control => Box::new(ControlQueue::begin(adapter, queue, pairs, counters, io)),
            };
            Ok(service)
        });
        iothread.serve(live.device, index, begin, doorbell).map_err(|error| {
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            refused(format!("{error}{cause}"))
        })
    }

    /// Has a tap device do what the driver took, and give frames to the first pair alone.
    fn set_up_tap(&self, features: u64) -> Result<(), ActivateError> {
        let Backend::Tap(tap) = &self.backend else { return Ok(()) };
        let told = tap.set_offloads(offloads_of(features)).and_then(|()| {
            (1..usize::from(self.adapter.pairs)).try_for_each(|pair| tap.set_attached(pair, false))
        });
        let refused = |error| format!("its tap device does not do what the driver asks for: {error}");
        told.map_err(|error| ActivateError { device: self.title.clone(), queue: 0, reason: refused(error) })
    }
}

/// What the driver takes, as the tap device's ioctl has it. ECN is said of segments, which there must be.
fn offloads_of(features: u64) -> u32 {
    let mut offloads = 0;
    // virtio 1.3, 5.1.3.1: segments need checksums. A driver that took the one without the other gets neither.
    if features & GUEST_CSUM != 0 {
        offloads |= offload::CSUM;
        for (feature, offload) in [(GUEST_TSO4, offload::TSO4), (GUEST_TSO6, offload::TSO6)] {
            offloads |= if features & feature != 0 { offload } else { 0 };
        }
        if features & GUEST_ECN != 0 && features & GUEST_TSO != 0 {
            offloads |= offload::TSO_ECN;
        }
    }
    offloads
}

/// How many pairs of queues it has.
fn check(config: &config::Net) -> Result<u16, NetError> {
    let net = || config.name.clone();
    let size = config.queue_size;
    if !size.is_power_of_two() || !(FEWEST_NET_QUEUE_ENTRIES..=32_768).contains(&size) {
        return Err(NetError::QueueSize { net: net(), size });
    }
    let mapped = config.virtqueues.len();
    if mapped < 3 || mapped.is_multiple_of(2) {
        return Err(NetError::Mapping { net: net(), mapped });
    }
    let pairs = mapped / 2;
    if config.backend == NetBackend::Stream && pairs > 1 {
        return Err(NetError::PairsOfAStream { net: net(), pairs });
    }
    if config.mac[0] & 1 != 0 || config.mac == [0; 6] {
        let mac = config.mac.map(|byte| format!("{byte:02x}")).join(":");
        return Err(NetError::Mac { net: net(), mac });
    }
    if let Some(mtu) = config.mtu.filter(|mtu| *mtu < LEAST_MTU) {
        return Err(NetError::Mtu { net: net(), mtu });
    }
    let few = u16::try_from(pairs).ok().filter(|pairs| *pairs <= MOST_PAIRS);
    few.ok_or_else(|| NetError::TooManyPairs { net: net(), pairs, most: MOST_PAIRS })
}

impl VirtioDevice for Net {
    fn name(&self) -> &str {
        &self.title
    }

    fn device_id(&self) -> u16 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        let mut features = MAC | STATUS | CONTROL_QUEUE | MERGEABLE_BUFFERS;
        features |= INDIRECT_DESCRIPTORS | EVENT_IDX | F_RING_RESET;
        if self.adapter.mtu.is_some() {
            features |= MTU;
        }
        if self.adapter.pairs > 1 {
            features |= MULTI_QUEUE;
        }
        if let Backend::Tap(_) = &self.backend {
            features |= OFFLOADS;
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// virtio 1.3, 5.1.4: the address, the link, the most pairs, the mtu.
    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let adapter = &self.adapter;
        let status = if adapter.link.is_up() { LINK_UP } else { 0 };
        let words = [status, adapter.pairs, adapter.mtu.unwrap_or(0)].map(u16::to_le_bytes);
        let config = [&adapter.mac[..], words.as_flattened()].concat();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn activate(&mut self, features: u64, queues: Vec<ActiveQueue>) -> Result<(), ActivateError> {
        if self.live.is_some() {
            self.reset();
        }
        let features = features & self.features();
        self.set_up_tap(features)?;
        let live = Live { device: DeviceId::unique(), features };
        self.live = Some(live);
        for queue in queues {
            if let Err(error) = self.serve(live, queue) {
                self.reset();
                return Err(error);
            }
        }
        Ok(())
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        let index = queue.index;
        let idle = || "the device is not live".to_owned();
        let refused = || ActivateError { device: self.title.clone(), queue: index, reason: idle() };
        self.serve(self.live.ok_or_else(refused)?, queue)
    }

    fn stop_queue(&mut self, index: u16) -> Option<Position> {
        let iothread = self.iothreads.get(usize::from(index))?;
        iothread.release_queue(self.live?.device, index).wait().first().map(|(_, position)| *position)
    }

    fn reset(&mut self) {
        if let Some(live) = self.live.take() {
            // All are told before any is waited for.
            let releases: Vec<_> =
                self.iothreads.iter().map(|iothread| iothread.release(live.device)).collect();
            releases.into_iter().for_each(|release| drop(release.wait()));
        }
        self.adapter.reset();
    }

    fn distress(&self) -> Option<Arc<Distress>> {
        Some(Arc::clone(&self.adapter.distress))
    }

    fn config_changes(&self) -> Option<Arc<ConfigChanges>> {
        Some(Arc::clone(&self.adapter.link.changes))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests;
