//! Frames between the device and the kernel, over tap devices in a network namespace that the test has for itself.

use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// Set for the process that has the namespace.
const NAMESPACE_VARIABLE: &str = "VMPROF_TEST_NAMESPACE";
const TEST: &str = "virtio::net::tests::tap::tap_devices_of_a_namespace_of_its_own";

const HOST: [u8; 4] = [10, 9, 9, 1];
const GUEST: [u8; 4] = [10, 9, 9, 2];
const MAC_OF_HOST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0xfe];
const EVERYONE: [u8; 6] = [0xff; 6];

#[test]
fn tap_devices_of_a_namespace_of_its_own() {
    if std::env::var_os(NAMESPACE_VARIABLE).is_some() {
        return inside();
    }
    if !std::fs::exists("/dev/net/tun").unwrap() {
        return eprintln!("skipped: tap devices: no /dev/net/tun");
    }
    let namespace = |program: &std::ffi::OsStr, arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.arg("-rn").arg(program).args(arguments).env(NAMESPACE_VARIABLE, "1");
        command.output()
    };
    let tried = namespace("ip".as_ref(), &["tuntap", "add", "dev", "tap0", "mode", "tap"]);
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: tap devices: no namespace with one can be had: {tried:?}");
    }
    let program = std::env::current_exe().unwrap();
    let output = namespace(program.as_os_str(), &["--exact", TEST, "--nocapture"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let ran = text.contains("1 passed");
    assert!(output.status.success() && ran, "{text}{}", String::from_utf8_lossy(&output.stderr));
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Only for this process's namespace: no addresses that the kernel would talk about by itself.
fn inside() {
    for kind in ["all", "default"] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{kind}/disable_ipv6"), "1");
    }
    let cases: [(&str, fn()); 5] = [
        ("refusals", devices_that_cannot_be_opened_are_refused_by_name),
        ("the kernel answers", the_kernel_answers),
        ("segments", segments_are_left_to_whoever_takes_them),
        ("pairs", pairs_are_used_as_far_as_the_driver_says),
        ("gone", a_device_that_goes_takes_the_link_down),
    ];
    for (name, case) in cases {
        // Shown when it fails.
        eprintln!("{name}");
        case();
    }
}

/// A device over a tap device, with drivers of its pairs and of its control queue.
struct Tapped {
    net: Net,
    rx: Vec<NetDriver>,
    tx: Vec<NetDriver>,
    control: NetDriver,
    /// Whether the first pair has its one buffer to receive in.
    is_offered: bool,
}

impl Tapped {
    fn new(name: &str, pairs: usize, features: u64, ring: bool) -> Tapped {
        let config = config(NetBackend::Tap { name: name.to_owned() }, pairs);
        let mut net = Net::new(&config, None, &[iothread(0, ring)]).unwrap();
        let ram = mock::ram(8 * MIB);
        let drivers = |first: usize| {
            (0..pairs).map(|pair| NetDriver::new(&ram, (2 * pair + first) as u64)).collect::<Vec<_>>()
        };
        let (rx, tx, control) = (drivers(0), drivers(1), NetDriver::new(&ram, 2 * pairs as u64));
        let mut queues = Vec::new();
        for (pair, (rx, tx)) in (0..).zip(rx.iter().zip(&tx)) {
            queues.extend([rx.queue.device_side(2 * pair), tx.queue.device_side(2 * pair + 1)]);
        }
        queues.push(control.queue.device_side(2 * pairs as u16));
        net.activate(features, queues).unwrap();
        Tapped { net, rx, tx, control, is_offered: false }
    }

    /// Sends `question` over the first pair until what comes back is the answer: a device drops what the kernel sends until it
    /// has noticed that somebody is there.
    fn ask(&mut self, question: &[u8], is_answer: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        for _ in 0..500 {
            self.tx[0].send(question);
            for _ in 0..50 {
                if !self.is_offered {
                    self.rx[0].offer(&[(0, 2048)]);
                    self.rx[0].queue.kick();
                    self.is_offered = true;
                }
                let Some((_, written)) = self.rx[0].queue.take_used() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                self.is_offered = false;
                let found = self.rx[0].get(12, written as usize - 12);
                if is_answer(&found) {
                    return found;
                }
            }
        }
        panic!("no answer: {:?}", self.net.stats().snapshot());
    }

    fn set_pairs(&mut self, pairs: u16) -> u8 {
        let at = self.control.data;
        self.control.put(0, &[&[4, 0][..], &pairs.to_le_bytes(), &[0x77]].concat());
        let chain = [readable(at, 2), readable(at + 2, 2), writable(at + 4, 1)];
        self.control.queue.add(&chain).unwrap();
        self.control.queue.kick();
        self.control.queue.wait_used();
        self.control.get(4, 1)[0]
    }

    fn counts(&self, queue: usize) -> NetQueueSnapshot {
        self.net.stats().snapshot().virtqueues[queue].clone()
    }
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

fn arp_request() -> Vec<u8> {
    let payload = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &MAC_OF_GUEST, &GUEST, &[0; 6], &HOST].concat();
    ethernet(EVERYONE, MAC_OF_GUEST, 0x0806, &payload)
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut header =
        [&[0x45, 0][..], &len.to_be_bytes(), &[0, 1, 0x40, 0, 64, protocol, 0, 0], &from, &to].concat();
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, payload.to_vec()].concat()
}

