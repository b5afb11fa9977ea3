//! What holds for every plan, on hosts and profiles made at random. Hosts are made as topologies, without the files that
//! a kernel would show: reading those has tests of its own.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use vmprof_profiles::{
    CoreKind, Cpu, CpuSet, Held, IoThreadCount, Ledger, Mapping, Net, NetBackend, Node, Plan, Profile,
    Rejected, Smt, Storage, StoragePlace, ThreadPins, Topology, plan,
};

use crate::host::{HostSpec, codes, with};
use crate::plans::written;

/// One node of a made-up host.
#[derive(Debug, Clone)]
struct NodeSpec {
    cores: u32,
    /// Of them, counted from the last.
    efficiency: u32,
    cache_cores: u32,
    memory_mib: Option<u64>,
}

/// A made-up host and what of it may be used.
#[derive(Debug, Clone)]
struct Machine {
    nodes: Vec<NodeSpec>,
    threads: u32,
    distances: Vec<Option<u32>>,
    offline: CpuSet,
    isolated: CpuSet,
    barred: CpuSet,
    cgroup_barred: CpuSet,
    held: CpuSet,
    /// The node of each disk's device, if it has one.
    drives: Vec<Option<u32>>,
}

impl Machine {
    fn cpus(&self) -> u32 {
        self.nodes.iter().map(|node| node.cores).sum::<u32>() * self.threads
    }

    fn topology(&self) -> Topology {
        let cores: u32 = self.nodes.iter().map(|node| node.cores).sum();
        let all: CpuSet = (0..self.cpus()).collect();
        let online = all.minus(&self.offline);
        let mut topology = Topology {
            affinity: Some(online.minus(&self.barred)),
            cgroup_cpus: (!self.cgroup_barred.is_empty()).then(|| online.minus(&self.cgroup_barred)),
            isolated: self.isolated.and(&online),
            offline: self.offline.and(&all),
            online: online.clone(),
            ..Topology::default()
        };
        let mut first = 0;
        for (id, spec) in (0u32..).zip(&self.nodes) {
            let mut node = Node { memory_bytes: spec.memory_mib.map(|mib| mib << 20), ..Node::default() };
            for other in 0..u32::try_from(self.nodes.len()).unwrap() {
                let at = (id.min(other) * 4 + id.max(other)) as usize;
                let distance = if other == id { Some(10) } else { self.distances[at % self.distances.len()] };
                node.distance.extend(distance.map(|distance| (other, distance)));
            }
            for at in 0..spec.cores {
                let threads = (0..self.threads).map(|thread| first + at + thread * cores);
                let threads: Vec<u32> = threads.filter(|cpu| online.contains(*cpu)).collect();
                for cpu in &threads {
                    node.cpus.insert(*cpu);
                    let economy = at + spec.efficiency >= spec.cores;
                    let cache =
                        at.checked_div(spec.cache_cores).map(|group| first + group * spec.cache_cores);
                    topology.cpus.insert(
                        *cpu,
                        Cpu {
                            package: Some(id / 2),
                            die: None,
                            cluster: None,
                            core: threads[0],
                            l2: Some(threads[0]),
                            l3: cache,
                            node: Some(id),
                            capacity: None,
                            kind: if economy { CoreKind::Efficiency } else { CoreKind::Performance },
                        },
                    );
                }
            }
            topology.nodes.insert(id, node);
            first += spec.cores;
        }
        topology
    }

    fn ledger(&self) -> Ledger {
        let held = Held { holder: "other".into(), cpus: self.held.clone(), pid: None };
        Ledger { held: if self.held.is_empty() { Vec::new() } else { vec![held] } }
    }

    fn storage(&self, profile: &Profile) -> Storage {
        let disks = profile.disks.iter().zip(self.drives.iter().cycle()).map(|(disk, node)| {
            let place = StoragePlace {
                device: "nvme0n1".into(),
                node: *node,
                filesystem: None,
                looks_like: None,
                direct_io: None,
            };
            (disk.name.value.clone(), place)
        });
        Storage { disks: disks.collect() }
    }
}

