//! The plan as libvirt's domain XML, of libvirt 10 or newer: the first with `<iothreads>` inside a disk's driver.
//!
//! libvirt counts IOThreads from 1 and virtqueues from 0, so every IOThread's id is one more than vmprof's. The order of
//! elements is the order in which libvirt prints them.

use super::element::{Element, document};
use super::remarks::{Remarks, engine};
use super::{Boot, BootFiles, Exported, ROOT_SERIAL, cores_and_threads, is_pin, served};
use crate::plan::{DiskPlan, NetPlan, Plan};
use crate::profile::{DiskSource, ErrorPolicy, MemoryMode, NetBackend, Protocol};

/// Where libvirt itself keeps images.
const IMAGES: &str = "/var/lib/libvirt/images";
/// libvirt's receive queues have a size of their own from here on.
const NET_QUEUE: std::ops::RangeInclusive<u16> = 256..=1024;
/// The least virtqueue that QEMU's virtio-blk takes.
const LEAST_DISK_QUEUE: u16 = 4;

/// The plan as domain XML, and what libvirt cannot be told.
pub fn libvirt(plan: &Plan, files: &BootFiles) -> Exported {
    let mut remarks = Remarks::new("libvirt");
    let boot = files.boot();
    let mut domain = Element::new("domain").with("type", "kvm");
    domain.leaf("name", &plan.profile);
    memory(plan, &mut domain, &mut remarks);
    domain.add(Element::new("vcpu").with("placement", "static").text(plan.vcpus.len()));
    threads(plan, &mut domain);
    system(boot, &mut domain);
    let (cores, siblings) = cores_and_threads(plan);
    let mut cpu = Element::new("cpu").with("mode", "host-passthrough");
    cpu.add(Element::new("topology").with("sockets", 1).with("cores", cores).with("threads", siblings));
    domain.add(cpu);
    for (event, action) in [("on_poweroff", "destroy"), ("on_reboot", "destroy"), ("on_crash", "destroy")] {
        domain.leaf(event, action);
    }
    let mut devices = Element::new("devices");
    let mut targets = (0u32..).map(target);
    if let Some(root) = boot.and_then(|boot| boot.root) {
        devices.add(root_disk(plan, root, targets.next().unwrap_or_default()));
    }
    for disk in &plan.disks {
        devices.add(data_disk(plan, disk, files, targets.next().unwrap_or_default(), &mut remarks));
    }
    for net in &plan.nets {
        devices.add(interface(net, &mut remarks));
    }
    let mut serial = Element::new("serial").with("type", "pty");
    serial.add(Element::new("target").with("port", 0));
    devices.add(serial);
    devices.add(Element::new("console").with("type", "pty"));
    // What libvirt adds unasked.
    devices.add(Element::new("controller").with("type", "usb").with("model", "none"));
    devices.add(Element::new("memballoon").with("model", "none"));
    let mut rng = Element::new("rng").with("model", "virtio");
    // The host's getrandom(2), as with vmprof.
    rng.add(Element::new("backend").with("model", "builtin"));
    devices.add(rng);
    let mut vsock = Element::new("vsock").with("model", "virtio");
    // libvirt gives out the host's addresses.
    vsock.add(Element::new("cid").with("auto", "yes"));
    devices.add(vsock);
    domain.add(devices);
    remarks.boot(files);
    remarks.topology(plan);
    remarks.iothreads(plan);
    let (text, unwritable) = document(domain);
    for value in unwritable {
        remarks.warn(
            "not_in_xml",
            format!("no XML can hold {value:?}: the domain has U+FFFD for its control characters, and names what is not there"),
            "rename it",
        );
    }
    Exported { text, warnings: remarks.finish() }
}

fn memory(plan: &Plan, domain: &mut Element, remarks: &mut Remarks) {
    let memory = &plan.memory;
    domain.add(Element::new("memory").with("unit", "KiB").text(memory.bytes >> 10));
    if let Some(size) = memory.hugepages {
        let mut pages = Element::new("hugepages");
        pages.add(Element::new("page").with("size", size.bytes() >> 10).with("unit", "KiB"));
        let mut backing = Element::new("memoryBacking");
        backing.add(pages);
        // A page that its node lacks ends the start, not the running guest.
        backing.add(Element::new("allocation").with("mode", "immediate"));
        domain.add(backing);
    }
    if let (MemoryMode::Preferred, Some(nodes)) = (memory.mode, &memory.nodes)
        && nodes.len() > 1
    {
        remarks.warn(
            "preferred_nodes",
            format!("memory prefers nodes {nodes}: a libvirt built for a kernel older than 5.15 takes one preferred node only"),
            "there, name one node in the profile, or write `mode=strict`",
        );
    }
}

