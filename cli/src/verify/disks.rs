//! How the disks' bytes move.

use vmprof_profiles::{Aio, DiskPlan};
use vmprof_vmm::virtio::blk::OpenAs;

use super::{Finding, What};
use crate::up::engine;

/// `open` is how the machine has it; `None`: the machine has no such disk.
pub(super) fn read_back(disk: &DiskPlan, open: Option<&OpenAs>) -> [Finding; 2] {
    let found = open.ok_or_else(|| "the machine has no such disk".to_owned());
    // A fallback is as much the profile's word as the first engine is.
    let taken =
        disk.aio_fallback.filter(|fallback| open.is_some_and(|open| open.engine == engine(*fallback)));
    let words = |engine: String, iopoll: bool| if iopoll { format!("{engine}, iopoll") } else { engine };
    let planned = |aio: Aio| words(engine(aio).to_string(), disk.iopoll);
    let moves = found.clone().map(|open| words(open.engine.to_string(), open.iopoll));
    let yes_or_no = |is_direct: bool| if is_direct { "yes" } else { "no" }.to_owned();
    let direct = found.map(|open| yes_or_no(open.direct));
    let name = || disk.name.clone();
    [
        Finding::new(What::Engine { disk: name() }, Some(planned(taken.unwrap_or(disk.aio))), moves),
        Finding::new(What::DirectIo { disk: name() }, Some(yes_or_no(disk.direct)), direct),
    ]
}
