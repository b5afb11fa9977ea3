//! A domain's disks.

use std::collections::BTreeSet;

use super::draft::{Draft, plain_name, quoted, string};
use super::libvirt::Reading;
use super::threads::Threads;
use super::xml::{Xml, child, children, elements, text};
use super::{quantities, unsaid};
use crate::export::shell;

/// What a serial can hold (virtio 1.3, 5.2.6).
const SERIAL_BYTES: usize = 20;
/// The disk that vmprof's own exports add for the guest's root.
const OWN_PREFIX: &str = "vmprof";

/// Reads one, where its bytes lie where vmprof can have them. `names` are those of the disks before it.
pub(super) fn disk<'a, 'x>(
    reading: &mut Reading<'a, 'x>,
    node: Xml<'a, 'x>,
    threads: &Threads,
    names: &mut BTreeSet<String>,
) -> Option<Draft> {
    let target = child(node, "target");
    let called = target.and_then(|target| target.attribute("dev")).unwrap_or("without a target");
    let what = format!("disk {called}");
    match node.attribute("device").unwrap_or("disk") {
        "disk" => {}
        device => {
            reading.leave(node, format!("{device} {called}"), "vmprof has virtio-blk disks alone");
            return None;
        }
    }
    let serial = child(node, "serial").map(text).unwrap_or_default();
    if serial.starts_with(OWN_PREFIX) {
        reading.leave(
            node,
            format!("{what}, of the serial {serial}"),
            "vmprof brings the guest's root itself",
        );
        return None;
    }
    let source = child(node, "source");
    let attribute = match node.attribute("type").unwrap_or("file") {
        "file" => "file",
        "block" => "dev",
        other => {
            reading.leave(
                node,
                format!("{what}, of the type {other}"),
                "a disk lies in a raw file or on a block device of the host",
            );
            return None;
        }
    };
    let Some(path) = source.and_then(|source| source.attribute(attribute)) else {
        reading.leave(node, what, "it has no source: nothing is in it");
        return None;
    };
    let name = name_of(reading, node, &serial, called, names);
    let mut disk = Draft::new(format!("disk {}", string(&name)), reading.origin(node, what.clone())).kept();
    disk.add(Draft::new(
        format!("source {attribute}={}", quoted(path)),
        reading.origin(node, format!("{what}: its source")),
    ));
    if let Some(bus) = target.and_then(|target| target.attribute("bus")).filter(|bus| *bus != "virtio") {
        reading.leave(
            node,
            format!("{what}: bus='{bus}'"),
            "the guest sees a virtio-blk disk: its device is named otherwise there",
        );
    }
    reading.leave_attributes(&what, node, &["type", "device"]);
    if let Some(target) = target {
        reading.leave_attributes(&format!("{what}: target"), target, &["dev", "bus"]);
    }
    let driver = child(node, "driver");
    let format = driver.and_then(|driver| driver.attribute("type")).unwrap_or("raw");
    if format != "raw" {
        let (from, to) = (shell::quoted(path), shell::quoted(&format!("{path}.raw")));
        let hint = format!("convert it: `qemu-img convert -O raw {from} {to}`, and name that file");
        reading.leave(
            node,
            format!("{what}: type='{format}'"),
            format!("disks are raw files or devices; {hint}"),
        );
        disk.comment(format!("{format}: {hint}"));
        disk.strike();
    }
    if let Some(source) = source {
        self::source(reading, source, attribute, &what, &mut disk);
    }
    if child(node, "encryption").is_some() {
        not_its_bytes(&mut disk, "encryption");
    }
    self::driver(reading, driver, node, &what, threads, &mut disk);
    block_sizes(reading, node, &what, &mut disk);
    if child(node, "readonly").is_some() {
        disk.add(Draft::new("readonly", reading.origin(node, format!("{what}: readonly"))));
    }
    for rest in elements(node) {
        match rest.tag_name().name() {
            "driver" | "source" | "target" | "serial" | "readonly" | "blockio" => {}
            // libvirt's own notes, which every running domain has.
            "address" | "alias" => {}
            "backingStore" if !rest.has_children() => {}
            element => reading.leave(rest, format!("{what}: {element}"), unsaid::why("disk", element)),
        }
    }
    Some(disk)
}

/// What a source says besides its path.
fn source<'a, 'x>(
    reading: &mut Reading<'a, 'x>,
    node: Xml<'a, 'x>,
    attribute: &str,
    what: &str,
    disk: &mut Draft,
) {
    let what = format!("{what}: source");
    // The index is libvirt's own number of a running disk's layer.
    reading.leave_attributes(&what, node, &[attribute, "index"]);
    reading.leave_children(&what, node, &[]);
    for element in ["encryption", "slices"] {
        if child(node, element).is_some() {
            not_its_bytes(disk, element);
        }
    }
}

