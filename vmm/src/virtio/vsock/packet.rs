//! The header of every packet (virtio 1.3, 5.10.6).

/// virtio 1.3, 5.10.6: the length of the header.
pub(super) const HEADER_BYTES: usize = 44;
/// virtio 1.3, 5.10.4.1: the host's address.
pub(super) const HOST_CID: u64 = 2;

/// virtio 1.3, 5.10.6: type.
pub(super) const STREAM: u16 = 1;

/// virtio 1.3, 5.10.6: op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
    /// One that this version of the specification does not know.
    Other(u16),
}

impl Operation {
    pub(super) fn of(number: u16) -> Operation {
        match number {
            1 => Operation::Request,
            2 => Operation::Response,
            3 => Operation::Reset,
            4 => Operation::Shutdown,
            5 => Operation::Data,
            6 => Operation::CreditUpdate,
            7 => Operation::CreditRequest,
            other => Operation::Other(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            Operation::Request => 1,
            Operation::Response => 2,
            Operation::Reset => 3,
            Operation::Shutdown => 4,
            Operation::Data => 5,
            Operation::CreditUpdate => 6,
            Operation::CreditRequest => 7,
            Operation::Other(other) => other,
        }
    }
}

/// virtio 1.3, 5.10.6.5: flags of [`Operation::Shutdown`]: its sender receives no more, or sends no more.
pub(super) const RECEIVES_NO_MORE: u32 = 1;
pub(super) const SENDS_NO_MORE: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) target_cid: u64,
    pub(super) source_port: u32,
    pub(super) target_port: u32,
    /// Bytes of payload behind the header.
    pub(super) bytes: u32,
    pub(super) kind: u16,
    pub(super) operation: Operation,
    pub(super) flags: u32,
    /// How much its sender can keep of the connection's data.
    pub(super) buffer_bytes: u32,
    /// How much of it its sender has passed on so far, modulo 2³².
    pub(super) forwarded: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Header {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Header {
            source_cid: long(0),
            target_cid: long(8),
            source_port: word(16),
            target_port: word(20),
            bytes: word(24),
            kind: half(28),
            operation: Operation::of(half(30)),
            flags: word(32),
            buffer_bytes: word(36),
            forwarded: word(40),
        }
    }

    pub(super) fn write(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.source_cid.to_le_bytes());
        put(&self.target_cid.to_le_bytes());
        put(&self.source_port.to_le_bytes());
        put(&self.target_port.to_le_bytes());
        put(&self.bytes.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.operation.number().to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buffer_bytes.to_le_bytes());
        put(&self.forwarded.to_le_bytes());
        bytes
    }

    /// What answers a packet that belongs to no connection; `None` for one that is such an answer itself.
    pub(super) fn refusal(&self) -> Option<Header> {
        (self.operation != Operation::Reset).then_some(Header {
            source_cid: self.target_cid,
            target_cid: self.source_cid,
            source_port: self.target_port,
            target_port: self.source_port,
            bytes: 0,
            kind: self.kind,
            operation: Operation::Reset,
            flags: 0,
            buffer_bytes: 0,
            forwarded: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_bytes() {
        let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|at| at as u8 + 1);
        let header = Header::parse(&bytes);
        assert_eq!(header.write(), bytes);
        assert_eq!(header.source_cid, 0x0807_0605_0403_0201);
        assert_eq!((header.bytes, header.kind), (0x1c1b_1a19, 0x1e1d));
        assert_eq!(header.operation, Operation::Other(0x201f));
    }

    #[test]
    fn every_operation_has_its_number() {
        for number in 0..10 {
            assert_eq!(Operation::of(number).number(), number);
        }
    }

    #[test]
    fn nobody_answers_a_reset() {
        let mut header = Header::parse(&[0; HEADER_BYTES]);
        header.operation = Operation::Data;
        (header.source_port, header.target_port) = (7, 9);
        let refusal = header.refusal().unwrap();
        assert_eq!((refusal.operation, refusal.source_port, refusal.target_port), (Operation::Reset, 9, 7));
        assert_eq!(refusal.refusal(), None);
    }
}
