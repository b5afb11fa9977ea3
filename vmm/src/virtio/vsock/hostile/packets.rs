//! What the guest sends, and what it is sent.

use vm_memory::{Bytes, GuestAddress};

use super::caller::{FIRST_GUEST_PORT, content};
use super::{MOST_CALLERS, QUEUE_SIZE, Script, World};
use crate::virtio::mock::{readable, writable};
use crate::virtio::vsock::GUEST_CID;
use crate::virtio::vsock::muxer::FIRST_PORT;
use crate::virtio::vsock::packet::{HEADER_BYTES, HOST_CID, Header, Operation, RECEIVES_NO_MORE, STREAM};

const TO_DEVICE: u64 = 0x8_0000;
const FROM_DEVICE: u64 = 0x10_0000;
/// Of guest memory, for one packet.
const PLACE_BYTES: u64 = 0x4000;
pub(super) const HEADER: u32 = HEADER_BYTES as u32;
/// A packet in one piece ([`World::send`]).
pub(super) const SHAPE_WHOLE: u8 = 15;

/// A packet on its way to the device.
pub(super) struct Sent {
    pub(super) place: u64,
    pub(super) header: Header,
    pub(super) payload_bytes: u32,
}

impl World {
    /// Gives the device a buffer of so many bytes, where there is room. `false`: there was none.
    pub(super) fn offer(&mut self, bytes: u32, in_parts: bool) -> bool {
        let Some(place) = free_place(FROM_DEVICE, self.offered.values().map(|(place, _)| *place)) else {
            return false;
        };
        let whole = [writable(place, bytes)];
        // The last is the driver's own to be read, which has no business here and is passed over.
        let parts = [writable(place, 7), writable(place + 7, bytes - 7), readable(TO_DEVICE, 1)];
        let Some(head) = self.receive.add(if in_parts { &parts } else { &whole }) else { return false };
        self.receive.kick();
        self.offered.insert(head, (place, bytes));
        true
    }

    pub(super) fn send_something(&mut self, script: &mut Script<'_>) {
        let number = script.byte() % MOST_CALLERS as u8;
        let caller = self.callers.get(usize::from(number));
        let (heard, guest_port) =
            (caller.map_or(0, |caller| caller.heard as u32), FIRST_GUEST_PORT + u32::from(number));
        let operation = script.byte();
        let operation =
            Operation::of(if operation < 240 { u16::from(operation % 8) } else { operation.into() });
        let payload_bytes = script.one_of(&[0, 1, 100, 4096, 0x3000]);
        let mut header = Header {
            source_cid: GUEST_CID,
            target_cid: HOST_CID,
            source_port: guest_port,
            target_port: FIRST_PORT + u32::from(number),
            bytes: payload_bytes,
            kind: STREAM,
            operation,
            flags: script.byte().into(),
            buffer_bytes: script.one_of(&[6000, 0, 1, 1 << 18, u32::MAX]),
            forwarded: heard,
        };
        if script.seldom() {
            let number = script.number();
            match script.byte() % 8 {
                0 => header.source_cid = number.into(),
                1 => header.target_cid = number.into(),
                2 => header.source_port = number,
                3 => header.target_port = number,
                4 => header.kind = number as u16,
                5 => header.bytes = number,
                6 => header.bytes = payload_bytes.saturating_sub(number % 100),
                _ => header.forwarded = number,
            }
        }
        self.send(header, payload_bytes, script.byte() % 16);
    }

    /// Packets of no connection: each is due an answer.
    pub(super) fn send_strays(&mut self, count: u32) {
        for number in 0..count {
            let header = Header {
                source_cid: GUEST_CID,
                target_cid: HOST_CID,
                source_port: number,
                target_port: number,
                bytes: 0,
                kind: STREAM,
                operation: Operation::Request,
                flags: 0,
                buffer_bytes: 0,
                forwarded: 0,
            };
            self.send(header, 0, SHAPE_WHOLE);
            self.turn();
        }
    }

    /// `shape`: how the packet lies in guest memory. `false`: there is no room for it now.
    pub(super) fn send(&mut self, header: Header, payload_bytes: u32, shape: u8) -> bool {
        let Some(place) = free_place(TO_DEVICE, self.sent.values().map(|sent| sent.place)) else {
            return false;
        };
        // What it carries depends on those before it, which may not be taken yet.
        if payload_bytes > 0 && !self.sent.is_empty() {
            return false;
        }
        let caller = self.callers.get(header.source_port.wrapping_sub(FIRST_GUEST_PORT) as usize);
        let from = caller.map_or(0, |caller| caller.sent);
        let payload = from..from + payload_bytes as usize;
        let payload: Vec<u8> = payload.map(|at| content(header.source_port, at)).collect();
        self.ram.write_slice(&header.write(), GuestAddress(place)).unwrap();
        self.ram.write_slice(&payload, GuestAddress(place + u64::from(HEADER))).unwrap();
        let all = HEADER + payload_bytes;
        let cut = match shape {
            0 => 7,
            1 => all / 2,
            2 => HEADER,
            // Shorter than a header: no packet at all.
            3 => {
                let Some(head) = self.transmit.add(&[readable(place, HEADER - 1)]) else { return false };
                self.transmit.kick();
                let header = Header { source_cid: 0, ..header };
                self.sent.insert(head, Sent { place, header, payload_bytes });
                return true;
            }
            _ => all,
        };
        let parts =
            [readable(place, cut), writable(FROM_DEVICE, 1), readable(place + u64::from(cut), all - cut)];
        let Some(head) = self.transmit.add(if cut < all { &parts } else { &parts[..1] }) else {
            return false;
        };
        self.transmit.kick();
        self.sent.insert(head, Sent { place, header, payload_bytes });
        true
    }