/// IOThreads, pins and memory nodes.
fn threads(plan: &Plan, domain: &mut Element) {
    domain.add(Element::new("iothreads").text(plan.iothreads.len()));
    let mut ids = Element::new("iothreadids");
    let mut tune = Element::new("cputune");
    for vcpu in plan.vcpus.iter().filter(|vcpu| is_pin(plan, &vcpu.cpus)) {
        tune.add(Element::new("vcpupin").with("vcpu", vcpu.id).with("cpuset", &vcpu.cpus));
    }
    if is_pin(plan, &plan.emulator.cpus) {
        tune.add(Element::new("emulatorpin").with("cpuset", &plan.emulator.cpus));
    }
    for iothread in &plan.iothreads {
        let id = number(iothread.id);
        let mut poll = Element::new("poll").with("max", iothread.poll_max_ns);
        for (name, factor) in [("grow", iothread.poll_grow), ("shrink", iothread.poll_shrink)] {
            // 0 is what is built in, and QEMU 11.1 takes a 0 that is written so too.
            if factor > 0 {
                poll = poll.with(name, factor);
            }
        }
        let mut one = Element::new("iothread").with("id", id);
        one.add(poll);
        ids.add(one);
        if is_pin(plan, &iothread.cpus) {
            tune.add(Element::new("iothreadpin").with("iothread", id).with("cpuset", &iothread.cpus));
        }
    }
    domain.add(ids);
    if !tune.is_empty() {
        domain.add(tune);
    }
    if let Some(nodes) = plan.memory.nodes.as_ref().filter(|nodes| !nodes.is_empty()) {
        let mut tune = Element::new("numatune");
        tune.add(Element::new("memory").with("mode", plan.memory.mode.word()).with("nodeset", nodes));
        domain.add(tune);
    }
}

fn system(boot: Option<Boot<'_>>, domain: &mut Element) {
    let mut os = Element::new("os");
    os.add(Element::new("type").with("arch", "x86_64").with("machine", "q35").text("hvm"));
    if let Some(boot) = boot {
        os.leaf("kernel", boot.kernel);
        if let Some(initramfs) = boot.initramfs {
            os.leaf("initrd", initramfs);
        }
        if let Some(cmdline) = boot.cmdline {
            os.leaf("cmdline", cmdline);
        }
    }
    domain.add(os);
    let mut features = Element::new("features");
    features.add(Element::new("acpi"));
    features.add(Element::new("apic"));
    domain.add(features);
}

/// The guest's root image, as `vmprof up` attaches it.
fn root_disk(plan: &Plan, root: &str, target: String) -> Element {
    let mut driver =
        Element::new("driver").with("name", "qemu").with("type", "raw").with("cache", "writeback");
    driver = driver.with("io", "io_uring").with("queues", 1).with("queue_size", 128);
    if let Some(first) = plan.iothreads.first() {
        driver.add(mapping([(first.id, vec![0])]));
    }
    let mut disk = Element::new("disk").with("type", "file").with("device", "disk");
    disk.add(driver);
    disk.add(Element::new("source").with("file", root));
    disk.add(Element::new("target").with("dev", target).with("bus", "virtio"));
    disk.add(Element::new("readonly"));
    disk.leaf("serial", ROOT_SERIAL);
    disk.add(Element::new("alias").with("name", format!("ua-{ROOT_SERIAL}")));
    disk
}

fn data_disk(
    plan: &Plan,
    plan_disk: &DiskPlan,
    files: &BootFiles,
    target: String,
    remarks: &mut Remarks,
) -> Element {
    let name = &plan_disk.name;
    let path = path(plan, plan_disk, files, remarks);
    remarks.disk(plan_disk, &path);
    let (kind, attribute) = match plan_disk.source {
        DiskSource::File { .. } => ("file", "file"),
        DiskSource::Device { .. } => ("block", "dev"),
    };
    let size = plan_disk.queue_size.max(LEAST_DISK_QUEUE);
    if size != plan_disk.queue_size {
        remarks.warn(
            "queue_size",
            format!(
                "disk `{name}`: QEMU refuses virtqueues of {}: they have {size} descriptors",
                plan_disk.queue_size
            ),
            format!("write `size={size}` or more at its `queues`"),
        );
    }
    let mut driver = Element::new("driver")
        .with("name", "qemu")
        .with("type", "raw")
        .with("cache", plan_disk.cache.word())
        .with("error_policy", error_policy(plan_disk.werror))
        .with("rerror_policy", error_policy(plan_disk.rerror))
        .with("io", engine(plan_disk.aio))
        .with("discard", if plan_disk.discard { "unmap" } else { "ignore" })
        .with("queues", plan_disk.queues)
        .with("queue_size", size);
    if plan_disk.packed {
        driver = driver.with("packed", "on");
    }
    driver.add(mapping(served(plan_disk)));
    let mut disk = Element::new("disk").with("type", kind).with("device", "disk");
    disk.add(driver);
    disk.add(Element::new("source").with(attribute, path));
    if plan_disk.logical_block_bytes.is_some() || plan_disk.physical_block_bytes.is_some() {
        let mut sizes = Element::new("blockio");
        if let Some(bytes) = plan_disk.logical_block_bytes {
            sizes = sizes.with("logical_block_size", bytes);
        }
        if let Some(bytes) = plan_disk.physical_block_bytes {
            sizes = sizes.with("physical_block_size", bytes);
        }
        disk.add(sizes);
    }
    disk.add(Element::new("target").with("dev", target).with("bus", "virtio"));
    if plan_disk.readonly {
        disk.add(Element::new("readonly"));
    }
    disk.leaf("serial", name);
    // libvirt drops an alias with a dot without a word.
    if !name.contains('.') {
        disk.add(Element::new("alias").with("name", format!("ua-{name}")));
    }
    disk
}

