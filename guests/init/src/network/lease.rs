//! The lease of one interface (RFC 2131), taken and kept by a process of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use rustix::process::{Signal, set_parent_process_death_signal};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RawSocket, RxToken, wait};
use smoltcp::socket::dhcpv4::{self, Event};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpPacket, DhcpRepr, EthernetAddress,
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Cidr, Ipv4Packet, UdpPacket,
};
use vmprof_mac::MacAddress;

use super::settings::{self, Names};
use crate::kmsg;

/// How long it asks before it rests.
const ASKED_FOR: Duration = Duration::from_secs(8);
/// A link that has just come up loses the first question now and then.
const ASKED_AGAIN: Duration = Duration::from_millis(1500);
/// Of a lease that is shorter than anybody means: something else is done, too.
const LEAST_REST: Duration = Duration::from_secs(10);
/// As DHCP clients take it where the server does not say (smoltcp has it so, too).
const USUAL_SECONDS: u32 = 120;

/// Options of DHCP (RFC 2132).
const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const NAMESERVERS: u8 = 6;
const DOMAIN: u8 = 15;
const MTU: u8 = 26;

/// What a server gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) router: Option<Ipv4Addr>,
    pub(super) nameservers: Vec<Ipv4Addr>,
    pub(super) domain: Option<String>,
    /// Bytes; what no Ethernet has is left out.
    pub(super) mtu: Option<u16>,
    /// `u32::MAX` is for ever.
    pub(super) seconds: u32,
}

impl Lease {
    fn names(&self) -> Names {
        Names { nameservers: self.nameservers.clone(), domain: self.domain.clone() }
    }
}

/// The whole role: the device's name, an interface that is up, its index, and the metric of its routes. Prints a line for each
/// lease and for the loss of one ([`Names::line`]); ends well with a lease that has no end.
pub(crate) fn keep(arguments: &[OsString]) -> ExitCode {
    kmsg::open();
    // It stays through a clean stop, as the one that started it, and ends with that.
    let _ = signal_hook::flag::register(Signal::TERM.as_raw(), Arc::default());
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let kept = match words.as_slice() {
        [device, interface, index, metric] => match (index.parse(), metric.parse()) {
            (Ok(index), Ok(metric)) => keep_on(device, interface, index, metric),
            _ => Err("no numbers".to_owned()),
        },
        _ => Err("no interface".to_owned()),
    };
    match kept {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn keep_on(device: &str, interface: &str, index: u32, metric: u32) -> Result<(), String> {
    let told = |error: std::io::Error| format!("{interface}: {error}");
    let address = std::fs::read_to_string(format!("/sys/class/net/{interface}/address")).map_err(told)?;
    let mac: MacAddress =
        address.trim().parse().map_err(|_| format!("{interface} has no hardware address"))?;
    let mut seed = [0; 8];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut seed)).map_err(told)?;
    let open = || RawSocket::new(interface, Medium::Ethernet).map(ForDhcp).map_err(told);
    // Not the clock of the wall, which somebody may set.
    let began = std::time::Instant::now();
    let now = || Instant::from_micros(1 + i64::try_from(began.elapsed().as_micros()).unwrap_or(i64::MAX - 1));
    let mut keeper = Keeper::new(&mut open()?, mac.octets(), u64::from_ne_bytes(seed), now());
    let mut held: Option<Lease> = None;
    loop {
        // It hears all packets of the guest's, so it is closed while there is nothing to ask.
        let mut socket = open()?;
        let descriptor = socket.0.as_raw_fd();
        // A server's answer to an address that is in use would be refused by the kernel, which knows of nobody at that port. The
        // client of another device may have it: it does for all.
        let port = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DHCP_CLIENT_PORT));
        let rest = loop {
            let (news, next) = keeper.step(&mut socket, now());
            match news {
                Some(News::Taken(lease)) => {
                    settings::apply(&lease, held.as_ref(), index, metric)?;
                    tell(&Some(lease.names()))?;
                    if lease.seconds == u32::MAX {
                        return Ok(());
                    }
                    held = Some(lease);
                }
                Some(News::Lost) => {
                    if let Some(lease) = held.take() {
                        settings::remove(&lease, index)?;
                    }
                    kmsg::note(format_args!(
                        "{device} ({interface}) has lost its lease, and asks for another"
                    ));
                    tell(&None)?;
                }
                Some(News::Unanswered) => {
                    kmsg::note(format_args!("{device} ({interface}): no server of DHCP answers"));
                }
                None => {}
            }
            match next {
                // A signal is no failure: the next turn sees what there is.
                Next::Listen(pause) => drop(wait(descriptor, Some(pause))),
                Next::Rest(rest) => break rest,
            }
        };
        drop((socket, port));
        thread::sleep(rest.into());
    }
}

