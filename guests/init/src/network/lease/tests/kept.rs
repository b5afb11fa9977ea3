//! A lease over hours that pass at once: a server that is played, and an interface as the kernel would keep it.

use smoltcp::wire::{ArpPacket, ArpRepr};

use super::*;

const MAC_OF_SERVER: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);
const OTHER: Ipv4Address = Ipv4Address::new(10, 0, 2, 77);

/// How the server is.
#[derive(Debug, Clone, Copy)]
struct Server {
    /// Has the address that it gave leases by.
    has_address: bool,
    /// Hears what is sent to that address, and what is sent to all.
    hears_own: bool,
    hears_all: bool,
    /// What it gives, to whoever asks for that or for anything; others it refuses.
    gives: Ipv4Address,
    /// Gives it to those as well that ask for another.
    gives_anyway: bool,
    seconds: u32,
}

const THERE: Server = Server {
    has_address: true,
    hears_own: true,
    hears_all: true,
    gives: OURS,
    gives_anyway: false,
    seconds: 3600,
};
const GONE: Server = Server { has_address: false, hears_own: false, hears_all: false, ..THERE };

/// An address of the interface, and until when the kernel leaves it there.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Had {
    address: Ipv4Address,
    until: Instant,
}

struct Play {
    trial: Trial,
    /// When its next step is.
    due: Instant,
    server: Server,
    addresses: Vec<Had>,
    held: Option<Lease>,
    /// What happened, with the second.
    told: Vec<String>,
}

impl Play {
    fn new(server: Server) -> Play {
        let trial = Trial::new();
        let due = trial.now;
        Play { trial, due, server, addresses: Vec::new(), held: None, told: Vec::new() }
    }

    fn tell(&mut self, what: impl std::fmt::Display) {
        self.told.push(format!("{} {what}", self.trial.now.secs()));
    }

    /// Up to this second; what happened since it was last asked.
    fn until(&mut self, second: i64) -> Vec<String> {
        while self.due.secs() < second {
            self.pass_time(self.due);
            let Trial { keeper, device, now, .. } = &mut self.trial;
            let (news, next) = keeper.step(device, *now);
            if let Some(news) = news {
                self.apply(news);
            }
            let is_quiet = self.serve();
            let pause = match next {
                // What has arrived is there at once.
                Next::Listen(pause) if is_quiet => pause,
                Next::Listen(_) => Duration::ZERO,
                Next::Rest(rest) => {
                    assert!(rest >= Duration::from_secs(1), "nothing else gets its turn");
                    self.trial.wire.arriving.borrow_mut().clear();
                    rest
                }
            };
            // A clock ticks on, too.
            self.due += pause + Duration::from_micros(1);
        }
        self.pass_time(Instant::from_secs(second));
        std::mem::take(&mut self.told)
    }

    /// The kernel's part of it.
    fn pass_time(&mut self, to: Instant) {
        self.trial.now = to;
        self.addresses.retain(|had| had.until > to);
    }

    /// As `keep_on` and the kernel do it.
    fn apply(&mut self, news: News) {
        match news {
            News::Taken(lease) => {
                self.tell(format_args!("leased {}", lease.address));
                if let Some(before) = self.held.take()
                    && settings::is_to_go(&before, &lease)
                {
                    self.addresses.retain(|had| had.address != before.address);
                }
                let until = self.trial.now + Duration::from_secs(lease.seconds.into());
                self.addresses.retain(|had| had.address != lease.address);
                self.addresses.push(Had { address: lease.address, until });
                self.held = Some(lease);
            }
            News::Lost => {
                self.tell("lost");
                let before = self.held.take().expect("only what was there is lost");
                self.addresses.retain(|had| had.address != before.address);
            }
            News::Unanswered => self.tell("unanswered"),
        }
    }

