//! What a topology does not tell, in words, so that a plan can say what it was made without.

use super::{CoreKind, CpuSet, Topology};

impl Topology {
    /// The facts that the source did not have or that made no sense, each a short phrase such as "which L3 cache CPUs
    /// 4-7 share". Empty on a host that tells everything a plan builds on.
    ///
    /// What a kernel may well leave unsaid is no gap: caches of a level that no CPU has, capacities of equal cores,
    /// the node of a drive on a host of one node, hugepage sizes, an affinity or a cgroup that was not captured.
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = self.doubts.clone();
        let cpus = |wanted: &dyn Fn(&super::Cpu) -> bool| -> CpuSet {
            self.cpus.iter().filter(|(_, cpu)| wanted(cpu)).map(|(id, _)| *id).collect()
        };
        // Fast cores share an L3 or have none, all alike; economy cores of one chip can lack it.
        let fast = |cpu: &super::Cpu| cpu.kind == CoreKind::Performance;
        let with_l3 = cpus(&|cpu| fast(cpu) && cpu.l3.is_some());
        let without_l3 = cpus(&|cpu| fast(cpu) && cpu.l3.is_none());
        if !with_l3.is_empty() && !without_l3.is_empty() {
            gaps.push(format!("which L3 cache CPUs {without_l3} share"));
        }
        if self.nodes.is_empty() {
            if self.online.len() > 1 {
                let memory = self.unplaced.as_ref().and_then(|memory| memory.memory_bytes);
                let and = if memory.is_none() { ", and their memory" } else { "" };
                gaps.push(format!("which NUMA nodes there are{and}"));
            }
            return gaps;
        }
        let homeless = cpus(&|cpu| cpu.node.is_none());
        if !homeless.is_empty() {
            gaps.push(format!("which node CPUs {homeless} are on"));
        }
        let nodes = |wanted: &dyn Fn(&super::Node) -> bool| -> CpuSet {
            self.nodes.iter().filter(|(_, node)| wanted(node)).map(|(id, _)| *id).collect()
        };
        let unmeasured = nodes(&|node| node.memory_bytes.is_none());
        if !unmeasured.is_empty() {
            gaps.push(format!("how much memory {} has", the_nodes(&unmeasured)));
        }
        let lost = nodes(&|node| self.nodes.keys().any(|other| !node.distance.contains_key(other)));
        if self.nodes.len() > 1 && !lost.is_empty() {
            gaps.push(format!("how far {} is from the others", the_nodes(&lost)));
        }
        gaps
    }
}

fn the_nodes(nodes: &CpuSet) -> String {
    if nodes.len() == 1 { format!("node {nodes}") } else { format!("each of nodes {nodes}") }
}