fn tell(names: &Option<Names>) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    let told = out.write_all(&settings::line(names)).and_then(|()| out.flush());
    told.map_err(|error| format!("nobody hears of the lease: {error}"))
}

/// What has become of the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
enum News {
    /// A first one, or the same or another for longer.
    Taken(Lease),
    /// It is over: its time has passed, or a server has taken it back (DHCPNAK).
    Lost,
    /// Nobody answers, which is told once for each time that there was somebody.
    Unanswered,
}

/// What is to be done until the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// To wait for a frame, for this long at most.
    Listen(Duration),
    /// To hear nothing.
    Rest(Duration),
}

/// Asks, rests while the lease holds or nobody answers, and asks again, as far as that is known without a clock.
struct Keeper {
    client: Client,
    /// Since when it asks; `None` is before a rest has passed.
    since: Option<Instant>,
    /// How often in a row nobody answered.
    failed: u32,
}

impl Keeper {
    fn new(device: &mut impl Device, mac: [u8; 6], seed: u64, now: Instant) -> Keeper {
        Keeper { client: Client::new(device, mac, seed, now), since: None, failed: 0 }
    }

    fn step(&mut self, device: &mut impl Device, now: Instant) -> (Option<News>, Next) {
        let since = *self.since.get_or_insert(now);
        let news = self.client.turn(device, now);
        match &news {
            Some(News::Taken(_)) => {
                (self.since, self.failed) = (None, 0);
                (news, Next::Rest(self.client.pause(now).max(LEAST_REST)))
            }
            Some(_) => {
                // It asks for a new one at once.
                (self.since, self.failed) = (Some(now), 0);
                (news, Next::Listen(Duration::ZERO))
            }
            None if now < since + ASKED_FOR => {
                (None, Next::Listen(self.client.pause(now).min(since + ASKED_FOR - now)))
            }
            None => {
                self.since = None;
                self.failed = self.failed.saturating_add(1);
                let retried = Duration::from_secs(1 << self.failed.min(6));
                // With a lease the next question has a time of its own, unless even the last one could not be asked.
                let next = self.client.pause(now);
                let rest = if self.client.holds && next > ASKED_AGAIN { next } else { retried };
                ((self.failed == 1).then_some(News::Unanswered), Next::Rest(rest))
            }
        }
    }
}

/// smoltcp's stack with nothing but its client of DHCP, which goes by RFC 2131, 4.4: at T1 the server is asked by its address, at
/// T2 any. It has the address of the lease for the one, so what it hears is only what [`ForDhcp`] lets pass: it answers nobody and
/// the guest's kernel has the network to itself.
struct Client {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: smoltcp::iface::SocketHandle,
    /// Has a lease.
    holds: bool,
}

impl Client {
    fn new(device: &mut impl Device, mac: [u8; 6], seed: u64, now: Instant) -> Client {
        let mut config = Config::new(EthernetAddress(mac).into());
        config.random_seed = seed;
        let mut socket = dhcpv4::Socket::new();
        let mut retry = socket.get_retry_config();
        retry.discover_timeout = ASKED_AGAIN;
        retry.initial_request_timeout = ASKED_AGAIN;
        socket.set_retry_config(retry);
        socket.set_parameter_request_list(&[SUBNET_MASK, ROUTER, NAMESERVERS, DOMAIN, MTU]);
        // Once in this process: as large as a message may be in an Ethernet frame. With it every ACK is an event.
        socket.set_receive_packet_buffer(Vec::leak(vec![0; 1500]));
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Client { interface: Interface::new(config, device, now), sockets, handle, holds: false }
    }