fn echo_request(bytes: usize) -> Vec<u8> {
    let mut echo = [&[8, 0, 0, 0, 0, 7, 0, 9][..], &frame(3, bytes)].concat();
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    ethernet(MAC_OF_HOST, MAC_OF_GUEST, 0x0800, &ipv4(1, GUEST, HOST, &echo))
}

fn is_echo_reply(found: &[u8], bytes: usize) -> bool {
    found.len() >= 42 + bytes && found[12..14] == [8, 0] && found[23] == 1 && found[34] == 0
}

/// `tap0` with the host's address, and the guest's in its neighbours.
fn with_addresses(options: &str) {
    ip(&format!("tuntap add dev tap0 mode tap{options}"));
    ip("link set tap0 address 52:54:00:00:00:fe");
    ip("link set tap0 up");
    ip("addr add 10.9.9.1/24 dev tap0");
}

fn devices_that_cannot_be_opened_are_refused_by_name() {
    ip("tuntap add dev tap0 mode tap");
    ip("tuntap add dev tap1 mode tap multi_queue");
    ip("tuntap add dev tun0 mode tun");
    ip("link add dummy0 type bridge");
    let opened = |name: &str, pairs: usize| {
        let config = config(NetBackend::Tap { name: name.to_owned() }, pairs);
        Net::new(&config, None, &[iothread(0, false)])
    };
    let error = opened("tap9", 1).unwrap_err();
    assert!(matches!(error, NetError::NoSuchDevice { .. }), "{error}");
    assert!(
        !Command::new("ip").args(["link", "show", "tap9"]).output().unwrap().status.success(),
        "not made"
    );
    // /sys is of the namespace around this one, so it is the kernel that says no.
    for (name, pairs) in [("dummy0", 1), ("tun0", 1), ("tap0", 2), ("tap1", 1)] {
        let error = opened(name, pairs).unwrap_err();
        let refused = matches!(
            error,
            NetError::NotATapOrQueues { .. } | NetError::NotATap { .. } | NetError::Queues { .. }
        );
        assert!(refused && error.to_string().contains(name), "{error}");
    }
    let held = opened("tap0", 1).unwrap();
    assert_ne!(held.features() & OFFLOADS, 0);
    assert!(matches!(opened("tap0", 1).unwrap_err(), NetError::Busy { .. }));
    drop(held);
    opened("tap0", 1).unwrap();
    let two = opened("tap1", 2).unwrap();
    assert_ne!(two.features() & MULTI_QUEUE, 0);
    for device in ["tap0", "tap1", "tun0", "dummy0"] {
        ip(&format!("link del {device}"));
    }
}

