//! Remarks that say the same of several disks, said once: a VM of 64 disks has not 64 times the news.

use std::collections::BTreeMap;

use crate::plan::{Diagnostic, Plan};

/// As many disks are named besides the first.
const NAMED: usize = 4;

/// Leaves the first of the remarks that differ in the disk's name alone, and names the other disks in it.
pub(in crate::resolve) fn said_once(plan: &mut Plan) {
    let remarks = std::mem::take(&mut plan.diagnostics);
    let mut first: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    let mut kept: Vec<(Diagnostic, Vec<String>)> = Vec::with_capacity(remarks.len());
    for remark in remarks {
        let about = plan.disks.iter().find(|disk| remark.message.contains(&quoted(&disk.name)));
        let Some(disk) = about else {
            kept.push((remark, Vec::new()));
            continue;
        };
        let text = remark.message.replace(&quoted(&disk.name), "disk");
        let at = *first.entry((remark.code.clone(), text, remark.help.clone())).or_insert(kept.len());
        match kept.get_mut(at) {
            Some((_, others)) => others.push(disk.name.clone()),
            None => kept.push((remark, Vec::new())),
        }
    }
    plan.diagnostics = kept.into_iter().map(|(remark, others)| with(remark, &others)).collect();
}

fn quoted(name: &str) -> String {
    format!("disk `{name}`")
}

fn with(mut remark: Diagnostic, others: &[String]) -> Diagnostic {
    if others.is_empty() {
        return remark;
    }
    let named: Vec<String> = others.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
    let more = match others.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    remark.message.push_str(&format!("; likewise {}{more}", named.join(", ")));
    remark
}
