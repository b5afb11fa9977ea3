//! A front end that says what a test has it say, in whatever order, and the driver of one of its virtqueues.

use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::EventFd;
use vmprof_sys::eventfd::borrowed;
use vmprof_sys::memory::{Binding, GuestRam, Range, allocate};

use crate::virtio::mock::{Driver, Form, readable, writable};

pub(super) mod request {
    pub(in super::super) const GET_FEATURES: u32 = 1;
    pub(in super::super) const SET_FEATURES: u32 = 2;
    pub(in super::super) const SET_OWNER: u32 = 3;
    pub(in super::super) const SET_MEM_TABLE: u32 = 5;
    pub(in super::super) const SET_VRING_NUM: u32 = 8;
    pub(in super::super) const SET_VRING_ADDR: u32 = 9;
    pub(in super::super) const SET_VRING_BASE: u32 = 10;
    pub(in super::super) const GET_VRING_BASE: u32 = 11;
    pub(in super::super) const SET_VRING_KICK: u32 = 12;
    pub(in super::super) const SET_VRING_CALL: u32 = 13;
    pub(in super::super) const SET_VRING_ERR: u32 = 14;
    pub(in super::super) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(in super::super) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(in super::super) const GET_QUEUE_NUM: u32 = 17;
    pub(in super::super) const SET_VRING_ENABLE: u32 = 18;
    pub(in super::super) const GET_CONFIG: u32 = 24;
    pub(in super::super) const SET_CONFIG: u32 = 25;
    pub(in super::super) const GET_INFLIGHT_FD: u32 = 31;
    pub(in super::super) const SET_INFLIGHT_FD: u32 = 32;
    pub(in super::super) const RESET_DEVICE: u32 = 34;
    pub(in super::super) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(in super::super) const ADD_MEM_REG: u32 = 37;
    pub(in super::super) const REM_MEM_REG: u32 = 38;
}
use request::*;

pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const EVENT_IDX: u64 = 1 << 29;
pub(super) const PROTOCOL: u64 = 1 << 30;
pub(super) const FLUSH: u64 = 1 << 9;
pub(super) const CONFIG_WCE: u64 = 1 << 11;

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;
/// What the client has at guest address 0.
pub(super) const USER: u64 = 0x7f12_0000_0000;
pub(super) const RAM_BYTES: u64 = 8 << 20;
/// Where a queue's request headers are, behind its base; then its data.
const HEADERS: u64 = 0x2_0000;
const DATA: u64 = 0x4_0000;
/// Virtqueue k lies at k times this.
const AREA: u64 = 0x20_0000;

/// The connection.
pub(super) struct Frontend {
    pub(super) stream: UnixStream,
    pub(super) ram: Arc<GuestRam>,
}

impl Frontend {
    pub(super) fn connect(path: &Path) -> Frontend {
        let stream = UnixStream::connect(path).unwrap();
        // Far beyond any delay of a working server.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let range = Range { start: 0, len: RAM_BYTES };
        Frontend { stream, ram: Arc::new(allocate(&[range], None, Binding::Strict, &[]).unwrap()) }
    }

    /// The first words of every front end: `features` accepted, and all that the protocol offers here.
    pub(super) fn greet(&mut self, features: u64) {
        self.send(SET_OWNER, &[], &[]);
        assert_eq!(self.ask_u64(GET_FEATURES) & features, features);
        let offered = self.ask_u64(GET_PROTOCOL_FEATURES);
        self.send(SET_PROTOCOL_FEATURES, &offered.to_le_bytes(), &[]);
        self.say(SET_FEATURES, &(features | PROTOCOL).to_le_bytes(), &[]).unwrap();
    }

    /// Sends a message and wants no answer.
    pub(super) fn send(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send_with(request, VERSION, payload, fds);
    }

    pub(super) fn send_with(&self, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let header = [request, flags, payload.len() as u32].map(u32::to_le_bytes).concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        // Where the server has hung up there is nobody to send to.
        let _ = sendmsg(
            &self.stream,
            &[IoSlice::new(&header), IoSlice::new(payload)],
            &mut control,
            SendFlags::NOSIGNAL,
        );
    }