fn machines() -> impl Strategy<Value = Machine> {
    let node =
        (0u32..6, 0u32..3, 0u32..4, prop::sample::select(vec![None, Some(0u64), Some(512), Some(4096)]));
    let node = node.prop_map(|(cores, efficiency, cache_cores, memory_mib)| NodeSpec {
        cores,
        efficiency,
        cache_cores,
        memory_mib,
    });
    let some_cpus = |most: usize| prop::collection::vec(0u32..40, 0..most).prop_map(CpuSet::from_iter);
    let distance = prop::sample::select(vec![None, Some(11u32), Some(16), Some(21), Some(32)]);
    let drive = prop::sample::select(vec![None, Some(0u32), Some(1), Some(2), Some(9)]);
    (
        prop::collection::vec(node, 1..5),
        prop::sample::select(vec![1u32, 2, 2, 4]),
        prop::collection::vec(distance, 16),
        (some_cpus(6), some_cpus(8), some_cpus(12), some_cpus(4), some_cpus(6)),
        prop::collection::vec(drive, 1..4),
    )
        .prop_map(|(mut nodes, threads, distances, sets, drives)| {
            // CPU 0 exists, is on and may be used, so that there is always something to plan on.
            nodes[0].cores += 1;
            let without = |set: CpuSet| set.minus(&CpuSet::of(0));
            let (offline, isolated, barred, cgroup_barred, held) = sets;
            Machine {
                nodes,
                threads,
                distances,
                offline: without(offline),
                isolated,
                barred: without(barred),
                cgroup_barred: without(cgroup_barred),
                held: without(held),
                drives,
            }
        })
}

/// What a profile says of one kind of thread.
#[derive(Debug, Clone)]
enum Pins {
    Auto,
    None,
    /// The n-th usable CPUs.
    Some(Vec<u32>),
}

#[derive(Debug, Clone)]
struct Wishes {
    vcpus: u32,
    iothreads: &'static str,
    smt: Smt,
    vcpupin: Pins,
    iothreadpin: Pins,
    with_emulator: bool,
    emulatorpin: Pins,
    disks: Vec<(u32, u32)>,
    nets: Vec<u32>,
}

impl Wishes {
    fn profile(&self, usable: &CpuSet) -> Profile {
        let cpus: Vec<u32> = usable.iter().collect();
        let nth = |at: &u32| cpus[*at as usize % cpus.len()];
        let pins = |pins: &Pins, kind: &str, most: u32| match pins {
            Pins::Auto => String::new(),
            Pins::None => format!("{kind}pin none;"),
            Pins::Some(at) => {
                let lines = (0..most).zip(at).map(|(id, at)| format!("{kind} {id} cpuset={};", nth(at)));
                let lines: String = lines.collect();
                if lines.is_empty() { String::new() } else { format!("{kind}pin {{ {lines} }};") }
            }
        };
        let sure = self.iothreads.parse::<u32>().unwrap_or(1);
        let iopins = match self.with_emulator {
            true => "iothreadpin emulator;".to_owned(),
            false => pins(&self.iothreadpin, "iothread", sure),
        };
        let emulator = match &self.emulatorpin {
            Pins::Auto => String::new(),
            Pins::None => "emulatorpin none".to_owned(),
            Pins::Some(at) => {
                at.first().map_or(String::new(), |at| format!("emulatorpin cpuset=\"{}\"", nth(at)))
            }
        };
        let disks = (0..).zip(&self.disks).map(|(at, (queues, kind))| {
            let mapping = match kind {
                1 => format!("iothread-vq-mapping {{ iothread 0 vqs=\"0-{}\"; }};", queues - 1),
                2 => "iothread-vq-mapping { iothread 0; };".to_owned(),
                _ => String::new(),
            };
            format!("disk d{at} {{ source file=\"d{at}\"; queues {queues}; {mapping} }}\n")
        });
        let text = format!(
            "vcpu {} {{ {} }}\n{emulator}\niothreads {} {{ {iopins} }}\n{}",
            self.vcpus,
            pins(&self.vcpupin, "vcpu", self.vcpus),
            self.iothreads,
            disks.collect::<String>()
        );
        let mut profile = with(&text);
        profile.host.smt = self.smt;
        for (disk, (_, kind)) in profile.disks.iter_mut().zip(&self.disks) {
            if *kind == 3 {
                disk.mapping = Mapping::Locality;
            }
        }
        profile.nets = self.nets.iter().map(|queues| net(*queues)).collect();
        profile
    }
}

