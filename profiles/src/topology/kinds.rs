//! Fast and economical cores. Intel's kernels list them as the CPUs of a performance-monitoring unit (`cpu_core`,
//! `cpu_atom`, `cpu_lowpower`) or of a CPU type; Arm's and others' give each CPU a capacity, of which the fastest has
//! 1024.

use std::collections::BTreeMap;

use super::source::Reader;
use super::sysfs::CPU;
use super::{CoreKind, CpuSet};

#[derive(Debug, Default)]
pub(super) struct Kinds {
    economy: Option<CpuSet>,
    /// By CPU.
    capacities: BTreeMap<u32, u32>,
    most: u32,
}

pub(super) fn read(reader: &Reader<'_>, online: &CpuSet) -> Kinds {
    let capacity = |cpu: u32| reader.number::<u32>(&format!("{CPU}/cpu{cpu}/cpu_capacity"));
    // Hosts without the file on the first CPU have it nowhere.
    let known = online.first().is_some_and(|first| capacity(first).is_some());
    let capacities: BTreeMap<u32, u32> =
        online.iter().filter(|_| known).filter_map(|cpu| Some((cpu, capacity(cpu)?))).collect();
    Kinds {
        economy: units(reader).or_else(|| types(reader)),
        most: capacities.values().copied().max().unwrap_or(0),
        capacities,
    }
}

fn units(reader: &Reader<'_>) -> Option<CpuSet> {
    let atoms = reader.set("/sys/devices/cpu_atom/cpus");
    let lowpower = reader.set("/sys/devices/cpu_lowpower/cpus");
    match (atoms, lowpower) {
        (Some(atoms), Some(lowpower)) => Some(atoms.or(&lowpower)),
        (one, other) => one.or(other),
    }
}

fn types(reader: &Reader<'_>) -> Option<CpuSet> {
    let dir = format!("{CPU}/types");
    let names = reader.list(&dir);
    let economy = names.iter().filter(|name| name.contains("atom") || name.contains("lowpower"));
    let lists = economy.filter_map(|name| reader.set(&format!("{dir}/{name}/cpulist")));
    lists.reduce(|all, set| all.or(&set))
}

impl Kinds {
    /// The kind of a CPU of a core.
    pub(super) fn of(&self, cpu: u32, core: u32) -> CoreKind {
        let economy = match &self.economy {
            Some(economy) => economy.contains(cpu),
            // Firmware rounds capacities; clearly less than the best marks an economy core, on however many levels.
            None => self.capacity(core).is_some_and(|own| u64::from(own) * 4 < u64::from(self.most) * 3),
        };
        if economy { CoreKind::Efficiency } else { CoreKind::Performance }
    }

    pub(super) fn capacity(&self, core: u32) -> Option<u32> {
        self.capacities.get(&core).copied()
    }
}
