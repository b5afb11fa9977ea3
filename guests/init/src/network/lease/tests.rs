use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use proptest::prelude::*;
use smoltcp::phy::{self, ChecksumCapabilities};
use smoltcp::wire::{
    DhcpMessageType, DhcpOption, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Address,
    Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use super::*;

mod kept;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const SERVER: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
const OURS: Ipv4Address = Ipv4Address::new(10, 0, 2, 15);

/// What is changed about a server's usual answer.
type Change = &'static dyn Fn(&mut DhcpRepr<'_>);

/// A wire: what the client has sent, and what it will find.
#[derive(Clone, Default)]
struct Wire {
    sent: Rc<RefCell<VecDeque<Vec<u8>>>>,
    arriving: Rc<RefCell<VecDeque<Vec<u8>>>>,
}

struct Arrived(Vec<u8>);
struct Sending(Rc<RefCell<VecDeque<Vec<u8>>>>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for Sending {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut frame = vec![0; length];
        let written = write(&mut frame);
        self.0.borrow_mut().push_back(frame);
        written
    }
}

impl Device for Wire {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Sending;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Sending)> {
        let frame = self.arriving.borrow_mut().pop_front()?;
        Some((Arrived(frame), Sending(self.sent.clone())))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending> {
        Some(Sending(self.sent.clone()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A client on a wire, at a time of its own.
struct Trial {
    wire: Wire,
    device: ForDhcp<Wire>,
    keeper: Keeper,
    now: Instant,
}

impl Trial {
    fn new() -> Trial {
        let wire = Wire::default();
        let mut device = ForDhcp(wire.clone());
        let keeper = Keeper::new(&mut device, MAC, 7, Instant::from_millis(1));
        Trial { wire, device, keeper, now: Instant::from_millis(1) }
    }

    fn turn(&mut self) -> Option<Lease> {
        match self.keeper.client.turn(&mut self.device, self.now) {
            Some(News::Taken(lease)) => Some(lease),
            other => {
                assert_eq!(other, None);
                None
            }
        }
    }

    /// The kind and the transaction of the next message that was sent.
    fn sent(&mut self) -> Option<(DhcpMessageType, u32)> {
        let frame = self.wire.sent.borrow_mut().pop_front()?;
        let frame = EthernetFrame::new_checked(&frame[..]).unwrap();
        let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
        let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
        assert_eq!((datagram.src_port(), datagram.dst_port()), (68, 67));
        let message = DhcpPacket::new_checked(datagram.payload()).unwrap();
        let message = DhcpRepr::parse(&message).unwrap();
        Some((message.message_type, message.transaction_id))
    }

    /// Whatever `change` makes of a server's usual answer arrives, in one frame or in part of one.
    fn answer(
        &self,
        kind: DhcpMessageType,
        transaction: u32,
        change: impl Fn(&mut DhcpRepr<'_>),
        length: usize,
    ) {
        let options = [
            DhcpOption { kind: MTU, data: &[0x23, 0x28] },
            DhcpOption { kind: DOMAIN, data: b"lab.example" },
        ];
        let mut message = DhcpRepr {
            message_type: kind,
            transaction_id: transaction,
            secs: 0,
            client_hardware_address: EthernetAddress(MAC),
            client_ip: Ipv4Address::UNSPECIFIED,
            your_ip: OURS,
            server_ip: SERVER,
            router: Some(SERVER),
            subnet_mask: Some(Ipv4Address::new(255, 255, 255, 0)),
            relay_agent_ip: Ipv4Address::UNSPECIFIED,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(SERVER),
            parameter_request_list: None,
            dns_servers: Some([Ipv4Address::new(10, 0, 2, 3)].into_iter().collect()),
            max_size: None,
            lease_duration: Some(3600),
            renew_duration: None,
            rebind_duration: None,
            additional_options: &options,
        };
        change(&mut message);
        let udp = UdpRepr { src_port: 67, dst_port: 68 };
        let ip = Ipv4Repr {
            src_addr: SERVER,
            dst_addr: OURS,
            next_header: IpProtocol::Udp,
            payload_len: 8 + message.buffer_len(),
            hop_limit: 64,
        };
        let ethernet = EthernetRepr {
            src_addr: EthernetAddress([0x52, 0x55, 10, 0, 2, 2]),
            dst_addr: EthernetAddress(MAC),
            ethertype: EthernetProtocol::Ipv4,
        };
        let mut bytes = vec![0; 14 + 20 + 8 + message.buffer_len()];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        ethernet.emit(&mut frame);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &ChecksumCapabilities::default());
        let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
        let emit = |payload: &mut [u8]| message.emit(&mut DhcpPacket::new_unchecked(payload)).unwrap();
        let (from, to) = (SERVER.into(), OURS.into());
        udp.emit(&mut datagram, &from, &to, message.buffer_len(), emit, &ChecksumCapabilities::default());
        // As a bridge on the server's own machine passes it on.
        datagram.set_checksum(0x1234);
        bytes.truncate(length);
        self.wire.arriving.borrow_mut().push_back(bytes);
    }

    /// Up to the request, whose transaction it returns.
    fn offered(&mut self) -> u32 {
        assert_eq!(self.turn(), None);
        let (kind, transaction) = self.sent().unwrap();
        assert_eq!(kind, DhcpMessageType::Discover);
        self.answer(DhcpMessageType::Offer, transaction, |_| {}, usize::MAX);
        assert_eq!(self.turn(), None);
        assert_eq!(self.turn(), None);
        let (kind, transaction) = self.sent().unwrap();
        assert_eq!(kind, DhcpMessageType::Request);
        transaction
    }
}

#[test]
fn a_lease_is_what_the_server_gave() {
    let mut trial = Trial::new();
    let transaction = trial.offered();
    trial.answer(DhcpMessageType::Ack, transaction, |_| {}, usize::MAX);
    let expected = Lease {
        address: OURS,
        prefix: 24,
        router: Some(SERVER),
        nameservers: vec![Ipv4Addr::new(10, 0, 2, 3)],
        domain: Some("lab.example".into()),
        mtu: Some(9000),
        seconds: 3600,
    };
    assert_eq!(trial.turn(), Some(expected));
}

#[test]
fn questions_are_asked_again_until_somebody_answers() {
    let mut trial = Trial::new();
    for _ in 0..3 {
        assert_eq!(trial.turn(), None);
        assert_eq!(trial.sent().map(|(kind, _)| kind), Some(DhcpMessageType::Discover));
        assert_eq!(trial.turn(), None);
        assert_eq!(trial.sent(), None);
        let pause = trial.keeper.client.pause(trial.now);
        assert!(pause > Duration::ZERO && pause <= ASKED_AGAIN);
        trial.now += ASKED_AGAIN;
    }
}

#[test]
fn answers_that_are_for_others_or_make_no_network_are_passed_by() {
    let wrong: [(&str, Change); 6] = [
        ("another's", &|message| message.client_hardware_address = EthernetAddress([2; 6])),
        ("of another question", &|message| message.transaction_id ^= 1),
        ("of nobody", &|message| message.server_identifier = None),
        ("without a mask", &|message| message.subnet_mask = None),
        ("with holes in the mask", &|message| message.subnet_mask = Some(Ipv4Address::new(255, 0, 255, 0))),
        ("with an address of many", &|message| message.your_ip = Ipv4Address::new(224, 0, 0, 1)),
    ];
    for (what, change) in wrong {
        let mut trial = Trial::new();
        let transaction = trial.offered();
        trial.answer(DhcpMessageType::Ack, transaction, change, usize::MAX);
        assert_eq!(trial.turn(), None, "{what}");
        trial.answer(DhcpMessageType::Ack, transaction, |_| {}, usize::MAX);
        assert!(trial.turn().is_some(), "{what}: the right one still comes");
    }
}

#[test]
fn an_mtu_that_no_network_has_is_none() {
    let mut trial = Trial::new();
    let transaction = trial.offered();
    let options = [DhcpOption { kind: MTU, data: &[0, 67] }];
    let small = |message: &mut DhcpRepr<'_>| {
        message.additional_options = Vec::leak(options.to_vec());
        message.lease_duration = None;
    };
    trial.answer(DhcpMessageType::Ack, transaction, small, usize::MAX);
    let lease = trial.turn().unwrap();
    assert_eq!((lease.mtu, lease.domain, lease.seconds), (None, None, USUAL_SECONDS));
}

proptest! {
    /// Whatever arrives, cut short or changed, the client goes on, and takes no lease that has no address.
    #[test]
    fn no_frame_stops_the_client(
        changes in prop::collection::vec((14usize..600, any::<u8>()), 0..8),
        length in 0usize..700,
        noise in prop::collection::vec(any::<u8>(), 0..700),
    ) {
        let mut trial = Trial::new();
        let transaction = trial.offered();
        trial.answer(DhcpMessageType::Ack, transaction, |_| {}, length);
        if let Some(frame) = trial.wire.arriving.borrow_mut().back_mut() {
            for (at, byte) in changes {
                if let Some(place) = frame.get_mut(at) {
                    *place ^= byte;
                }
            }
        }
        trial.wire.arriving.borrow_mut().push_back(noise);
        for _ in 0..4 {
            if let Some(lease) = trial.turn() {
                prop_assert!(!lease.address.is_unspecified() && lease.prefix <= 32);
            }
            trial.now += ASKED_AGAIN;
        }
    }
}
