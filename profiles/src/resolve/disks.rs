//! Rule 8 and all that a plan says of a disk. Which IOThread serves which virtqueue is [`super::mapping`]'s.

use crate::plan::{DiskPlan, Scheduler};
use crate::profile::{Disk, Profile};
use crate::storage::Storage;
use crate::topology::Topology;

use super::Gathered;
use super::mapping::{Mapper, Served};
use super::threads::Threads;

/// Resolves every disk, in the order of the profile.
pub(super) fn disks(
    profile: &Profile,
    topology: &Topology,
    storage: &Storage,
    threads: &Threads,
    gathered: &mut Gathered,
) -> Vec<DiskPlan> {
    let mut mapper = Mapper::new(topology, &threads.vcpus, &threads.iothreads);
    profile.disks.iter().map(|disk| resolve(disk, topology, storage, &mut mapper, gathered)).collect()
}

fn resolve(
    disk: &Disk,
    topology: &Topology,
    storage: &Storage,
    mapper: &mut Mapper<'_>,
    gathered: &mut Gathered,
) -> DiskPlan {
    let place = storage.disks.get(&disk.name.value);
    let device = place.map(|p| p.device.clone());
    check_scheduler(disk, topology, device.as_deref(), gathered);
    let node = place.and_then(|p| p.node).filter(|id| topology.nodes.contains_key(id));
    let Served { virtqueues, because: how, rejected } = mapper.map(disk, gathered);
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
        packed: disk.packed,
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
        iopoll: disk.iopoll,
        discard: disk.discard,
        rerror: disk.rerror,
        werror: disk.werror,
        logical_block_bytes: disk.logical_block_bytes,
        physical_block_bytes: disk.physical_block_bytes,
        format: disk.format.as_ref().map(|format| format.value.clone()),
        because: format!("{queues}; {how}"),
        rejected: rejected.map(Into::into),
    }
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