    /// Answers what was sent; whether there is nothing on the wire then.
    fn serve(&mut self) -> bool {
        while let Some(frame) = { self.trial.wire.sent.borrow_mut().pop_front() } {
            let frame = EthernetFrame::new_checked(&frame[..]).unwrap();
            if frame.ethertype() == EthernetProtocol::Arp {
                self.answer_arp(frame.payload());
                continue;
            }
            let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
            let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
            let message = DhcpPacket::new_checked(datagram.payload()).unwrap();
            let message = DhcpRepr::parse(&message).unwrap();
            let (from, to) = (packet.src_addr(), packet.dst_addr());
            // RFC 2131, table 4: who renews says which address by its own.
            assert_eq!(message.client_ip, from);
            let kind = message.message_type;
            let asks = message.requested_ip.or(Some(from).filter(|from| !from.is_unspecified()));
            let whom = if to == Ipv4Address::BROADCAST { "all".to_owned() } else { to.to_string() };
            let what = asks.map_or(String::new(), |asks| format!(" for {asks}"));
            self.tell(format_args!("{kind:?} to {whom}{what}"));
            let server = self.server;
            let hears = if to == Ipv4Address::BROADCAST { server.hears_all } else { server.hears_own };
            let answer = match kind {
                DhcpMessageType::Discover => DhcpMessageType::Offer,
                _ if asks == Some(server.gives) || server.gives_anyway => DhcpMessageType::Ack,
                _ => DhcpMessageType::Nak,
            };
            let change = |message: &mut DhcpRepr<'_>| {
                message.lease_duration = Some(server.seconds);
                message.your_ip = server.gives;
            };
            if hears {
                self.trial.answer(answer, message.transaction_id, change, usize::MAX);
            }
        }
        self.trial.wire.arriving.borrow().is_empty()
    }

    fn answer_arp(&self, asked: &[u8]) {
        let asked = ArpRepr::parse(&ArpPacket::new_checked(asked).unwrap()).unwrap();
        let ArpRepr::EthernetIpv4 { operation, source_protocol_addr, target_protocol_addr, .. } = asked
        else {
            panic!("{asked:?}");
        };
        assert_eq!(operation, ArpOperation::Request, "it answers nobody");
        if target_protocol_addr == SERVER && self.server.has_address {
            self.trial.wire.arriving.borrow_mut().push_back(arp(
                ArpOperation::Reply,
                SERVER,
                source_protocol_addr,
            ));
        }
    }
}

/// From the server.
fn arp(operation: ArpOperation, from: Ipv4Address, to: Ipv4Address) -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: MAC_OF_SERVER,
        source_protocol_addr: from,
        target_hardware_addr: EthernetAddress(MAC),
        target_protocol_addr: to,
    };
    let ethernet = EthernetRepr {
        src_addr: MAC_OF_SERVER,
        dst_addr: EthernetAddress(MAC),
        ethertype: EthernetProtocol::Arp,
    };
    let mut bytes = vec![0; 14 + arp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    ethernet.emit(&mut frame);
    arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}

/// What a first lease takes.
const FIRST: [&str; 3] = ["0 Discover to all", "0 Request to all for 10.0.2.15", "0 leased 10.0.2.15"];

#[test]
fn a_lease_is_renewed_at_its_half_by_the_server_that_gave_it() {
    let mut play = Play::new(THERE);
    assert_eq!(play.until(1_799), FIRST);
    let first = play.addresses.clone();
    assert_eq!(play.until(3_599), ["1800 Request to 10.0.2.2 for 10.0.2.15", "1800 leased 10.0.2.15"]);
    assert_eq!(play.addresses.len(), 1);
    assert!(play.addresses[0].until > first[0].until + Duration::from_secs(1_799), "{first:?}");
    assert_eq!(play.until(3_700), ["3600 Request to 10.0.2.2 for 10.0.2.15", "3600 leased 10.0.2.15"]);
}

#[test]
fn a_server_that_does_not_answer_is_asked_again_and_from_seven_eighths_on_any() {
    let mut play = Play::new(THERE);
    assert_eq!(play.until(1), FIRST);
    play.server = Server { hears_own: false, ..THERE };
    let told = play.until(3_200);
    let (rebinding, renewing): (Vec<&str>, Vec<&str>) =
        told.iter().map(String::as_str).partition(|line| !line.contains("to 10.0.2.2"));
    assert_eq!(rebinding, ["1808 unanswered", "3150 Request to all for 10.0.2.15", "3150 leased 10.0.2.15"]);
    // RFC 2131, 4.4.5: half of what is left up to T2, and a minute at least.
    let seconds: Vec<&str> = renewing.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(seconds, ["1800", "2475", "2812", "2981", "3065", "3125"]);
}

#[test]
fn a_server_whose_address_is_gone_is_waited_for_and_any_other_asked_in_time() {
    let mut play = Play::new(THERE);
    assert_eq!(play.until(1), FIRST);
    play.server = Server { has_address: false, ..THERE };
    let told = play.until(3_400);
    assert_eq!(told[0], "1808 unanswered");
    // The last question to the old one may delay it.
    let second: i64 = told[1].split_once(" Request to all for 10.0.2.15").unwrap().0.parse().unwrap();
    assert!((3_150..3_150 + 72).contains(&second), "{told:?}");
    assert_eq!(told[2..], [format!("{second} leased 10.0.2.15")]);
}

#[test]
fn a_lease_that_nobody_renews_ends_with_its_address_and_a_new_one_is_asked_for() {
    let mut play = Play::new(THERE);
    assert_eq!(play.until(1), FIRST);
    play.server = GONE;
    play.until(3_599);
    assert_eq!(play.addresses.len(), 1, "up to its last second");
    let told = play.until(3_700);
    assert_eq!(play.addresses, []);
    let lost = told.iter().position(|line| line.ends_with(" lost")).expect("it is lost");
    assert!(told[lost + 1].ends_with(" Discover to all"), "{told:?}");
    assert!(!told.iter().skip(lost).any(|line| line.contains("Request")), "{told:?}");
    play.server = THERE;
    let told = play.until(3_900);
    let last: Vec<&str> =
        told.iter().rev().take(3).rev().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(last, ["Discover to all", "Request to all for 10.0.2.15", "leased 10.0.2.15"]);
    assert_eq!(play.addresses.len(), 1);
}

