//! The plan as QEMU's command line: one command for a shell, of QEMU 10 or newer. Options with structure are JSON, which
//! is the only form that takes lists.
//!
//! QEMU pins no threads from its command line. That is a warning with the threads' names and what pins them from outside.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::remarks::{Remarks, engine};
use super::shell::{command, quoted};
use super::{Boot, BootFiles, Exported, ROOT_SERIAL, cores_and_threads, served};
use crate::plan::{DiskPlan, NetPlan, Plan};
use crate::profile::{CacheMode, DiskSource, MemoryMode, NetBackend, Protocol};

const PROGRAM: &str = "qemu-system-x86_64";
/// Beyond so many devices each gets its place on the PCI bus, eight to a slot: q35 has 29 free slots.
const MOST_UNPLACED: usize = 24;
/// The first slot that is placed, and how many follow it: 0 is the host bridge, 31 the chipset.
const SLOTS: std::ops::Range<usize> = 2..31;
const FUNCTIONS: usize = 8;
/// QEMU's virtio-blk wants more than two descriptors: a header and a status are two already.
const LEAST_DISK_QUEUE: u16 = 4;
/// The sizes of a virtio-net queue in QEMU; transmit queues of this backend have the least one only.
const NET_QUEUE: std::ops::RangeInclusive<u16> = 256..=1024;

/// The plan as one shell command for QEMU, and what QEMU cannot be told.
pub fn qemu(plan: &Plan, files: &BootFiles) -> Exported {
    let mut remarks = Remarks::new("QEMU");
    let boot = files.boot();
    let mut line = Line::default();
    line.machine(plan);
    plan.iothreads.iter().for_each(|iothread| {
        // Growth and shrinking as vmprof's own IOThreads have them: the window doubles, and closes at once.
        line.object(
            json!({ "qom-type": "iothread", "id": iothread.name, "poll-max-ns": iothread.poll_max_ns,
            "poll-grow": 2, "poll-shrink": 0 }),
        );
    });
    let devices =
        plan.disks.len() + plan.nets.len() + usize::from(boot.is_some_and(|boot| boot.root.is_some()));
    let mut bus = Bus::new(plan, devices);
    if devices > SLOTS.len() * FUNCTIONS {
        remarks.warn(
            "too_many_devices",
            format!(
                "{devices} devices are more than QEMU's q35 has places for, which is {}: it will not start",
                SLOTS.len() * FUNCTIONS
            ),
            "use fewer disks",
        );
    }
    if let Some(boot) = boot {
        line.boot(plan, boot, &mut bus);
    }
    for disk in &plan.disks {
        line.disk(disk, files, &mut bus, &mut remarks);
    }
    for net in &plan.nets {
        line.net(net, &mut bus, &mut remarks);
    }
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        line.options.push(vec![flag.to_owned()]);
    }
    line.option("-display", "none");
    line.option("-serial", "stdio");
    remarks.boot(files);
    remarks.topology(plan);
    if plan.guest.threads_per_core > 1 {
        remarks.warn(
            "amd_siblings",
            "on an AMD host QEMU shows the guest no siblings unless the CPU has the topoext flag",
            "there, write `-cpu host,topoext=on` in the command",
        );
    }
    pins(plan, &mut remarks);
    Exported { text: command(PROGRAM, &line.options), warnings: remarks.finish() }
}

/// The options so far, each with its value.
#[derive(Debug, Default)]
struct Line {
    options: Vec<Vec<String>>,
}

impl Line {
    fn option(&mut self, option: &str, value: impl Into<String>) {
        self.options.push(vec![option.to_owned(), value.into()]);
    }

    fn object(&mut self, object: Value) {
        self.option("-object", object.to_string());
    }

    fn device(&mut self, device: Map<String, Value>) {
        self.option("-device", Value::Object(device).to_string());
    }

