//! Whether a saved plan agrees with itself and keeps to what a machine of vmprof's can have. Whether the host can give
//! it is [`super::check`]'s.

use crate::decode::{LEAST_MEMORY_BYTES, MEMORY_STEP_BYTES, MOST_IOTHREADS, MOST_VCPUS};
use crate::plan::Plan;
use crate::topology::Topology;

use super::check::PlanFault;

pub(super) fn faults(plan: &Plan, topology: &Topology) -> Vec<PlanFault> {
    let mut faults = Vec::new();
    numbers(plan, &mut faults);
    disks(plan, topology, &mut faults);
    // The nodes that stand beside CPUs follow from them, and whoever edits the CPUs by hand need not know them.
    if let Some(home) = plan.home.node.filter(|home| !topology.nodes.contains_key(home)) {
        faults.push(contradiction("home.node", home, "this host has no such node"));
    }
    let (count, listed) = (plan.iothread_count.count, plan.iothreads.len());
    if usize::try_from(count) != Ok(listed) {
        faults.push(contradiction("iothread_count.count", count, format!("the plan has {listed} IOThreads")));
    }
    faults
}

fn contradiction(what: impl Into<String>, found: impl ToString, other: impl Into<String>) -> PlanFault {
    PlanFault::Contradiction { what: what.into(), found: found.to_string(), other: other.into() }
}

fn range(what: impl Into<String>, found: u64, wanted: &'static str) -> PlanFault {
    PlanFault::Range { what: what.into(), found, wanted }
}

fn numbers(plan: &Plan, faults: &mut Vec<PlanFault>) {
    let many = |count: usize, most: u64| u64::try_from(count).map_or(u64::MAX, |n| n) > most;
    let (vcpus, iothreads) = (plan.vcpus.len(), plan.iothreads.len());
    if many(vcpus, MOST_VCPUS) {
        faults.push(range("vcpus", vcpus as u64, "at most 254 vCPUs"));
    }
    if many(iothreads, MOST_IOTHREADS) {
        faults.push(range("iothreads", iothreads as u64, "at most 64 IOThreads"));
    }
    let siblings = plan.guest.threads_per_core;
    if !(1..=2).contains(&siblings) {
        faults.push(range("guest.threads_per_core", siblings.into(), "1, or 2 for pairs of siblings"));
    } else if !vcpus.is_multiple_of(siblings as usize) {
        faults.push(contradiction("guest.threads_per_core", siblings, format!("the plan has {vcpus} vCPUs")));
    }
    let bytes = plan.memory.bytes;
    if bytes < LEAST_MEMORY_BYTES || !bytes.is_multiple_of(MEMORY_STEP_BYTES) {
        faults.push(range("memory.bytes", bytes, "67108864 (64MiB) or more, in whole multiples of 2097152"));
    } else if let Some(page) = plan.memory.hugepages.filter(|page| !bytes.is_multiple_of(page.bytes())) {
        let other = format!("`memory.hugepages` has pages of {}", page.bytes());
        faults.push(contradiction("memory.bytes", bytes, other));
    }
}

fn disks(plan: &Plan, topology: &Topology, faults: &mut Vec<PlanFault>) {
    for disk in &plan.disks {
        let field = |name: &str| format!("disks.{}.{name}", disk.name);
        let cache = || format!("`cache` is {}", disk.cache.word());
        if disk.direct != disk.cache.direct() {
            faults.push(contradiction(field("direct"), disk.direct, cache()));
        }
        if disk.write_cache != disk.cache.write_cache() {
            faults.push(contradiction(field("write_cache"), disk.write_cache, cache()));
        }
        let blocks = [
            ("logical_block_bytes", disk.logical_block_bytes),
            ("physical_block_bytes", disk.physical_block_bytes),
        ];
        for (name, bytes) in blocks {
            if let Some(bytes) = bytes.filter(|n| !n.is_power_of_two() || !(512..=65536).contains(n)) {
                faults.push(range(field(name), bytes.into(), "a power of two from 512 to 65536"));
            }
        }
        if let [(name, Some(logical)), (_, Some(physical))] = blocks
            && logical > physical
        {
            let other = format!("`physical_block_bytes` is {physical}");
            faults.push(contradiction(field(name), logical, other));
        }
        if let Some(node) = disk.node.filter(|node| !topology.nodes.contains_key(node)) {
            faults.push(contradiction(field("node"), node, "this host has no such node"));
        }
    }
}
