//! `net none`, `net passt { forward …; queues …; mac … }`, `net tap name=tap0 { … }`.

use std::collections::BTreeMap;

use vmprof_document::{Block, Line, Node, SourceSpan, Value};
use vmprof_mac::MacAddress;

use super::Reading;
use crate::profile::{Forward, Net, NetBackend, Protocol};

/// What the kernel gives the name of an interface (IFNAMSIZ, less its end mark).
const TAP_NAME_BYTES: usize = 15;
/// As many pairs as vCPUs can submit to (virtio 1.3, 5.1.4.1 allows more).
const MOST_PAIRS: u64 = 128;
const QUEUE_SIZE: u16 = 256;

#[derive(Clone, Copy)]
enum Word {
    None,
    Passt,
    Tap,
}

/// What may stand once in all network devices of a profile.
#[derive(Default)]
struct Used {
    ports: BTreeMap<(bool, u16), SourceSpan>,
    taps: BTreeMap<String, SourceSpan>,
    macs: BTreeMap<MacAddress, SourceSpan>,
}

impl<'a> Reading<'a> {
    /// Reads all `net` nodes; `None` where one of them cannot be told.
    pub(super) fn nets(&self, nodes: Vec<Node<'a>>) -> Option<Vec<Net>> {
        let mut used = Used::default();
        let mut none: Option<SourceSpan> = None;
        let (mut nets, mut right) = (Vec::new(), true);
        let all = nodes.len();
        for node in nodes {
            let words = [("none", Word::None), ("passt", Word::Passt), ("tap", Word::Tap)];
            let help = "write `net none`, `net passt` or `net tap name=tap0`";
            let Some((at, word)) =
                node.required_arg("what carries its packets", help).and_then(|v| Some((v, v.word(&words)?)))
            else {
                right = false;
                // The rest of the node cannot be told right from wrong without its word.
                continue;
            };
            if let Word::None = word {
                none = Some(at.span());
                node.finish();
                continue;
            }
            match self.net(node, at, word, &mut used) {
                Some(net) => nets.push(net),
                None => right = false,
            }
        }
        if let Some(none) = none.filter(|_| all > 1) {
            self.findings.push(
                self.findings
                    .error("net_none_and_more", "`net none` stands beside another `net`")
                    .at(none, "no network")
                    .help("keep `net none` alone, or remove it"),
            );
        }
        right.then_some(nets)
    }

    fn net(&self, node: Node<'a>, at: Value<'a>, word: Word, used: &mut Used) -> Option<Net> {
        let name = if let Word::Tap = word {
            let name = node.required_prop("name", "name the device: `net tap name=tap0`");
            Some(name.and_then(|v| self.tap_name(v, used)))
        } else {
            None
        };
        let block = node.children();
        let forwards = if let Word::Passt = word {
            let nodes = block.all("forward");
            let wanted = nodes.len();
            let forwards: Vec<Forward> =
                nodes.into_iter().filter_map(|node| self.forward(node, used)).collect();
            (forwards.len() == wanted).then_some(forwards)
        } else {
            Some(Vec::new())
        };
        let (queues, queues_line, queue_size) = self.pairs(&block, word);
        let mac = block.only("mac").map(|node| {
            let help = "write it in quotes: `mac \"52:54:00:12:34:56\"`";
            let mac = node.required_arg("the address", help).and_then(|v| self.mac(v, used));
            node.finish();
            mac
        });
        block.finish();
        node.finish();
        let backend = match name {
            Some(name) => NetBackend::Tap { name: name? },
            None => NetBackend::Passt { forwards: forwards? },
        };
        let mac = match mac {
            Some(mac) => Some(mac?),
            None => None,
        };
        Some(Net { backend: self.written(at, backend), queues: queues?, queues_line, queue_size, mac })
    }

