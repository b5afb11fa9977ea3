//! The driver's side of everything that is measured: a loop over a virtqueue that keeps a number of requests in flight, sleeps
//! when none is done, and holds every read against the block that it came from. Over it lies the `virtio-driver` crate's queue
//! where a server in another process is measured, and [`crate::engine`]'s own in this process, since that crate takes no
//! transport but its own.
//!
//! It is as fast as a driver is: nothing is allocated per request, the device is notified once for a batch and only if it asks,
//! and interrupts are asked for only before sleeping.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use vm_memory::{VolatileMemory as _, VolatileSlice};

use crate::disk::{STAMPED_BYTES, stamp};
use crate::error::{Doing as _, Error};
use crate::point::{Places, Workload};
use crate::usage::{Usage, Whose};

/// Entries of each queue: a request takes three descriptors, and this is the next power of two over what depth 128 asks.
pub const QUEUE_SIZE: u16 = 512;
pub const MOST_DEPTH: u32 = QUEUE_SIZE as u32 / 3;
// virtio 1.3, 5.2.3 and 6: what a driver of these benchmarks understands.
pub const FLUSH: u64 = 1 << 9;
pub const MULTI_QUEUE: u64 = 1 << 12;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;
/// No server needs as long for a request; a wakeup was lost, or the server is gone.
const LOST: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// A virtqueue with EVENT_IDX, from the driver's side.
pub trait DriverQueue {
    /// Puts a request for `buffer` into the queue, known by its slot from then on.
    fn put(&mut self, write: bool, offset: u64, buffer: &VolatileSlice<'_>, slot: u32) -> io::Result<()>;
    /// Shows the device what was put; whether it asks to be notified of it.
    fn show(&mut self) -> bool;
    /// The slot of a request that ended, and whether it did well.
    fn take(&mut self) -> Option<(u32, bool)>;
    /// Asks for an interrupt when the next request ends; whether one has ended already.
    fn arm(&mut self) -> bool;
}

/// One queue, and how each side rings the other's bell.
pub struct Port<'ram> {
    pub queue: Box<dyn DriverQueue + 'ram>,
    pub kick: Box<dyn Fn() -> io::Result<()> + 'ram>,
    pub call: OwnedFd,
}

impl std::fmt::Debug for Port<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Port").field("call", &self.call).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub struct Client<'ram> {
    ports: Vec<Port<'ram>>,
    /// Where the device writes what is read: a request of the largest kind for each slot.
    data: VolatileSlice<'ram>,
    interrupts: OwnedFd,
    /// Looks for completions without ever sleeping.
    spins: bool,
    counts: Counts,
    requests: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Notifications that the device asked for.
    pub kicks: u64,
    /// Waits for an interrupt.
    pub sleeps: u64,
}

#[derive(Debug)]
pub struct Load {
    pub workload: Workload,
    pub depth: u32,
    pub area_bytes: u64,
    pub warmup: Duration,
    pub window: Duration,
    pub seed: u64,
}

/// What happened in the window.
#[derive(Debug)]
pub struct Run {
    pub requests: u64,
    pub wall: Duration,
    pub server: Usage,
    pub client: Usage,
    pub counts: Counts,
    pub latencies: Histogram<u64>,
    /// Requests of the whole run that failed or brought other bytes.
    pub wrong: u64,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    offset: u64,
    since: Instant,
}

/// What completions are taken into.
#[derive(Debug)]
struct Book {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Done, and not yet timed.
    ended: Vec<u32>,
    /// Queues that got something since they were last notified.
    touched: Vec<bool>,
    workload: Workload,
    latencies: Histogram<u64>,
    /// Requests that began before this are not timed.
    timed_from: Instant,
    done: u64,
    wrong: u64,
}

struct Start {
    at: Instant,
    server: Usage,
    own: Usage,
    counts: Counts,
    done: u64,
}