    fn turn(&mut self, device: &mut impl Device, now: Instant) -> Option<News> {
        self.interface.poll(now, device, &mut self.sockets);
        let lease = match self.sockets.get_mut::<dhcpv4::Socket<'_>>(self.handle).poll()? {
            Event::Configured(config) => Some(lease(&config)),
            Event::Deconfigured => None,
        };
        let held = std::mem::replace(&mut self.holds, lease.is_some());
        let (address, router) = match &lease {
            Some(lease) => (Some(Ipv4Cidr::new(lease.address, lease.prefix)), lease.router),
            None => (None, None),
        };
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // It has room for two.
            let _ = address.map(|address| addresses.push(address.into()));
        });
        let routes = self.interface.routes_mut();
        routes.remove_default_ipv4_route();
        // Without a route a server that is elsewhere is asked at T2, as any.
        let _ = router.map(|router| routes.add_default_ipv4_route(router));
        match lease {
            Some(lease) => Some(News::Taken(lease)),
            // Before the first one it says so, too.
            None => held.then_some(News::Lost),
        }
    }

    /// Until it has something to ask.
    fn pause(&mut self, now: Instant) -> Duration {
        self.interface.poll_delay(now, &self.sockets).unwrap_or(ASKED_AGAIN)
    }
}

fn lease(config: &dhcpv4::Config<'_>) -> Lease {
    let packet = config.packet.as_ref();
    let option = |kind: u8| packet?.options().find(|option| option.kind == kind).map(|option| option.data);
    let seconds = packet.and_then(duration).unwrap_or(USUAL_SECONDS);
    let mtu = option(MTU).and_then(|data| data.try_into().ok()).map(u16::from_be_bytes);
    Lease {
        address: config.address.address(),
        prefix: config.address.prefix_len(),
        router: config.router,
        nameservers: config.dns_servers.iter().copied().collect(),
        domain: option(DOMAIN).and_then(settings::domain),
        // RFC 791: every host takes packets of 576 bytes. RFC 2132, 5.1: 68 is the least that may be said.
        mtu: mtu.filter(|mtu| *mtu >= 576),
        seconds,
    }
}

fn duration(packet: &DhcpPacket<&[u8]>) -> Option<u32> {
    DhcpRepr::parse(packet).ok()?.lease_duration
}

/// What DHCP needs of a network: its own messages, and who has the server's address. A packet that never left its machine may be
/// without checksums (the host's bridge and a server on it): the one of UDP is not held against it, as in other clients.
struct ForDhcp<D>(D);

/// Whether the frame is of an exchange of DHCP's, or an answer to a question that may be ours.
fn concerns_dhcp(frame: &[u8]) -> bool {
    let Ok(frame) = EthernetFrame::new_checked(frame) else { return false };
    match frame.ethertype() {
        EthernetProtocol::Arp => {
            ArpPacket::new_checked(frame.payload()).is_ok_and(|arp| arp.operation() == ArpOperation::Reply)
        }
        EthernetProtocol::Ipv4 => {
            let Ok(packet) = Ipv4Packet::new_checked(frame.payload()) else { return false };
            let ports = |datagram: UdpPacket<&[u8]>| (datagram.src_port(), datagram.dst_port());
            packet.next_header() == IpProtocol::Udp
                && UdpPacket::new_checked(packet.payload()).map(ports)
                    == Ok((DHCP_SERVER_PORT, DHCP_CLIENT_PORT))
        }
        _ => false,
    }
}

struct Heard<T>(T);

impl<T: RxToken> RxToken for Heard<T> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        // An empty frame is none.
        self.0.consume(|frame| read(if concerns_dhcp(frame) { frame } else { &[] }))
    }
}

impl<D: Device> Device for ForDhcp<D> {
    type RxToken<'a>
        = Heard<D::RxToken<'a>>
    where
        D: 'a;
    type TxToken<'a>
        = D::TxToken<'a>
    where
        D: 'a;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let (received, answer) = self.0.receive(now)?;
        Some((Heard(received), answer))
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        self.0.transmit(now)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = self.0.capabilities();
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

#[cfg(test)]
mod tests;
