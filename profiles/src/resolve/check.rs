//! Whether a saved plan, perhaps edited by hand, can be obeyed on this host now.

use std::collections::BTreeSet;

use vmprof_document::format_size;

use crate::ledger::Ledger;
use crate::plan::{Plan, Virtqueue};
use crate::profile::MemoryMode;
use crate::topology::{CpuSet, NodeSet, Topology};

use super::{claims, usable};

/// What keeps a plan from being obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, miette::Diagnostic)]
pub enum PlanFault {
    /// A thread without a CPU.
    #[error("{who} has no CPU in this plan")]
    #[diagnostic(code(vmprof::plan::thread_without_cpu), help("write its CPUs as a list, such as \"2-3\""))]
    NoCpu {
        /// The thread.
        who: String,
    },
    /// A CPU that is not online.
    #[error("{who} is planned on CPU {cpus}, which is not there: this host has CPUs {online}")]
    #[diagnostic(
        code(vmprof::plan::no_such_cpu),
        help("plan again on this host: `vmprof plan PROFILE --format json`")
    )]
    NotThere {
        /// The thread.
        who: String,
        /// Those of its CPUs.
        cpus: CpuSet,
        /// What there is.
        online: CpuSet,
    },
    /// A CPU outside the affinity or the cgroup.
    #[error("{who} is planned on CPU {cpus}, which is out of reach: this process may use {allowed}")]
    #[diagnostic(
        code(vmprof::plan::cpu_barred),
        help("start vmprof with a wider affinity (`taskset`, the cgroup's cpuset), or plan again")
    )]
    Barred {
        /// The thread.
        who: String,
        /// Those of its CPUs.
        cpus: CpuSet,
        /// What may be used.
        allowed: CpuSet,
    },
    /// A CPU of another VM.
    #[error("{who} is planned on CPU {cpus}, which `{holders}` holds")]
    #[diagnostic(
        code(vmprof::plan::cpu_held),
        help("stop that VM, or plan again: the planner goes around it")
    )]
    Held {
        /// The thread.
        who: String,
        /// Those of its CPUs.
        cpus: CpuSet,
        /// The VMs that hold them.
        holders: String,
    },
    /// Numbers that do not count up from 0.
    #[error("the {what} at place {place} of the plan has the number {id}")]
    #[diagnostic(
        code(vmprof::plan::ids_out_of_order),
        help("numbers count up from 0, in the order of the list")
    )]
    Order {
        /// `vcpu` or `iothread`.
        what: &'static str,
        /// Its place in the list.
        place: usize,
        /// Its number.
        id: u32,
    },
    /// A thread's or device's name that is not the one its number gives it.
    #[error("{what} {id} is named `{name}`")]
    #[diagnostic(
        code(vmprof::plan::wrong_name),
        help("write `{wanted}`: tools find the thread by that name")
    )]
    Name {
        /// `iothread` or `net`.
        what: &'static str,
        /// Its number.
        id: usize,
        /// Its name.
        name: String,
        /// The right one.
        wanted: String,
    },
    /// A list that may not be empty.
    #[error("the plan has no {what}")]
    #[diagnostic(code(vmprof::plan::empty_plan), help("a VM has at least one vCPU and one IOThread"))]
    None {
        /// `vCPU` or `IOThread`.
        what: &'static str,
    },
    /// Two disks of one name, or a disk without.
    #[error("the disk name `{name}` is empty or stands twice")]
    #[diagnostic(code(vmprof::plan::duplicate_disk), help("the guest finds a disk by its name; rename one"))]
    DiskName {
        /// The name.
        name: String,
    },
    /// A count of queues or descriptors that virtio does not allow.
    #[error("`{device}` has {queues} queues of {size} descriptors")]
    #[diagnostic(
        code(vmprof::plan::bad_queues),
        help("write 1 to 256 queues, and a power of two from 2 to 1024 descriptors")
    )]
    Queues {
        /// The device.
        device: String,
        /// Its queues.
        queues: u32,
        /// Their size.
        size: u16,
    },
    /// A virtqueue not served, served twice, or not there.
    #[error("virtqueue {vqs} of `{device}` is {what}")]
    #[diagnostic(
        code(vmprof::plan::bad_mapping),
        help("list every virtqueue of the device once, ascending, each with its IOThread")
    )]
    Mapping {
        /// The device.
        device: String,
        /// The queues.
        vqs: CpuSet,
        /// `not served`, `served twice`, `not there` or `out of order`.
        what: &'static str,
    },
    /// An IOThread that the plan does not have.
    #[error("virtqueue {vq} of `{device}` is served by iothread {iothread}, and the plan has {count}")]
    #[diagnostic(code(vmprof::plan::no_such_iothread), help("IOThreads count from 0"))]
    NoSuchIoThread {
        /// The device.
        device: String,
        /// The queue.
        vq: u32,
        /// The IOThread.
        iothread: u32,
        /// How many there are.
        count: usize,
    },
    /// A memory node that is not there, or that has no memory.
    #[error("memory is planned on node {nodes}, which {what}")]
    #[diagnostic(
        code(vmprof::plan::no_such_memory_node),
        help("plan again on this host, or name nodes with memory")
    )]
    NoSuchNode {
        /// The nodes.
        nodes: NodeSet,
        /// `is not there`, `has no memory` or `is out of reach`.
        what: &'static str,
    },
    /// Memory that does not fit where it is bound.
    #[error("node {nodes} has {has}, and the plan binds {wanted} to it")]
    #[diagnostic(code(vmprof::plan::memory_binding), help("give the guest less memory, or name more nodes"))]
    TooLittleMemory {
        /// The nodes.
        nodes: NodeSet,
        /// What they have.
        has: String,
        /// What is asked.
        wanted: String,
    },
    /// A number that no machine of vmprof's has.
    #[error("`{what}` is {found}")]
    #[diagnostic(code(vmprof::plan::out_of_range), help("write {wanted}"))]
    Range {
        /// The field.
        what: String,
        /// What it holds.
        found: u64,
        /// What it may hold.
        wanted: &'static str,
    },
    /// Two fields that cannot both be true.
    #[error("`{what}` is {found}, and {other}")]
    #[diagnostic(
        code(vmprof::plan::contradiction),
        help("change one of the two, or plan again: `vmprof plan PROFILE --format json`")
    )]
    Contradiction {
        /// The field.
        what: String,
        /// What it holds.
        found: String,
        /// What it contradicts.
        other: String,
    },
    /// Hugepages that are no longer free.
    #[error("{wanted} pages of {size} are wanted, and {free} are free")]
    #[diagnostic(
        code(vmprof::plan::no_hugepages),
        help("reserve them, or plan again: `hugepages=auto` takes what there is")
    )]
    NoHugepages {
        /// How many.
        wanted: u64,
        /// Of which size.
        size: String,
        /// How many are free.
        free: u64,
    },
}