fn net(queues: u32) -> Net {
    let backend = NetBackend::Tap { name: "tap0".into() };
    Net { backend: written(backend), queues, queues_line: None, queue_size: 256, mac: None }
}

fn wishes() -> impl Strategy<Value = Wishes> {
    let pins = || {
        prop_oneof![
            6 => Just(Pins::Auto),
            1 => Just(Pins::None),
            2 => prop::collection::vec(0u32..40, 1..4).prop_map(Pins::Some),
        ]
    };
    (
        1u32..9,
        prop::sample::select(vec!["1", "2", "3", "auto", "auto min=2 max=3", "auto max=16"]),
        prop::sample::select(vec![Smt::Prefer, Smt::Prefer, Smt::Isolate, Smt::Require]),
        (pins(), pins(), prop::bool::weighted(0.1), pins()),
        prop::collection::vec((1u32..6, 0u32..4), 0..3),
        prop::collection::vec(1u32..4, 0..2),
    )
        .prop_map(|(vcpus, iothreads, smt, pins, disks, nets)| Wishes {
            vcpus,
            iothreads,
            smt,
            vcpupin: pins.0,
            iothreadpin: pins.1,
            with_emulator: pins.2,
            emulatorpin: pins.3,
            disks,
            nets,
        })
}

fn usable(topology: &Topology, ledger: &Ledger) -> CpuSet {
    let allowed = topology.affinity.clone().unwrap_or_else(|| topology.online.clone());
    let cgroup = topology.cgroup_cpus.clone().unwrap_or_else(|| topology.online.clone());
    allowed.and(&cgroup).and(&topology.online).minus(&ledger.cpus())
}

/// No CPU has two pinned threads unless a diagnostic of the right kind says so.
fn sharing_is_said(plan: &Plan, profile: &Profile) -> Result<(), TestCaseError> {
    let floats = |name: &str| {
        let pin = if name.starts_with("CPU ") { &profile.vcpus.pin } else { &profile.iothreads.pin };
        name != "vmprof" && matches!(pin, ThreadPins::Float { .. })
    };
    let floating_emulator = matches!(profile.emulator, vmprof_profiles::EmulatorPin::Float { .. });
    let mut on: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (name, cpus) in plan.threads() {
        if !(floats(&name) || name == "vmprof" && floating_emulator) {
            cpus.iter().for_each(|cpu| on.entry(cpu).or_default().push(name.clone()));
        }
    }
    for (cpu, names) in on.iter().filter(|(_, names)| names.len() > 1) {
        let count = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
        let (vcpus, iothreads, emulator) = (count("CPU "), count("IO "), count("vmprof"));
        let mut wanted: Vec<&[&str]> = Vec::new();
        if vcpus > 1 {
            wanted.push(&["dense_host", "pins_share_cpu"]);
        }
        if iothreads > 0 && vcpus + iothreads > 1 {
            wanted.push(&["iothread_shares_vcpu", "pins_share_cpu", "dense_host"]);
        }
        if emulator > 0 {
            wanted.push(&[
                "emulator_shares_iothread",
                "emulator_shares_core",
                "pins_share_cpu",
                "dense_host",
            ]);
        }
        for said in wanted {
            let codes = codes(plan);
            prop_assert!(codes.iter().any(|c| said.contains(c)), "CPU {cpu}: {names:?}, {codes:?}");
        }
    }
    Ok(())
}