fn the_kernel_answers() {
    for ring in [true, false] {
        for features in [ALL, ALL & !OFFLOADS, ALL & !MERGEABLE_BUFFERS & !GUEST_TSO] {
            with_addresses("");
            let mut tapped = Tapped::new("tap0", 1, features, ring);
            let reply = tapped.ask(&arp_request(), |found| found[12..14] == [8, 6] && found[21] == 2);
            assert_eq!((&reply[6..12], &reply[28..32]), (&MAC_OF_HOST[..], &HOST[..]), "{features:#x}");
            for bytes in [0, 700, 1400] {
                let reply = tapped.ask(&echo_request(bytes), |found| is_echo_reply(found, bytes));
                assert_eq!(reply[42..42 + bytes], frame(3, bytes));
                assert_eq!(checksum(&reply[34..]), 0);
            }
            // A header that the kernel does not take, and frames while the device is down.
            let dropped = tapped.counts(1).dropped;
            tapped.tx[0].frame(0, &frame(1, 100));
            tapped.tx[0].put(0, &[1, 0, 0, 0, 0, 0, 0xff, 0xff]);
            tapped.tx[0].queue.kick();
            tapped.tx[0].queue.wait_used();
            ip("link set tap0 down");
            tapped.tx[0].send(&arp_request());
            assert_eq!(tapped.counts(1).dropped, dropped + 2);
            ip("link set tap0 up");
            // The kernel has forgotten it meanwhile.
            ip("neigh replace 10.9.9.2 lladdr 52:54:00:00:00:01 dev tap0");
            tapped.ask(&echo_request(1200), |found| is_echo_reply(found, 1200));
            drop(tapped);
            ip("link del tap0");
        }
    }
}

/// A TCP segment of `bytes`, with the sum over its pseudo header that whoever ends the checksum starts from.
fn tcp(bytes: usize) -> Vec<u8> {
    let (from, to) = (GUEST, [10, 9, 9, 3]);
    let mut segment =
        [&[0x30, 0, 0x40, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0][..], &frame(5, bytes)]
            .concat();
    let len = (segment.len() as u16).to_be_bytes();
    let sum = !checksum(&[&from[..], &to, &[0, 6], &len].concat());
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ethernet([0x52, 0x54, 0, 0, 0, 3], MAC_OF_GUEST, 0x0800, &ipv4(6, from, to, &segment))
}

/// Two devices on a bridge: what one guest sends as one frame the other gets as one, or as packets with their checksums.
fn segments_are_left_to_whoever_takes_them() {
    ip("link add br0 type bridge");
    for name in ["tap0", "tap1"] {
        ip(&format!("tuntap add dev {name} mode tap"));
        ip(&format!("link set {name} master br0"));
    }
    ["br0", "tap0", "tap1"].iter().for_each(|name| ip(&format!("link set {name} up")));
    const BYTES: usize = 20_000;
    const SEGMENT: u16 = 1_000;
    for takes_segments in [true, false] {
        let mut from = Tapped::new("tap0", 1, ALL, true);
        let features = if takes_segments { ALL } else { ALL & !OFFLOADS };
        let mut to = Tapped::new("tap1", 1, features, false);
        let places: std::collections::HashMap<u16, u64> =
            (0..40).map(|at| (to.rx[0].offer(&[(at * 2048, 1536)]), at * 2048)).collect();
        to.rx[0].queue.kick();
        let whole = tcp(BYTES);
        // A port of a bridge forwards once it has learnt that it is up, which takes it a moment.
        let mut used = None;
        while used.is_none() {
            from.tx[0].frame(0, &whole);
            // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, header and segment lengths, where the checksum is.
            let header = [
                &[1, 1][..],
                &54_u16.to_le_bytes(),
                &SEGMENT.to_le_bytes(),
                &34_u16.to_le_bytes(),
                &16_u16.to_le_bytes(),
            ];
            from.tx[0].put(0, &header.concat());
            from.tx[0].queue.kick();
            from.tx[0].queue.wait_used();
            assert_eq!(from.counts(1).dropped, 0);
            std::thread::sleep(Duration::from_millis(20));
            // What a bridge says by itself is not for this one.
            while used.is_none()
                && let Some(found) = to.rx[0].queue.take_used()
            {
                used = Some(found).filter(|(head, _)| to.rx[0].get(places[head] + 12, 6) == whole[..6]);
            }
        }
        let mut next = || {
            let (head, written) = used.take().unwrap_or_else(|| to.rx[0].queue.wait_used());
            to.rx[0].get(places[&head], written as usize)
        };
        let first = next();
        if takes_segments {
            let count = usize::from(u16::from_le_bytes([first[10], first[11]]));
            assert_eq!((&first[..2], count), (&[1, 1][..], (12 + whole.len()).div_ceil(1536)));
            let rest: Vec<u8> = (1..count).flat_map(|_| next()).collect();
            let found = [first, rest].concat();
            let differs = found[12..].iter().zip(&whole).position(|(found, sent)| found != sent);
            assert_eq!((found.len() - 12, differs), (whole.len(), None));
        } else {
            assert_eq!(first[..2], [0, 0]);
            assert_eq!(first.len(), 12 + 54 + usize::from(SEGMENT));
            let mut found = first[12 + 54..].to_vec();
            while found.len() < BYTES {
                let packet = next();
                let (segment, len) = (&packet[12 + 34..], (packet.len() - 12 - 34) as u16);
                let pseudo = [&packet[12 + 26..12 + 34], &[0, 6], &len.to_be_bytes(), segment].concat();
                assert_eq!(checksum(&pseudo), 0, "the kernel made the checksum");
                found.extend_from_slice(&segment[20..]);
            }
            assert!(found == frame(5, BYTES));
        }
        drop((from, to));
    }
    ["tap0", "tap1", "br0"].iter().for_each(|name| ip(&format!("link del {name}")));
}