    pub(super) fn break_ring(&mut self, how: u8) {
        let buffer =
            if how.is_multiple_of(2) { readable(u64::MAX - 4096, HEADER) } else { readable(0xfff_0000, 8) };
        // A device that waits until its answers are taken does not see it.
        if !self.handler.muxer.is_full() && self.transmit.add(&[buffer]).is_some() {
            self.transmit.kick();
            self.is_broken = true;
        }
    }

    /// What the guest may conclude from a packet that was taken; the end of something from the next turn on.
    pub(super) fn was_taken(&mut self, sent: &Sent) -> Option<(usize, Operation)> {
        let header = &sent.header;
        if (header.source_cid, header.target_cid, header.kind) != (GUEST_CID, HOST_CID, STREAM) {
            return None;
        }
        let at = header.target_port.wrapping_sub(FIRST_PORT) as usize;
        let caller = self.callers.get_mut(at)?;
        // A guess, or of another: no word in this conversation.
        if !caller.has_called() || caller.guest_port() != header.source_port {
            return None;
        }
        caller.credits.push((header.buffer_bytes, header.forwarded));
        caller.sent += carried(sent) as usize;
        match header.operation {
            Operation::Reset => Some((at, Operation::Reset)),
            Operation::Shutdown if header.flags & RECEIVES_NO_MORE != 0 => Some((at, Operation::Shutdown)),
            _ => None,
        }
    }

    /// A packet of the device's.
    pub(super) fn hear(&mut self, place: u64, room: u32, written: u32) {
        assert_eq!(written.min(HEADER), room.min(HEADER), "less than a header");
        if room < HEADER {
            return;
        }
        let mut bytes = vec![0; written as usize];
        self.ram.read_slice(&mut bytes, GuestAddress(place)).unwrap();
        let (header, payload) = bytes.split_first_chunk().unwrap();
        let header = Header::parse(header);
        assert_eq!((header.source_cid, header.target_cid), (HOST_CID, GUEST_CID));
        assert_eq!(header.bytes as usize, payload.len());
        let at = header.source_port.wrapping_sub(FIRST_PORT) as usize;
        let caller = self.callers.get_mut(at).filter(|caller| caller.guest_port() == header.target_port);
        let Some(caller) = caller.filter(|_| header.kind == STREAM) else {
            // The answer to a packet of nothing.
            assert_eq!(header.operation, Operation::Reset);
            return;
        };
        if header.operation == Operation::Reset {
            // Before the guest was asked, it answers a guess.
            caller.is_over |= caller.was_asked_for;
            return;
        }
        assert!(!caller.is_over, "{:?} of a connection that is over", header.operation);
        assert!(header.forwarded as usize <= caller.sent);
        caller.was_asked_for |= header.operation == Operation::Request;
        if header.operation == Operation::Data {
            assert!(!payload.is_empty() && !caller.is_deaf);
            let port = caller.guest_port();
            for byte in payload {
                assert_eq!(*byte, content(port, caller.heard), "byte {} to {port}", caller.heard);
                caller.heard += 1;
            }
            assert!(caller.heard <= caller.wrote, "more came than was written");
            let heard = caller.heard as u32;
            let fits = |(room, count): &(u32, u32)| heard.wrapping_sub(*count) <= *room;
            assert!(caller.credits.iter().any(fits), "{heard} bytes, and room for {:?}", caller.credits);
        }
    }
}

/// The first of the places from `first` on that no packet has.
fn free_place(first: u64, taken: impl Iterator<Item = u64>) -> Option<u64> {
    let taken: Vec<u64> = taken.collect();
    let places = (0..u64::from(QUEUE_SIZE)).map(|number| first + number * PLACE_BYTES);
    places.into_iter().find(|place| !taken.contains(place))
}

/// What of its payload a packet has as data.
fn carried(sent: &Sent) -> u32 {
    let is_whole = sent.header.operation == Operation::Data && sent.header.bytes <= sent.payload_bytes;
    if is_whole { sent.header.bytes } else { 0 }
}
