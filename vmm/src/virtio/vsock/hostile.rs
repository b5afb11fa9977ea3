//! A guest that sends any packets, and callers outside who come, speak and go as they like: both do what some bytes say. All
//! that the device answers is held against what either may rely on, and in the end it has to serve a connection of people who
//! keep the rules. A statement that does not hold panics. The property of this module's tests runs it, and the fuzz target.

mod caller;
mod packets;

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use vmprof_sys::memory::GuestRam;

use super::connection::GREETING_BYTES;
use super::packet::{HOST_CID, Header, Operation, STREAM};
use super::{GUEST_CID, RECEIVE, TRANSMIT, Vsock, VsockHandler};
use crate::emulator::{Handler, Watch};
use crate::virtio::device::VirtioDevice;
use crate::virtio::mock::{self, Driver};
use caller::Caller;
use packets::{HEADER, SHAPE_WHOLE, Sent};

const QUEUE: u64 = 0x1_0000;
const QUEUE_SIZE: u16 = 16;
const MOST_CALLERS: usize = 24;
/// Far more than there can be to do at once.
const MOST_TURNS: usize = 2000;

/// What happens, byte for byte. One that has ended says 0.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    /// One time in eight.
    fn seldom(&mut self) -> bool {
        self.byte().is_multiple_of(8)
    }
}

struct World {
    vsock: Vsock,
    handler: VsockHandler,
    watch: Watch,
    address: SocketAddr,
    ram: Arc<GuestRam>,
    receive: Driver,
    transmit: Driver,
    /// By their heads.
    sent: BTreeMap<u16, Sent>,
    offered: BTreeMap<u16, (u64, u32)>,
    callers: Vec<Caller>,
    /// The guest broke a ring.
    is_broken: bool,
}

/// Does what `bytes` say.
pub fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    let mut world = World::new();
    while !script.0.is_empty() {
        world.act(&mut script);
        world.turn();
    }
    world.serves_who_keeps_the_rules();
}

