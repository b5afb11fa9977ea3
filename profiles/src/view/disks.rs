//! A disk and a network device in lines of text: where the bytes lie, how they move, who serves which virtqueue.

use std::collections::BTreeMap;

use vmprof_document::format_size;

use crate::plan::{DiskPlan, NetPlan, Virtqueue};
use crate::profile::{Aio, DiskSource, ErrorPolicy, NetBackend, Protocol};
use crate::topology::CpuSet;

use super::prose::{count, hang};

/// Appends one disk.
pub(super) fn disk_lines(out: &mut String, disk: &DiskPlan, width: usize, explain: bool) {
    let readonly = if disk.readonly { ", read-only" } else { "" };
    hang(out, &format!("  {}  ", disk.name), &format!("{}, {}{readonly}", source(disk), lies(disk)), width);
    hang(out, "    ", &transfer(disk), width);
    hang(out, "    ", &virtqueues(&disk.virtqueues, disk.queue_size), width);
    hang(out, "      ", &disk.because, width);
    if let Some(rejected) = disk.rejected.as_ref().filter(|_| explain) {
        hang(out, "      ", &format!("not {}: {}", rejected.instead, rejected.because), width);
    }
    hang(out, "    ", &schedulers(disk), width);
}

/// The source as the profile writes it.
pub(super) fn source(disk: &DiskPlan) -> String {
    match &disk.source {
        DiskSource::File { path, bytes: Some(bytes) } => format!("file {path} ({})", format_size(*bytes)),
        DiskSource::File { path, bytes: None } => format!("file {path}"),
        DiskSource::Device { path } => format!("device {path}"),
    }
}

/// The host's device under it.
pub(super) fn lies(disk: &DiskPlan) -> String {
    match (&disk.device, disk.node) {
        (Some(device), Some(node)) => format!("on {device}, node {node}"),
        (Some(device), None) => format!("on {device}, node unknown"),
        (None, _) => "on an unknown device".to_owned(),
    }
}

/// How its bytes move, and what differs from what a disk is without further words.
pub(super) fn transfer(disk: &DiskPlan) -> String {
    let direct = if disk.direct { "O_DIRECT" } else { "page cache" };
    let cache = if disk.write_cache { "write cache shown" } else { "every write durable" };
    let mut parts = vec![
        format!("cache {} ({direct}, {cache})", disk.cache.word()),
        match disk.aio_fallback {
            None => format!("aio {}", engine(disk.aio)),
            Some(other) => format!("aio {}, else {}", engine(disk.aio), engine(other)),
        },
    ];
    if disk.iopoll {
        parts.push("iopoll: the drive is looked at while requests are in flight".to_owned());
    }
    if disk.packed {
        parts.push("packed virtqueues offered".to_owned());
    }
    if disk.discard {
        parts.push("discard unmap".to_owned());
    }
    for (word, policy) in [("rerror", disk.rerror), ("werror", disk.werror)] {
        if policy != ErrorPolicy::Report {
            parts.push(format!("{word} {}", policy.word()));
        }
    }
    match (disk.logical_block_bytes, disk.physical_block_bytes) {
        (None, None) => {}
        (Some(logical), None) => parts.push(format!("blocks of {logical} bytes")),
        (None, Some(physical)) => parts.push(format!("physical blocks of {physical} bytes")),
        (Some(logical), Some(physical)) => {
            parts.push(format!("blocks of {logical} bytes, physical ones of {physical}"));
        }
    }
    if let Some(format) = &disk.format {
        let mount = format.mount.as_ref().map_or(String::new(), |at| format!(" on {at}"));
        parts.push(format!("format {}{mount}", format.filesystem));
    }
    parts.join("; ")
}

/// The engine's word.
pub(super) fn engine(aio: Aio) -> &'static str {
    match aio {
        Aio::IoUring => "io_uring",
        Aio::Native => "native",
        Aio::Threads => "threads",
    }
}

/// The schedulers on both sides.
pub(super) fn schedulers(disk: &DiskPlan) -> String {
    let word = |s: &Option<String>| s.clone().unwrap_or_else(|| "as it is".to_owned());
    format!("scheduler: host {}, guest {}", word(&disk.scheduler.host), word(&disk.scheduler.guest))
}

