//! Where the guest's memory lies and what pages back it.

use vmprof_document::format_size;

use crate::plan::MemoryPlan;
use crate::profile::{Hugepages, Memory, MemoryMode, PageSize, Profile, Written};
use crate::reason::rejected::{Against, Instead, Rejection};
use crate::reason::{Home, HomeChoice, MemoryReason, PagesReason};
use crate::topology::{NodeSet, Topology};

use super::{Gathered, problem};

struct Place {
    nodes: Option<NodeSet>,
    because: MemoryReason,
}

/// Memory on the nodes the profile names; else at home where it fits, else on the nearest nodes too. What the profile
/// says outright is kept or refused.
pub(super) fn memory(
    profile: &Profile,
    topology: &Topology,
    home: &Home,
    gathered: &mut Gathered,
) -> Option<MemoryPlan> {
    let bytes = profile.memory.bytes.value;
    let place = match (&profile.memory.nodes, home.node) {
        (Some(wish), _) => said(profile, topology, wish, gathered)?,
        (None, Some(_)) if profile.memory.mode == MemoryMode::Interleave => {
            let all: NodeSet = with_memory(topology).collect();
            Place { nodes: Some(all).filter(|all| !all.is_empty()), because: MemoryReason::Interleaved }
        }
        (None, Some(node)) => at_home(profile, topology, home, node, gathered)?,
        (None, None) => Place { nodes: None, because: MemoryReason::UnknownNodes },
    };
    if topology.memory_bytes().is_some_and(|all| all < bytes) {
        let all = format_size(topology.memory_bytes().unwrap_or_default());
        gathered.warn(
            "memory_beyond_host",
            format!("the guest is given {}, and the host has {all}", format_size(bytes)),
            "the guest will be killed once it uses what is not there; give it less `memory`",
        );
    }
    let (hugepages, pages) = pages(profile, topology, place.nodes.as_ref(), gathered)?;
    let rejected = rejected(profile, topology, home, &place, &pages);
    let because = match pages {
        Some(pages) => format!("{}; {pages}", place.because),
        None => place.because.to_string(),
    };
    Some(MemoryPlan {
        bytes,
        nodes: place.nodes,
        hugepages,
        mode: profile.memory.mode,
        because,
        rejected: rejected.map(Into::into),
    })
}

fn size(topology: &Topology, id: u32) -> Option<u64> {
    topology.nodes.get(&id).and_then(|node| node.memory_bytes)
}

/// Whether this process may take memory from a node.
fn allowed(topology: &Topology, id: u32) -> bool {
    topology.allowed_nodes.as_ref().is_none_or(|nodes| nodes.contains(id))
}

/// The nodes that have memory for this process, or may have.
fn with_memory(topology: &Topology) -> impl Iterator<Item = u32> + '_ {
    let ids = topology.nodes.keys().copied();
    ids.filter(|id| allowed(topology, *id) && size(topology, *id) != Some(0))
}

/// Nodes that the profile names.
fn said(
    profile: &Profile,
    topology: &Topology,
    wish: &Written<NodeSet>,
    gathered: &mut Gathered,
) -> Option<Place> {
    let pick = |keep: &dyn Fn(u32) -> bool| -> NodeSet { wish.value.iter().filter(|id| keep(*id)).collect() };
    let absent = pick(&|id| !topology.nodes.contains_key(&id));
    let barred = pick(&|id| topology.nodes.contains_key(&id) && !allowed(topology, id));
    let empty = pick(&|id| size(topology, id) == Some(0));
    let have: NodeSet = with_memory(topology).collect();
    let have = if have.is_empty() { "none that is known".to_owned() } else { have.to_string() };
    let found = if !absent.is_empty() {
        Some(format!("node {absent} is not there"))
    } else if !barred.is_empty() {
        let nodes = topology.allowed_nodes.as_ref().map_or(String::new(), NodeSet::to_string);
        Some(format!(
            "node {barred} is out of reach: this process may take memory from node {nodes} (cpuset.mems)"
        ))
    } else {
        (!empty.is_empty()).then(|| format!("node {empty} has no memory"))
    };
    if let Some(found) = found {
        gathered.refuse(
            problem("no_such_memory_node", format!("{found}: the nodes with memory are {have}"))
                .at(wish.span, "asked here")
                .help("write some of these, or leave `nodes` out"),
        );
        return None;
    }
    let bytes = profile.memory.bytes.value;
    let known: Option<Vec<u64>> = wish.value.iter().map(|id| size(topology, id)).collect();
    let sum = known.map(|all| all.iter().fold(0, |sum: u64, one| sum.saturating_add(*one)));
    if let Some(sum) = sum.filter(|sum| *sum < bytes) {
        let [has, wanted] = [sum, bytes].map(format_size);
        let nodes = &wish.value;
        match profile.memory.mode {
            MemoryMode::Strict => {
                gathered.refuse(
                    problem(
                        "memory_binding",
                        format!("node {nodes} has {has}, and the guest is given {wanted}"),
                    )
                    .at(profile.memory.bytes.span, "this much")
                    .at(wish.span, "on these nodes and no others")
                    .help("give the guest less `memory`, name more nodes, or write `mode=preferred`"),
                );
                return None;
            }
            MemoryMode::Preferred | MemoryMode::Interleave => gathered.note(
                "memory_overflows",
                format!("node {nodes} has {has} for {wanted}: the rest comes from other nodes"),
                "give the guest less `memory`, or name more nodes",
            ),
        }
    }
    Some(Place {
        nodes: Some(wish.value.clone()),
        because: MemoryReason::ProfileSaid { line: wish.line.clone() },
    })
}

