//! CPUs with their packages, dies, clusters, cores, caches and kinds.
//!
//! What CPUs share is listed in files of each of them, all saying the same. A list is read once, from the first CPU
//! that no earlier list named: on a large host that is a tenth of the files. Every group is named by its lowest online
//! CPU. Where lists contradict each other the first to name a CPU has it, and the doubt is noted.

use std::collections::BTreeMap;

use super::source::{Below, Reader};
use super::sysfs::CPU;
use super::{Cpu, CpuSet, Node, kinds};

/// The CPUs, and what made no sense about them.
pub(super) fn read(
    reader: &Reader<'_>,
    online: &CpuSet,
    nodes: &BTreeMap<u32, Node>,
    doubts: &mut Vec<String>,
) -> BTreeMap<u32, Cpu> {
    let size = online.last().map_or(0, |last| last as usize + 1);
    let mut found = Found::new(size);
    let first_cache = first_cache(reader, online);
    let mut without = Without::default();
    for cpu in online.iter() {
        if found.cores.of(cpu).is_some() {
            continue;
        }
        let mut topology = Below::new(format!("{CPU}/cpu{cpu}/topology"));
        let siblings = siblings(reader, &mut topology, online, cpu, &mut without);
        found.cores.claim(cpu, &siblings);
        found.package(reader, &mut topology, online, cpu);
        for (groups, file, mask) in [
            (&mut found.dies, "die_cpus_list", "die_cpus"),
            (&mut found.clusters, "cluster_cpus_list", "cluster_cpus"),
        ] {
            if groups.of(cpu).is_none()
                && let Some(set) = shared(reader, &mut topology, file, mask)
            {
                groups.claim_list(cpu, &set.and(online), &siblings);
            }
        }
        if found.dies.of(cpu).is_none()
            && let Some(die) = reader.number::<u32>(topology.file("die_id"))
        {
            let name = *found.numbered_dies.entry((found.package_of(cpu), die)).or_insert(cpu);
            found.dies.join(name, &siblings);
        }
        found.caches(reader, online, cpu, first_cache, &siblings, &mut without);
    }
    found.doubts(doubts);
    without.doubts(online, doubts);
    found.cpus(online, nodes, &kinds::read(reader, online))
}

/// CPUs by what they share.
#[derive(Debug)]
struct Found {
    cores: Groups,
    packages: Groups,
    /// The id of each package group, by the group's name.
    package_ids: BTreeMap<u32, Option<u32>>,
    dies: Groups,
    /// Dies of kernels that number them and list no CPUs: package and number → name.
    numbered_dies: BTreeMap<(Option<u32>, u32), u32>,
    clusters: Groups,
    l2: Groups,
    l3: Groups,
}

impl Found {
    fn new(size: usize) -> Self {
        let groups = || Groups { names: vec![NONE; size], contradicted: CpuSet::new() };
        Found {
            cores: groups(),
            packages: groups(),
            package_ids: BTreeMap::new(),
            dies: groups(),
            numbered_dies: BTreeMap::new(),
            clusters: groups(),
            l2: groups(),
            l3: groups(),
        }
    }

    fn package(&mut self, reader: &Reader<'_>, topology: &mut Below, online: &CpuSet, cpu: u32) {
        if self.packages.of(cpu).is_some() {
            return;
        }
        let listed = reader
            .set(topology.file("package_cpus_list"))
            .or_else(|| reader.set(topology.file("core_siblings_list")))
            .map(|set| set.and(online))
            .filter(|set| set.contains(cpu));
        let id = reader.number::<i64>(topology.file("physical_package_id"));
        self.packages.claim(cpu, &listed.unwrap_or_else(|| CpuSet::of(cpu)));
        // -1 is the kernel's word for unknown.
        self.package_ids.insert(cpu, id.and_then(|id| u32::try_from(id).ok()));
    }

    fn package_of(&self, cpu: u32) -> Option<u32> {
        self.package_ids.get(&self.packages.of(cpu)?).copied().flatten()
    }

    /// The L2 and L3 caches of a CPU.
    fn caches(
        &mut self,
        reader: &Reader<'_>,
        online: &CpuSet,
        cpu: u32,
        first: u32,
        siblings: &CpuSet,
        without: &mut Without,
    ) {
        let mut seen = false;
        for index in first..first + 4 {
            if self.l2.of(cpu).is_some() && self.l3.of(cpu).is_some() {
                return;
            }
            let mut cache = Below::new(format!("{CPU}/cpu{cpu}/cache/index{index}"));
            let Some(level) = reader.number::<u32>(cache.file("level")) else {
                // Without an L2 there can be an L3 all the same.
                if index == first { continue } else { break }
            };
            seen = true;
            let groups = match level {
                2 => &mut self.l2,
                3 => &mut self.l3,
                _ => continue,
            };
            if groups.of(cpu).is_none()
                && let Some(set) = shared(reader, &mut cache, "shared_cpu_list", "shared_cpu_map")
            {
                groups.claim_list(cpu, &set.and(online), siblings);
            }
        }
        if !seen && self.l2.of(cpu).is_none() && self.l3.of(cpu).is_none() {
            without.caches.extend_with(siblings);
        }
    }

    fn doubts(&self, doubts: &mut Vec<String>) {
        for (what, groups) in [
            ("are threads of one core", &self.cores),
            ("share a package", &self.packages),
            ("share a die", &self.dies),
            ("share a cluster", &self.clusters),
            ("share an L2 cache", &self.l2),
            ("share an L3 cache", &self.l3),
        ] {
            if !groups.contradicted.is_empty() {
                let cpus = &groups.contradicted;
                doubts.push(format!(
                    "which CPUs {what} (the lists that name CPUs {cpus} contradict each other)"
                ));
            }
        }
    }

