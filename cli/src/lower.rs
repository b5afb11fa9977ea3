//! Plan and image, lowered to the machine's configuration and the guest's job. The only place that sees the planner's, the
//! builder's and the VMM's types at once.

use std::path::PathBuf;
use std::time::Duration;

use vmprof_guests::Init as GuestInit;
use vmprof_job::{Bytes, Command, DeviceLink, Init, JOB_SCHEMA, Job, Root, Streams};
use vmprof_mac::MacAddress;
use vmprof_profiles::{CpuSet, IoThreadPlan, NetBackend, NetPlan, Plan};
use vmprof_vmm::config;

use crate::up::{BootImage, Engines, Filesystems, Patience, Work};

/// Serial of the disk that holds the guest's root, in the guest and as a drive of the lab; a profile's disk cannot have it, for their names begin otherwise.
pub const ROOT_SERIAL: &str = "vmprof-root";
/// The largest that passt has: the more of a stream of TCP is in one frame, the fewer there are. It tells the guest the same by
/// DHCP (passt(1), `--mtu`).
const PASST_MTU: u16 = 65520;
/// Kernel words of every guest: the console, no pause before a panic ends the machine, and a boot that keeps to problems.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet";

/// The kernel's command line, with the words of the guest's own recipe behind those of every guest.
pub fn cmdline(own: Option<&str>) -> String {
    match own {
        Some(own) => format!("{CMDLINE} {own}"),
        None => CMDLINE.to_owned(),
    }
}

/// The VMM's configuration: the plan's threads and disks, the image's files. `sources` are the paths of the plan's disks,
/// in its order.
pub fn machine(
    name: &str,
    plan: &Plan,
    image: &BootImage,
    sources: &[PathBuf],
    engines: &Engines,
) -> config::VmConfig {
    let cpus = |set: &CpuSet| set.iter().collect::<Vec<u32>>();
    let mut disks: Vec<config::Disk> = Vec::new();
    if let Some(root) = &image.root {
        disks.push(config::Disk {
            read_only: !root.writable,
            cache: match root.writable {
                // An image in the store never changes: its pages are shared by all VMs that boot it.
                false => config::CacheMode::Writeback,
                // The copy goes with the run: what would a flush save it for?
                true => config::CacheMode::Unsafe,
            },
            engine: engines.root,
            ..config::Disk::named(
                ROOT_SERIAL,
                &root.path,
                vec![plan.iothreads.first().map_or(0, |iothread| iothread.id)],
            )
        });
    }
    let sources = sources.iter().zip(&engines.disks);
    disks.extend(plan.disks.iter().zip(sources).map(|(disk, (source, engine))| config::Disk {
        name: disk.name.clone(),
        path: source.clone(),
        read_only: disk.readonly,
        cache: cache(disk.cache),
        engine: *engine,
        iopoll: disk.iopoll,
        queue_size: disk.queue_size,
        packed: disk.packed,
        logical_block_bytes: disk.logical_block_bytes,
        physical_block_bytes: disk.physical_block_bytes,
        discard: disk.discard,
        on_error: config::OnError { read: error_policy(disk.rerror), write: error_policy(disk.werror) },
        virtqueues: disk.virtqueues.iter().map(|virtqueue| virtqueue.iothread).collect(),
    }));
    let cmdline = cmdline(image.cmdline.as_deref());
    config::VmConfig {
        name: name.to_owned(),
        boot: config::Boot { kernel: image.kernel.clone(), initramfs: image.initramfs.clone(), cmdline },
        memory: config::Memory {
            bytes: plan.memory.bytes,
            nodes: plan.memory.nodes.as_ref().map(cpus).unwrap_or_default(),
            mode: memory_mode(plan.memory.mode),
            hugepage_bytes: plan.memory.hugepages.map(|size| size.bytes()),
        },
        vcpus: plan.vcpus.iter().map(|vcpu| config::Vcpu { id: vcpu.id, cpus: cpus(&vcpu.cpus) }).collect(),
        threads_per_core: plan.guest.threads_per_core,
        emulator_cpus: cpus(&plan.emulator.cpus),
        iothreads: plan
            .iothreads
            .iter()
            .map(|iothread| config::IoThread {
                id: iothread.id,
                name: iothread.name.clone(),
                cpus: cpus(&iothread.cpus),
                shares_cpus: shares_cpus(plan, iothread),
                polling: config::Polling {
                    max_ns: iothread.poll_max_ns,
                    grow: iothread.poll_grow,
                    shrink: iothread.poll_shrink,
                },
                engines: engines_of(&disks, iothread.id),
                ring: config::RingOptions {
                    registered_memory: iothread.registered_memory,
                    sqpoll: iothread
                        .sqpoll
                        .map(|sqpoll| config::SqPoll { cpu: sqpoll.cpu, idle_ms: sqpoll.idle_ms }),
                    iopoll: disks.iter().any(|disk| disk.iopoll && disk.virtqueues.contains(&iothread.id)),
                },
            })
            .collect(),
        disks,
        nets: plan.nets.iter().enumerate().map(|(position, net)| self::net(name, position, net)).collect(),
    }
}

fn net(vm: &str, position: usize, net: &NetPlan) -> config::Net {
    let (backend, mtu) = match &net.backend {
        NetBackend::Tap { name } => (config::NetBackend::Tap { name: name.clone() }, None),
        NetBackend::Passt { .. } => (config::NetBackend::Stream, Some(PASST_MTU)),
    };
    config::Net {
        name: net.name.clone(),
        mac: mac(vm, position, planned_mac(net)).octets(),
        backend,
        queue_size: net.queue_size,
        mtu,
        virtqueues: net.virtqueues.iter().map(|virtqueue| virtqueue.iothread).collect(),
    }
}