    fn machine(&mut self, plan: &Plan) {
        // With debug-threads the threads have the names that `ps -L` and perf users look for.
        self.option("-name", format!("guest={},debug-threads=on", plan.profile));
        self.option("-machine", "q35,accel=kvm,memory-backend=memory");
        self.option("-cpu", "host");
        let (cores, threads) = cores_and_threads(plan);
        let vcpus = plan.vcpus.len();
        self.option("-smp", format!("{vcpus},sockets=1,cores={cores},threads={threads}"));
        let memory = &plan.memory;
        self.option("-m", format!("{}k", memory.bytes >> 10));
        let mut backend = json!({ "qom-type": "memory-backend-memfd", "id": "memory", "size": memory.bytes });
        if let Some(size) = memory.hugepages {
            backend["hugetlb"] = json!(true);
            backend["hugetlbsize"] = json!(size.bytes());
            // A page that its node lacks ends the start, not the running guest.
            backend["prealloc"] = json!(true);
        }
        if let Some(nodes) = memory.nodes.as_ref().filter(|nodes| !nodes.is_empty()) {
            backend["host-nodes"] = json!(nodes.iter().collect::<Vec<u32>>());
            backend["policy"] = json!(match memory.mode {
                MemoryMode::Strict => "bind",
                MemoryMode::Preferred => "preferred",
                MemoryMode::Interleave => "interleave",
            });
        }
        self.object(backend);
    }

    /// Kernel, initramfs and, as `vmprof up` attaches it, the root image.
    fn boot(&mut self, plan: &Plan, boot: Boot<'_>, bus: &mut Bus) {
        self.option("-kernel", boot.kernel);
        if let Some(initramfs) = boot.initramfs {
            self.option("-initrd", initramfs);
        }
        if let Some(cmdline) = boot.cmdline {
            self.option("-append", cmdline);
        }
        let Some(root) = boot.root else { return };
        let node = json!({ "driver": "file", "node-name": ROOT_SERIAL, "filename": root, "read-only": true,
            "aio": "io_uring", "cache": { "direct": false, "no-flush": false } });
        self.option("-blockdev", node.to_string());
        let mut device = Map::new();
        device.insert("driver".into(), json!("virtio-blk-pci"));
        device.insert("id".into(), json!(ROOT_SERIAL));
        device.insert("drive".into(), json!(ROOT_SERIAL));
        device.insert("serial".into(), json!(ROOT_SERIAL));
        device.insert("num-queues".into(), json!(1));
        device.insert("queue-size".into(), json!(128));
        if let Some(iothread) = plan.iothreads.first() {
            device.insert("iothread-vq-mapping".into(), json!([{ "iothread": iothread.name, "vqs": [0] }]));
        }
        bus.place(&mut device);
        self.device(device);
    }

    fn disk(&mut self, disk: &DiskPlan, files: &BootFiles, bus: &mut Bus, remarks: &mut Remarks) {
        let name = &disk.name;
        let id = bus.id("disk", name);
        if id != *name {
            remarks.warn(
                "device_id",
                format!("disk `{name}`: QEMU's ids begin with a letter, so the device's id is `{id}`"),
                "the guest finds it by its serial, which is the disk's name all the same",
            );
        }
        let path = self.path(disk, files, remarks);
        remarks.disk(disk, &path);
        let driver = match disk.source {
            DiskSource::File { .. } => "file",
            DiskSource::Device { .. } => "host_device",
        };
        let node = json!({
            "driver": driver,
            "node-name": id,
            "filename": path,
            "aio": engine(disk.aio),
            "cache": { "direct": disk.direct, "no-flush": disk.cache == CacheMode::Unsafe },
            "discard": if disk.discard { "unmap" } else { "ignore" },
            "read-only": disk.readonly,
            "auto-read-only": false,
        });
        self.option("-blockdev", node.to_string());
        let mut device = Map::new();
        let mut set = |property: &str, value: Value| device.insert(property.to_owned(), value);
        set("driver", json!("virtio-blk-pci"));
        set("id", json!(id));
        set("drive", json!(id));
        set("serial", json!(name));
        set("num-queues", json!(disk.queues));
        set("queue-size", json!(disk.queue_size.max(LEAST_DISK_QUEUE)));
        let mapping = served(disk).into_iter().map(|(iothread, vqs)| {
            let thread = disk_thread(iothread);
            json!({ "iothread": thread, "vqs": vqs })
        });
        set("iothread-vq-mapping", mapping.collect());
        set("write-cache", json!(if disk.write_cache { "on" } else { "off" }));
        set("rerror", json!(disk.rerror.word()));
        set("werror", json!(disk.werror.word()));
        if let DiskSource::Device { .. } = disk.source {
            // What the profile leaves out is the device's own, as under vmprof.
            set("backend_defaults", json!("on"));
        }
        if let Some(bytes) = disk.logical_block_bytes {
            set("logical_block_size", json!(bytes));
        }
        if let Some(bytes) = disk.physical_block_bytes {
            set("physical_block_size", json!(bytes));
        }
        bus.place(&mut device);
        self.device(device);
        if disk.queue_size < LEAST_DISK_QUEUE {
            remarks.warn(
                "queue_size",
                format!(
                    "disk `{name}`: QEMU refuses virtqueues of {}: they have {LEAST_DISK_QUEUE} descriptors",
                    disk.queue_size
                ),
                format!("write `size={LEAST_DISK_QUEUE}` or more at its `queues`"),
            );
        }
    }

