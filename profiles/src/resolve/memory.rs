//! Where the guest's memory lies and what pages back it.

use vmprof_document::format_size;

use crate::plan::MemoryPlan;
use crate::profile::{Hugepages, PageSize, Profile};
use crate::reason::{Home, HomeChoice};
use crate::topology::{NodeSet, Topology};

use super::{Gathered, problem};

/// Memory on the home node where it fits, else on the nearest ones too; an explicit node is kept or refused.
pub(super) fn memory(
    profile: &Profile,
    topology: &Topology,
    home: &Home,
    gathered: &mut Gathered,
) -> Option<MemoryPlan> {
    let bytes = profile.memory.bytes.value;
    let mut because = match home.node {
        Some(_) => format!("on the node of the vCPUs: {home}"),
        None => "the host's nodes are unknown, so it is bound to none".to_owned(),
    };
    let nodes = match home.node {
        Some(node) => {
            let nodes = nodes(profile, topology, home, node, gathered)?;
            if nodes != NodeSet::of(node) {
                because = format!("node {node} is too small, so the nearest follow");
            }
            Some(nodes)
        }
        None => None,
    };
    if topology.memory_bytes().is_some_and(|all| all < bytes) {
        let all = format_size(topology.memory_bytes().unwrap_or_default());
        gathered.warn(
            "memory_beyond_host",
            format!("the guest is given {}, and the host has {all}", format_size(bytes)),
            "the guest will be killed once it uses what is not there; give it less `memory`",
        );
    }
    let hugepages = hugepages(profile, topology, nodes.as_ref(), &mut because, gathered);
    Some(MemoryPlan {
        bytes,
        nodes,
        hugepages: hugepages?,
        mode: profile.memory.mode,
        because,
        rejected: None,
    })
}

fn nodes(
    profile: &Profile,
    topology: &Topology,
    home: &Home,
    node: u32,
    gathered: &mut Gathered,
) -> Option<NodeSet> {
    let bytes = profile.memory.bytes.value;
    let size = |id: u32| topology.nodes.get(&id).and_then(|n| n.memory_bytes);
    // A node whose size is unknown is taken at its word.
    let Some(here) = size(node).filter(|here| *here < bytes) else { return Some(NodeSet::of(node)) };
    if let (HomeChoice::Profile { .. }, Some(wish)) = (&home.choice, &profile.host.node) {
        gathered.refuse(
            problem(
                "memory_binding",
                format!(
                    "node {node} has {}, and the guest is given {}",
                    format_size(here),
                    format_size(bytes)
                ),
            )
            .at(profile.memory.bytes.span, "this much")
            .at(wish.span, "on this node")
            .help("give the guest less `memory`, or write `numa node=auto`"),
        );
        return None;
    }
    let mut order: Vec<u32> = topology.nodes.keys().copied().filter(|id| *id != node).collect();
    order.sort_by_key(|id| (topology.distance(Some(node), Some(*id)), *id));
    let mut chosen = NodeSet::new();
    let mut have = 0u64;
    for id in [node].into_iter().chain(order) {
        let Some(here) = size(id).filter(|here| *here > 0) else { continue };
        chosen.insert(id);
        have = have.saturating_add(here);
        if have >= bytes {
            break;
        }
    }
    if chosen.is_empty() {
        return Some(NodeSet::of(node));
    }
    gathered.step(
        "memory_on_other_node",
        format!(
            "node {node} has {}, too little for {}: memory lies on nodes {chosen}",
            format_size(here),
            format_size(bytes)
        ),
        "part of the guest's memory is remote; give it less `memory`, or a larger node",
    );
    Some(chosen)
}

/// The page size; `None` when the profile requires pages that are not there.
fn hugepages(
    profile: &Profile,
    topology: &Topology,
    nodes: Option<&NodeSet>,
    because: &mut String,
    gathered: &mut Gathered,
) -> Option<Option<PageSize>> {
    let bytes = profile.memory.bytes.value;
    let free = |size: PageSize| -> u64 {
        let counted = topology.nodes.iter().filter(|(id, _)| nodes.is_none_or(|set| set.contains(**id)));
        let free = counted.filter_map(|(_, node)| node.free_hugepages.get(&size.bytes()));
        free.fold(0, |all, one| all.saturating_add(*one))
    };
    match &profile.memory.hugepages {
        Hugepages::None => Some(None),
        Hugepages::Auto => {
            let (wanted, free) = (bytes.div_ceil(PageSize::Mib2.bytes()), free(PageSize::Mib2));
            let enough = free >= wanted;
            because.push_str(&match enough {
                true => format!("; {free} free 2MiB pages are enough"),
                false => format!("; ordinary pages, as {wanted} of 2MiB are wanted and {free} are free"),
            });
            Some(enough.then_some(PageSize::Mib2))
        }
        Hugepages::Required(size) => {
            let (wanted, free) = (bytes.div_ceil(size.value.bytes()), free(size.value));
            if free >= wanted {
                return Some(Some(size.value));
            }
            let page = format_size(size.value.bytes());
            let place = nodes.map_or("this host".to_owned(), |n| format!("node {n}"));
            let kib = size.value.bytes() / 1024;
            gathered.refuse(
                problem("no_hugepages", format!("{wanted} pages of {page} are wanted, and {place} has {free} free"))
                    .at(size.span, "asked here")
                    .help(format!(
                        "reserve them in /sys/devices/system/node/nodeN/hugepages/hugepages-{kib}kB/nr_hugepages, or write `hugepages=auto`"
                    )),
            );
            None
        }
    }
}