    fn pairs(&self, block: &Block<'a>, word: Word) -> (Option<u32>, Option<Line>, u16) {
        let Some(node) = block.only("queues") else { return (Some(1), None, QUEUE_SIZE) };
        let help = "write how many pairs: `queues 2`";
        let pairs = node.required_arg("how many", help).and_then(|v| {
            let pairs = v.u64(1..=MOST_PAIRS)?;
            if pairs > 1 && matches!(word, Word::Passt) {
                self.findings.push(
                    v.problem(
                        "passt_queues",
                        "passt carries all packets in one stream, and has one queue pair",
                    )
                    .help(
                        "leave `queues` out, or write `queues 1`; a tap device has as many as are asked for",
                    ),
                );
                return None;
            }
            Some(pairs)
        });
        let size = self.queue_size(&node);
        let line = node.line();
        node.finish();
        (pairs.and_then(|n| u32::try_from(n).ok()), Some(line), size.unwrap_or(QUEUE_SIZE))
    }

    fn tap_name(&self, value: Value<'a>, used: &mut Used) -> Option<String> {
        let name = value.text()?;
        let plain = name.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b));
        if name.len() > TAP_NAME_BYTES || !plain || matches!(name, "." | "..") {
            self.findings.push(
                value.problem("bad_name", format!("`{name}` cannot be the name of a network device")).help(
                    format!("write the name of a tap device that exists: at most {TAP_NAME_BYTES} bytes"),
                ),
            );
            return None;
        }
        self.once(&mut used.taps, name.to_owned(), value, &format!("the tap device `{name}` is given twice"));
        Some(name.to_owned())
    }

    fn forward(&self, node: Node<'a>, used: &mut Used) -> Option<Forward> {
        let help = "write `forward tcp host=8080 guest=80`";
        let words = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
        let protocol = node.required_arg("the protocol", help).and_then(|v| v.word(&words));
        let host = node.required_prop("host", help);
        let port = |v: Value<'a>| v.u64(1..=65535).and_then(|n| u16::try_from(n).ok());
        let host = host.and_then(|v| Some((v, port(v)?)));
        let guest = node.required_prop("guest", help).and_then(port);
        node.finish();
        let (protocol, (at, host)) = (protocol?, host?);
        let key = (protocol == Protocol::Udp, host);
        self.once(&mut used.ports, key, at, &format!("port {host} of the host is forwarded twice"));
        Some(Forward { protocol, host, guest: guest? })
    }

    fn mac(&self, value: Value<'a>, used: &mut Used) -> Option<MacAddress> {
        let text = value.text()?;
        let problem = match text.parse::<MacAddress>() {
            Ok(mac) if mac.is_a_devices_own() => {
                let message = format!("two network devices have the address {mac}");
                self.once(&mut used.macs, mac, value, &message);
                return Some(mac);
            }
            Ok(_) => value
                .problem("bad_mac", format!("\"{text}\" is no device's own address"))
                .help("the first byte is even, and not all are zero: \"52:54:00:12:34:56\""),
            Err(_) => value
                .problem("bad_mac", format!("\"{text}\" is not a hardware address"))
                .help("write six bytes in hexadecimal: \"52:54:00:12:34:56\""),
        };
        self.findings.push(problem);
        None
    }

    /// Reports what is there for the second time.
    fn once<K: Ord>(&self, seen: &mut BTreeMap<K, SourceSpan>, key: K, value: Value<'a>, message: &str) {
        if let Some(first) = seen.insert(key, value.span()) {
            self.findings.push(
                self.findings
                    .error("used_twice", message)
                    .at(value.span(), "again here")
                    .at(first, "first here")
                    .help("keep one of them"),
            );
        }
    }

    /// `size=` of a `queues` node: descriptors per virtqueue.
    pub(super) fn queue_size(&self, node: &Node<'a>) -> Option<u16> {
        let value = node.prop("size")?;
        let size = value.u64(2..=1024)?;
        if !size.is_power_of_two() {
            let next = size.next_power_of_two().min(1024);
            self.findings.push(
                value
                    .problem("bad_queue_size", format!("a virtqueue cannot have {size} descriptors"))
                    .help(format!("write a power of two, such as {next}")),
            );
            return None;
        }
        u16::try_from(size).ok()
    }
}