impl PlanFault {
    /// Such as `vmprof::plan::cpu_held`.
    pub fn code(&self) -> String {
        miette::Diagnostic::code(self).map(|code| code.to_string()).unwrap_or_default()
    }
}

impl Plan {
    /// Whether this plan can be obeyed on this host now: every thread on CPUs that are online, within reach and held by
    /// no other VM; every virtqueue served once, by an IOThread that is there; memory on nodes that have it; no field that
    /// contradicts another. All that is wrong comes back at once. For a plan fresh from the planner nothing is.
    ///
    /// Whether the host is the one that the plan was made for is another question: compare `host.digest` with
    /// [`crate::host_digest`].
    pub fn check(&self, topology: &Topology, ledger: &Ledger) -> Result<(), Vec<PlanFault>> {
        let mut faults = Vec::new();
        self.check_threads(topology, ledger, &mut faults);
        self.check_devices(&mut faults);
        self.check_memory(topology, &mut faults);
        faults.extend(claims::faults(self, topology));
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn check_threads(&self, topology: &Topology, ledger: &Ledger, faults: &mut Vec<PlanFault>) {
        for (what, count) in [("vCPU", self.vcpus.len()), ("IOThread", self.iothreads.len())] {
            if count == 0 {
                faults.push(PlanFault::None { what });
            }
        }
        let vcpus = self.vcpus.iter().map(|vcpu| ("vcpu", vcpu.id)).enumerate();
        let iothreads = self.iothreads.iter().map(|iothread| ("iothread", iothread.id)).enumerate();
        for (place, (what, id)) in vcpus.chain(iothreads) {
            if usize::try_from(id) != Ok(place) {
                faults.push(PlanFault::Order { what, place, id });
            }
        }
        for (id, iothread) in self.iothreads.iter().enumerate() {
            let wanted = format!("iothread{id}");
            if iothread.name != wanted {
                let name = iothread.name.clone();
                faults.push(PlanFault::Name { what: "iothread", id, name, wanted });
            }
        }
        let (online, allowed, held) = (&topology.online, usable::allowed(topology), ledger.cpus());
        for (who, cpus) in self.named_threads() {
            if cpus.is_empty() {
                faults.push(PlanFault::NoCpu { who });
                continue;
            }
            let absent = cpus.minus(online);
            let barred = cpus.and(online).minus(&allowed);
            let taken = cpus.and(&held);
            if !absent.is_empty() {
                faults.push(PlanFault::NotThere { who: who.clone(), cpus: absent, online: online.clone() });
            }
            if !barred.is_empty() {
                faults.push(PlanFault::Barred { who: who.clone(), cpus: barred, allowed: allowed.clone() });
            }
            if !taken.is_empty() {
                let holders = ledger.holders(&taken).join("`, `");
                faults.push(PlanFault::Held { who, cpus: taken, holders });
            }
        }
    }

    fn named_threads(&self) -> Vec<(String, &CpuSet)> {
        let vcpus = self.vcpus.iter().map(|vcpu| (format!("vcpu {}", vcpu.id), &vcpu.cpus));
        let iothreads = self.iothreads.iter().map(|i| (format!("iothread {}", i.id), &i.cpus));
        let emulator = ("the emulator".to_owned(), &self.emulator.cpus);
        vcpus.chain(iothreads).chain([emulator]).collect()
    }

    fn check_devices(&self, faults: &mut Vec<PlanFault>) {
        let mut names = BTreeSet::new();
        for disk in &self.disks {
            if disk.name.is_empty() || !names.insert(&disk.name) {
                faults.push(PlanFault::DiskName { name: disk.name.clone() });
            }
            self.check_queues(
                &disk.name,
                disk.queues,
                disk.queue_size,
                disk.queues,
                &disk.virtqueues,
                faults,
            );
        }
        for (id, net) in self.nets.iter().enumerate() {
            let wanted = format!("net{id}");
            if net.name != wanted {
                faults.push(PlanFault::Name { what: "net", id, name: net.name.clone(), wanted });
            }
            let all = net.queues.saturating_mul(2).saturating_add(1);
            self.check_queues(&net.name, net.queues, net.queue_size, all, &net.virtqueues, faults);
        }
    }

    fn check_queues(
        &self,
        device: &str,
        queues: u32,
        size: u16,
        all: u32,
        served: &[Virtqueue],
        faults: &mut Vec<PlanFault>,
    ) {
        let device = device.to_owned();
        if !(1..=256).contains(&queues) || !(2..=1024).contains(&size) || !size.is_power_of_two() {
            faults.push(PlanFault::Queues { device, queues, size });
            return;
        }
        let mut once = CpuSet::new();
        let (mut twice, mut absent) = (CpuSet::new(), CpuSet::new());
        for Virtqueue { vq, iothread } in served {
            if *vq >= all {
                absent.insert(*vq);
            } else if once.contains(*vq) {
                twice.insert(*vq);
            }
            once.insert(*vq);
            let count = self.iothreads.len();
            if usize::try_from(*iothread).is_ok_and(|id| id >= count) {
                let fault =
                    PlanFault::NoSuchIoThread { device: device.clone(), vq: *vq, iothread: *iothread, count };
                faults.push(fault);
            }
        }
        // Whoever reads the list may take an entry's place for its number.
        let unsorted = served.windows(2).filter(|two| two[0].vq > two[1].vq).map(|two| two[1].vq).collect();
        let left: CpuSet = (0..all).filter(|vq| !once.contains(*vq)).collect();
        for (vqs, what) in
            [(left, "not served"), (twice, "served twice"), (absent, "not there"), (unsorted, "out of order")]
        {
            if !vqs.is_empty() {
                faults.push(PlanFault::Mapping { device: device.clone(), vqs, what });
            }
        }
    }

    fn check_memory(&self, topology: &Topology, faults: &mut Vec<PlanFault>) {
        let memory = &self.memory;
        let size = |id: u32| topology.nodes.get(&id).and_then(|node| node.memory_bytes);
        if let Some(nodes) = &memory.nodes {
            let pick =
                |keep: &dyn Fn(u32) -> bool| -> NodeSet { nodes.iter().filter(|id| keep(*id)).collect() };
            let allowed = |id| topology.allowed_nodes.as_ref().is_none_or(|all| all.contains(id));
            let absent = pick(&|id| !topology.nodes.contains_key(&id));
            let barred = pick(&|id| topology.nodes.contains_key(&id) && !allowed(id));
            let empty = pick(&|id| size(id) == Some(0));
            for (nodes, what) in
                [(absent, "is not there"), (barred, "is out of reach"), (empty, "has no memory")]
            {
                if !nodes.is_empty() {
                    faults.push(PlanFault::NoSuchNode { nodes, what });
                }
            }
            let all: Option<Vec<u64>> = nodes.iter().map(size).collect();
            let has = all.map(|all| all.iter().fold(0u64, |sum, one| sum.saturating_add(*one)));
            // Where no other node has memory there is nowhere to go; the planner warns of it, and no more.
            let other = |id: &u32| !nodes.contains(*id) && allowed(*id) && size(*id).is_some_and(|n| n > 0);
            let bound = memory.mode == MemoryMode::Strict && topology.nodes.keys().any(other);
            if let Some(has) = has.filter(|has| bound && *has > 0 && *has < memory.bytes) {
                let [has, wanted] = [has, memory.bytes].map(format_size);
                faults.push(PlanFault::TooLittleMemory { nodes: nodes.clone(), has, wanted });
            }
        }
        if let Some(page) = memory.hugepages {
            let nodes = topology.nodes.iter();
            let counted = nodes.filter(|(id, _)| memory.nodes.as_ref().is_none_or(|set| set.contains(**id)));
            let free = counted.filter_map(|(_, node)| node.free_hugepages.get(&page.bytes()));
            let free = free.fold(0u64, |all, one| all.saturating_add(*one));
            let wanted = memory.bytes.div_ceil(page.bytes());
            if free < wanted {
                faults.push(PlanFault::NoHugepages { wanted, size: format_size(page.bytes()), free });
            }
        }
    }
}