/// Rule 5: no IOThread that the planner places is on a vCPU's core while a free core is left on its node, nor while a
/// seat on a core without vCPUs is left anywhere.
fn iothreads_keep_off(
    plan: &Plan,
    profile: &Profile,
    topology: &Topology,
    free: &CpuSet,
) -> Result<(), TestCaseError> {
    let core = |cpu: u32| topology.cpus[&cpu].core;
    let mut used: BTreeMap<u32, bool> = BTreeMap::new();
    let float = |pins: &ThreadPins| matches!(pins, ThreadPins::Float { .. });
    if float(&profile.vcpus.pin) || float(&profile.iothreads.pin) {
        return Ok(());
    }
    for (name, cpus) in plan.threads() {
        cpus.iter().for_each(|cpu| *used.entry(core(cpu)).or_default() |= name.starts_with("CPU "));
    }
    let pinned =
        |id: u32| matches!(&profile.iothreads.pin, ThreadPins::Explicit(pins) if pins.contains_key(&id));
    let placed = !matches!(profile.iothreads.pin, ThreadPins::Emulator { .. });
    for iothread in plan.iothreads.iter().filter(|iothread| placed && !pinned(iothread.id)) {
        if iothread.cpus.iter().any(|cpu| used.get(&core(cpu)) == Some(&true)) {
            let quiet = free.iter().find(|cpu| !used.contains_key(&core(*cpu)));
            prop_assert_eq!(quiet, None, "{} on {}, and that core is free", iothread.name, iothread.cpus);
        }
    }
    Ok(())
}

/// What could have been instead is a usable CPU, and another than the chosen one.
fn alternatives_are_real(plan: &Plan, usable: &CpuSet) -> Result<(), TestCaseError> {
    let check = |cpus: &CpuSet, rejected: &Option<Rejected>, who: String| {
        let Some(rejected) = rejected else {
            prop_assert!(usable.len() <= 1, "{who} on {cpus} has no alternative of {usable}");
            return Ok(());
        };
        let number = rejected.instead.strip_prefix("CPU ").and_then(|text| text.split(' ').next());
        let cpu: u32 = number.unwrap().parse().unwrap();
        prop_assert!(usable.contains(cpu) && *cpus != CpuSet::of(cpu), "{who} on {cpus}: {rejected:?}");
        prop_assert!(!rejected.because.is_empty());
        Ok(())
    };
    for vcpu in &plan.vcpus {
        check(&vcpu.cpus, &vcpu.rejected, format!("vcpu {}", vcpu.id))?;
    }
    for iothread in &plan.iothreads {
        check(&iothread.cpus, &iothread.rejected, iothread.name.clone())?;
    }
    check(&plan.emulator.cpus, &plan.emulator.rejected, "emulator".into())?;
    let count = plan.iothread_count.rejected.as_ref().unwrap();
    prop_assert_ne!(&count.instead, &plan.iothread_count.count.to_string());
    if let (Some(node), Some(rejected)) = (plan.home.node, &plan.home.rejected) {
        prop_assert_ne!(&rejected.instead, &format!("node {node}"));
    }
    Ok(())
}