/// The hardware address of a VM's network device: what the profile has, or one that is always the VM's, among QEMU's own.
pub fn mac(vm: &str, position: usize, said: Option<MacAddress>) -> MacAddress {
    said.unwrap_or_else(|| {
        let digest = blake3::hash(format!("{vm}\0net{position}").as_bytes());
        let [a, b, c, ..] = *digest.as_bytes();
        MacAddress::new([0x52, 0x54, 0, a, b, c])
    })
}

/// What the profile had; `promises.rs` has refused a plan with anything else in its place.
pub fn planned_mac(net: &NetPlan) -> Option<MacAddress> {
    net.mac.as_deref()?.parse().ok()
}

/// Whether a vCPU may run where the IOThread does. No CPUs are all those that vmprof may run on.
fn shares_cpus(plan: &Plan, iothread: &IoThreadPlan) -> bool {
    let all = |cpus: &CpuSet| cpus.is_empty();
    plan.vcpus.iter().any(|vcpu| all(&vcpu.cpus) || all(&iothread.cpus) || vcpu.cpus.meets(&iothread.cpus))
}

/// The job of the guest's first process: `work` is what it is for, and `streams` is where a command's streams lead.
pub fn job(
    vm: &str,
    plan: &Plan,
    image: &BootImage,
    filesystems: &Filesystems,
    work: &Work,
    streams: Streams,
) -> Job {
    let conduct = &image.conduct;
    let env: Vec<(Bytes, Bytes)> =
        conduct.env.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
    Job {
        schema: JOB_SCHEMA.to_owned(),
        hostname: conduct.hostname.clone(),
        online_cpus: false,
        root: match &image.root {
            Some(root) => Root::Disk {
                serial: ROOT_SERIAL.to_owned(),
                filesystem: root.filesystem.clone(),
                writable: root.writable,
            },
            None => Root::Initramfs,
        },
        disks: plan
            .disks
            .iter()
            .map(|disk| vmprof_job::Disk {
                name: disk.name.clone(),
                serial: disk.name.clone(),
                scheduler: disk.scheduler.guest.clone(),
                format: filesystems.made_on(&disk.name),
            })
            .collect(),
        links: Vec::<DeviceLink>::new(),
        nets: plan
            .nets
            .iter()
            .enumerate()
            .map(|(position, net)| vmprof_job::Net {
                name: net.name.clone(),
                mac: mac(vm, position, planned_mac(net)).to_string(),
            })
            .collect(),
        sysctl: conduct.sysctl.clone(),
        mounts: filesystems.mounts().to_vec(),
        init: match conduct.init {
            GuestInit::Vmprof => Init::Vmprof,
            GuestInit::Systemd { .. } => Init::Systemd,
        },
        services: match conduct.init {
            GuestInit::Vmprof => conduct.services.clone(),
            // Its services are the units of the image.
            GuestInit::Systemd { .. } => Vec::new(),
        },
        stop_within_ms: milliseconds(Patience::with(conduct).guest),
        env,
        directory: "/root".to_owned(),
        command: work.argv().map(|argv| Command { argv, streams }),
    }
}

/// As messages carry it.
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn cache(mode: vmprof_profiles::CacheMode) -> config::CacheMode {
    match mode {
        vmprof_profiles::CacheMode::None => config::CacheMode::None,
        vmprof_profiles::CacheMode::Directsync => config::CacheMode::Directsync,
        vmprof_profiles::CacheMode::Writeback => config::CacheMode::Writeback,
        vmprof_profiles::CacheMode::Writethrough => config::CacheMode::Writethrough,
        vmprof_profiles::CacheMode::Unsafe => config::CacheMode::Unsafe,
    }
}

fn memory_mode(mode: vmprof_profiles::MemoryMode) -> config::MemoryMode {
    match mode {
        vmprof_profiles::MemoryMode::Strict => config::MemoryMode::Strict,
        vmprof_profiles::MemoryMode::Preferred => config::MemoryMode::Preferred,
        vmprof_profiles::MemoryMode::Interleave => config::MemoryMode::Interleave,
    }
}

fn error_policy(policy: vmprof_profiles::ErrorPolicy) -> config::ErrorPolicy {
    match policy {
        vmprof_profiles::ErrorPolicy::Report => config::ErrorPolicy::Report,
        vmprof_profiles::ErrorPolicy::Ignore => config::ErrorPolicy::Ignore,
        vmprof_profiles::ErrorPolicy::Stop => config::ErrorPolicy::Stop,
        vmprof_profiles::ErrorPolicy::Enospc => config::ErrorPolicy::Enospc,
    }
}

/// Of the disks that an IOThread serves: one that serves none needs none.
fn engines_of(disks: &[config::Disk], iothread: u32) -> Vec<config::Engine> {
    let served = disks.iter().filter(|disk| disk.virtqueues.contains(&iothread));
    let mut engines: Vec<_> = served.map(|disk| disk.engine).collect();
    engines.sort_unstable();
    engines.dedup();
    engines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vms_devices_have_addresses_that_are_always_theirs_and_one_devices_own() {
        let first = mac("db", 0, None);
        assert_eq!((first, &first.octets()[..3]), (mac("db", 0, None), &[0x52, 0x54, 0][..]));
        // Of one device and not of a group (IEEE 802), and given by hand and not by a maker.
        assert_eq!(first.octets()[0] & 0b11, 0b10);
        assert!(first != mac("db", 1, None) && first != mac("web", 0, None));
        let said = MacAddress::new([2, 0, 0, 0xab, 0xcd, 1]);
        assert_eq!(mac("db", 0, Some(said)), said);
    }
}