/// libvirt takes no relative path.
fn path(plan: &Plan, disk: &DiskPlan, files: &BootFiles, remarks: &mut Remarks) -> String {
    if let Some(path) = files.path_of(&disk.source) {
        return path;
    }
    let (DiskSource::File { path, .. } | DiskSource::Device { path }) = &disk.source;
    let placed = format!("{IMAGES}/{}/{path}", plan.profile);
    remarks.warn(
        "relative_file",
        format!(
            "disk `{}`: where `{path}` lies on that host is not known here: the domain says {placed}",
            disk.name
        ),
        "write an absolute path at its `source`",
    );
    placed
}

/// `<iothreads>` inside a driver.
fn mapping(served: impl IntoIterator<Item = (u32, Vec<u32>)>) -> Element {
    let mut iothreads = Element::new("iothreads");
    for (id, vqs) in served {
        let mut iothread = Element::new("iothread").with("id", number(id));
        vqs.into_iter().for_each(|vq| iothread.add(Element::new("queue").with("id", vq)));
        iothreads.add(iothread);
    }
    iothreads
}

fn interface(net: &NetPlan, remarks: &mut Remarks) -> Element {
    let name = &net.name;
    remarks.net(net);
    let mut pairs = net.queues.max(1);
    let mut interface = match &net.backend {
        NetBackend::Passt { .. } => Element::new("interface").with("type", "user"),
        NetBackend::Tap { .. } => Element::new("interface").with("type", "ethernet"),
    };
    if let Some(mac) = &net.mac {
        interface.add(Element::new("mac").with("address", mac));
    }
    match &net.backend {
        NetBackend::Passt { forwards } => {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let word = match protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                };
                let mut forward =
                    Element::new("portForward").with("proto", word).with("address", "127.0.0.1");
                for one in forwards.iter().filter(|forward| forward.protocol == protocol) {
                    forward.add(Element::new("range").with("start", one.host).with("to", one.guest));
                }
                if !forward.is_empty() {
                    interface.add(forward);
                }
            }
            if pairs > 1 {
                remarks.warn(
                    "net_queues",
                    format!("{name}: libvirt's passt has one queue pair, not {pairs}"),
                    "write `queues 1`, or use a tap device",
                );
                pairs = 1;
            }
        }
        NetBackend::Tap { name } => {
            interface.add(Element::new("target").with("dev", name).with("managed", "no"));
        }
    }
    interface.add(Element::new("model").with("type", "virtio"));
    let size = net.queue_size.clamp(*NET_QUEUE.start(), *NET_QUEUE.end());
    let mut driver = Element::new("driver").with("name", "qemu");
    if pairs > 1 {
        driver = driver.with("queues", pairs);
    }
    interface.add(driver.with("rx_queue_size", size));
    if net.queue_size != *NET_QUEUE.start() {
        remarks.warn(
            "queue_size",
            format!(
                "{name}: libvirt's receive queues have {size} descriptors and its transmit queues {}, not {}",
                NET_QUEUE.start(),
                net.queue_size
            ),
            format!("write `size={}` at its `queues`", NET_QUEUE.start()),
        );
    }
    if let NetBackend::Passt { .. } = net.backend {
        interface.add(Element::new("backend").with("type", "passt"));
    }
    interface
}

/// libvirt's number of an IOThread.
fn number(iothread: u32) -> u64 {
    u64::from(iothread) + 1
}

fn error_policy(policy: ErrorPolicy) -> &'static str {
    match policy {
        ErrorPolicy::Report => "report",
        ErrorPolicy::Ignore => "ignore",
        ErrorPolicy::Stop => "stop",
        ErrorPolicy::Enospc => "enospace",
    }
}

/// `vda` … `vdz`, `vdaa` and so on.
fn target(index: u32) -> String {
    let mut letters = Vec::new();
    let mut rest = index;
    loop {
        letters.push(char::from(b'a' + u8::try_from(rest % 26).unwrap_or_default()));
        match (rest / 26).checked_sub(1) {
            Some(more) => rest = more,
            None => break,
        }
    }
    format!("vd{}", letters.iter().rev().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_count_on_after_z() {
        let names: Vec<String> = [0, 1, 25, 26, 27, 51, 52, 701, 702].map(target).into();
        assert_eq!(names, ["vda", "vdb", "vdz", "vdaa", "vdab", "vdaz", "vdba", "vdzz", "vdaaa"]);
    }
}