impl<'ram> Client<'ram> {
    pub fn new(
        ports: Vec<Port<'ram>>,
        data: VolatileSlice<'ram>,
        spins: bool,
    ) -> Result<Client<'ram>, Error> {
        let doing = || "the client's epoll could not be made".to_owned();
        let interrupts = epoll::create(epoll::CreateFlags::CLOEXEC).doing(doing)?;
        for port in &ports {
            // By edge: every write of the eventfd wakes, and nobody needs to read it.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&interrupts, &port.call, epoll::EventData::new_u64(0), flags).doing(doing)?;
        }
        Ok(Client { ports, data, interrupts, spins, counts: Counts::default(), requests: 0 })
    }

    /// Requests that completed since the beginning.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Keeps `load` going for its time and tells what the window showed.
    pub fn run(&mut self, load: &Load, server: Whose) -> Result<Run, Error> {
        let mut places = Places::new(load.workload, load.area_bytes, load.seed);
        let begun = Instant::now();
        let mut book = Book::new(load, begun, self.ports.len());
        let mut now = begun;
        while now - begun < load.warmup {
            now = self.turn(&mut book, &mut places, now)?;
        }
        let start = self.start(&mut book, server)?;
        now = start.at;
        while now - start.at < load.window {
            now = self.turn(&mut book, &mut places, now)?;
        }
        let (requests, wall) = (book.done - start.done, now - start.at);
        // What follows is not timed.
        let latencies = std::mem::replace(&mut book.latencies, latencies());
        let server = server.usage()?.since(start.server);
        let own = Whose::Own.usage()?.since(start.own);
        let counts = Counts {
            kicks: self.counts.kicks - start.counts.kicks,
            sleeps: self.counts.sleeps - start.counts.sleeps,
        };
        while book.free.len() < book.slots.len() {
            self.wait(&mut book)?;
            book.settle(now);
        }
        self.requests += book.done;
        Ok(Run { requests, wall, server, client: own, counts, latencies, wrong: book.wrong })
    }

    /// Submits, waits and settles once; answers when that was.
    fn turn(&mut self, book: &mut Book, places: &mut Places, now: Instant) -> Result<Instant, Error> {
        self.submit(book, places, now)?;
        self.wait(book)?;
        let now = Instant::now();
        book.settle(now);
        Ok(now)
    }

    fn start(&self, book: &mut Book, server: Whose) -> Result<Start, Error> {
        book.latencies.reset();
        let (server, own) = (server.usage()?, Whose::Own.usage()?);
        // What is in flight waited for us to look at the clocks.
        book.timed_from = Instant::now();
        Ok(Start { at: book.timed_from, server, own, counts: self.counts, done: book.done })
    }

    /// Uses every free slot, and notifies each queue that has got something, if it asks for that.
    fn submit(&mut self, book: &mut Book, places: &mut Places, now: Instant) -> Result<(), Error> {
        let bytes = book.workload.bytes() as usize;
        let count = self.ports.len();
        while let Some(index) = book.free.pop() {
            let offset = places.next();
            let slot = index as usize;
            book.slots[slot] = Slot { offset, since: now };
            let port = &mut self.ports[slot % count];
            let buffer = self.data.subslice(slot * bytes, bytes);
            let buffer = buffer.map_err(|error| Error::Asked(error.to_string()))?;
            if book.workload.is_write() {
                for at in (0..bytes).step_by(STAMPED_BYTES as usize) {
                    store(&buffer, at, stamp(offset + at as u64));
                }
            } else {
                store(&buffer, 0, !0);
            }
            let queued = port.queue.put(book.workload.is_write(), offset, &buffer, index);
            queued.doing(|| "a request did not fit into its queue".to_owned())?;
            book.touched[slot % count] = true;
        }
        for (port, touched) in self.ports.iter_mut().zip(&mut book.touched) {
            if std::mem::take(touched) && port.queue.show() {
                self.counts.kicks += 1;
                (port.kick)().doing(|| "a queue's eventfd could not be written".to_owned())?;
            }
        }
        Ok(())
    }

    /// Returns with at least one request done.
    fn wait(&mut self, book: &mut Book) -> Result<(), Error> {
        loop {
            for port in &mut self.ports {
                while let Some((slot, well)) = port.queue.take() {
                    book.end(slot, well, &self.data);
                }
            }
            if !book.ended.is_empty() {
                return Ok(());
            }
            if self.spins {
                std::hint::spin_loop();
                continue;
            }
            let mut ended = false;
            for port in &mut self.ports {
                ended |= port.queue.arm();
            }
            if ended {
                continue;
            }
            self.counts.sleeps += 1;
            self.sleep()?;
        }
    }

    fn sleep(&self) -> Result<(), Error> {
        let mut space = [const { MaybeUninit::uninit() }; 4];
        match epoll::wait(&self.interrupts, &mut space, Some(&LOST)) {
            Ok(([], _)) => Err(Error::Asked(format!("no request completed for {} s", LOST.tv_sec))),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno).doing(|| "the client could not wait for an interrupt".to_owned()),
        }
    }
}

impl Book {
    fn new(load: &Load, now: Instant, queues: usize) -> Book {
        let slots = vec![Slot { offset: 0, since: now }; load.depth as usize];
        Book {
            free: (0..load.depth).rev().collect(),
            ended: Vec::with_capacity(slots.len()),
            touched: vec![false; queues],
            slots,
            workload: load.workload,
            latencies: latencies(),
            timed_from: now,
            done: 0,
            wrong: 0,
        }
    }

    fn end(&mut self, index: u32, well: bool, data: &VolatileSlice<'_>) {
        // A server may name a slot that it was not given.
        let Some(slot) = self.slots.get(index as usize) else {
            self.wrong += 1;
            return;
        };
        let bytes = self.workload.bytes() as usize;
        let (at, last) = (index as usize * bytes, bytes - STAMPED_BYTES as usize);
        let stamped = |block: usize| load(data, at + block) == stamp(slot.offset + block as u64);
        let right = well && (self.workload.is_write() || (stamped(0) && stamped(last)));
        self.wrong += u64::from(!right);
        self.ended.push(index);
    }

    /// Those that ended, as of `now`: their slots are free again.
    fn settle(&mut self, now: Instant) {
        self.done += self.ended.len() as u64;
        for index in self.ended.drain(..) {
            let since = self.slots[index as usize].since;
            if since >= self.timed_from {
                self.latencies.saturating_record((now - since).as_nanos() as u64);
            }
            self.free.push(index);
        }
    }
}

/// From 100 ns to a minute, to three digits.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(100, 60_000_000_000, 3).expect("the bounds are in order")
}

/// Has the page at `at` be there before a request meets it.
pub fn touch(data: &VolatileSlice<'_>, at: usize) {
    store(data, at, 0);
}

fn load(data: &VolatileSlice<'_>, at: usize) -> u64 {
    data.get_ref::<u64>(at).map_or(0, |word| word.load())
}

fn store(data: &VolatileSlice<'_>, at: usize, value: u64) {
    if let Ok(word) = data.get_ref::<u64>(at) {
        word.store(value);
    }
}
