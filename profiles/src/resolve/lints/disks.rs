//! Remarks on disks: where they lie, how they are cached, and what the device under them would rather have.

use crate::plan::{Diagnostic, DiskPlan};
use crate::profile::DiskSource;
use crate::storage::StoragePlace;
use crate::topology::{BlockDevice, CpuSet};

use super::{View, note, warning};

/// Words that name a database, or where one keeps its data.
const DATABASES: [&str; 12] = [
    "postgres",
    "postgresql",
    "pgdata",
    "mysql",
    "mariadb",
    "oracle",
    "oradata",
    "mongo",
    "mongodb",
    "mssql",
    "database",
    "oltp",
];

/// Filesystems on which O_DIRECT is refused or means nothing.
const NO_DIRECT_IO: [&str; 4] = ["tmpfs", "ramfs", "overlay", "zfs"];

/// One disk and all that is known of it.
struct Disk<'a> {
    view: &'a View<'a>,
    plan: &'a DiskPlan,
    place: Option<&'a StoragePlace>,
    device: Option<&'a BlockDevice>,
    host_scheduler_said: bool,
}

pub(super) fn lints(view: &View<'_>) -> Vec<Diagnostic> {
    let pairs = view.plan.disks.iter().zip(&view.profile.disks);
    let disks = pairs.map(|(plan, disk)| {
        let place = view.storage.disks.get(&plan.name);
        let device = plan.device.as_ref().and_then(|name| view.topology.block.get(name));
        Disk { view, plan, place, device, host_scheduler_said: disk.host_scheduler.is_some() }
    });
    disks.flat_map(|disk| disk.lints()).collect()
}