/// The virtqueues of each IOThread.
pub(super) fn served(virtqueues: &[Virtqueue]) -> BTreeMap<u32, CpuSet> {
    let mut served: BTreeMap<u32, CpuSet> = BTreeMap::new();
    for queue in virtqueues {
        served.entry(queue.iothread).or_default().insert(queue.vq);
    }
    served
}

/// More IOThreads than this are told as a rule, where there is one.
const NAMED: usize = 4;

/// Who serves which virtqueue, in words: `4 virtqueues of 256: iothread0 serves 0,2; iothread1 serves 1,3`.
pub(super) fn virtqueues(virtqueues: &[Virtqueue], size: u16) -> String {
    let head = format!("{} of {size}", count(virtqueues.len(), "virtqueue"));
    let served = served(virtqueues);
    let ids: Vec<u32> = virtqueues.iter().map(|queue| queue.iothread).take(served.len()).collect();
    let in_turn = virtqueues.iter().zip(ids.iter().cycle()).all(|(queue, id)| queue.iothread == *id);
    if served.len() > NAMED && in_turn && virtqueues.len() > served.len() {
        let pool: CpuSet = ids.iter().copied().collect();
        let first = ids.first().and_then(|id| served.get(id)).map_or(String::new(), CpuSet::to_string);
        let id = ids.first().copied().unwrap_or(0);
        let (least, most) = (virtqueues.len() / served.len(), virtqueues.len().div_ceil(served.len()));
        let each = if least == most { format!("{least}") } else { format!("{least} or {most}") };
        return format!("{head}: in turn over iothread {pool}, {each} each (iothread{id} serves {first})");
    }
    let each: Vec<String> = served.iter().map(|(id, vqs)| format!("iothread{id} serves {vqs}")).collect();
    format!("{head}: {}", each.join("; "))
}

/// Appends one network device.
pub(super) fn net_lines(out: &mut String, net: &NetPlan, width: usize) {
    let mac = net.mac.as_deref().unwrap_or("derived from the VM's name");
    hang(out, &format!("  {}  ", net.name), &format!("{}, mac {mac}", backend(&net.backend)), width);
    let queues = virtqueues(&net.virtqueues, net.queue_size);
    hang(out, "    ", &format!("{}, {queues}", count(net.queues as usize, "queue pair")), width);
    hang(out, "      ", &net.because, width);
}

/// What carries a network device's packets.
pub(super) fn backend(backend: &NetBackend) -> String {
    match backend {
        NetBackend::Tap { name } => format!("tap {name}"),
        NetBackend::Passt { forwards } if forwards.is_empty() => "passt, no ports forwarded".to_owned(),
        NetBackend::Passt { forwards } => {
            let forward = |f: &crate::profile::Forward| {
                let protocol = match f.protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                };
                format!("{protocol} {} → {}", f.host, f.guest)
            };
            format!("passt, forwards {}", forwards.iter().map(forward).collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_turn(queues: u32, over: u32) -> Vec<Virtqueue> {
        (0..queues).map(|vq| Virtqueue { vq, iothread: vq % over }).collect()
    }

    #[test]
    fn few_iothreads_are_named_and_many_told_as_a_rule() {
        assert_eq!(
            virtqueues(&in_turn(4, 2), 256),
            "4 virtqueues of 256: iothread0 serves 0,2; iothread1 serves 1,3"
        );
        assert_eq!(
            virtqueues(&in_turn(96, 16), 128),
            "96 virtqueues of 128: in turn over iothread 0-15, 6 each (iothread0 serves 0,16,32,48,64,80)"
        );
        assert!(virtqueues(&in_turn(10, 8), 128).contains("1 or 2 each"));
    }

    #[test]
    fn a_mapping_without_a_rule_is_told_whole() {
        let mut queues = in_turn(12, 6);
        queues.swap(0, 11);
        queues[0].vq = 0;
        queues[11].vq = 11;
        assert_eq!(virtqueues(&queues, 64).matches("serves").count(), 6);
    }
}