fn check(plan: &Plan, profile: &Profile, topology: &Topology, ledger: &Ledger) -> Result<(), TestCaseError> {
    let usable = usable(topology, ledger);
    for (name, cpus) in plan.threads() {
        prop_assert!(!cpus.is_empty(), "{name} has nowhere to run");
        prop_assert!(cpus.is_subset(&usable), "{name} on {cpus}, usable {usable}");
    }
    prop_assert_eq!(plan.vcpus.len(), profile.vcpus.count as usize);
    prop_assert!(!plan.iothreads.is_empty());
    if let IoThreadCount::Fixed(count) = &profile.iothreads.count {
        prop_assert_eq!(plan.iothreads.len(), count.value as usize);
    }
    let disks = plan.disks.iter().map(|disk| (disk.queues, &disk.virtqueues));
    let nets = plan.nets.iter().map(|net| (net.queues * 2 + 1, &net.virtqueues));
    for (queues, served) in disks.chain(nets) {
        let vqs: Vec<u32> = served.iter().map(|v| v.vq).collect();
        prop_assert_eq!(vqs, (0..queues).collect::<Vec<_>>());
        prop_assert!(served.iter().all(|v| (v.iothread as usize) < plan.iothreads.len()));
    }
    for net in &plan.nets {
        let by = |vq: u32| net.virtqueues[vq as usize].iothread;
        prop_assert!((0..net.queues).all(|pair| by(2 * pair) == by(2 * pair + 1)));
    }
    if plan.guest.threads_per_core == 2 {
        let said =
            |id: u32| matches!(&profile.vcpus.pin, ThreadPins::Explicit(pins) if pins.contains_key(&id));
        for pair in plan.vcpus.chunks(2).filter(|pair| !pair.iter().all(|vcpu| said(vcpu.id))) {
            let cores: BTreeSet<u32> =
                pair.iter().flat_map(|vcpu| vcpu.cpus.iter()).map(|cpu| topology.cpus[&cpu].core).collect();
            prop_assert_eq!(cores.len(), 1, "{:?}", pair);
        }
    }
    prop_assert_eq!(plan.guest.threads_per_core == 2, profile.host.smt == Smt::Require);
    prop_assert_eq!(plan.check(topology, ledger), Ok(()));
    sharing_is_said(plan, profile)?;
    let used = plan.threads().into_iter().fold(CpuSet::new(), |all, (_, cpus)| all.or(&cpus));
    iothreads_keep_off(plan, profile, topology, &usable.minus(&used))?;
    alternatives_are_real(plan, &usable)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_keeps_the_rules(machine in machines(), wishes in wishes()) {
        let (topology, ledger) = (machine.topology(), machine.ledger());
        let usable = usable(&topology, &ledger);
        let profile = wishes.profile(&usable);
        let storage = machine.storage(&profile);
        match plan(&profile, &topology, &storage, &ledger) {
            Ok(first) => {
                check(&first, &profile, &topology, &ledger)?;
                let again = plan(&profile, &machine.topology(), &storage, &ledger).unwrap();
                prop_assert_eq!(first.to_json(), again.to_json());
                prop_assert_eq!(Plan::from_json(&first.to_json()).unwrap(), first);
            }
            Err(refused) => {
                let codes: Vec<&str> = refused.problems().iter().map(|p| p.code()).collect();
                let require = profile.host.smt == Smt::Require;
                prop_assert!(require && codes.iter().all(|c| c.ends_with("no_siblings")), "{codes:?}");
            }
        }
    }

    #[test]
    fn a_free_cpu_more_never_makes_a_plan_worse(
        machine in machines(),
        wishes in wishes(),
        way in 0u32..4,
        which in any::<prop::sample::Index>(),
    ) {
        // The larger host loses a CPU, in one of the ways in which a CPU can be out of use.
        let topology = machine.topology();
        let ledger = machine.ledger();
        let rich: Vec<u32> = usable(&topology, &ledger).minus(&CpuSet::of(0)).iter().collect();
        prop_assume!(!rich.is_empty());
        let lost = CpuSet::of(*which.get(&rich));
        let mut poor = machine.clone();
        let set = match way {
            0 => &mut poor.offline,
            1 => &mut poor.barred,
            2 => &mut poor.cgroup_barred,
            _ => &mut poor.held,
        };
        *set = set.or(&lost);
        let (less, less_ledger) = (poor.topology(), poor.ledger());
        let profile = wishes.profile(&usable(&less, &less_ledger));
        let storage = machine.storage(&profile);
        let before = plan(&profile, &less, &storage, &less_ledger);
        let after = plan(&profile, &topology, &storage, &ledger);
        if let Ok(before) = before {
            prop_assert!(after.is_ok(), "CPU {lost} makes it impossible: {after:?}");
            let after = after.unwrap();
            prop_assert!(
                after.price() <= before.price(),
                "CPU {lost} makes it worse: {:?} {:?}, {:?} {:?}",
                before.price(), crate::host::layout(&before), after.price(), crate::host::layout(&after)
            );
        }
    }

    #[test]
    fn round_robin_gives_entry_k_of_n_the_queues_k_and_so_on(queues in 1u32..40, iothreads in 1u32..9) {
        let profile = with(&format!("vcpu 1\niothreads {iothreads}\ndisk d {{ source file=d; queues {queues}; }}"));
        let spec = HostSpec::of(vec![crate::host::node(0, 16)]);
        let plan = crate::host::planned(&profile, &spec.source());
        prop_assert!(plan.disks[0].virtqueues.iter().all(|v| v.iothread == v.vq % iothreads));
    }

    #[test]
    fn cpu_lists_survive_printing(ids in prop::collection::btree_set(0u32..3000, 0..60)) {
        let set: CpuSet = ids.iter().copied().collect();
        prop_assert_eq!(set.to_string().parse::<CpuSet>().unwrap(), set.clone());
        prop_assert_eq!(set.iter().collect::<BTreeSet<_>>(), ids);
    }
}
