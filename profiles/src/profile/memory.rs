//! `memory`: how much, in which pages, on which nodes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Written;
use crate::topology::NodeSet;

/// `memory`.
#[derive(Debug, Clone)]
pub struct Memory {
    /// How much.
    pub bytes: Written<u64>,
    /// Which pages back it.
    pub hugepages: Hugepages,
    /// The nodes it lies on; `None` lets the planner choose.
    pub nodes: Option<Written<NodeSet>>,
    /// How it is bound to its nodes.
    pub mode: MemoryMode,
}

/// How memory is bound to its nodes, in libvirt's words (`numatune`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MemoryMode {
    /// There and nowhere else (MPOL_BIND).
    #[default]
    Strict,
    /// There as long as there is room (MPOL_PREFERRED_MANY).
    Preferred,
    /// Page by page over the nodes in turn (MPOL_INTERLEAVE).
    Interleave,
}

impl MemoryMode {
    /// The word of the language.
    pub fn word(self) -> &'static str {
        match self {
            MemoryMode::Strict => "strict",
            MemoryMode::Preferred => "preferred",
            MemoryMode::Interleave => "interleave",
        }
    }
}

/// Which pages back the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hugepages {
    /// Ordinary ones.
    None,
    /// 2 MiB ones where enough are free.
    Auto,
    /// These, or no run at all.
    Required(Written<PageSize>),
}

/// The hugepage sizes of x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PageSize {
    /// 2 MiB.
    #[serde(rename = "2MiB")]
    Mib2,
    /// 1 GiB.
    #[serde(rename = "1GiB")]
    Gib1,
}

impl PageSize {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            PageSize::Mib2 => 2 << 20,
            PageSize::Gib1 => 1 << 30,
        }
    }
}