/// A disk whose guest does not see the source's bytes as they lie: opened whole and plain, it would destroy them.
fn not_its_bytes(disk: &mut Draft, element: &str) {
    disk.comment(format!(
        "{element}: the guest does not see the bytes of the source as they lie, and vmprof opens it whole and plain."
    ));
    disk.strike();
}

/// The disk's name, which the guest finds it by: its serial, else the name that its owner gave it, else its target.
fn name_of<'a, 'x>(
    reading: &mut Reading<'a, 'x>,
    node: Xml<'a, 'x>,
    serial: &str,
    target: &str,
    names: &mut BTreeSet<String>,
) -> String {
    let alias = child(node, "alias").and_then(|alias| alias.attribute("name")?.strip_prefix("ua-"));
    let wanted = match (serial.is_empty(), alias) {
        (false, _) => serial,
        (true, Some(alias)) => alias,
        (true, None) => target,
    };
    let mut name = plain_name(wanted, SERIAL_BYTES, "disk");
    if name == "root" || name.starts_with(OWN_PREFIX) {
        name = plain_name(&format!("disk-{name}"), SERIAL_BYTES, "disk");
    }
    let mut more = 2u32;
    let first = name.clone();
    while names.contains(&name) {
        let number = format!("-{more}");
        name = first.chars().take(SERIAL_BYTES.saturating_sub(number.len())).chain(number.chars()).collect();
        more += 1;
    }
    names.insert(name.clone());
    if !serial.is_empty() && name != serial {
        reading.leave(
            node,
            format!("disk {target}: the serial `{serial}`"),
            format!("the guest finds the disk by the name `{name}`: a serial is at most {SERIAL_BYTES} plain letters, digits, `.`, `_` and `-`, of one disk"),
        );
    }
    name
}

fn driver<'a, 'x>(
    reading: &mut Reading<'a, 'x>,
    driver: Option<Xml<'a, 'x>>,
    node: Xml<'a, 'x>,
    what: &str,
    threads: &Threads,
    disk: &mut Draft,
) {
    const KNOWN: [&str; 11] = [
        "name",
        "type",
        "cache",
        "io",
        "discard",
        "queues",
        "queue_size",
        "packed",
        "iothread",
        "error_policy",
        "rerror_policy",
    ];
    let at = driver.unwrap_or(node);
    let said = |name: &str| driver.and_then(|driver| driver.attribute(name));
    let mut words = Draft::new("driver raw", reading.origin(at, format!("{what}: its driver")));
    // What the domain leaves to QEMU is QEMU's: the page cache, and a pool of threads.
    let cache = said("cache").filter(|cache| *cache != "default").unwrap_or("writeback");
    words.word(format!("cache={}", string(cache)), reading.origin(at, format!("{what}: cache='{cache}'")));
    let io = said("io").unwrap_or("threads");
    words.word(format!("aio={}", string(io)), reading.origin(at, format!("{what}: io='{io}'")));
    if let Some(discard) = said("discard").filter(|discard| *discard != "ignore") {
        words.word(
            format!("discard={}", string(discard)),
            reading.origin(at, format!("{what}: discard='{discard}'")),
        );
    }
    // QEMU's own policy for writes stops the guest where space runs out; a disk that only reads has none.
    let write = said("error_policy").or(child(node, "readonly").is_none().then_some("enospace"));
    errors(reading, at, what, write, said("rerror_policy"), &mut words);
    disk.add(words);
    let (queues, size) = (said("queues"), said("queue_size"));
    let packed = said("packed") == Some("on");
    if queues.is_some() || size.is_some() || packed {
        let count = queues.and_then(|queues| queues.parse::<u64>().ok());
        if let (Some(queues), None) = (queues, count) {
            reading.leave(at, format!("{what}: queues='{queues}'"), "this is no number of queues");
        }
        let count = count.map_or("auto".to_owned(), |count| count.to_string());
        let mut node =
            Draft::new(format!("queues {count}"), reading.origin(at, format!("{what}: queues='{count}'")));
        match size.map(|size| (size, size.parse::<u64>())) {
            Some((said, Ok(size))) => {
                node.word(format!("size={size}"), reading.origin(at, format!("{what}: queue_size='{said}'")));
            }
            Some((said, Err(_))) => {
                reading.leave(at, format!("{what}: queue_size='{said}'"), "this is no number of descriptors");
            }
            None => {}
        }
        if packed {
            node.word("ring=packed", reading.origin(at, format!("{what}: packed='on'")));
        }
        disk.add(node);
    }
    mapping(reading, driver, at, what, threads, disk);
    if let Some(driver) = driver {
        reading.leave_attributes(what, driver, &KNOWN);
        for rest in elements(driver).filter(|rest| rest.tag_name().name() != "iothreads") {
            let element = rest.tag_name().name();
            reading.leave(rest, format!("{what}: {element}"), unsaid::why("driver", element));
        }
    }
}