/// The nodes that memory goes on to where `node` is too small for it and others have some. Explicit nodes and
/// interleaving know no such thing.
pub(super) fn beyond(profile: &Profile, topology: &Topology, node: u32) -> Option<NodeSet> {
    let Memory { bytes, nodes, mode, .. } = &profile.memory;
    if nodes.is_some() || *mode == MemoryMode::Interleave {
        return None;
    }
    let barred = !allowed(topology, node);
    let here = size(topology, node).filter(|here| *here < bytes.value).or(barred.then_some(0))?;
    let mut order: Vec<u32> = with_memory(topology).filter(|id| *id != node).collect();
    order.sort_by_key(|id| (topology.distance(Some(node), Some(*id)), *id));
    let mut chosen = NodeSet::new();
    let mut have = 0u64;
    let first = Some(node).filter(|_| here > 0 && !barred);
    for id in first.into_iter().chain(order) {
        let Some(here) = size(topology, id) else { continue };
        chosen.insert(id);
        have = have.saturating_add(here);
        if have >= bytes.value {
            break;
        }
    }
    (!chosen.is_empty() && chosen != NodeSet::of(node)).then_some(chosen)
}

fn at_home(
    profile: &Profile,
    topology: &Topology,
    home: &Home,
    node: u32,
    gathered: &mut Gathered,
) -> Option<Place> {
    let bytes = profile.memory.bytes.value;
    let at_home =
        || Place { nodes: Some(NodeSet::of(node)), because: MemoryReason::AtHome { home: home.clone() } };
    let barred = !allowed(topology, node);
    // A node whose size is unknown is taken at its word. Free memory is never asked: it changes by the second.
    let Some(here) = size(topology, node).filter(|here| *here < bytes).or(barred.then_some(0)) else {
        return Some(at_home());
    };
    let preferred = profile.memory.mode == MemoryMode::Preferred;
    if let (HomeChoice::Profile { .. }, Some(wish), false) = (&home.choice, &profile.host.node, preferred) {
        let [has, wanted] = [here, bytes].map(format_size);
        let found = match barred {
            true => format!("this process may take no memory from node {node} (cpuset.mems)"),
            false => format!("node {node} has {has}, and the guest is given {wanted}"),
        };
        gathered.refuse(
            problem("memory_binding", found)
                .at(profile.memory.bytes.span, "this much")
                .at(wish.span, "on this node")
                .help("give the guest less `memory`, or write `numa node=auto`"),
        );
        return None;
    }
    let Some(chosen) = beyond(profile, topology, node) else {
        if here == 0 || barred {
            // No node is known to have any: binding to one would be binding to nothing.
            return Some(Place { nodes: None, because: MemoryReason::NoMemoryKnown });
        }
        return Some(at_home());
    };
    let why = match (barred, here) {
        (true, _) => format!("this process may take no memory from node {node} (cpuset.mems)"),
        (false, 0) => format!("node {node} has no memory"),
        (false, here) => {
            format!("node {node} has {}, too little for {}", format_size(here), format_size(bytes))
        }
    };
    let (count, noun) = (chosen.len(), if chosen.len() == 1 { "node" } else { "nodes" });
    gathered.step(
        "memory",
        u32::try_from(count).unwrap_or(u32::MAX),
        "memory_on_other_node",
        format!("{why}: memory lies on {noun} {chosen}"),
        "part of the guest's memory is remote; give it less `memory`, or a larger node",
    );
    Some(Place { nodes: Some(chosen), because: MemoryReason::Outgrows { node } })
}