    fn path(&self, disk: &DiskPlan, files: &BootFiles, remarks: &mut Remarks) -> String {
        if let Some(path) = files.path_of(&disk.source) {
            return path;
        }
        let (DiskSource::File { path, .. } | DiskSource::Device { path }) = &disk.source;
        remarks.warn(
            "relative_file",
            format!("disk `{}`: where `{path}` lies on that host is not known here: QEMU looks for it where it is started", disk.name),
            "write an absolute path at its `source`",
        );
        // A name with a colon would be a protocol.
        format!("./{path}")
    }

    fn net(&mut self, net: &NetPlan, bus: &mut Bus, remarks: &mut Remarks) {
        let name = &net.name;
        let id = bus.id("net", name);
        remarks.net(net);
        let mut pairs = net.queues.max(1);
        let mut netdev = Map::new();
        netdev.insert("id".into(), json!(name));
        match &net.backend {
            NetBackend::Passt { forwards } => {
                netdev.insert("type".into(), json!("passt"));
                for (protocol, property) in [(Protocol::Tcp, "tcp-ports"), (Protocol::Udp, "udp-ports")] {
                    let ports: Vec<String> = forwards
                        .iter()
                        .filter(|forward| forward.protocol == protocol)
                        .map(|forward| format!("{}:{}", forward.host, forward.guest))
                        .collect();
                    if !ports.is_empty() {
                        netdev.insert(property.into(), json!(ports.join(",")));
                    }
                }
                remarks.warn(
                    "qemu_passt",
                    format!("{name}: `-netdev passt` needs QEMU 10.1 or newer, and `passt` on its PATH"),
                    "with QEMU 10.0: start `passt --socket SOCKET` first, and write `-netdev stream,server=off,addr.type=unix,addr.path=SOCKET` with the same id",
                );
                if pairs > 1 {
                    remarks.warn(
                        "net_queues",
                        format!("{name}: QEMU's passt has one queue pair, not {pairs}"),
                        "write `queues 1`, or use a tap device",
                    );
                    pairs = 1;
                }
            }
            NetBackend::Tap { name: tap } => {
                for (property, value) in [
                    ("type", json!("tap")),
                    ("ifname", json!(tap)),
                    ("script", json!("no")),
                    ("downscript", json!("no")),
                ] {
                    netdev.insert(property.into(), value);
                }
                if pairs > 1 {
                    netdev.insert("queues".into(), json!(pairs));
                }
            }
        }
        self.option("-netdev", Value::Object(netdev).to_string());
        let size = net.queue_size.clamp(*NET_QUEUE.start(), *NET_QUEUE.end());
        if net.queue_size != *NET_QUEUE.start() {
            remarks.warn(
                "queue_size",
                format!(
                    "{name}: QEMU's receive queues have {size} descriptors and its transmit queues {}, not {}",
                    NET_QUEUE.start(),
                    net.queue_size
                ),
                format!("write `size={}` at its `queues`", NET_QUEUE.start()),
            );
        }
        let mut device = Map::new();
        let mut set = |property: &str, value: Value| device.insert(property.to_owned(), value);
        set("driver", json!("virtio-net-pci"));
        set("id", json!(id));
        set("netdev", json!(name));
        set("rx_queue_size", json!(size));
        if pairs > 1 {
            set("mq", json!(true));
            // A vector per queue, one for the control queue, one for configuration changes.
            set("vectors", json!(2 * pairs + 2));
        }
        if let Some(mac) = &net.mac {
            set("mac", json!(mac));
        }
        bus.place(&mut device);
        self.device(device);
    }
}

