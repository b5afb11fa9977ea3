//! The guest's memory: its policy, the nodes that its pages are on, and their size. All of it is what the kernel says of the
//! mapping of the guest's memory (proc(5): /proc/PID/numa_maps and /proc/PID/smaps).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vmprof_profiles::{MemoryMode, MemoryPlan, NodeSet, format_size};

use super::{Finding, What};
use crate::stats::GUEST_MEMORY;

const ORDINARY_PAGE_BYTES: u64 = 4096;

/// Pages of the guest's memory that are there, each of the size that the mapping has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePages {
    pub node: u32,
    pub pages: u64,
}

pub(super) fn read_back(plan: &MemoryPlan, process: &Path) -> [Finding; 2] {
    let placed = match fs::read_to_string(process.join("numa_maps")) {
        Ok(text) => Placed::of(&text).ok_or_else(|| "the kernel shows no guest memory".to_owned()),
        // A kernel without NUMA has all its memory on node 0.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Placed::without_numa(plan)),
        Err(error) => Err(format!("numa_maps: {error}")),
    };
    let smaps = fs::read_to_string(process.join("smaps")).unwrap_or_default();
    [nodes(plan, placed), pages(plan, &page_sizes(&smaps))]
}

/// Where the kernel has the guest's memory.
#[derive(Debug, Default, PartialEq, Eq)]
struct Placed {
    /// In the profile's words where it has one for it, else in the kernel's; each once.
    policies: Vec<String>,
    pages: BTreeMap<u32, u64>,
}

impl Placed {
    /// A line a mapping: `ADDRESS POLICY file=… N0=PAGES …`; blanks in the file's name are `\040`.
    fn of(numa_maps: &str) -> Option<Placed> {
        let name = format!("file={}", GUEST_MEMORY.replace(' ', "\\040"));
        let mut placed = Placed::default();
        for line in numa_maps.lines() {
            let Some((head, rest)) = line.split_once(&name) else { continue };
            // A policy may have a blank of its own: `prefer (many):0-1`.
            let policy = in_profiles_words(head.split_once(' ').map_or("", |(_, policy)| policy).trim());
            if !placed.policies.contains(&policy) {
                placed.policies.push(policy);
            }
            for (node, pages) in rest.split_whitespace().filter_map(pages_of_node) {
                *placed.pages.entry(node).or_default() += pages;
            }
        }
        (!placed.policies.is_empty()).then_some(placed)
    }

    /// Of node 0 all that is asked for holds by itself; of any other nothing does.
    fn without_numa(plan: &MemoryPlan) -> Placed {
        let nodes = plan.nodes.clone().filter(|nodes| *nodes == NodeSet::of(0));
        let policy = nodes.map_or_else(|| "no NUMA".to_owned(), |nodes| wish(plan.mode, &nodes));
        Placed { policies: vec![policy], pages: BTreeMap::new() }
    }
}

fn pages_of_node(word: &str) -> Option<(u32, u64)> {
    let (node, pages) = word.strip_prefix('N')?.split_once('=')?;
    Some((node.parse().ok()?, pages.parse().ok()?))
}

/// As plans have it: `strict 0-1`. The kernel's words are those of its mm/mempolicy.c.
fn in_profiles_words(policy: &str) -> String {
    let (mode, nodes) = policy.split_once(':').unwrap_or((policy, ""));
    let mode = match mode {
        "bind" => MemoryMode::Strict,
        "prefer" | "prefer (many)" => MemoryMode::Preferred,
        "interleave" => MemoryMode::Interleave,
        _ => return policy.to_owned(),
    };
    format!("{} {nodes}", mode.word())
}

fn wish(mode: MemoryMode, nodes: &NodeSet) -> String {
    format!("{} {nodes}", mode.word())
}

fn nodes(plan: &MemoryPlan, placed: Result<Placed, String>) -> Finding {
    let planned = plan.nodes.as_ref().map(|nodes| wish(plan.mode, nodes));
    let placed = match placed {
        Ok(placed) => placed,
        Err(why) => return Finding::new(What::Memory { pages: Vec::new() }, planned, Err(why)),
    };
    let pages: Vec<NodePages> =
        placed.pages.iter().map(|(&node, &pages)| NodePages { node, pages }).collect();
    let finding = Finding::new(What::Memory { pages }, planned, Ok(placed.policies.join(", ")));
    // Preferred nodes may have had no room.
    let kept = plan.nodes.as_ref().filter(|_| plan.mode != MemoryMode::Preferred);
    let strays: u64 = match kept {
        Some(nodes) => placed.pages.iter().filter(|(node, _)| !nodes.contains(**node)).map(|(_, n)| n).sum(),
        None => 0,
    };
    let note = (strays > 0).then(|| format!("{strays} pages are on other nodes"));
    Finding { as_planned: finding.as_planned && strays == 0, note: note.or(finding.note), ..finding }
}