fn pairs_are_used_as_far_as_the_driver_says() {
    for ring in [true, false] {
        with_addresses(" multi_queue");
        ip("neigh replace 10.9.9.2 lladdr 52:54:00:00:00:01 dev tap0");
        let mut tapped = Tapped::new("tap0", 2, u64::MAX, ring);
        for rx in &mut tapped.rx {
            (0..60).for_each(|at| {
                rx.offer(&[(at * 2048, 2048)]);
            });
            rx.queue.kick();
        }
        let echo = |tapped: &mut Tapped, pair: usize| tapped.tx[pair].send(&echo_request(10));
        let received = |tapped: &Tapped| (tapped.counts(0).packets, tapped.counts(2).packets);
        while received(&tapped).0 < 10 {
            echo(&mut tapped, 0);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(received(&tapped).1, 0, "one pair is what a driver begins with");
        assert_eq!((tapped.set_pairs(0), tapped.set_pairs(3), tapped.set_pairs(2)), (1, 1, 0));
        // The kernel answers where the flow came from, once it has learnt it.
        while received(&tapped).1 == 0 {
            echo(&mut tapped, 1);
            assert!(tapped.counts(3).packets < 50, "the second pair gets nothing");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(tapped.set_pairs(1), 0);
        let (first, second) = received(&tapped);
        while received(&tapped).0 < first + 5 {
            echo(&mut tapped, 0);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(received(&tapped).1, second);
        // Again and again, with answers on their way.
        for round in 0..40 {
            assert_eq!(tapped.set_pairs(1 + round % 2), 0);
            echo(&mut tapped, 0);
        }
        assert_eq!(tapped.net.stats().snapshot().fault, None);
        drop(tapped);
        ip("link del tap0");
    }
}

fn a_device_that_goes_takes_the_link_down() {
    for ring in [true, false] {
        with_addresses("");
        let mut tapped = Tapped::new("tap0", 1, ALL, ring);
        tapped.rx[0].offer(&[(0, 2048)]);
        tapped.rx[0].queue.kick();
        let (tell, told) = mpsc::channel();
        tapped.net.config_changes().unwrap().on_change(move || tell.send(()).unwrap());
        ip("link del tap0");
        told.recv_timeout(Duration::from_secs(30)).unwrap();
        tapped.tx[0].send(&arp_request());
        assert_eq!(tapped.counts(1).dropped, 1);
        assert!(tapped.net.stats().snapshot().fault.unwrap().contains("tap"));
    }
}
