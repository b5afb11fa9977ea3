//! What the first process asks of the kernel's network stack, one netlink message each (rtnetlink(7), linux/rtnetlink.h,
//! linux/if_addr.h): an interface is brought up, gets an address, loses it, and has
//! routes.

use std::io;
use std::net::Ipv4Addr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// Always the first interface of a network namespace. What talks to itself over 127.0.0.1 works in a guest without any other.
pub(crate) const LOOPBACK: u32 = 1;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_CACHEINFO: u16 = 6;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_DHCP: u8 = 16;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;
/// The gateway is on this link, whatever the addresses say: some leases have a mask of 32 bits.
const RTNH_F_ONLINK: u32 = 4;

pub(crate) fn set_up(interface: u32) -> io::Result<()> {
    ask(&link(interface, IFF_UP, None))
}

pub(crate) fn set_mtu(interface: u32, bytes: u32) -> io::Result<()> {
    ask(&link(interface, 0, Some(bytes)))
}

/// Gives the interface this address, or the one that it has anew. The kernel takes it away after `seconds`; `u32::MAX` is never.
pub(crate) fn set_address(interface: u32, address: Ipv4Addr, prefix: u8, seconds: u32) -> io::Result<()> {
    ask(&self::address(interface, address, prefix, seconds))
}

/// The error is `EADDRNOTAVAIL` where the interface does not have it.
pub(crate) fn remove_address(interface: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    ask(&no_address(interface, address, prefix))
}

/// What is not on any link goes there. Of several such routes that with the lowest `metric` is taken.
pub(crate) fn set_default_route(interface: u32, gateway: Ipv4Addr, metric: u32) -> io::Result<()> {
    ask(&route(interface, gateway, metric))
}

fn link(interface: u32, flags: u32, mtu: Option<u32>) -> Vec<u8> {
    let mut message = Message::new(RTM_NEWLINK, 0);
    message.bytes([0; 4]); // family, padding, device type
    message.bytes(interface.to_ne_bytes());
    message.bytes(flags.to_ne_bytes());
    message.bytes(flags.to_ne_bytes()); // which of them to change
    if let Some(mtu) = mtu {
        message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
    }
    message.finish()
}

fn address(interface: u32, address: Ipv4Addr, prefix: u8, seconds: u32) -> Vec<u8> {
    let mut message =
        Message::of_address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, interface, address, prefix);
    // A link between two (RFC 3021) has none.
    if prefix < 31 {
        let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or_default();
        message.attribute(IFA_BROADCAST, &(address.to_bits() | host).to_be_bytes());
    }
    // Preferred, valid, made, changed.
    let times = [seconds, seconds, 0, 0].map(u32::to_ne_bytes);
    message.attribute(IFA_CACHEINFO, times.as_flattened());
    message.finish()
}

fn no_address(interface: u32, address: Ipv4Addr, prefix: u8) -> Vec<u8> {
    Message::of_address(RTM_DELADDR, 0, interface, address, prefix).finish()
}

fn route(interface: u32, gateway: Ipv4Addr, metric: u32) -> Vec<u8> {
    let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
    message.bytes([AF_INET, 0, 0, 0]); // lengths of destination and source, type of service
    message.bytes([RT_TABLE_MAIN, RTPROT_DHCP, RT_SCOPE_UNIVERSE, RTN_UNICAST]);
    message.bytes(RTNH_F_ONLINK.to_ne_bytes());
    message.attribute(RTA_GATEWAY, &gateway.octets());
    message.attribute(RTA_OIF, &interface.to_ne_bytes());
    message.attribute(RTA_PRIORITY, &metric.to_ne_bytes());
    message.finish()
}

/// nlmsghdr, and what follows.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut message = Message(vec![0; 4]); // its length, once it is known
        message.bytes(kind.to_ne_bytes());
        message.bytes((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.bytes([0; 8]); // sequence, port
        message
    }

    /// ifaddrmsg, and which address it is.
    fn of_address(kind: u16, flags: u16, interface: u32, address: Ipv4Addr, prefix: u8) -> Self {
        let mut message = Message::new(kind, flags);
        message.bytes([AF_INET, prefix, 0, RT_SCOPE_UNIVERSE]);
        message.bytes(interface.to_ne_bytes());
        message.attribute(IFA_LOCAL, &address.octets());
        message.attribute(IFA_ADDRESS, &address.octets());
        message
    }

    fn bytes<const N: usize>(&mut self, bytes: [u8; N]) {
        self.0.extend(bytes);
    }

    /// rtattr: length and kind, then the value, up to a multiple of four.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes((4 + value.len() as u16).to_ne_bytes());
        self.bytes(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0.splice(..4, length);
        self.0
    }
}

fn ask(message: &[u8]) -> io::Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // Without an address the message goes to the kernel.
    send(&socket, message, SendFlags::empty())?;
    let mut answer = [0; 512];
    let (_, length) = recv(&socket, &mut answer, RecvFlags::empty())?;
    outcome(answer.get(..length).unwrap_or_default())
}

/// nlmsgerr: a negative errno after the header, 0 for done.
fn outcome(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        _ => Err(Errno::BADMSG.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

    #[test]
    fn messages_are_as_long_as_they_say_and_end_on_a_word() {
        for message in [
            link(LOOPBACK, IFF_UP, None),
            link(2, 0, Some(9000)),
            address(2, OURS, 24, 3600),
            address(2, OURS, 32, u32::MAX),
            no_address(2, OURS, 24),
            route(2, Ipv4Addr::new(10, 0, 2, 2), 100),
        ] {
            assert_eq!(u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize, message.len());
            assert_eq!(message.len() % 4, 0);
        }
    }

    #[test]
    fn a_broadcast_address_is_the_last_of_the_network_where_there_is_one() {
        let has = |prefix: u8, broadcast: [u8; 4]| {
            let mut attribute = vec![8, 0, IFA_BROADCAST as u8, 0];
            attribute.extend(broadcast);
            address(2, OURS, prefix, 1).windows(8).any(|window| window == attribute)
        };
        assert!(has(24, [10, 0, 2, 255]) && has(8, [10, 255, 255, 255]) && has(0, [255; 4]));
        assert!(!has(31, [10, 0, 2, 15]) && !has(32, [10, 0, 2, 15]));
    }

    /// In a namespace of its own: threads of a test have one each only as root, so the kernel's answer to a device that does
    /// not exist has to do.
    #[test]
    fn the_kernel_understands_what_it_is_asked() {
        let none = i32::MAX as u32;
        for answer in [set_address(none, OURS, 24, 60), set_mtu(none, 1500), set_up(none)] {
            let error = answer.unwrap_err().raw_os_error();
            // No such device, or not for whoever is not root there: never that a message is malformed.
            assert!(matches!(error, Some(19 | 1)), "{error:?}");
        }
    }

    #[test]
    fn the_answer_of_the_kernel_is_its_errno() {
        let answer = |error: i32| {
            let mut bytes = vec![0; 36];
            bytes[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            bytes[16..20].copy_from_slice(&error.to_ne_bytes());
            outcome(&bytes)
        };
        assert!(answer(0).is_ok());
        assert_eq!(answer(-1).unwrap_err().raw_os_error(), Some(1));
        assert!(outcome(&[0; 3]).is_err());
    }
}