impl World {
    fn new() -> World {
        // Worlds of several threads have an address each, and no file.
        static WORLDS: AtomicU64 = AtomicU64::new(0);
        let name = format!("vmprof-{}-{}", std::process::id(), WORLDS.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let (vsock, mut handler) = Vsock::new(UnixListener::bind_addr(&address).unwrap()).unwrap();
        let watch = Watch::alone().unwrap();
        handler.start(&watch);
        let ram = mock::ram(0x20_0000);
        let [receive, transmit] = World::drivers(&ram);
        let mut world = World {
            vsock,
            handler,
            watch,
            address,
            ram,
            receive,
            transmit,
            sent: BTreeMap::new(),
            offered: BTreeMap::new(),
            callers: Vec::new(),
            is_broken: false,
        };
        world.activate();
        world
    }

    fn drivers(ram: &Arc<GuestRam>) -> [Driver; 2] {
        [0, 1].map(|at| Driver::new(ram, QUEUE + at * 0x1_0000, QUEUE_SIZE, true))
    }

    fn activate(&mut self) {
        let queues = vec![self.receive.device_side(RECEIVE), self.transmit.device_side(TRANSMIT)];
        self.vsock.activate(0, queues).unwrap();
        self.turn();
    }

    /// The driver starts anew.
    fn reset(&mut self) {
        thread::scope(|scope| {
            // It waits for the device, whose thread is this one.
            let reset = scope.spawn(|| self.vsock.reset());
            while !reset.is_finished() {
                self.handler.ready(&self.watch);
                thread::yield_now();
            }
        });
        for caller in &mut self.callers {
            caller.is_over |= caller.has_called();
        }
        self.vsock.distress().unwrap().clear();
        self.is_broken = false;
        self.sent.clear();
        self.offered.clear();
        [self.receive, self.transmit] = World::drivers(&self.ram);
        self.activate();
    }

    fn act(&mut self, script: &mut Script<'_>) {
        match script.byte() % 16 {
            0 | 1 if self.callers.len() < MOST_CALLERS => {
                self.call(if script.seldom() { "nonsense" } else { "CONNECT" });
            }
            2 | 3 => {
                let count = script.one_of(&[13, 3, 100, 5000, 70_000]);
                self.some_caller(script, |caller| caller.write(count));
            }
            4 => {
                let count = script.one_of(&[100, 1, 5000, 70_000]);
                self.some_caller(script, |caller| {
                    caller.read(count);
                });
            }
            5 => {
                let how = script.one_of(&[None, Some(Shutdown::Write), Some(Shutdown::Read)]);
                self.some_caller(script, |caller| match how {
                    None => caller.stream = None,
                    Some(how) => drop(caller.stream.as_ref().map(|stream| stream.shutdown(how))),
                });
            }
            6..=8 => {
                let bytes = script.one_of(&[HEADER + 4096, HEADER, HEADER + 1, 0x3000, HEADER - 1, 10]);
                self.offer(bytes, script.seldom());
            }
            13 if script.seldom() => self.send_strays(2 * u32::from(script.byte())),
            14 if script.seldom() => self.reset(),
            15 if script.seldom() => self.break_ring(script.byte()),
            _ => self.send_something(script),
        }
    }

    fn call(&mut self, word: &str) {
        let stream = UnixStream::connect_addr(&self.address).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.callers.push(Caller::new(self.callers.len() as u32, stream, word));
    }

    fn some_caller(&mut self, script: &mut Script<'_>, act: impl FnOnce(&mut Caller)) {
        let at = usize::from(script.byte()) % self.callers.len().max(1);
        self.callers.get_mut(at).map(act);
    }

    /// The device does all that there is to do, and what it did is looked at.
    fn turn(&mut self) {
        let mut turns = 0;
        while self.watch.has_news() {
            self.handler.ready(&self.watch);
            self.handler.muxer.check();
            turns += 1;
            assert!(turns < MOST_TURNS, "the device goes in circles");
        }
        if self.is_broken {
            return;
        }
        assert!(
            !self.vsock.distress().is_some_and(|distress| distress.is_raised()),
            "a good ring was found broken"
        );
        let mut ends = Vec::new();
        while let Some((head, _)) = self.transmit.take_used() {
            let sent = self.sent.remove(&head).expect("it was sent");
            ends.extend(self.was_taken(&sent));
        }
        while let Some((head, written)) = self.receive.take_used() {
            let (place, room) = self.offered.remove(&head).expect("it was offered");
            assert!(written <= room);
            self.hear(place, room, written);
        }
        // What the device said before it took these is none of theirs.
        for (at, operation) in ends {
            let caller: &mut Caller = &mut self.callers[at];
            caller.is_over |= operation == Operation::Reset;
            caller.is_deaf |= operation == Operation::Shutdown;
        }
        for caller in &mut self.callers {
            let last = caller.credits.len() - 1;
            caller.credits.drain(..last);
        }
        assert!(self.sent.is_empty() || self.handler.muxer.is_full(), "packets lie there");
        assert!(
            self.offered.is_empty() || !self.handler.muxer.has_word(),
            "there is a word and a place for it"
        );
    }

    /// Gives the device places until it has nothing more to say.
    fn listen(&mut self) {
        for _ in 0..MOST_TURNS {
            while self.offer(HEADER + 4096, false) {}
            let offered = self.offered.len();
            self.turn();
            if self.offered.len() == offered {
                return;
            }
        }
        panic!("there is no end of what the device says");
    }

    /// Whatever was before: a caller is put through, and bytes go both ways.
    fn serves_who_keeps_the_rules(&mut self) {
        if self.is_broken {
            assert!(self.vsock.distress().is_some_and(|distress| distress.is_raised()));
            self.reset();
        }
        self.listen();
        assert!(self.sent.is_empty());
        // What is said into places too small for it is lost: they go to where it matters to nobody.
        self.send_strays(self.offered.len() as u32);
        let at = self.callers.len();
        self.call("CONNECT");
        self.callers[at].write(GREETING_BYTES);
        self.turn();
        self.listen();
        assert!(self.callers[at].was_asked_for, "nobody asked the guest");
        let rules = |caller: &Caller, operation, bytes| Header {
            source_cid: GUEST_CID,
            target_cid: HOST_CID,
            source_port: caller.guest_port(),
            target_port: caller.host_port(),
            bytes,
            kind: STREAM,
            operation,
            flags: 0,
            buffer_bytes: 10_000,
            forwarded: caller.heard as u32,
        };
        assert!(self.send(rules(&self.callers[at], Operation::Response, 0), 0, SHAPE_WHOLE));
        self.turn();
        let (to_guest, from_guest) = (30_000, 150_000);
        for _ in 0..MOST_TURNS {
            let caller = &mut self.callers[at];
            caller.write(to_guest - caller.wrote);
            let bytes = (from_guest - caller.sent).min(0x3000) as u32;
            let operation = if bytes > 0 { Operation::Data } else { Operation::CreditUpdate };
            let header = rules(caller, operation, bytes);
            assert!(self.send(header, bytes, SHAPE_WHOLE));
            self.turn();
            self.listen();
            let caller = &mut self.callers[at];
            assert!(caller.read(70_000), "it was closed");
            if (caller.heard, caller.read) == (to_guest, from_guest) {
                return;
            }
        }
        let Caller { heard, read, .. } = self.callers[at];
        panic!("{heard} of {to_guest} bytes came in and {read} of {from_guest} out");
    }
}
