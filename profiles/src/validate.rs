//! Rules between values that need no host: QEMU's rules for cache and engine and for the mapping of virtqueues, names
//! used twice, threads that are not there. Each reports its problem with the numbers in it and goes on.

use std::collections::BTreeMap;

use vmprof_document::{Findings, SourceSpan};

use crate::profile::{
    Aio, CacheMode, Disk, EmulatorPin, HostWish, IoThreadCount, IoThreads, Mapping, Memory, ThreadPins,
    Vcpus, Written,
};
use crate::topology::CpuSet;

/// One child of `iothread-vq-mapping`.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) iothread: u32,
    /// The number.
    pub(crate) span: SourceSpan,
    /// The node's name.
    pub(crate) place: SourceSpan,
    pub(crate) vqs: Option<(Vec<u32>, SourceSpan)>,
}

/// How many IOThreads are there on every host, so that a profile may name them.
fn certain(iothreads: &IoThreads) -> (u32, bool) {
    match &iothreads.count {
        IoThreadCount::Fixed(count) => (count.value, true),
        IoThreadCount::Auto { min, .. } => (*min, false),
    }
}

/// Reports an IOThread that a profile names and does not have.
fn iothread_exists(findings: &Findings, id: u32, span: SourceSpan, iothreads: &IoThreads) {
    let (count, fixed) = certain(iothreads);
    if id < count {
        return;
    }
    let (have, help) = match (fixed, count) {
        (true, 1) => (
            "the only one is iothread 0".to_owned(),
            format!("write `iothreads {}`, or name iothread 0", id + 1),
        ),
        (true, n) => (
            format!("there are {n}, 0 to {}", n - 1),
            format!("write `iothreads {}`, or name one of these", id + 1),
        ),
        (false, n) => (
            format!("`iothreads auto` is only sure to have {n}, counted from 0"),
            format!("write `iothreads {}`, or `iothreads auto min={}`", id + 1, id + 1),
        ),
    };
    findings.push(
        findings
            .error("no_such_iothread", format!("iothread {id} is not there: {have}"))
            .at(span, "not there")
            .help(help),
    );
}

/// QEMU's rules for a mapping written out. Gives the mapping when it keeps them all.
pub(crate) fn mapping(
    findings: &Findings,
    node: SourceSpan,
    entries: &[Entry],
    queues: Option<u32>,
    iothreads: Option<&IoThreads>,
) -> Option<Mapping> {
    let mut named: BTreeMap<u32, SourceSpan> = BTreeMap::new();
    let mut right = true;
    for entry in entries {
        if let Some(iothreads) = iothreads {
            iothread_exists(findings, entry.iothread, entry.span, iothreads);
        }
        if let Some(first) = named.insert(entry.iothread, entry.span) {
            right = false;
            findings.push(
                findings
                    .error(
                        "duplicate_iothread",
                        format!("iothread {} stands twice in one mapping", entry.iothread),
                    )
                    .at(entry.span, "again here")
                    .at(first, "first here")
                    .help("join the two lists of queues"),
            );
        }
    }
    let with: Vec<&Entry> = entries.iter().filter(|e| e.vqs.is_some()).collect();
    if with.is_empty() {
        return right.then(|| Mapping::Over(entries.iter().map(|e| e.iothread).collect()));
    }
    if let Some(without) = entries.iter().find(|e| e.vqs.is_none()) {
        right = false;
        findings.push(
            findings
                .error(
                    "vqs_on_some",
                    format!("{} of {} IOThreads say which virtqueues they serve", with.len(), entries.len()),
                )
                .at(without.place, format!("iothread {} has no `vqs`", without.iothread))
                .help("give every entry `vqs`, or none: then queues go round robin"),
        );
    }
    right &= queues.is_none_or(|queues| coverage(findings, node, &with, queues, right));
    right.then(|| {
        let exact = |e: &Entry| Some((e.iothread, e.vqs.as_ref()?.0.clone()));
        Mapping::Exact(entries.iter().filter_map(exact).collect())
    })
}