    /// Sends a message and waits for its acknowledgement; an error is the server's refusal.
    pub(super) fn say(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), String> {
        self.send_with(request, VERSION | NEED_REPLY, payload, fds);
        match self.reply() {
            Some(payload) if payload == [0; 8] => Ok(()),
            Some(_) => Err("refused".into()),
            None => Err("gone".into()),
        }
    }

    pub(super) fn ask(&mut self, request: u32, payload: &[u8]) -> Vec<u8> {
        self.send(request, payload, &[]);
        self.reply().expect("the server answers")
    }

    pub(super) fn ask_u64(&mut self, request: u32) -> u64 {
        u64::from_le_bytes(self.ask(request, &[]).try_into().unwrap())
    }

    /// `None`: the server has hung up.
    pub(super) fn reply(&mut self) -> Option<Vec<u8>> {
        let mut header = [0; 12];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the server is silent"),
            Err(_) => return None,
        }
        let mut payload = vec![0; u32::from_le_bytes(header[8..].try_into().unwrap()) as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some(payload)
    }

    /// Whether the server has hung up on us, or does so now.
    pub(super) fn is_hung_up_on(&mut self) -> bool {
        while self.reply().is_some() {}
        true
    }

    /// All our memory, as one region.
    pub(super) fn share_memory(&mut self) {
        let region = [0, RAM_BYTES, USER, 0];
        let file = self.memory_file();
        self.set_memory(&[region], &[file.as_fd()]).unwrap();
    }

    /// Regions as the message has them: guest address, bytes, user address, offset.
    pub(super) fn set_memory(&mut self, regions: &[[u64; 4]], fds: &[BorrowedFd<'_>]) -> Result<(), String> {
        let mut payload = [regions.len() as u32, 0].map(u32::to_le_bytes).concat();
        payload.extend(regions.iter().flatten().flat_map(|field| field.to_le_bytes()));
        self.say(SET_MEM_TABLE, &payload, fds)
    }

    pub(super) fn change_memory(
        &mut self,
        request: u32,
        region: [u64; 4],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), String> {
        let mut payload = vec![0; 8];
        payload.extend(region.iter().flat_map(|field| field.to_le_bytes()));
        self.say(request, &payload, fds)
    }

    /// The inflight buffer, for queues of 64 entries: bytes, offset, queues.
    pub(super) fn set_inflight(
        &mut self,
        extent: (u64, u64, u16),
        file: BorrowedFd<'_>,
    ) -> Result<(), String> {
        let (bytes, offset, queues) = extent;
        let mut payload = [bytes, offset].map(u64::to_le_bytes).concat();
        payload.extend([queues, 64].map(u16::to_le_bytes).concat());
        payload.extend([0; 4]);
        self.say(SET_INFLIGHT_FD, &payload, &[file])
    }

    pub(super) fn memory_file(&self) -> std::fs::File {
        self.ram.iter().next().unwrap().file_offset().unwrap().file().try_clone().unwrap()
    }

    pub(super) fn state(&mut self, request: u32, index: u32, num: u32) -> Result<(), String> {
        self.say(request, &[index, num].map(u32::to_le_bytes).concat(), &[])
    }

    pub(super) fn notifier(
        &mut self,
        request: u32,
        index: u64,
        event: Option<&EventFd>,
    ) -> Result<(), String> {
        let none = if event.is_none() { 0x100 } else { 0 };
        let fds: Vec<_> = event.map(borrowed).into_iter().collect();
        self.say(request, &(index | none).to_le_bytes(), &fds)
    }

    /// Stops a ring, and says where it stands.
    pub(super) fn stop_ring(&mut self, index: u32) -> u32 {
        let answer = self.ask(GET_VRING_BASE, &[index, 0].map(u32::to_le_bytes).concat());
        assert_eq!(answer[..4], index.to_le_bytes());
        u32::from_le_bytes(answer[4..].try_into().unwrap())
    }

    /// Everything but the kick and the word to begin.
    pub(super) fn set_up(&mut self, disk: &Disk, base: u32) {
        let index = disk.index;
        self.state(SET_VRING_NUM, index, disk.queue.setup().size.into()).unwrap();
        self.state(SET_VRING_BASE, index, base).unwrap();
        self.set_addresses(index, disk.addresses()).unwrap();
        self.notifier(SET_VRING_CALL, index.into(), Some(&disk.queue.interrupt)).unwrap();
    }

    /// Descriptors, used and available ring, as the client has them.
    pub(super) fn set_addresses(
        &mut self,
        index: u32,
        [descriptors, used, available]: [u64; 3],
    ) -> Result<(), String> {
        let mut payload = [index, 0].map(u32::to_le_bytes).concat();
        payload.extend([descriptors, used, available, 0].iter().flat_map(|field| field.to_le_bytes()));
        self.say(SET_VRING_ADDR, &payload, &[])
    }

    pub(super) fn begin(&mut self, disk: &Disk) {
        self.notifier(SET_VRING_KICK, disk.index.into(), Some(&disk.queue.doorbell)).unwrap();
        self.state(SET_VRING_ENABLE, disk.index, 1).unwrap();
    }

    /// A client that is served: its driver of virtqueue 0.
    pub(super) fn ready(path: &Path) -> (Frontend, Disk) {
        let mut frontend = Frontend::connect(path);
        frontend.greet(VERSION_1 | EVENT_IDX | FLUSH);
        frontend.share_memory();
        let disk = Disk::new(&frontend, 0);
        frontend.set_up(&disk, 0);
        frontend.begin(&disk);
        (frontend, disk)
    }
}

/// The driver's side of a virtqueue.
pub(super) struct Disk {
    pub(super) index: u32,
    pub(super) queue: Driver,
}

impl Disk {
    pub(super) fn new(frontend: &Frontend, index: u32) -> Disk {
        Disk { index, queue: Driver::of(Form::default(), &frontend.ram, AREA * u64::from(index), 64, true) }
    }