    fn cpus(&self, online: &CpuSet, nodes: &BTreeMap<u32, Node>, kinds: &kinds::Kinds) -> BTreeMap<u32, Cpu> {
        let mut node_of = vec![NONE; self.cores.names.len()];
        for (id, node) in nodes {
            for cpu in node.cpus.iter() {
                if let Some(slot) = node_of.get_mut(cpu as usize) {
                    *slot = *id;
                }
            }
        }
        // What holds for a core's first CPU holds for all of them.
        let core_of = |cpu: u32| self.cores.of(cpu).unwrap_or(cpu);
        let names = |groups: &Groups| groups.named_by_lowest(online, core_of);
        let (dies, clusters, l2, l3) =
            (names(&self.dies), names(&self.clusters), names(&self.l2), names(&self.l3));
        let at = |names: &[u32], cpu: u32| names.get(cpu as usize).copied().filter(|name| *name != NONE);
        let cpus = online.iter().map(|cpu| {
            let core = core_of(cpu);
            let own = Cpu {
                package: self.package_of(core),
                die: at(&dies, core),
                cluster: at(&clusters, core),
                core,
                l2: at(&l2, core),
                l3: at(&l3, core),
                node: at(&node_of, cpu),
                kind: kinds.of(cpu, core),
                capacity: kinds.capacity(core),
            };
            (cpu, own)
        });
        cpus.collect()
    }
}

/// No name; above every CPU.
const NONE: u32 = u32::MAX;

/// Disjoint sets of CPUs, each with one of its CPUs as its name.
#[derive(Debug)]
struct Groups {
    /// The name of each CPU's group, by CPU.
    names: Vec<u32>,
    /// CPUs that lists of two groups name.
    contradicted: CpuSet,
}

impl Groups {
    fn of(&self, cpu: u32) -> Option<u32> {
        self.names.get(cpu as usize).copied().filter(|name| *name != NONE)
    }

    /// Makes those of `set` that have no group yet one, named by `cpu`, which has none.
    fn claim(&mut self, cpu: u32, set: &CpuSet) {
        for member in set.iter() {
            match self.names.get_mut(member as usize) {
                Some(name) if *name == NONE => *name = cpu,
                Some(_) => self.contradicted.insert(member),
                None => {}
            }
        }
    }

    /// The same for a list read of `cpu`. One that does not name its own CPU says nothing.
    fn claim_list(&mut self, cpu: u32, set: &CpuSet, siblings: &CpuSet) {
        if set.contains(cpu) {
            self.claim(cpu, set);
            self.join(cpu, siblings);
        } else if !set.is_empty() {
            self.contradicted.insert(cpu);
        }
    }

    /// Puts those of `set` that have no group into an existing one.
    fn join(&mut self, name: u32, set: &CpuSet) {
        for member in set.iter() {
            if let Some(slot) = self.names.get_mut(member as usize).filter(|slot| **slot == NONE) {
                *slot = name;
            }
        }
    }

    /// Each CPU's group as its core's first CPU has it, named by the lowest CPU for which that is so.
    fn named_by_lowest(&self, online: &CpuSet, core_of: impl Fn(u32) -> u32) -> Vec<u32> {
        let mut lowest = vec![NONE; self.names.len()];
        let mut names = vec![NONE; self.names.len()];
        for cpu in online.iter() {
            let Some(name) = self.of(core_of(cpu)) else { continue };
            if let Some(lowest) = lowest.get_mut(name as usize)
                && let Some(own) = names.get_mut(cpu as usize)
            {
                *lowest = (*lowest).min(cpu);
                *own = *lowest;
            }
        }
        names
    }
}

/// CPUs that no file says a thing about.
#[derive(Debug, Default)]
struct Without {
    siblings: CpuSet,
    caches: CpuSet,
}

impl Without {
    fn doubts(&self, online: &CpuSet, doubts: &mut Vec<String>) {
        if online.len() < 2 {
            return;
        }
        if !self.siblings.is_empty() {
            doubts.push(format!("which of CPUs {} are threads of one core", self.siblings));
        }
        if !self.caches.is_empty() {
            doubts.push(format!("which caches CPUs {} share", self.caches));
        }
    }
}

/// The online threads of a CPU's core, itself included.
fn siblings(
    reader: &Reader<'_>,
    topology: &mut Below,
    online: &CpuSet,
    cpu: u32,
    without: &mut Without,
) -> CpuSet {
    let listed = shared(reader, topology, "thread_siblings_list", "thread_siblings")
        .or_else(|| shared(reader, topology, "core_cpus_list", "core_cpus"));
    match listed.map(|set| set.and(online)) {
        Some(set) if set.contains(cpu) => set,
        // A list that does not name its own CPU is nonsense: then the CPU is a core of its own.
        _ => {
            without.siblings.insert(cpu);
            CpuSet::of(cpu)
        }
    }
}

/// The CPUs of a list, or of the mask that older kernels have instead.
fn shared(reader: &Reader<'_>, dir: &mut Below, list: &str, mask: &str) -> Option<CpuSet> {
    let listed = reader.set(dir.file(list));
    listed.or_else(|| reader.mask(dir.file(mask))).filter(|set| !set.is_empty())
}

/// The number of the first cache above the first level: 2 where L1 comes as two, for data and for instructions.
fn first_cache(reader: &Reader<'_>, online: &CpuSet) -> u32 {
    let Some(cpu) = online.first() else { return 2 };
    match reader.number::<u32>(&format!("{CPU}/cpu{cpu}/cache/index1/level")) {
        Some(level) if level > 1 => 1,
        _ => 2,
    }
}
