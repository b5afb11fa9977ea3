//! The device under a driver's mock: real sockets, real tap devices, real IOThreads, bytes compared.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes as _, GuestAddress};
use vmprof_sys::memory::GuestRam;

use super::*;
use crate::iothread::{IoThread, tested};
use crate::net::LONGEST_FRAME;
use crate::virtio::mock::{self, Driver, readable, writable};

mod costs;
mod device;
mod hostile;
mod stream;
mod tap;

const MIB: usize = 1 << 20;
const REGION: u64 = MIB as u64;
const QUEUE_SIZE: u16 = 64;
const MAC_OF_GUEST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
/// What these drivers take of whatever is offered.
const ALL: u64 = !MULTI_QUEUE;

/// An IOThread as one of nets alone is: with a ring in one half of the tests, and in epoll in the other.
fn iothread(id: u32, ring: bool) -> Handle {
    let name = format!("iothread{id}");
    let plain = tested::iothread(id, &name);
    let engines = if ring { plain.engines.clone() } else { Vec::new() };
    IoThread::spawn(&config::IoThread { engines, ..plain }).unwrap()
}

fn config(backend: NetBackend, pairs: usize) -> config::Net {
    config::Net {
        name: "net0".to_owned(),
        mac: MAC_OF_GUEST,
        backend,
        queue_size: QUEUE_SIZE,
        mtu: None,
        virtqueues: vec![0; 2 * pairs + 1],
    }
}

/// A driver of one queue, with a data area of its own behind its ring.
struct NetDriver {
    queue: Driver,
    data: u64,
}

impl NetDriver {
    fn new(ram: &Arc<GuestRam>, region: u64) -> NetDriver {
        NetDriver::with_events(ram, region, true)
    }

    fn with_events(ram: &Arc<GuestRam>, region: u64, event_idx: bool) -> NetDriver {
        let base = region * REGION;
        let data = (base + Driver::bytes(QUEUE_SIZE)).next_multiple_of(4096);
        NetDriver { queue: Driver::new(ram, base, QUEUE_SIZE, event_idx), data }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.queue.ram.write_slice(bytes, GuestAddress(self.data + at)).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.queue.ram.read_slice(&mut bytes, GuestAddress(self.data + at)).unwrap();
        bytes
    }

    /// Offers a buffer for frames of `pieces` (offset, length), and answers by what name.
    fn offer(&mut self, pieces: &[(u64, u32)]) -> u16 {
        let data = self.data;
        let pieces: Vec<_> = pieces.iter().map(|(at, len)| writable(data + at, *len)).collect();
        self.queue.add(&pieces).unwrap()
    }

    /// Puts a frame with an empty header at `at` and offers it in two pieces, without a kick.
    fn frame(&mut self, at: u64, frame: &[u8]) -> u16 {
        self.put(at, &[&[0; HEADER_BYTES], frame].concat());
        let (data, len) = (self.data + at, frame.len() as u32);
        self.queue.add(&[readable(data, HEADER_BYTES as u32), readable(data + 12, len)]).unwrap()
    }

    /// A frame from its kick until its buffer is back.
    fn send(&mut self, frame: &[u8]) {
        let head = self.frame(0, frame);
        self.queue.kick();
        assert_eq!(self.queue.wait_used(), (head, 0));
    }
}

/// A device over a stream with a driver of its first pair.
struct Bench {
    net: Net,
    ram: Arc<GuestRam>,
    rx: NetDriver,
    tx: NetDriver,
    peer: UnixStream,
    stream: FrameStream,
}

impl Bench {
    fn new(ring: bool) -> Bench {
        Bench::with(ring, ALL, |_| {})
    }

    fn with(ring: bool, features: u64, change: impl FnOnce(&mut config::Net)) -> Bench {
        let (peer, ours) = UnixStream::pair().unwrap();
        let stream = FrameStream::new(ours.into()).unwrap();
        let mut config = config(NetBackend::Stream, 1);
        change(&mut config);
        Bench::over(&config, &[iothread(0, ring)], peer, stream, features)
    }

    /// Over a socket that holds no more than some 32 KiB.
    fn with_little_room(ring: bool) -> Bench {
        let (peer, ours) = UnixStream::pair().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&ours, 16 << 10).unwrap();
        let stream = FrameStream::new(ours.into()).unwrap();
        Bench::over(&config(NetBackend::Stream, 1), &[iothread(0, ring)], peer, stream, ALL)
    }

    fn over(
        config: &config::Net,
        iothreads: &[Handle],
        peer: UnixStream,
        stream: FrameStream,
        features: u64,
    ) -> Bench {
        let mut net = Net::new(config, Some(stream.clone()), iothreads).unwrap();
        let ram = mock::ram(4 * MIB);
        let events = features & EVENT_IDX != 0;
        let rx = NetDriver::with_events(&ram, 0, events);
        let tx = NetDriver::with_events(&ram, 1, events);
        net.activate(features, vec![rx.queue.device_side(0), tx.queue.device_side(1)]).unwrap();
        Bench { net, ram, rx, tx, peer, stream }
    }

    /// The peer sends a frame.
    fn arrives(&mut self, frame: &[u8]) {
        self.peer.write_all(&encoded(frame)).unwrap();
    }

    /// The next frame that the peer gets.
    fn left(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.peer.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.peer.read_exact(&mut frame).unwrap();
        frame
    }

    fn counts(&self, queue: usize) -> NetQueueSnapshot {
        self.net.stats().snapshot().virtqueues[queue].clone()
    }

    /// Waits until a queue has dropped so many.
    fn until_dropped(&self, queue: usize, count: u64) {
        while self.counts(queue).dropped < count {
            std::thread::yield_now();
        }
    }
}

fn encoded(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

/// A frame of `bytes` that says which it is.
fn frame(tag: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (tag.wrapping_mul(31) + at / 7) as u8).collect()
}
