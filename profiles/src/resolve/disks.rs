//! Rules 7 and 8: which IOThread serves which virtqueue, and what a disk's cache mode comes to.

use crate::plan::{DiskPlan, Scheduler, Virtqueue};
use crate::profile::{Disk, Mapping, Profile};
use crate::storage::Storage;
use crate::topology::Topology;

use super::Gathered;
use super::threads::Threads;

/// Resolves every disk, in the order of the profile.
pub(super) fn disks(
    profile: &Profile,
    topology: &Topology,
    storage: &Storage,
    threads: &Threads,
    gathered: &mut Gathered,
) -> Vec<DiskPlan> {
    profile.disks.iter().map(|disk| resolve(disk, topology, storage, threads, gathered)).collect()
}

fn resolve(
    disk: &Disk,
    topology: &Topology,
    storage: &Storage,
    threads: &Threads,
    gathered: &mut Gathered,
) -> DiskPlan {
    let place = storage.disks.get(&disk.name.value);
    let device = place.map(|p| p.device.clone());
    check_scheduler(disk, topology, device.as_deref(), gathered);
    let node = place.and_then(|p| p.node).filter(|id| topology.nodes.contains_key(id));
    let all: Vec<u32> = threads.iothreads.iter().map(|i| i.id).collect();
    let (virtqueues, how) = match &disk.mapping {
        Mapping::RoundRobin | Mapping::Locality => {
            (round_robin(disk.queues, &all), "round robin over all IOThreads")
        }
        Mapping::Over(entries) => {
            (round_robin(disk.queues, entries), "round robin over the IOThreads the profile names")
        }
        Mapping::Exact(entries) => (exact(entries), "as the profile maps them"),
    };
    let queues = match &disk.queues_line {
        Some(line) => format!(
            "{} {} as line {line} says",
            disk.queues,
            if disk.queues == 1 { "queue" } else { "queues" }
        ),
        None => format!("one queue per vCPU, {}", disk.queues),
    };
    DiskPlan {
        name: disk.name.value.clone(),
        cache: disk.cache,
        aio: disk.aio,
        direct: disk.cache.direct(),
        write_cache: disk.cache.write_cache(),
        queues: disk.queues,
        queue_size: disk.queue_size,
        node,
        virtqueues,
        scheduler: Scheduler {
            host: disk.host_scheduler.as_ref().map(|s| s.value.clone()),
            guest: disk.guest_scheduler.clone(),
        },
        source: disk.source.clone(),
        readonly: disk.readonly,
        device,
        aio_fallback: disk.aio_fallback,
        discard: disk.discard,
        rerror: disk.rerror,
        werror: disk.werror,
        logical_block_bytes: disk.logical_block_bytes,
        physical_block_bytes: disk.physical_block_bytes,
        format: disk.format.as_ref().map(|format| format.value.clone()),
        because: format!("{queues}; {how}"),
        rejected: None,
    }
}

/// QEMU's round robin: entry k of n serves queues k, k+n, and so on.
fn round_robin(queues: u32, iothreads: &[u32]) -> Vec<Virtqueue> {
    (0..queues)
        .zip(iothreads.iter().cycle())
        .map(|(vq, iothread)| Virtqueue { vq, iothread: *iothread })
        .collect()
}

fn exact(entries: &[(u32, Vec<u32>)]) -> Vec<Virtqueue> {
    let pairs = entries.iter().flat_map(|(iothread, vqs)| vqs.iter().map(|vq| (*vq, *iothread)));
    let mut served: Vec<Virtqueue> = pairs.map(|(vq, iothread)| Virtqueue { vq, iothread }).collect();
    served.sort_by_key(|v| v.vq);
    served
}

/// The host's scheduler is the host's: vmprof compares and says what to do, and sets nothing.
fn check_scheduler(disk: &Disk, topology: &Topology, device: Option<&str>, gathered: &mut Gathered) {
    let (Some(wish), Some(device)) = (&disk.host_scheduler, device) else { return };
    let Some(found) = topology.block.get(device).and_then(|d| d.scheduler.as_deref()) else { return };
    if found != wish.value {
        let (name, wish) = (&disk.name.value, &wish.value);
        gathered.warn(
            "host_scheduler",
            format!(
                "disk `{name}` lies on {device}, whose scheduler is `{found}`; the profile wants `{wish}`"
            ),
            format!("as root: echo {wish} > /sys/block/{device}/queue/scheduler"),
        );
    }
}
