//! Rule 7: which IOThread serves which virtqueue.

use std::collections::BTreeMap;

use crate::plan::{IoThreadPlan, VcpuPlan, Virtqueue};
use crate::profile::{Disk, Mapping};
use crate::reason::MappingReason;
use crate::reason::rejected::{Against, Instead, Rejection};
use crate::topology::{CpuSet, Topology};

use super::Gathered;

/// The queues of one disk, served.
pub(super) struct Served {
    pub(super) virtqueues: Vec<Virtqueue>,
    pub(super) because: MappingReason,
    pub(super) rejected: Option<Rejection>,
}

/// Maps the queues of disks one after the other, so that IOThreads end up with as many each as can be.
pub(super) struct Mapper<'a> {
    topology: &'a Topology,
    vcpus: &'a [VcpuPlan],
    iothreads: &'a [IoThreadPlan],
    all: Vec<u32>,
    /// Where each vCPU and each IOThread is; worked out when a disk asks for locality.
    places: Option<Places>,
    /// Why no IOThread is nearer to any vCPU than another, once somebody asked.
    nothing_near: Option<Option<&'static str>>,
    /// Queues by IOThread, over all disks so far.
    load: BTreeMap<u32, u32>,
}

struct Places {
    vcpus: Vec<Option<Spot>>,
    iothreads: Vec<Option<Spot>>,
}

/// Where a thread runs, as far as its CPUs agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spot {
    node: Option<u32>,
    die: Option<u32>,
    cache: Option<u32>,
}

/// How near two threads are, the nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Near {
    Cache,
    Die,
    Node,
    Far,
}

impl<'a> Mapper<'a> {
    pub(super) fn new(
        topology: &'a Topology,
        vcpus: &'a [VcpuPlan],
        iothreads: &'a [IoThreadPlan],
    ) -> Mapper<'a> {
        let all = iothreads.iter().map(|iothread| iothread.id).collect();
        Mapper { topology, vcpus, iothreads, all, places: None, nothing_near: None, load: BTreeMap::new() }
    }

    pub(super) fn map(&mut self, disk: &Disk, gathered: &mut Gathered) -> Served {
        let served = match &disk.mapping {
            Mapping::RoundRobin => self.plain(round_robin(disk.queues, &self.all), MappingReason::RoundRobin),
            Mapping::Over(entries) => self.plain(round_robin(disk.queues, entries), MappingReason::OverNamed),
            Mapping::Exact(entries) => self.plain(exact(entries), MappingReason::ProfileSaid),
            Mapping::Locality => self.locality(disk, gathered),
        };
        for queue in &served.virtqueues {
            *self.load.entry(queue.iothread).or_default() += 1;
        }
        served
    }

    /// A mapping that asks for nothing near; against it stands the other one.
    fn plain(&mut self, virtqueues: Vec<Virtqueue>, because: MappingReason) -> Served {
        if self.all.len() < 2 {
            return Served { virtqueues, because, rejected: None };
        }
        let rejected = match because {
            MappingReason::RoundRobin => {
                let against = self.against_locality(&virtqueues);
                Rejection { instead: Instead::Locality, against }
            }
            _ => Rejection {
                instead: Instead::RoundRobin,
                against: Against::NothingNear { why: "the profile writes the mapping out" },
            },
        };
        Served { virtqueues, because, rejected: Some(rejected) }
    }

    /// What locality would have done about these queues.
    fn against_locality(&mut self, virtqueues: &[Virtqueue]) -> Against {
        if let Some(why) = self.nothing_near() {
            return Against::NothingNear { why };
        }
        let Some(places) = &self.places else { return Against::Uneven };
        let crossing: CpuSet = virtqueues
            .iter()
            .filter(|queue| {
                let near = places.near(queue.vq, queue.iothread);
                (0..places.iothreads.len())
                    .any(|other| places.near(queue.vq, u32::try_from(other).unwrap_or(u32::MAX)) < near)
            })
            .map(|queue| queue.vq)
            .collect();
        match crossing.is_empty() {
            true => Against::NothingNear { why: "round robin has every queue as near as it can be" },
            false => Against::CrossesCachesAsAsked { queues: crossing },
        }
    }

    fn locality(&mut self, disk: &Disk, gathered: &mut Gathered) -> Served {
        let fallback = round_robin(disk.queues, &self.all);
        if self.all.len() < 2 {
            return Served { virtqueues: fallback, because: MappingReason::RoundRobin, rejected: None };
        }
        if let Some(why) = self.nothing_near() {
            gathered.note(
                "locality_is_round_robin",
                format!(
                    "disk `{}` asks for `locality`, and {why}: its queues go round robin",
                    disk.name.value
                ),
                "nothing is lost; `iothread-vq-mapping round-robin` says the same",
            );
            let rejected = Rejection { instead: Instead::Locality, against: Against::NothingNear { why } };
            return Served {
                virtqueues: fallback,
                because: MappingReason::RoundRobin,
                rejected: Some(rejected),
            };
        }
        let Some(places) = &self.places else {
            return Served { virtqueues: fallback, because: MappingReason::RoundRobin, rejected: None };
        };
        let mut own: BTreeMap<u32, u32> = BTreeMap::new();
        let mut counts = [0usize; 3];
        let mut virtqueues = Vec::new();
        for vq in 0..disk.queues {
            let best = self.all.iter().copied().min_by_key(|id| {
                let load = |loads: &BTreeMap<u32, u32>| loads.get(id).copied().unwrap_or(0);
                (places.near(vq, *id), load(&own), load(&self.load), *id)
            });
            let Some(iothread) = best else { continue };
            *own.entry(iothread).or_default() += 1;
            match places.near(vq, iothread) {
                Near::Cache => counts[0] += 1,
                Near::Die | Near::Node => counts[1] += 1,
                Near::Far => counts[2] += 1,
            }
            virtqueues.push(Virtqueue { vq, iothread });
        }
        let crossing: CpuSet = fallback
            .iter()
            .filter(|queue| {
                let chosen = virtqueues.iter().find(|other| other.vq == queue.vq);
                chosen.is_some_and(|c| places.near(queue.vq, queue.iothread) > places.near(c.vq, c.iothread))
            })
            .map(|queue| queue.vq)
            .collect();
        let against = match crossing.is_empty() {
            true => Against::Uneven,
            false => Against::CrossesCaches { queues: crossing },
        };
        let [cache, node, far] = counts;
        Served {
            virtqueues,
            because: MappingReason::Locality { cache, node, far },
            rejected: Some(Rejection { instead: Instead::RoundRobin, against }),
        }
    }

    /// Why no IOThread is nearer to any vCPU than another; `None` where one is.
    fn nothing_near(&mut self) -> Option<&'static str> {
        if self.nothing_near.is_none() {
            self.nothing_near = Some(self.find_nothing_near());
        }
        self.nothing_near.flatten()
    }

    fn find_nothing_near(&mut self) -> Option<&'static str> {
        let topology = self.topology;
        let (vcpus, iothreads) = (self.vcpus, self.iothreads);
        let places = self.places.get_or_insert_with(|| Places {
            vcpus: vcpus.iter().map(|vcpu| spot(topology, &vcpu.cpus)).collect(),
            iothreads: iothreads.iter().map(|iothread| spot(topology, &iothread.cpus)).collect(),
        });
        if places.vcpus.iter().all(Option::is_none) {
            return Some("the vCPUs have no fixed place");
        }
        if places.iothreads.iter().all(Option::is_none) {
            return Some("the IOThreads have no fixed place");
        }
        let count = u32::try_from(places.vcpus.len()).unwrap_or(u32::MAX);
        let differs = (0..count).any(|vq| {
            let first = self.all.first().map(|id| places.near(vq, *id));
            self.all.iter().any(|id| Some(places.near(vq, *id)) != first)
        });
        (!differs).then_some("every IOThread is as near to every vCPU as any other")
    }
}

