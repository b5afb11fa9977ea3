//! A host's CPUs by place: node, package, die, last-level cache, kind of core, core. What the text and the picture share.

use std::collections::{BTreeMap, BTreeSet};

use crate::topology::{CoreKind, Topology};

/// An id that may be unknown; the unknown one comes last.
pub(super) type Known = (bool, Option<u32>);

pub(super) fn known(id: Option<u32>) -> Known {
    (id.is_none(), id)
}

/// What the cores of one line share: package, die, last-level cache, and the kind of core.
pub(super) type Place = (Known, Known, Known, CoreKind);

/// The cores of one place: their CPUs by cluster and by the core's name.
pub(super) type Cores = BTreeMap<(Option<u32>, u32), Vec<u32>>;

/// Every online CPU in its place, and the nodes without CPUs.
pub(super) fn places(topology: &Topology) -> BTreeMap<Known, BTreeMap<Place, Cores>> {
    let mut nodes: BTreeMap<Known, BTreeMap<Place, Cores>> = BTreeMap::new();
    for (id, cpu) in &topology.cpus {
        let place = (known(cpu.package), known(cpu.die), known(cpu.l3), cpu.kind);
        let node = nodes.entry(known(cpu.node)).or_default();
        node.entry(place).or_default().entry((cpu.cluster, cpu.core)).or_default().push(*id);
    }
    // Nodes without CPUs are there too: their memory can be.
    for id in topology.nodes.keys() {
        nodes.entry(known(Some(*id))).or_default();
    }
    nodes
}

/// Whether clusters say something here: there are several, and they are more than single cores.
pub(super) fn clustered(cores: &Cores) -> bool {
    let sizes = cores.keys().fold(BTreeMap::<_, usize>::new(), |mut sizes, (cluster, _)| {
        *sizes.entry(*cluster).or_default() += 1;
        sizes
    });
    sizes.len() > 1 && sizes.values().any(|cores| *cores > 1)
}

/// The names of a node's places.
pub(super) struct Names {
    caches: Vec<Known>,
    dies: BTreeSet<Known>,
    several_packages: bool,
}

impl Names {
    pub(super) fn of(places: &BTreeMap<Place, Cores>, several_packages: bool) -> Names {
        let mut caches = Vec::new();
        for place in places.keys().filter(|place| place.2.1.is_some()) {
            if !caches.contains(&place.2) {
                caches.push(place.2);
            }
        }
        Names { caches, dies: places.keys().map(|place| place.1).collect(), several_packages }
    }

    /// `die 1  L3 #3`: package and die where there are several, caches counted within the node.
    pub(super) fn name(&self, (package, die, l3, _): &Place) -> String {
        let mut name = Vec::new();
        if let (true, Some(package)) = (self.several_packages, package.1) {
            name.push(format!("package {package}"));
        }
        let number = self.dies.iter().position(|other| other == die);
        if let (true, Some(_), Some(number)) = (self.dies.len() > 1, die.1, number) {
            name.push(format!("die {number}"));
        }
        match self.caches.iter().position(|cache| cache == l3) {
            Some(number) => name.push(format!("L3 #{number}")),
            None => name.push("no L3".to_owned()),
        }
        name.join("  ")
    }
}
