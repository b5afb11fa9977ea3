//! Rule 2: the node a VM lives on.

use crate::profile::Profile;
use crate::reason::{Home, HomeChoice};
use crate::storage::Storage;
use crate::topology::Topology;

use super::seats::Seats;
use super::{Gathered, problem};

/// The node of the hottest disk's controller; what the profile says; else the roomiest.
pub(super) fn home(
    profile: &Profile,
    topology: &Topology,
    storage: &Storage,
    seats: &Seats,
    gathered: &mut Gathered,
) -> Option<Home> {
    let nodes = seats.nodes_from(topology, None);
    if let Some(wish) = &profile.host.node {
        if nodes.contains(&Some(wish.value)) {
            return Some(Home {
                node: Some(wish.value),
                choice: HomeChoice::Profile { line: wish.line.clone() },
            });
        }
        let have: Vec<String> = nodes.iter().flatten().map(u32::to_string).collect();
        let found = match topology.nodes.contains_key(&wish.value) {
            true => format!("node {} has no usable CPU", wish.value),
            false => format!("node {} is not there", wish.value),
        };
        let have = if have.is_empty() { "none that is known".to_owned() } else { have.join(", ") };
        gathered.refuse(
            problem("no_such_node", format!("{found}: the nodes with usable CPUs are {have}"))
                .at(wish.span, "asked here")
                .help("write one of these, or `numa node=auto`"),
        );
        return None;
    }
    // The hottest disk is the one with the most queues, the first of several; readonly ones count like any other.
    let known = profile.disks.iter().filter_map(|disk| {
        let place = storage.disks.get(&disk.name.value)?;
        // A node that the host does not list is unknown, whatever the device says.
        Some((disk, place, place.node.filter(|id| topology.nodes.contains_key(id))?))
    });
    let hottest = known.reduce(|best, next| if next.0.queues > best.0.queues { next } else { best });
    if let Some((disk, place, node)) = hottest {
        let disk = disk.name.value.clone();
        if nodes.contains(&Some(node)) {
            return Some(Home {
                node: Some(node),
                choice: HomeChoice::Disk { disk, device: place.device.clone() },
            });
        }
        let nearest = seats.nodes_from(topology, Some(node)).into_iter().next()?;
        gathered.step(
            "disk_node_without_cpus",
            format!("disk `{disk}` lies on node {node}, which has no usable CPU"),
            "every request crosses nodes; give vmprof CPUs there, or move the disk",
        );
        return Some(Home { node: nearest, choice: HomeChoice::NearDisk { disk, node } });
    }
    if let [only] = nodes[..] {
        let choice = if only.is_some() { HomeChoice::OnlyNode } else { HomeChoice::Unknown };
        return Some(Home { node: only, choice });
    }
    let wanted = profile.memory.bytes.value;
    let room = |node: &Option<u32>| {
        let cores = seats.cores.iter().filter(|core| core.node == *node);
        // Rule 1: isolated cores were isolated for threads like these, as far as there is use for them.
        let isolated = cores.clone().filter(|core| core.isolated).count().min(profile.vcpus.count as usize);
        let memory = node.and_then(|id| topology.nodes.get(&id)).and_then(|n| n.memory_bytes);
        (memory.is_none_or(|bytes| bytes >= wanted), isolated, cores.count())
    };
    // max_by_key keeps the last of equals; from the back that is the lowest node.
    let roomiest = nodes.iter().rev().max_by_key(|node| room(node))?;
    Some(Home { node: *roomiest, choice: HomeChoice::Roomiest })
}