impl Places {
    /// How near the IOThread is to the vCPU that submits to this queue.
    fn near(&self, vq: u32, iothread: u32) -> Near {
        let vcpu = self.vcpus.get(vq as usize % self.vcpus.len().max(1)).copied().flatten();
        let iothread = self.iothreads.get(iothread as usize).copied().flatten();
        let (Some(vcpu), Some(iothread)) = (vcpu, iothread) else { return Near::Far };
        let same = |a: Option<u32>, b: Option<u32>| a.is_some() && a == b;
        if same(vcpu.cache, iothread.cache) {
            Near::Cache
        } else if same(vcpu.die, iothread.die) {
            Near::Die
        } else if same(vcpu.node, iothread.node) {
            Near::Node
        } else {
            Near::Far
        }
    }
}

/// Where these CPUs are; `None` where they do not even agree on a node, or the host says nothing of them.
fn spot(topology: &Topology, cpus: &CpuSet) -> Option<Spot> {
    let of = |cpu: u32| {
        let cpu = topology.cpus.get(&cpu)?;
        Some(Spot { node: cpu.node, die: cpu.die, cache: cpu.l3.or(cpu.cluster) })
    };
    let mut all = cpus.iter();
    let first = of(all.next()?)?;
    let agreed = |a: Option<u32>, b: Option<u32>| a.filter(|_| a == b);
    let spot = all.try_fold(first, |so_far, cpu| {
        let next = of(cpu)?;
        Some(Spot {
            node: agreed(so_far.node, next.node),
            die: agreed(so_far.die, next.die),
            cache: agreed(so_far.cache, next.cache),
        })
    })?;
    (spot.node.is_some() || spot.die.is_some() || spot.cache.is_some()).then_some(spot)
}

/// QEMU's round robin: entry k of n serves queues k, k+n, and so on.
pub(super) fn round_robin(queues: u32, iothreads: &[u32]) -> Vec<Virtqueue> {
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