/// Every queue in range, used once and, where all entries have lists, covered.
fn coverage(findings: &Findings, node: SourceSpan, entries: &[&Entry], queues: u32, complete: bool) -> bool {
    let mut users: BTreeMap<u32, (u32, SourceSpan)> = BTreeMap::new();
    let mut right = true;
    let last = queues.saturating_sub(1);
    for entry in entries {
        for (vq, span) in entry.vqs.iter().flat_map(|(vqs, span)| vqs.iter().map(move |vq| (*vq, *span))) {
            if vq >= queues {
                right = false;
                findings.push(
                    findings
                        .error(
                            "vq_out_of_range",
                            format!("virtqueue {vq} is not there: the disk has {queues}, 0 to {last}"),
                        )
                        .at(span, format!("iothread {} is given it here", entry.iothread))
                        .help(format!("write queues 0 to {last}, or `queues {}`", vq.saturating_add(1))),
                );
            } else if let Some((other, first)) = users.insert(vq, (entry.iothread, span)) {
                right = false;
                findings.push(
                    findings
                        .error(
                            "vq_used_twice",
                            format!(
                                "virtqueue {vq} is given to iothread {other} and to iothread {}",
                                entry.iothread
                            ),
                        )
                        .at(span, "again here")
                        .at(first, "first here")
                        .help("one IOThread serves a virtqueue; keep one of them"),
                );
            }
        }
    }
    let missing: CpuSet = (0..queues).filter(|vq| !users.contains_key(vq)).collect();
    if complete && !missing.is_empty() {
        right = false;
        let noun = if missing.len() == 1 { "virtqueue" } else { "virtqueues" };
        findings.push(
            findings
                .error("vq_not_served", format!("no IOThread serves {noun} {missing} of {queues}"))
                .at(node, "this mapping leaves it out")
                .help(format!("add {missing} to the `vqs` of an IOThread")),
        );
    }
    right
}

/// Remarks on how a disk's queues spread: more IOThreads than queues, and threads under a mapping.
pub(crate) fn spread(
    findings: &Findings,
    mapping: &Mapping,
    name: &Written<String>,
    aio: Aio,
    queues: u32,
    iothreads: Option<&IoThreads>,
) {
    let disk = &name.value;
    let (threads, written) = match mapping {
        Mapping::RoundRobin | Mapping::Locality => (iothreads.map_or(1, |i| certain(i).0), false),
        Mapping::Over(entries) => (u32::try_from(entries.len()).unwrap_or(u32::MAX), true),
        Mapping::Exact(entries) => (u32::try_from(entries.len()).unwrap_or(u32::MAX), true),
    };
    if written && threads > queues {
        findings.push(
            findings
                .warning(
                    "more_iothreads_than_queues",
                    format!("disk `{disk}` has {queues} virtqueues for {threads} IOThreads"),
                )
                .at(name.span, format!("{} of them get no queue of this disk", threads - queues))
                .help(format!("map {queues} IOThreads, or write `queues {threads}`")),
        );
    }
    if aio == Aio::Threads && threads > 1 && queues > 1 {
        findings.push(
            findings
                .warning(
                    "threads_under_mapping",
                    format!("disk `{disk}` has {threads} IOThreads and `aio=threads`"),
                )
                .at(name.span, "requests wait for the pool of threads, not for the IOThreads")
                .help("write `aio=io_uring` or `aio=native`, or map the disk to one IOThread"),
        );
    }
}