/// The id of an IOThread's object.
fn disk_thread(iothread: u32) -> String {
    format!("iothread{iothread}")
}

/// The ids that are taken, and the places on the PCI bus.
#[derive(Debug)]
struct Bus {
    /// Names of disks that are ids: each goes to its disk.
    reserved: BTreeSet<String>,
    used: BTreeSet<String>,
    /// How many have been placed; `None` leaves the places to QEMU.
    placed: Option<usize>,
}

impl Bus {
    fn new(plan: &Plan, devices: usize) -> Self {
        let reserved = plan.disks.iter().map(|disk| disk.name.clone()).filter(|name| is_id(name)).collect();
        Bus { reserved, used: BTreeSet::new(), placed: (devices > MOST_UNPLACED).then_some(0) }
    }

    /// The device's id: its name, where that is one; else the name behind a word, and a number where that is taken.
    fn id(&mut self, kind: &str, name: &str) -> String {
        let id = if is_id(name) && !self.used.contains(name) {
            name.to_owned()
        } else {
            let base = format!("{kind}-{name}");
            let mut candidates = std::iter::once(base.clone()).chain((2u32..).map(|n| format!("{base}-{n}")));
            let free = |id: &String| !self.used.contains(id) && !self.reserved.contains(id);
            candidates.find(free).unwrap_or(base)
        };
        self.used.insert(id.clone());
        id
    }

    fn place(&mut self, device: &mut Map<String, Value>) {
        let Some(placed) = &mut self.placed else { return };
        let (slot, function) = (SLOTS.start + *placed / FUNCTIONS, *placed % FUNCTIONS);
        *placed += 1;
        if SLOTS.contains(&slot) {
            device.insert("addr".to_owned(), json!(format!("{slot:x}.{function}")));
            device.insert("multifunction".to_owned(), json!(true));
        }
    }
}

/// Whether QEMU takes a word as an id.
fn is_id(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

/// The pins, and how to make them from outside.
fn pins(plan: &Plan, remarks: &mut Remarks) {
    let emulator = ("the emulator".to_owned(), plan.emulator.cpus.to_string());
    let others: Vec<(String, String)> = plan
        .threads()
        .into_iter()
        .filter(|(name, _)| name != "vmprof")
        .map(|(name, cpus)| (name, cpus.to_string()))
        .collect();
    let list: Vec<String> =
        others.iter().chain([&emulator]).map(|(name, cpus)| format!("{name} on {cpus}")).collect();
    let mut help = format!(
        "put `taskset -c {}` in front of the command, then run with QEMU's process id in $PID:\n\
         pin() {{ for t in /proc/$PID/task/*; do [ \"$(cat $t/comm)\" = \"$1\" ] && taskset -pc $2 ${{t##*/}}; done; }}",
        emulator.1
    );
    for (name, cpus) in &others {
        help.push_str(&format!("\npin {} {cpus}", quoted(name)));
    }
    remarks.warn("qemu_pins", format!("QEMU's command line pins no thread: {}", list.join(", ")), help);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_an_id_keeps_it_and_any_other_gets_one_of_its_own() {
        let reserved = ["disk-0", "data", "net0"].map(str::to_owned).into();
        let mut bus = Bus { reserved, used: BTreeSet::new(), placed: None };
        let disks: Vec<String> =
            ["0", "disk-0", "_x", "data", "net0"].iter().map(|name| bus.id("disk", name)).collect();
        assert_eq!(disks, ["disk-0-2", "disk-0", "disk-_x", "data", "net0"]);
        assert_eq!(bus.id("net", "net0"), "net-net0", "a disk has that name already");
    }

    #[test]
    fn two_hundred_devices_have_places_of_their_own() {
        let mut bus = Bus { reserved: BTreeSet::new(), used: BTreeSet::new(), placed: Some(0) };
        let places: BTreeSet<String> = (0..200)
            .map(|_| {
                let mut device = Map::new();
                bus.place(&mut device);
                device["addr"].to_string()
            })
            .collect();
        assert_eq!(places.len(), 200);
        assert!(places.contains("\"2.0\"") && places.contains("\"1a.7\""));
    }
}
