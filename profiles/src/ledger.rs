//! CPUs that other running VMs hold. Filled by the caller; the planner keeps off them.

use serde::{Deserialize, Serialize};

use crate::topology::CpuSet;

/// What is held, and by whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// One entry per holder.
    pub held: Vec<Held>,
}

/// The CPUs one VM's pinned threads are on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The VM's name.
    pub holder: String,
    /// Its CPUs.
    pub cpus: CpuSet,
    /// Its process, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

impl Ledger {
    /// All CPUs that someone holds.
    pub fn cpus(&self) -> CpuSet {
        self.held.iter().fold(CpuSet::new(), |all, held| all.or(&held.cpus))
    }

    /// Who holds any of these CPUs.
    pub fn holders(&self, cpus: &CpuSet) -> Vec<&str> {
        self.held.iter().filter(|h| h.cpus.meets(cpus)).map(|h| h.holder.as_str()).collect()
    }
}
