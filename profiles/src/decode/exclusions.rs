//! Lists of CPUs as libvirt writes them: the kernel's, in which `^3` takes an id out again.

use crate::topology::{CpuSet, ListError};

/// Why a text is no such list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ExclusionError {
    /// A part is no id and no range.
    #[error(transparent)]
    List(#[from] ListError),
    /// Nothing stands there to be taken out.
    #[error("`^{out}` takes out {absent}, which the list does not name")]
    Absent {
        /// What stands behind the `^`.
        out: String,
        /// The ids.
        absent: CpuSet,
    },
}

/// Reads `0-7,^3`. The order does not matter: what any part takes out is out.
pub(super) fn parse(text: &str) -> Result<CpuSet, ExclusionError> {
    if !text.contains('^') {
        return Ok(text.parse()?);
    }
    let (mut named, mut excluded) = (CpuSet::new(), Vec::new());
    for part in text.split(',').map(str::trim) {
        // An empty part is the list's own mistake, which it names.
        let (out, ids) = part.strip_prefix('^').map_or((false, part), |ids| (true, ids.trim_start()));
        let set = if ids.is_empty() { Err(ListError::Gap) } else { ids.parse::<CpuSet>() }?;
        if out { excluded.push((ids.to_owned(), set)) } else { named = named.or(&set) }
    }
    let mut left = named.clone();
    for (out, set) in excluded {
        let absent = set.minus(&named);
        if !absent.is_empty() {
            return Err(ExclusionError::Absent { out, absent });
        }
        left = left.minus(&set);
    }
    Ok(left)
}
