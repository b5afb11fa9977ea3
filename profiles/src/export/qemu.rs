//! The plan as QEMU's command line: one command for a shell, of QEMU 10 or newer. Options with structure are JSON, which
//! is the only form that takes lists.
//!
//! QEMU pins no threads from its command line. That is a warning with the threads' names and what pins them from outside.

use serde_json::{Value, json};

use super::bus::Bus;
use super::object::Object;
use super::remarks::{Remarks, engine};
use super::shell::{command, quoted};
use super::{Boot, BootFiles, Exported, ROOT_SERIAL, cores_and_threads, is_pin, served};
use crate::plan::{DiskPlan, NetPlan, Plan};
use crate::profile::{CacheMode, DiskSource, MemoryMode, NetBackend, Protocol};

const PROGRAM: &str = "qemu-system-x86_64";
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
        let mut object = Object::of("qom-type", "iothread");
        object.set("id", &iothread.name);
        object.set("poll-max-ns", iothread.poll_max_ns);
        for (name, factor) in [("poll-grow", iothread.poll_grow), ("poll-shrink", iothread.poll_shrink)] {
            // 0 is what is built in, and QEMU 11.1 takes a 0 that is written so too.
            if factor > 0 {
                object.set(name, factor);
            }
        }
        line.json("-object", object);
    });
    // One is the source of random numbers.
    let devices =
        plan.disks.len() + plan.nets.len() + usize::from(boot.is_some_and(|boot| boot.root.is_some())) + 1;
    let mut bus = Bus::new(plan, devices);
    if devices > Bus::PLACES {
        remarks.warn(
            "too_many_devices",
            format!(
                "{devices} devices are more than QEMU's q35 has places for, which is {}: it will not start",
                Bus::PLACES
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
    line.rng(&mut bus);
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        line.options.push(vec![flag.to_owned()]);
    }
    line.option("-display", "none");
    line.option("-serial", "stdio");
    remarks.boot(files);
    remarks.topology(plan);
    remarks.iothreads(plan);
    // An address that is the host's to give, and a device node that not every host has: written down, it would keep the command
    // from starting twice, or at all.
    remarks.warn(
        "vsock",
        "the guest has no vsock: QEMU's is the host kernel's, with an address of which a host has each only once",
        "where programs in the guest use it, add `-device vhost-vsock-pci,guest-cid=N` with an N from 3 on that no other VM has",
    );
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

    fn json(&mut self, option: &str, object: Object) {
        self.option(option, object.to_string());
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
        self.option(
            "-m",
            match memory.bytes % (1 << 20) {
                0 => format!("{}M", memory.bytes >> 20),
                _ => format!("{}k", memory.bytes >> 10),
            },
        );
        let mut backend = Object::of("qom-type", "memory-backend-memfd");
        backend.set("id", "memory");
        backend.set("size", memory.bytes);
        if let Some(size) = memory.hugepages {
            backend.set("hugetlb", true);
            backend.set("hugetlbsize", size.bytes());
            // A page that its node lacks ends the start, not the running guest.
            backend.set("prealloc", true);
        }
        if let Some(nodes) = memory.nodes.as_ref().filter(|nodes| !nodes.is_empty()) {
            backend.set("host-nodes", nodes.iter().collect::<Vec<u32>>());
            let policy = match memory.mode {
                MemoryMode::Strict => "bind",
                MemoryMode::Preferred => "preferred",
                MemoryMode::Interleave => "interleave",
            };
            backend.set("policy", policy);
        }
        self.json("-object", backend);
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
        let mut node = Object::of("driver", "file");
        node.set("node-name", ROOT_SERIAL);
        node.set("filename", root);
        node.set("aio", "io_uring");
        node.set("cache", json!({ "direct": false, "no-flush": false }));
        node.set("read-only", true);
        self.json("-blockdev", node);
        let mut device = Object::of("driver", "virtio-blk-pci");
        device.set("id", ROOT_SERIAL);
        device.set("drive", ROOT_SERIAL);
        device.set("serial", ROOT_SERIAL);
        device.set("num-queues", 1);
        device.set("queue-size", 128);
        if let Some(iothread) = plan.iothreads.first() {
            device.set("iothread-vq-mapping", json!([{ "iothread": iothread.name, "vqs": [0] }]));
        }
        bus.place(&mut device);
        self.json("-device", device);
    }

    /// Without a backend that is named, QEMU asks the host's getrandom(2), as vmprof does.
    fn rng(&mut self, bus: &mut Bus) {
        let mut device = Object::of("driver", "virtio-rng-pci");
        bus.place(&mut device);
        self.json("-device", device);
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
        let mut node = Object::of("driver", driver);
        node.set("node-name", &id);
        node.set("filename", path);
        node.set("aio", engine(disk.aio));
        node.set("cache", json!({ "direct": disk.direct, "no-flush": disk.cache == CacheMode::Unsafe }));
        node.set("discard", if disk.discard { "unmap" } else { "ignore" });
        node.set("read-only", disk.readonly);
        node.set("auto-read-only", false);
        self.json("-blockdev", node);
        let mut device = Object::of("driver", "virtio-blk-pci");
        device.set("id", &id);
        device.set("drive", &id);
        device.set("serial", name);
        device.set("num-queues", disk.queues);
        device.set("queue-size", disk.queue_size.max(LEAST_DISK_QUEUE));
        if disk.packed {
            device.set("packed", true);
        }
        let mapping = served(disk)
            .into_iter()
            .map(|(iothread, vqs)| json!({ "iothread": format!("iothread{iothread}"), "vqs": vqs }));
        device.set("iothread-vq-mapping", mapping.collect::<Value>());
        device.set("write-cache", if disk.write_cache { "on" } else { "off" });
        device.set("rerror", disk.rerror.word());
        device.set("werror", disk.werror.word());
        if let Some(bytes) = disk.logical_block_bytes {
            device.set("logical_block_size", bytes);
        }
        if let Some(bytes) = disk.physical_block_bytes {
            device.set("physical_block_size", bytes);
        }
        bus.place(&mut device);
        self.json("-device", device);
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
        let netdev = match &net.backend {
            NetBackend::Passt { forwards } => {
                let mut netdev = Object::of("type", "passt");
                netdev.set("id", name);
                for (protocol, property) in [(Protocol::Tcp, "tcp-ports"), (Protocol::Udp, "udp-ports")] {
                    let ports: Vec<Value> = forwards
                        .iter()
                        .filter(|forward| forward.protocol == protocol)
                        .map(|forward| json!({ "str": format!("127.0.0.1/{}:{}", forward.host, forward.guest) }))
                        .collect();
                    if !ports.is_empty() {
                        netdev.set(property, ports);
                    }
                }
                remarks.warn(
                    "qemu_passt",
                    format!("{name}: `-netdev passt` needs QEMU 10.1 or newer, and `passt` on its PATH"),
                    "with QEMU 10.0: start `passt --socket SOCKET` with the ports first, and give the same id to \
                     `-netdev stream,server=off,addr.type=unix,addr.path=SOCKET`",
                );
                if pairs > 1 {
                    remarks.warn(
                        "net_queues",
                        format!("{name}: QEMU's passt has one queue pair, not {pairs}"),
                        "write `queues 1`, or use a tap device",
                    );
                    pairs = 1;
                }
                netdev
            }
            NetBackend::Tap { name: tap } => {
                let mut netdev = Object::of("type", "tap");
                netdev.set("id", name);
                netdev.set("ifname", tap);
                netdev.set("script", "no");
                netdev.set("downscript", "no");
                if pairs > 1 {
                    netdev.set("queues", pairs);
                }
                netdev
            }
        };
        self.json("-netdev", netdev);
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
        let mut device = Object::of("driver", "virtio-net-pci");
        device.set("id", &id);
        device.set("netdev", name);
        device.set("rx_queue_size", size);
        if pairs > 1 {
            device.set("mq", true);
            // A vector per queue, one for the control queue, one for configuration changes.
            device.set("vectors", 2 * pairs + 2);
        }
        if let Some(mac) = &net.mac {
            device.set("mac", mac);
        }
        bus.place(&mut device);
        self.json("-device", device);
    }
}

/// The pins, and how to make them from outside.
fn pins(plan: &Plan, remarks: &mut Remarks) {
    let others: Vec<(String, String)> = plan
        .threads()
        .into_iter()
        .filter(|(name, cpus)| name != "vmprof" && is_pin(plan, cpus))
        .map(|(name, cpus)| (name, cpus.to_string()))
        .collect();
    let emulator = is_pin(plan, &plan.emulator.cpus)
        .then(|| ("the emulator".to_owned(), plan.emulator.cpus.to_string()));
    let list: Vec<String> =
        others.iter().chain(&emulator).map(|(name, cpus)| format!("{name} on {cpus}")).collect();
    if list.is_empty() {
        return;
    }
    let first = match &emulator {
        Some((_, cpus)) => format!("put `taskset -c {cpus}` in front of the command, then run"),
        None => "once it runs, run".to_owned(),
    };
    let mut help = format!(
        "{first} with QEMU's process id in $PID:\n\
         pin() {{\n\
         \x20 for t in /proc/$PID/task/*; do\n\
         \x20   [ \"$(cat $t/comm)\" = \"$1\" ] &&\n\
         \x20     taskset -pc $2 ${{t##*/}}\n\
         \x20 done\n\
         }}"
    );
    for (name, cpus) in &others {
        help.push_str(&format!("\npin {} {cpus}", quoted(name)));
    }
    remarks.warn("qemu_pins", format!("QEMU's command line pins no thread: {}", list.join(", ")), help);
}