/// What failed requests do: libvirt's one word is for both, unless reads have their own.
fn errors<'a, 'x>(
    reading: &mut Reading<'a, 'x>,
    at: Xml<'a, 'x>,
    what: &str,
    write: Option<&str>,
    read: Option<&str>,
    driver: &mut Draft,
) {
    let policy = |word: &str| if word == "enospace" { "enospc".to_owned() } else { string(word) };
    // A read cannot want for space.
    let read = read.or(write.filter(|word| *word != "enospace"));
    for (key, word) in [("rerror", read), ("werror", write)] {
        if let Some(word) = word.filter(|word| *word != "report") {
            driver.word(
                format!("{key}={}", policy(word)),
                reading.origin(at, format!("{what}: {key} '{word}'")),
            );
        }
    }
}

fn mapping<'a, 'x>(
    reading: &mut Reading<'a, 'x>,
    driver: Option<Xml<'a, 'x>>,
    at: Xml<'a, 'x>,
    what: &str,
    threads: &Threads,
    disk: &mut Draft,
) {
    let origin = reading.origin(at, format!("{what}: its IOThreads"));
    let mut mapping = Draft::new("iothread-vq-mapping", origin).container();
    let one = driver.and_then(|driver| driver.attribute("iothread"));
    let several: Vec<_> = driver
        .and_then(|driver| child(driver, "iothreads"))
        .into_iter()
        .flat_map(|list| children(list, "iothread"))
        .collect();
    if let Some(id) = one {
        match threads.ours(id) {
            Some(ours) => mapping.add(Draft::new(
                format!("iothread {ours}"),
                reading.origin(at, format!("{what}: iothread='{id}'")),
            )),
            None => reading.leave(at, format!("{what}: iothread='{id}'"), "the domain has no such IOThread"),
        }
    }
    for node in several {
        let id = node.attribute("id").unwrap_or_default();
        let Some(ours) = threads.ours(id) else {
            reading.leave(node, format!("{what}: IOThread {id}"), "the domain has no such IOThread");
            continue;
        };
        let mut entry =
            Draft::new(format!("iothread {ours}"), reading.origin(node, format!("{what}: IOThread {id}")));
        let queues: Vec<&str> = children(node, "queue").filter_map(|queue| queue.attribute("id")).collect();
        if !queues.is_empty() {
            // Queues are counted from 0 on both sides.
            let list = queues.join(",");
            let list = quantities::cpus(&list).map_or(list, |set| set.to_string());
            entry.word(
                format!("vqs={}", quoted(&list)),
                reading.origin(node, format!("{what}: queues of IOThread {id}")),
            );
        }
        mapping.add(entry);
    }
    if mapping.has_children() {
        disk.add(mapping);
    } else if !threads.ids.is_empty() {
        disk.comment("No IOThread serves it in the domain: here its queues go over all of them.");
        reading.leave(
            at,
            format!("{what}: served by QEMU's emulator thread"),
            "vmprof's disks are served by IOThreads: its queues go over all of them",
        );
    }
}

fn block_sizes<'a, 'x>(reading: &mut Reading<'a, 'x>, node: Xml<'a, 'x>, what: &str, disk: &mut Draft) {
    let Some(sizes) = child(node, "blockio") else { return };
    let mut words = Draft::new("blockio", reading.origin(sizes, format!("{what}: its block sizes")));
    let mut any = false;
    for (attribute, word) in [("logical_block_size", "logical"), ("physical_block_size", "physical")] {
        if let Some(bytes) =
            sizes.attribute(attribute).and_then(|bytes| bytes.parse::<u64>().ok()).filter(|bytes| *bytes > 0)
        {
            words.word(
                format!("{word}={bytes}"),
                reading.origin(sizes, format!("{what}: {attribute}='{bytes}'")),
            );
            any = true;
        }
    }
    if any {
        disk.add(words);
    }
    reading.leave_attributes(what, sizes, &["logical_block_size", "physical_block_size"]);
}
