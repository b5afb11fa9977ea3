//! How plans and hosts read: text, SVG, JSON, and the difference between two plans. Pure: data in, `String` out; the
//! caller prints it.

mod diff;
mod disks;
mod grid;
mod host;
mod marks;
mod places;
mod plan;
mod prose;
mod svg;

pub use diff::{Change, Diff, DiffSide, Kind as DiffKind, diff};
pub use host::{host_json, host_text};
pub use plan::{plan_text, plan_text_on};
pub use svg::plan_svg;

use crate::ledger::Ledger;
use crate::topology::{CpuSet, Topology};

/// What a plan's picture is drawn on: the host, and why some of its CPUs are out of reach.
#[derive(Debug, Clone, Copy)]
pub struct Backdrop<'a> {
    /// The host.
    pub topology: &'a Topology,
    /// What other VMs hold.
    pub ledger: &'a Ledger,
    /// The CPUs the profile allows; `None` allows all.
    pub cpuset: Option<&'a CpuSet>,
}

impl Backdrop<'_> {
    /// The CPUs that the caller and the profile allow, those held by other VMs included.
    pub(crate) fn allowed(&self) -> CpuSet {
        let host = self.topology;
        let limits = [host.affinity.as_ref(), host.cgroup_cpus.as_ref(), self.cpuset];
        limits.into_iter().flatten().fold(host.online.clone(), |left, limit| left.and(limit))
    }
}

/// How a text is set.
#[derive(Debug, Clone, Copy)]
pub struct TextStyle {
    /// Columns that lines keep to, as far as single words allow.
    pub width: usize,
    /// Whether to add terminal colours; they change nothing else.
    pub colour: bool,
    /// Whether to show the best rejected alternative below each choice.
    pub explain: bool,
}

impl Default for TextStyle {
    fn default() -> Self {
        TextStyle { width: 100, colour: false, explain: false }
    }
}