#[test]
fn another_address_takes_the_place_of_the_old_one() {
    let mut play = Play::new(THERE);
    assert_eq!(play.until(1), FIRST);
    play.server = Server { gives: OTHER, gives_anyway: true, ..THERE };
    assert_eq!(
        play.until(3_700),
        [
            "1800 Request to 10.0.2.2 for 10.0.2.15",
            "1800 leased 10.0.2.77",
            "3600 Request to 10.0.2.2 for 10.0.2.77",
            "3600 leased 10.0.2.77"
        ]
    );
    let addresses: Vec<Ipv4Address> = play.addresses.iter().map(|had| had.address).collect();
    assert_eq!(addresses, [OTHER]);
}

#[test]
fn an_address_that_is_refused_is_given_up_at_once_for_what_is_offered() {
    let mut play = Play::new(THERE);
    assert_eq!(play.until(1), FIRST);
    play.server = Server { gives: OTHER, ..THERE };
    assert_eq!(
        play.until(1_900),
        [
            "1800 Request to 10.0.2.2 for 10.0.2.15",
            "1800 lost",
            "1800 Discover to all",
            "1800 Request to all for 10.0.2.77",
            "1800 leased 10.0.2.77"
        ]
    );
    let addresses: Vec<Ipv4Address> = play.addresses.iter().map(|had| had.address).collect();
    assert_eq!(addresses, [OTHER]);
}

#[test]
fn nobody_is_asked_more_and_more_seldom_until_somebody_is_there() {
    let mut play = Play::new(GONE);
    let told = play.until(600);
    assert_eq!(told.iter().filter(|line| line.ends_with("unanswered")).count(), 1, "{told:?}");
    let seconds: Vec<i64> =
        told.iter().filter_map(|line| line.split_once(" Discover")?.0.parse().ok()).collect();
    let rests: Vec<i64> = seconds.windows(2).map(|pair| pair[1] - pair[0]).filter(|rest| *rest > 2).collect();
    assert!(rests.is_sorted() && rests.first() < Some(&6) && rests.last() >= Some(&64), "{rests:?}");
    play.server = THERE;
    assert!(play.until(700).last().unwrap().ends_with(" leased 10.0.2.15"));
}

#[test]
fn a_lease_of_seconds_leaves_time_for_others() {
    for seconds in [1, 7] {
        let mut play = Play::new(Server { seconds, ..THERE });
        let leased = play.until(600).iter().filter(|line| line.contains("leased")).count();
        assert!((30..=61).contains(&leased), "{seconds}: {leased}");
    }
    let mut forever = Play::new(Server { seconds: u32::MAX, ..THERE });
    assert_eq!(forever.until(1_000_000), FIRST);
}

#[test]
fn what_is_no_matter_of_dhcp_is_neither_heard_nor_answered() {
    let mut play = Play::new(THERE);
    assert_eq!(play.until(1), FIRST);
    let echo = {
        let ip = Ipv4Repr {
            src_addr: SERVER,
            dst_addr: OURS,
            next_header: IpProtocol::Icmp,
            payload_len: 8,
            hop_limit: 64,
        };
        let ethernet = EthernetRepr {
            src_addr: MAC_OF_SERVER,
            dst_addr: EthernetAddress(MAC),
            ethertype: EthernetProtocol::Ipv4,
        };
        let mut bytes = vec![0; 14 + 20 + 8];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        ethernet.emit(&mut frame);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &ChecksumCapabilities::default());
        // An echo request, with its checksum (RFC 792).
        packet.payload_mut().copy_from_slice(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
        bytes
    };
    let question = arp(ArpOperation::Request, SERVER, OURS);
    for frame in [&echo, &question] {
        assert!(!concerns_dhcp(frame));
        play.trial.wire.arriving.borrow_mut().push_back(frame.clone());
        assert_eq!(play.trial.turn(), None);
        assert!(play.trial.wire.sent.borrow().is_empty(), "the kernel answers that");
    }
    assert!(concerns_dhcp(&arp(ArpOperation::Reply, SERVER, OURS)));
    // The same client without the filter does: the test can fail.
    let Trial { wire, keeper, now, .. } = &mut play.trial;
    wire.arriving.borrow_mut().push_back(question);
    keeper.client.turn(&mut wire.clone(), *now);
    assert_eq!(wire.sent.borrow().len(), 1);
}
