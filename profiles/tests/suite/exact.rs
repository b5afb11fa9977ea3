//! The ladder of `docs/plan.md`, read a second time: what a layout costs is counted here from where its threads are, and
//! on small hosts every layout there is gets tried. The planner's is to cost what it says, and none is to cost less.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use vmprof_profiles::{
    CoreKind, Cpu, CpuSet, Ledger, Node, Plan, Profile, Storage, StoragePlace, Topology, plan,
};

use crate::host::with;

#[derive(Debug, Clone)]
struct CoreSpec {
    node: u32,
    siblings: u32,
    efficiency: bool,
    isolated: bool,
    cache: u32,
    /// Where among all cores its CPUs count.
    place: u32,
}

#[derive(Debug, Clone)]
struct Small {
    nodes: u32,
    cores: Vec<CoreSpec>,
    distances: Vec<u32>,
    memory_mib: Vec<u64>,
    drive: Option<u32>,
}

impl Small {
    fn topology(&self) -> Topology {
        let mut topology = Topology::default();
        for id in 0..self.nodes {
            let distance = |other: u32| {
                let at = (id.min(other) * 3 + id.max(other)) as usize;
                if id == other { 10 } else { self.distances[at % self.distances.len()] }
            };
            let memory_bytes = Some(self.memory_mib[id as usize % self.memory_mib.len()] << 20);
            let distance = (0..self.nodes).map(|other| (other, distance(other))).collect();
            topology.nodes.insert(id, Node { distance, memory_bytes, ..Node::default() });
        }
        for core in &self.cores {
            let first = core.place * 8;
            for id in first..first + core.siblings {
                topology.online.insert(id);
                if core.isolated {
                    topology.isolated.insert(id);
                }
                topology.nodes.get_mut(&core.node).unwrap().cpus.insert(id);
                topology.cpus.insert(
                    id,
                    Cpu {
                        package: Some(core.node),
                        die: None,
                        cluster: None,
                        core: first,
                        l2: None,
                        l3: (core.cache > 0).then_some(core.node * 4 + core.cache),
                        node: Some(core.node),
                        kind: if core.efficiency { CoreKind::Efficiency } else { CoreKind::Performance },
                        capacity: None,
                    },
                );
            }
        }
        topology
    }

    fn storage(&self, profile: &Profile) -> Storage {
        let place = |node| StoragePlace {
            device: "nvme0n1".into(),
            node,
            filesystem: None,
            looks_like: None,
            direct_io: None,
        };
        Storage { disks: profile.disks.iter().map(|d| (d.name.value.clone(), place(self.drive))).collect() }
    }
}

fn core(nodes: u32) -> impl Strategy<Value = CoreSpec> {
    (0..nodes, 1u32..3, any::<bool>(), prop::bool::weighted(0.3), 0u32..3, 0u32..8000).prop_map(
        |(node, siblings, efficiency, isolated, cache, place)| CoreSpec {
            node,
            siblings,
            efficiency,
            isolated,
            cache,
            place,
        },
    )
}

fn small(most: usize) -> impl Strategy<Value = Small> {
    (1u32..4).prop_flat_map(move |nodes| {
        (
            prop::collection::vec(core(nodes), 1..most),
            prop::collection::vec(prop::sample::select(vec![0u32, 11, 21, 21, 32, 255]), 9),
            prop::collection::vec(prop::sample::select(vec![0u64, 512, 4096, 4096, 4096]), 3),
            prop::option::of(0..nodes),
        )
            .prop_map(move |(mut cores, distances, memory_mib, drive)| {
                // Places are distinct; of two cores at one place the later one moves on.
                let mut places = BTreeSet::new();
                for core in &mut cores {
                    while !places.insert(core.place) {
                        core.place += 1;
                    }
                }
                Small { nodes, cores, distances, memory_mib, drive }
            })
    })
}

/// A way to seat everyone.
struct Seating {
    home: Option<u32>,
    vcpus: Vec<u32>,
    iothreads: Vec<u32>,
    emulator: u32,
}

/// (g), (f) on another's CPU, (f) beside, (e) away, (e) on siblings, (d), (b), (a): how many threads stand on each, as
/// the page says it.
fn price(topology: &Topology, seating: &Seating) -> [u32; 8] {
    let core = |cpu: u32| topology.cpus[&cpu].core;
    let away = |cpu: u32| topology.node_of(cpu) != seating.home;
    let count = |n: usize| u32::try_from(n).unwrap();
    let vcpu_cpus: BTreeSet<u32> = seating.vcpus.iter().copied().collect();
    let vcpu_cores: BTreeSet<u32> = vcpu_cpus.iter().map(|cpu| core(*cpu)).collect();
    let take_turns = count(seating.vcpus.len() - vcpu_cpus.len());
    let home_vcpus: Vec<u32> = seating.vcpus.iter().copied().filter(|cpu| !away(*cpu)).collect();
    let home_cores: BTreeSet<u32> = home_vcpus.iter().map(|cpu| core(*cpu)).collect();
    let (mut shares, mut beside, mut far) = (0, 0, 0);
    let mut seen = BTreeSet::new();
    for cpu in &seating.iothreads {
        if vcpu_cpus.contains(cpu) || !seen.insert(*cpu) {
            shares += 1;
        } else if vcpu_cores.contains(&core(*cpu)) {
            beside += 1;
        } else if away(*cpu) {
            far += 1;
        }
    }
    let emulator = seating.emulator;
    let crowd = vcpu_cores.contains(&core(emulator)) || seen.contains(&emulator);
    [
        take_turns,
        shares,
        beside,
        if take_turns > 0 { 0 } else { count(seating.vcpus.len() - home_vcpus.len()) },
        if take_turns > 0 { 0 } else { count(home_vcpus.len() - home_cores.len()) },
        far,
        u32::from(crowd),
        u32::from(!crowd && away(emulator)),
    ]
}

