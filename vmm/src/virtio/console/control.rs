//! The messages of the control queues (virtio 1.3, 5.3.6.2): which ports there are, what they are called, and who has
//! opened them.

/// The header of every message: port, event, value.
pub const HEADER_BYTES: usize = 8;

/// virtio 1.3, 5.3.6.2: kinds of message.
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const PORT_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// What the driver says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromDriver {
    /// It is there, and wants to hear of the ports. `false`: it failed.
    DeviceReady(bool),
    /// It has made the port, or could not.
    PortReady { port: u32, ready: bool },
    /// A process in the guest opened the port, or closed it.
    PortOpen { port: u32, open: bool },
    /// Nothing that concerns us.
    Other,
}

impl FromDriver {
    /// What is too short to be a message concerns nobody.
    pub fn parse(bytes: &[u8]) -> FromDriver {
        let Some([p0, p1, p2, p3, e0, e1, v0, v1]) = bytes.first_chunk::<HEADER_BYTES>() else {
            return FromDriver::Other;
        };
        let port = u32::from_le_bytes([*p0, *p1, *p2, *p3]);
        let value = u16::from_le_bytes([*v0, *v1]) != 0;
        match u16::from_le_bytes([*e0, *e1]) {
            event::DEVICE_READY => FromDriver::DeviceReady(value),
            event::PORT_READY => FromDriver::PortReady { port, ready: value },
            event::PORT_OPEN => FromDriver::PortOpen { port, open: value },
            _ => FromDriver::Other,
        }
    }
}

/// What the device says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "the specification's names, as in FromDriver")]
pub enum ToDriver {
    PortAdd {
        port: u32,
    },
    PortName {
        port: u32,
        name: String,
    },
    /// Somebody is at the other end of the port, or no more.
    PortOpen {
        port: u32,
        open: bool,
    },
}

impl ToDriver {
    pub fn bytes(&self) -> Vec<u8> {
        let (port, event, value, rest) = match self {
            ToDriver::PortAdd { port } => (port, event::PORT_ADD, 1u16, ""),
            ToDriver::PortName { port, name } => (port, event::PORT_NAME, 1, name.as_str()),
            ToDriver::PortOpen { port, open } => (port, event::PORT_OPEN, u16::from(*open), ""),
        };
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        bytes.extend(rest.as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_messages_are_told_apart() {
        let parse = |port: u8, event: u8, value: u8| FromDriver::parse(&[port, 0, 0, 0, event, 0, value, 0]);
        assert_eq!(parse(0, 0, 1), FromDriver::DeviceReady(true));
        assert_eq!(parse(2, 3, 0), FromDriver::PortReady { port: 2, ready: false });
        assert_eq!(parse(3, 6, 1), FromDriver::PortOpen { port: 3, open: true });
        assert_eq!(parse(3, 5, 1), FromDriver::Other);
        assert_eq!(FromDriver::parse(&[0; 7]), FromDriver::Other);
    }

    #[test]
    fn a_name_follows_its_header() {
        let name = ToDriver::PortName { port: 1, name: "vmprof.control".into() };
        assert_eq!(name.bytes(), b"\x01\0\0\0\x07\0\x01\0vmprof.control");
        assert_eq!(ToDriver::PortOpen { port: 2, open: false }.bytes(), [2, 0, 0, 0, 6, 0, 0, 0]);
    }
}