/// QEMU's rule for the engine. And `unsafe` is never passed over in silence.
pub(crate) fn cache_and_aio(
    findings: &Findings,
    cache: CacheMode,
    cache_at: SourceSpan,
    aio: Aio,
    aio_at: SourceSpan,
    key: &str,
) {
    native_needs_direct(findings, cache, cache_at, aio, aio_at, key);
    if cache == CacheMode::Unsafe {
        findings.push(
            findings
                .warning("unsafe_cache", "`cache=unsafe` ignores every flush of the guest")
                .at(cache_at, "a crash of the host loses data that the guest was told is safe")
                .help("use it for data that can be thrown away; write `cache=writeback` or `cache=none` for any other"),
        );
    }
}

/// `native` needs O_DIRECT, as the engine and as its fallback; `key` is the property that names it.
pub(crate) fn native_needs_direct(
    findings: &Findings,
    cache: CacheMode,
    cache_at: SourceSpan,
    aio: Aio,
    aio_at: SourceSpan,
    key: &str,
) {
    if aio == Aio::Native && !cache.direct() {
        let message = format!("`{key}=native` with `cache={}`: native AIO needs O_DIRECT", cache.word());
        findings.push(
            findings
                .error("native_needs_direct", message)
                .at(aio_at, "needs O_DIRECT")
                .at(cache_at, "goes through the page cache")
                .help(format!(
                    "write `cache=none` or `cache=directsync`, or `{key}=io_uring`, which works with every cache mode"
                )),
        );
    }
}

/// Who looks at a drive does so through io_uring, and for direct I/O alone. `engines` are those that the disk may get, each with
/// the property that names it.
pub(crate) fn iopoll<'k>(
    findings: &Findings,
    at: SourceSpan,
    (cache, cache_at): (CacheMode, SourceSpan),
    engines: impl Iterator<Item = (Aio, SourceSpan, &'k str)>,
) {
    if !cache.direct() {
        let message = format!("`iopoll=on` with `cache={}`: only direct I/O can be looked for", cache.word());
        findings.push(
            findings
                .error("iopoll_needs_direct", message)
                .at(at, "needs O_DIRECT")
                .at(cache_at, "goes through the page cache")
                .help("write `cache=none` or `cache=directsync`, or remove `iopoll`"),
        );
    }
    for (_, engine_at, key) in engines.filter(|(aio, ..)| *aio != Aio::IoUring) {
        let help = match key {
            "aio" => "write `aio=io_uring`, or remove `iopoll`",
            _ => "remove `fallback`: a host without io_uring is refused then; or remove `iopoll`",
        };
        findings.push(
            findings
                .error(
                    "iopoll_needs_io_uring",
                    format!("`iopoll=on`, and `{key}` names an engine that cannot look at drives"),
                )
                .at(at, "needs io_uring")
                .at(engine_at, "waits for interrupts")
                .help(help),
        );
    }
}

/// A thread of the kernel's submits for an IOThread that does not sleep anyway: two CPUs for what one does.
pub(crate) fn iopoll_and_sqpoll(findings: &Findings, disks: &[Disk], iothreads: Option<&IoThreads>) {
    let Some(sqpoll) = iothreads.and_then(|iothreads| iothreads.sqpoll.as_ref()) else { return };
    for disk in disks.iter().filter(|disk| disk.iopoll) {
        let message = format!("disk `{}` has `iopoll=on`, and the IOThreads have `sqpoll`", disk.name.value);
        findings.push(
            findings
                .error("iopoll_with_sqpoll", message)
                .at(disk.name.span, "its IOThreads look at the drive themselves")
                .at(sqpoll.cpus.span, "threads of the kernel's submit for them")
                .help("remove `sqpoll`, or `iopoll`"),
        );
    }
}

/// A node for everything, and other nodes for the memory: one of the two is not meant.
pub(crate) fn nodes(findings: &Findings, host: &HostWish, memory: &Memory) {
    let (Some(node), Some(nodes)) = (&host.node, &memory.nodes) else { return };
    if nodes.value == CpuSet::of(node.value) {
        return;
    }
    let message = format!("everything goes to node {}, and the memory to {}", node.value, nodes.value);
    findings.push(
        findings
            .error("nodes_contradict", message)
            .at(nodes.span, "the memory")
            .at(node.span, "everything")
            .help("remove `nodes=`, or write `numa node=auto`"),
    );
}