/// Every way to choose `count` of `cpus`, repetition allowed, order not counted.
fn choices(cpus: &[u32], count: usize) -> Vec<Vec<u32>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let with_first = |at: usize| {
        choices(&cpus[at..], count - 1).into_iter().map(move |mut rest| {
            rest.insert(0, cpus[at]);
            rest
        })
    };
    (0..cpus.len()).flat_map(with_first).collect()
}

fn cheapest(topology: &Topology, home: u32, vcpus: usize, iothreads: usize) -> [u32; 8] {
    let cpus: Vec<u32> = topology.online.iter().collect();
    let all = choices(&cpus, iothreads);
    let mut best = [u32::MAX; 8];
    for vcpus in choices(&cpus, vcpus) {
        for iothreads in &all {
            for emulator in &cpus {
                let seating = Seating {
                    home: Some(home),
                    vcpus: vcpus.clone(),
                    iothreads: iothreads.clone(),
                    emulator: *emulator,
                };
                best = best.min(price(topology, &seating));
            }
        }
    }
    best
}

fn seating(plan: &Plan) -> Seating {
    let one = |cpus: &CpuSet| cpus.first().unwrap();
    Seating {
        home: plan.home.node,
        vcpus: plan.vcpus.iter().map(|vcpu| one(&vcpu.cpus)).collect(),
        iothreads: plan.iothreads.iter().map(|iothread| one(&iothread.cpus)).collect(),
        emulator: one(&plan.emulator.cpus),
    }
}

/// What the plan itself says it costs, without `home`, `memory` and (c).
fn said(plan: &Plan) -> Vec<u32> {
    let mut price = plan.price();
    price.remove(8);
    price.drain(..2);
    price
}

fn told(topology: &Topology) -> BTreeMap<u32, (u32, Option<u32>)> {
    topology.cpus.iter().map(|(id, cpu)| (*id, (cpu.core, cpu.node))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_layout_costs_less(host in small(6), vcpus in 1u32..5, iothreads in 1u32..3) {
        // Every layout of more CPUs than these would take too long to try.
        let mut host = host;
        while host.cores.iter().map(|core| core.siblings).sum::<u32>() > 7 {
            host.cores.pop();
        }
        let topology = host.topology();
        let profile = with(&format!("vcpu {vcpus}\niothreads {iothreads}\ndisk d {{ source file=d; }}"));
        let plan = plan(&profile, &topology, &host.storage(&profile), &Ledger::default()).unwrap();
        let mine = price(&topology, &seating(&plan));
        prop_assert_eq!(said(&plan), mine.to_vec(), "{:?} {:?}", told(&topology), crate::host::layout(&plan));
        let best = |home: u32| cheapest(&topology, home, vcpus as usize, iothreads as usize);
        prop_assert_eq!(mine, best(plan.home.node.unwrap()), "{:?} {:?}", told(&topology), crate::host::layout(&plan));
        if host.drive.is_none() {
            let roomy = topology.nodes.iter().filter(|(_, node)| !node.cpus.is_empty())
                .filter(|(_, node)| node.memory_bytes >= Some(1 << 30));
            prop_assert!(roomy.map(|(id, _)| best(*id)).all(|least| mine <= least));
        }
    }

    #[test]
    fn one_cpu_more_costs_no_more(
        host in small(9),
        more in core(4),
        sibling in prop::option::of(any::<prop::sample::Index>()),
        wish in (1u32..9, prop::sample::select(vec!["1", "2", "4", "auto", "auto min=2", "auto min=3 max=5"])),
        smt in prop::sample::select(vec!["", "", "host { smt isolate; }\n", "host { smt require; }\n"]),
    ) {
        let mut larger = host.clone();
        match sibling {
            Some(which) => {
                let at = which.index(larger.cores.len());
                larger.cores[at].siblings += 1;
            }
            None => {
                let place = (more.place..).find(|place| host.cores.iter().all(|core| core.place != *place));
                let node = more.node % host.nodes;
                larger.cores.push(CoreSpec { siblings: 1, place: place.unwrap(), node, ..more });
            }
        }
        let vcpus = if smt.contains("require") { wish.0 * 2 } else { wish.0 };
        let profile = with(&format!("{smt}vcpu {vcpus}\niothreads {}\ndisk d {{ source file=d; }}", wish.1));
        let on = |host: &Small| {
            let topology = host.topology();
            plan(&profile, &topology, &host.storage(&profile), &Ledger::default()).map(|plan| (plan, topology))
        };
        if let Ok((before, _)) = on(&host) {
            let (after, topology) = on(&larger).unwrap();
            prop_assert!(
                after.price() <= before.price(),
                "{:?} {:?}, {:?} {:?} on {:?}",
                before.price(), crate::host::layout(&before), after.price(), crate::host::layout(&after), told(&topology)
            );
        }
    }
}
