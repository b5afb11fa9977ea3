//! One lease of DHCP (RFC 2131), taken by a process that ends with it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RawSocket, wait};
use smoltcp::socket::dhcpv4::{self, Event};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{DhcpPacket, DhcpRepr, EthernetAddress};
use vmprof_mac::MacAddress;

use super::settings;

/// How long it asks before it ends without one.
const ASKED_FOR: Duration = Duration::from_secs(8);
/// A link that has just come up loses the first question now and then.
const ASKED_AGAIN: Duration = Duration::from_millis(1500);
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

/// The whole role: an interface that is up, its index, and the metric of its routes. Prints for how many seconds the lease holds.
pub(crate) fn take(arguments: &[OsString]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let taken = match words.as_slice() {
        [name, index, metric] => match (index.parse(), metric.parse()) {
            (Ok(index), Ok(metric)) => ask(name).and_then(|lease| {
                settings::apply(&lease, index, metric)?;
                Ok(lease.seconds)
            }),
            _ => Err("no numbers".to_owned()),
        },
        _ => Err("no interface".to_owned()),
    };
    match taken {
        Ok(seconds) => {
            println!("{seconds}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Asks for a lease until one is there.
fn ask(name: &str) -> Result<Lease, String> {
    let told = |error: std::io::Error| format!("{name}: {error}");
    let address = std::fs::read_to_string(format!("/sys/class/net/{name}/address")).map_err(told)?;
    let mac: MacAddress = address.trim().parse().map_err(|_| format!("{name} has no hardware address"))?;
    let mut seed = [0; 8];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut seed)).map_err(told)?;
    let socket = RawSocket::new(name, Medium::Ethernet).map_err(told)?;
    let descriptor = socket.as_raw_fd();
    let mut device = Unsummed(socket);
    let began = Instant::now();
    let mut client = Client::new(&mut device, mac.octets(), u64::from_ne_bytes(seed), began);
    loop {
        let now = Instant::now();
        if let Some(lease) = client.turn(&mut device, now) {
            return Ok(lease);
        }
        let end = began + ASKED_FOR;
        if now >= end {
            return Err("no server of DHCP answers".to_owned());
        }
        let pause = client.pause(now).min(end - now);
        // A signal is no failure: the next turn sees what there is.
        let _ = wait(descriptor, Some(pause));
    }
}

/// smoltcp's stack with nothing but its client of DHCP. It has no address, so it answers nobody and the guest's kernel has the
/// network to itself.
struct Client {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: smoltcp::iface::SocketHandle,
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
        // Once in this process, which ends with the lease: as large as a message may be in an Ethernet frame.
        socket.set_receive_packet_buffer(Vec::leak(vec![0; 1500]));
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Client { interface: Interface::new(config, device, now), sockets, handle }
    }

    fn turn(&mut self, device: &mut impl Device, now: Instant) -> Option<Lease> {
        self.interface.poll(now, device, &mut self.sockets);
        match self.sockets.get_mut::<dhcpv4::Socket<'_>>(self.handle).poll() {
            Some(Event::Configured(config)) => Some(lease(&config)),
            Some(Event::Deconfigured) | None => None,
        }
    }

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

/// A packet that never left its machine may be without checksums (the host's bridge and a server on it): the one of UDP is not
/// held against it, as in other clients of DHCP.
struct Unsummed<D>(D);

impl<D: Device> Device for Unsummed<D> {
    type RxToken<'a>
        = D::RxToken<'a>
    where
        D: 'a;
    type TxToken<'a>
        = D::TxToken<'a>
    where
        D: 'a;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        self.0.receive(now)
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