/// The page size and why; `None` when the profile requires pages that are not there.
fn pages(
    profile: &Profile,
    topology: &Topology,
    nodes: Option<&NodeSet>,
    gathered: &mut Gathered,
) -> Option<(Option<PageSize>, Option<PagesReason>)> {
    let bytes = profile.memory.bytes.value;
    let counted = || {
        let chosen = topology.nodes.iter().filter(|(id, _)| nodes.is_none_or(|set| set.contains(**id)));
        chosen.map(|(_, node)| node).chain(&topology.unplaced)
    };
    let free = |size: PageSize| -> u64 {
        let free = counted().filter_map(|node| node.free_hugepages.get(&size.bytes()));
        free.fold(0, |all, one| all.saturating_add(*one))
    };
    match &profile.memory.hugepages {
        Hugepages::None => Some((None, None)),
        Hugepages::Auto => {
            let (wanted, free) = (bytes.div_ceil(PageSize::Mib2.bytes()), free(PageSize::Mib2));
            let enough = free >= wanted;
            let reason =
                if enough { PagesReason::Enough { free } } else { PagesReason::TooFew { wanted, free } };
            Some((enough.then_some(PageSize::Mib2), Some(reason)))
        }
        Hugepages::Required(size) => {
            let (wanted, free) = (bytes.div_ceil(size.value.bytes()), free(size.value));
            if free >= wanted {
                return Some((Some(size.value), Some(PagesReason::ProfileSaid { line: size.line.clone() })));
            }
            let page = format_size(size.value.bytes());
            let place = nodes.map_or("this host".to_owned(), |n| format!("node {n}"));
            let kib = size.value.bytes() / 1024;
            // Which sizes there are is the architecture's: 2MiB and 1GiB on x86-64, others elsewhere.
            let mut offered: Vec<u64> = counted().flat_map(|n| n.free_hugepages.keys().copied()).collect();
            offered.sort_unstable();
            offered.dedup();
            let refusal = if !offered.is_empty() && !offered.contains(&size.value.bytes()) {
                let sizes: Vec<String> = offered.iter().map(|size| format_size(*size)).collect();
                problem(
                    "no_hugepages",
                    format!("{place} has no pages of {page}: its sizes are {}", sizes.join(", ")),
                )
                .help("write `hugepages=auto`, or leave it out")
            } else {
                let dir = match topology.unplaced {
                    Some(_) => "/sys/kernel/mm/hugepages",
                    None => "/sys/devices/system/node/nodeN/hugepages",
                };
                problem(
                    "no_hugepages",
                    format!("{wanted} pages of {page} are wanted, and {place} has {free} free"),
                )
                .help(format!(
                    "reserve them in {dir}/hugepages-{kib}kB/nr_hugepages, or write `hugepages=auto`"
                ))
            };
            gathered.refuse(refusal.at(size.span, "asked here"));
            None
        }
    }
}

/// The next best place, or where there is none the other kind of pages.
fn rejected(
    profile: &Profile,
    topology: &Topology,
    home: &Home,
    place: &Place,
    pages: &Option<PagesReason>,
) -> Option<Rejection> {
    let wanted = profile.memory.bytes.value;
    let nodes = place.nodes.as_ref()?;
    match (&place.because, home.node) {
        (MemoryReason::ProfileSaid { line }, Some(home)) if *nodes != NodeSet::of(home) => Some(Rejection {
            instead: Instead::Node(home),
            against: Against::ProfileSaid { line: line.clone() },
        }),
        (MemoryReason::Outgrows { node }, _) => Some(Rejection {
            instead: Instead::Node(*node),
            against: Against::DoesNotFit {
                node: *node,
                has: size(topology, *node).unwrap_or_default(),
                wanted,
            },
        }),
        (_, Some(home)) => {
            let mut others: Vec<u32> = with_memory(topology).filter(|id| !nodes.contains(*id)).collect();
            others.sort_by_key(|id| (topology.distance(Some(home), Some(*id)), *id));
            let other = others.first().map(|node| Rejection {
                instead: Instead::Node(*node),
                against: Against::RemoteToVcpus {
                    node: *node,
                    home,
                    distance: topology.distance(Some(home), Some(*node)),
                },
            });
            other.or_else(|| other_pages(pages))
        }
        (_, None) => other_pages(pages),
    }
}

fn other_pages(pages: &Option<PagesReason>) -> Option<Rejection> {
    Some(match pages.as_ref()? {
        PagesReason::TooFew { wanted, free } => Rejection {
            instead: Instead::Pages("2MiB"),
            against: Against::FewPages { wanted: *wanted, free: *free },
        },
        PagesReason::Enough { .. } | PagesReason::ProfileSaid { .. } => {
            Rejection { instead: Instead::OrdinaryPages, against: Against::ProfileAsksPages }
        }
    })
}