    /// One that wants an interrupt for each batch.
    pub(super) fn without_events(frontend: &Frontend, index: u32) -> Disk {
        Disk { index, queue: Driver::of(Form::default(), &frontend.ram, AREA * u64::from(index), 64, false) }
    }

    fn base(&self) -> u64 {
        AREA * u64::from(self.index)
    }

    /// Where `Driver` has the parts of its ring, at our user addresses.
    pub(super) fn addresses(&self) -> [u64; 3] {
        let setup = self.queue.setup();
        [setup.descriptors, setup.device, setup.driver].map(|address| USER + address)
    }

    /// Makes a request available, and does not kick.
    pub(super) fn offer(&mut self, tag: u64, kind: u32, sector: u64, len: u32) -> u16 {
        let header = self.base() + HEADERS + 32 * tag;
        self.queue.ram.write_obj(kind, GuestAddress(header)).unwrap();
        self.queue.ram.write_obj(sector, GuestAddress(header + 8)).unwrap();
        self.queue.ram.write_obj(0xff_u8, GuestAddress(header + 16)).unwrap();
        let mut buffers = vec![readable(header, 16)];
        if len > 0 {
            let data = self.data(tag);
            buffers.push(if kind == 1 { readable(data, len) } else { writable(data, len) });
        }
        buffers.push(writable(header + 16, 1));
        self.queue.add(&buffers).expect("there is room")
    }

    fn data(&self, tag: u64) -> u64 {
        self.base() + DATA + 4096 * tag
    }

    pub(super) fn status(&self, tag: u64) -> u8 {
        self.queue.ram.read_obj(GuestAddress(self.base() + HEADERS + 32 * tag + 16)).unwrap()
    }

    /// Writes and reads back the first sectors: whether the disk is served.
    pub(super) fn check(&mut self, byte: u8) {
        self.queue.ram.write_slice(&[byte; 4096], GuestAddress(self.data(0))).unwrap();
        self.offer(0, 1, 8, 4096);
        self.queue.kick();
        self.queue.wait_used();
        assert_eq!(self.status(0), 0, "written");
        self.offer(1, 0, 8, 4096);
        self.queue.kick();
        self.queue.wait_used();
        assert_eq!(self.status(1), 0, "read");
        let mut found = [0; 4096];
        self.queue.ram.read_slice(&mut found, GuestAddress(self.data(1))).unwrap();
        assert_eq!(found, [byte; 4096]);
    }
}