impl Disk<'_> {
    fn lints(&self) -> Vec<Diagnostic> {
        let all = [
            self.not_raw(),
            self.far(),
            self.no_direct_io(),
            self.double_caching(),
            self.page_cache_under_database(),
            self.scheduler(),
            self.small_blocks(),
            self.queues_beyond_hardware(),
        ];
        all.into_iter().flatten().collect()
    }

    fn name(&self) -> &str {
        &self.plan.name
    }

    fn filesystem(&self) -> Option<&str> {
        self.place.and_then(|place| place.filesystem.as_deref())
    }

    /// An image of another format, given as raw bytes.
    fn not_raw(&self) -> Option<Diagnostic> {
        let format = self.place?.looks_like.as_deref().filter(|format| *format != "raw")?;
        let (DiskSource::File { path, .. } | DiskSource::Device { path }) = &self.plan.source;
        Some(warning(
            "not_raw",
            format!(
                "disk `{}` is given as raw, and {path} looks like {format}: the guest would see the {format} file's own bytes, and a write would damage it",
                self.name()
            ),
            format!("convert it: `qemu-img convert -f {format} -O raw {path} {path}.raw`"),
        ))
    }

    /// IOThreads or memory on another node than the drive, where no step of the ladder has told so.
    fn far(&self) -> Option<Diagnostic> {
        let node = self.plan.node?;
        let View { topology, plan, .. } = self.view;
        let away = |at: u32| topology.distance(Some(node), Some(at));
        let served: CpuSet = self.plan.virtqueues.iter().map(|queue| queue.iothread).collect();
        let on = |id: u32| plan.iothreads.get(id as usize).and_then(|iothread| iothread.node);
        let far: Vec<(u32, u32)> =
            served.iter().filter_map(|id| Some((id, on(id)?))).filter(|(_, at)| *at != node).collect();
        if let Some((_, at)) = far.first() {
            let ids: CpuSet = far.iter().map(|(id, _)| *id).collect();
            let told = self.view.took("home") || (plan.home.node == Some(node) && self.view.took("d"));
            return (!told).then(|| {
                note(
                    "iothread_far_from_disk",
                    format!(
                        "disk `{}` lies on node {node}, and iothread {ids}, which serves it, runs on node {at}, {} away",
                        self.name(),
                        away(*at)
                    ),
                    "each request crosses nodes; keep the disks of one VM on drives of one node, or write `numa node=`",
                )
            });
        }
        let memory = plan.memory.nodes.as_ref().filter(|nodes| !nodes.contains(node))?;
        let at = memory.first()?;
        (!self.view.took("memory")).then(|| {
            note(
                "memory_far_from_disk",
                format!(
                    "disk `{}` lies on node {node}, and the guest's memory on node {memory}, {} away",
                    self.name(),
                    away(at)
                ),
                "what the drive reads is written across nodes; put memory on the drive's node",
            )
        })
    }

    /// O_DIRECT where the filesystem knows none.
    fn no_direct_io(&self) -> Option<Diagnostic> {
        if !self.plan.direct {
            return None;
        }
        let cache = self.plan.cache.word();
        let aligned = self.place.and_then(|place| place.direct_io);
        if aligned.is_some_and(|direct| direct.offset_bytes == 0) {
            return Some(warning(
                "no_direct_io",
                format!("disk `{}` has `cache={cache}`, and its file takes no direct I/O", self.name()),
                "opening it with O_DIRECT will fail; move the file, or write `cache=writeback`",
            ));
        }
        let filesystem = self.filesystem().filter(|name| NO_DIRECT_IO.contains(name))?;
        // What the kernel says of the very file counts more than the filesystem's name.
        if aligned.is_some() && filesystem != "zfs" {
            return None;
        }
        Some(warning(
            "no_direct_io",
            format!(
                "disk `{}` has `cache={cache}` and lies on {filesystem}, where O_DIRECT is refused or means nothing",
                self.name()
            ),
            "move the file to ext4, xfs or a block device, or write `cache=writeback` and mean it",
        ))
    }

    /// The host's page cache on top of another cache of the host.
    fn double_caching(&self) -> Option<Diagnostic> {
        if self.plan.direct {
            return None;
        }
        let cache = self.plan.cache.word();
        let loops = self.device.is_some_and(|device| device.backing_file.is_some());
        let below = match self.filesystem() {
            Some("zfs") => "lies on zfs, which has a cache of its own",
            _ if loops => "lies on a loop device, whose file is cached as well",
            _ => return None,
        };
        Some(warning(
            "double_caching",
            format!("disk `{}` has `cache={cache}` and {below}: the host keeps its data twice", self.name()),
            "name the file or the device underneath, or write `cache=none` where that takes O_DIRECT",
        ))
    }

    /// A database has a cache of its own, and flushes for a reason.
    fn page_cache_under_database(&self) -> Option<Diagnostic> {
        let no_direct = self.place.and_then(|place| place.direct_io).is_some_and(|d| d.offset_bytes == 0);
        if self.plan.direct || self.plan.readonly || no_direct {
            return None;
        }
        let mount = self.plan.format.as_ref().and_then(|format| format.mount.as_deref());
        let profile = self.view.profile;
        let places = [
            ("its mount point", mount),
            ("its name", Some(self.name())),
            ("the guest", Some(profile.guest.value.as_str())),
            ("the description", profile.description.as_deref()),
        ];
        let (place, word) =
            places.iter().find_map(|(place, text)| Some((place, database(text.as_ref()?)?)))?;
        let cache = self.plan.cache.word();
        Some(note(
            "page_cache_under_database",
            format!(
                "disk `{}` has `cache={cache}`, and {place} speaks of a database (`{word}`), which caches its data itself",
                self.name()
            ),
            "the host's page cache holds it a second time and makes latency uneven; write `cache=none`",
        ))
    }

    /// A scheduler that costs more than it brings on a drive with many queues.
    fn scheduler(&self) -> Option<Diagnostic> {
        let name = self.plan.device.as_deref().filter(|name| name.starts_with("nvme"))?;
        let scheduler = self.device?.scheduler.as_deref().filter(|scheduler| *scheduler != "none")?;
        (!self.host_scheduler_said).then(|| {
            note(
                "scheduler_on_nvme",
                format!("disk `{}` lies on {name}, whose scheduler is `{scheduler}`", self.name()),
                format!(
                    "NVMe does best without one, unless many VMs compete (bfq): echo none > /sys/block/{name}/queue/scheduler, or write `scheduler host={scheduler}` if it is meant"
                ),
            )
        })
    }

    /// Blocks for the guest that are smaller than the source's own.
    fn small_blocks(&self) -> Option<Diagnostic> {
        let shown = self.plan.logical_block_bytes?;
        let device = self.device.and_then(|device| device.logical_block_bytes);
        let direct = self.place.and_then(|place| place.direct_io).map(|direct| direct.offset_bytes);
        let own = device.max(direct.filter(|_| self.plan.direct)).filter(|own| *own > shown)?;
        Some(warning(
            "small_blocks",
            format!(
                "disk `{}` shows the guest blocks of {shown} bytes, and its source has blocks of {own}",
                self.name()
            ),
            format!(
                "a smaller write is a read, a change and a write; leave the block size out, or write {own}"
            ),
        ))
    }

    /// Virtqueues that meet again in the drive.
    fn queues_beyond_hardware(&self) -> Option<Diagnostic> {
        let hardware = self.device?.queues.filter(|queues| *queues < self.plan.queues)?;
        let (name, device) = (self.name(), self.plan.device.as_deref()?);
        // One queue is no queue pair of a fast drive: there the count says nothing about the drive's speed.
        (hardware > 1).then(|| {
            note(
                "queues_beyond_hardware",
                format!("disk `{name}` has {} virtqueues, and {device} has {hardware} queues", self.plan.queues),
                "more virtqueues spread the guest's locks and no more than that; it costs memory, and seldom harms",
            )
        })
    }
}

/// A word of the text that names a database.
fn database(text: &str) -> Option<&'static str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_ascii_lowercase);
    words.into_iter().find_map(|word| DATABASES.iter().copied().find(|name| *name == word))
}
