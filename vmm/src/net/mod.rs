//! What carries the frames of a network device outside the machine: a [`tap`] device, or a [`stream`] socket. What the guest
//! sees of it is in [`crate::virtio::net`].

use std::io;
use std::sync::Arc;

pub(crate) mod stream;
pub(crate) mod tap;

pub use stream::{FrameStream, StreamEnd};
use tap::Tap;

/// An Ethernet header, the least that a frame is.
pub(crate) const ETHERNET_BYTES: usize = 14;
/// Header and one VLAN's tag: what a frame is longer than its payload, at most.
pub(crate) const MOST_ETHERNET_BYTES: usize = ETHERNET_BYTES + 4;
/// The longest frame: an IP packet of 65,535 bytes behind that.
pub(crate) const LONGEST_FRAME: usize = 65_535 + MOST_ETHERNET_BYTES;

/// As a device has it, which gives a clone to each of its queues.
#[derive(Debug, Clone)]
pub(crate) enum Backend {
    Tap(Arc<Tap>),
    Stream(FrameStream),
}

/// Why a network device is not there as asked.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error(
        "network device `{net}` has queues of {size} entries, and their size is a power of two from 2 to 32768"
    )]
    QueueSize { net: String, size: u16 },
    #[error(
        "network device `{net}` maps {mapped} virtqueues to IOThreads, and each pair of queues is two, with a control queue \
         behind the last"
    )]
    Mapping { net: String, mapped: usize },
    #[error("network device `{net}` has {pairs} pairs of queues, and a stream has one")]
    PairsOfAStream { net: String, pairs: usize },
    #[error("network device `{net}` has {pairs} pairs of queues, and {most} is the most")]
    TooManyPairs { net: String, pairs: usize, most: u16 },
    #[error(
        "virtqueue {queue} of network device `{net}` is mapped to iothread {iothread}, which there is not"
    )]
    NoSuchIoThread { net: String, queue: usize, iothread: u32 },
    #[error("network device `{net}` has the hardware address {mac}, which is not that of one device")]
    Mac { net: String, mac: String },
    #[error("network device `{net}` has an mtu of {mtu} bytes, and 68 is the least")]
    Mtu { net: String, mtu: u16 },
    #[error("{wanted} network devices are served over streams, and {given} streams were given")]
    Streams { wanted: usize, given: usize },
    #[error("network device `{net}` cannot wake its iothread")]
    Waker { net: String, source: io::Error },
    #[error("frames travel over a connected stream socket, and this is something else")]
    NotAStream { source: Option<io::Error> },
    #[error("this host has no /dev/net/tun; `modprobe tun` brings it, where the kernel has it")]
    NoTun { source: io::Error },
    #[error("/dev/net/tun cannot be opened for reading and writing")]
    OpenTun { source: io::Error },
    #[error("there is no network device `{device}` here; make it with `{}`", make(device, *pairs))]
    NoSuchDevice { device: String, pairs: usize },
    #[error("the network device `{device}` is no tap device; name one that is")]
    NotATap { device: String },
    #[error(
        "the tap device `{device}` {}; make it with `{}`",
        if *pairs > 1 { "has one queue, and several are asked for" } else { "has several queues (multi_queue), and one is asked for" },
        make(device, *pairs)
    )]
    Queues { device: String, pairs: usize },
    #[error(
        "the kernel does not take `{device}` as a tap device with {}; make it with `{}`",
        if *pairs > 1 { "several queues" } else { "one queue" },
        make(device, *pairs)
    )]
    NotATapOrQueues { device: String, pairs: usize },
    #[error("the tap device `{device}` is in use by another program")]
    Busy { device: String },
    #[error("the tap device `{device}` belongs to another user; make it yours with `{}`", make(device, *pairs))]
    NotPermitted { device: String, pairs: usize },
    #[error("the tap device `{device}` cannot be used")]
    Tap { device: String, source: io::Error },
}

/// How a device comes into being that the user may open.
fn make(device: &str, pairs: usize) -> String {
    let queues = if pairs > 1 { " multi_queue" } else { "" };
    format!("ip tuntap add dev {device} mode tap user $USER{queues}")
}