/// The size of the pages of each mapping of the guest's memory, each once.
fn page_sizes(smaps: &str) -> Vec<u64> {
    let mut sizes = Vec::new();
    let mut is_guest = false;
    for line in smaps.lines() {
        let Some((key, value)) = line.split_once(':').filter(|(key, _)| !key.contains(' ')) else {
            is_guest = line.contains(GUEST_MEMORY);
            continue;
        };
        let kib = value.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok());
        if let ("KernelPageSize", true, Some(kib)) = (key, is_guest, kib)
            && !sizes.contains(&(kib << 10))
        {
            sizes.push(kib << 10);
        }
    }
    sizes
}

fn pages(plan: &MemoryPlan, sizes: &[u64]) -> Finding {
    let planned = plan.hugepages.map_or(ORDINARY_PAGE_BYTES, |size| size.bytes());
    let found = match sizes {
        [] => Err("the kernel shows no guest memory".to_owned()),
        sizes => Ok(sizes.iter().map(|size| format_size(*size)).collect::<Vec<_>>().join(", ")),
    };
    Finding::new(What::HugePages, Some(format_size(planned)), found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
        55d0 default file=/usr/bin/vmprof mapped=9 N0=9 kernelpagesize_kB=4\n\
        7f00 bind:0 file=/memfd:vmprof\\040guest\\040memory\\040(deleted) dirty=30 mapmax=2 N0=20 N1=10 kernelpagesize_kB=4\n\
        7f40 bind:0 file=/memfd:vmprof\\040guest\\040memory\\040(deleted) dirty=5 N0=5 kernelpagesize_kB=4\n\
        7ffc default stack anon=3 dirty=3 N0=3 kernelpagesize_kB=4\n";

    fn plan(mode: MemoryMode, nodes: Option<&str>) -> MemoryPlan {
        MemoryPlan {
            bytes: 1 << 30,
            nodes: nodes.map(|nodes| nodes.parse().unwrap()),
            hugepages: None,
            mode,
            because: String::new(),
            rejected: None,
        }
    }

    #[test]
    fn pages_on_other_nodes_are_strays_unless_the_nodes_are_only_preferred() {
        let placed = || Placed::of(MAPS);
        assert_eq!(placed().unwrap().pages, BTreeMap::from([(0, 25), (1, 10)]));
        let verdict = |plan: &MemoryPlan, placed: Option<Placed>| {
            let finding = nodes(plan, placed.ok_or_else(|| "not there".to_owned()));
            (finding.as_planned, finding.note)
        };
        let strays = (false, Some("10 pages are on other nodes".to_owned()));
        assert_eq!(verdict(&plan(MemoryMode::Strict, Some("0")), placed()), strays);
        assert_eq!(verdict(&plan(MemoryMode::Strict, None), placed()), (true, None));
        // The policy itself is another.
        assert!(!verdict(&plan(MemoryMode::Strict, Some("0-1")), placed()).0);
        let preferred = MAPS.replace("bind:0", "prefer (many):0,2");
        assert_eq!(verdict(&plan(MemoryMode::Preferred, Some("0,2")), Placed::of(&preferred)), (true, None));
        assert!(!verdict(&plan(MemoryMode::Strict, Some("0")), Placed::of("55d0 default heap N0=3\n")).0);
    }

    #[test]
    fn a_kernel_without_numa_has_all_on_node_0() {
        for (asked, kept) in [(Some("0"), true), (Some("1"), false), (Some("0-1"), false), (None, true)] {
            let plan = plan(MemoryMode::Interleave, asked);
            assert_eq!(nodes(&plan, Ok(Placed::without_numa(&plan))).as_planned, kept, "{asked:?}");
        }
    }

    #[test]
    fn the_size_of_pages_is_that_of_the_guests_mapping() {
        let smaps = "\
            00400000-00500000 r-xp 00000000 00:01 7    /usr/bin/vmprof\nKernelPageSize:        4 kB\n\
            7f0000000000-7f0040000000 rw-s 00000000 00:01 9   /memfd:vmprof guest memory (deleted)\nSize: 9 kB\n\
            KernelPageSize:     2048 kB\n7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0    [stack]\nKernelPageSize: 4 kB\n";
        assert_eq!(page_sizes(smaps), [2 << 20]);
        let mut huge = plan(MemoryMode::Strict, None);
        let verdict = |plan: &MemoryPlan| pages(plan, &page_sizes(smaps)).as_planned;
        assert!(!verdict(&huge));
        huge.hugepages = Some(vmprof_profiles::PageSize::Mib2);
        assert!(verdict(&huge) && !pages(&huge, &[]).as_planned);
    }
}