/// Two disks cannot be mounted in one place.
pub(crate) fn mounts(findings: &Findings, disks: &[Disk]) {
    let mut seen: BTreeMap<&str, SourceSpan> = BTreeMap::new();
    for format in disks.iter().filter_map(|disk| disk.format.as_ref()) {
        let Some(mount) = &format.value.mount else { continue };
        if let Some(first) = seen.insert(mount, format.span) {
            findings.push(
                findings
                    .error("mounted_twice", format!("two disks are mounted on {mount}"))
                    .at(format.span, "again here")
                    .at(first, "first here")
                    .help("mount one of them elsewhere"),
            );
        }
    }
}

/// More IOThreads than any disk has queues.
pub(crate) fn disks(findings: &Findings, disks: &[Disk], iothreads: Option<&IoThreads>) {
    let spread = |disk: &&Disk| matches!(disk.mapping, Mapping::RoundRobin | Mapping::Locality);
    let widest = disks.iter().filter(spread).map(|d| d.queues).max();
    let written = !disks.iter().all(|d| spread(&d));
    if let (Some(IoThreads { count: IoThreadCount::Fixed(count), .. }), Some(widest), false) =
        (iothreads, widest, written)
        && count.value > widest
    {
        findings.push(
            findings
                .warning(
                    "more_iothreads_than_queues",
                    format!("{} IOThreads, and no disk has more than {widest} virtqueues", count.value),
                )
                .at(count.span, format!("{} of them get no queue", count.value - widest))
                .help(format!("write `iothreads {widest}`, or give a disk more queues")),
        );
    }
}

/// Pins of threads that are not there, and pins outside the profile's own `cpuset`.
pub(crate) fn pins(
    findings: &Findings,
    host: &HostWish,
    vcpus: Option<&Vcpus>,
    iothreads: Option<&IoThreads>,
    emulator: &EmulatorPin,
) {
    if let Some(Vcpus { count, pin: ThreadPins::Explicit(pins) }) = vcpus {
        for (id, set) in pins {
            inside(findings, host, &format!("vcpu {id}"), set);
            if id >= count {
                findings.push(
                    findings
                        .error(
                            "no_such_vcpu",
                            format!("vcpu {id} is not there: there are {count}, 0 to {}", count - 1),
                        )
                        .at(set.span, "pinned here")
                        .help(format!("write `vcpu {}`, or pin one of these", id + 1)),
                );
            }
        }
    }
    if let Some(iothreads) = iothreads
        && let ThreadPins::Explicit(pins) = &iothreads.pin
    {
        for (id, set) in pins {
            inside(findings, host, &format!("iothread {id}"), set);
            iothread_exists(findings, *id, set.span, iothreads);
        }
    }
    if let Some(sqpoll) = iothreads.and_then(|iothreads| iothreads.sqpoll.as_ref()) {
        inside(findings, host, "sqpoll", &sqpoll.cpus);
    }
    if let EmulatorPin::Explicit(set) = emulator {
        inside(findings, host, "the emulator", set);
    }
}

fn inside(findings: &Findings, host: &HostWish, who: &str, set: &Written<CpuSet>) {
    let Some(cpuset) = &host.cpuset else { return };
    let outside = set.value.minus(&cpuset.value);
    if outside.is_empty() {
        return;
    }
    findings.push(
        findings
            .error(
                "pin_outside_cpuset",
                format!("{who} is pinned to CPU {outside}, which `host {{ cpuset }}` leaves out"),
            )
            .at(set.span, "pinned here")
            .at(cpuset.span, "allowed here")
            .help("pin it inside the cpuset, or widen the cpuset"),
    );
}
