//! Rule 2: the node a VM lives on.

use std::cmp::Reverse;

use crate::profile::{Profile, ThreadPins};
use crate::reason::rejected::{Against, Instead, Rejection};
use crate::reason::{Home, HomeChoice};
use crate::storage::Storage;
use crate::topology::Topology;

use super::board::Board;
use super::demand::Demand;
use super::shape::{Depths, STEPS};
use super::{Gathered, ladder, memory, problem};

/// The home, and what it was chosen against.
pub(super) struct Chosen {
    pub(super) home: Home,
    /// All nodes with usable CPUs, home at the head, the others by their distance from it.
    pub(super) nodes: Vec<Option<u32>>,
    pub(super) rejected: Option<Rejection>,
}

struct Search<'a> {
    profile: &'a Profile,
    topology: &'a Topology,
    board: &'a Board<'a>,
    demand: &'a Demand,
}

/// The hottest disk: the one with the most queues, the first of several; readonly ones count like any other.
pub(super) struct Hottest {
    pub(super) disk: String,
    pub(super) device: String,
    pub(super) node: u32,
}

pub(super) fn hottest(profile: &Profile, topology: &Topology, storage: &Storage) -> Option<Hottest> {
    let known = profile.disks.iter().filter_map(|disk| {
        let place = storage.disks.get(&disk.name.value)?;
        // A node that the host does not list is unknown, whatever the device says.
        Some((disk, place, place.node.filter(|id| topology.nodes.contains_key(id))?))
    });
    let hottest = known.reduce(|best, next| if next.0.queues > best.0.queues { next } else { best });
    let (disk, place, node) = hottest?;
    Some(Hottest { disk: disk.name.value.clone(), device: place.device.clone(), node })
}

/// What the profile says; the node of the hottest disk's controller; where the profile pins the vCPUs; else the roomiest.
pub(super) fn home(
    profile: &Profile,
    topology: &Topology,
    storage: &Storage,
    board: &Board<'_>,
    demand: &Demand,
    gathered: &mut Gathered,
) -> Option<Chosen> {
    let search = Search { profile, topology, board, demand };
    let nodes: Vec<Option<u32>> = board.seats.nodes().collect();
    if let Some(wish) = &profile.host.node {
        if nodes.contains(&Some(wish.value)) {
            let home =
                Home { node: Some(wish.value), choice: HomeChoice::Profile { line: wish.line.clone() } };
            let hottest = hottest(profile, topology, storage).map(|hottest| hottest.node);
            let other = hottest.filter(|node| *node != wish.value && nodes.contains(&Some(*node)));
            let nearest = || board.seats.nodes_from(topology, home.node).into_iter().flatten().nth(1);
            let rejected = other.or_else(nearest).map(|node| Rejection {
                instead: Instead::Node(node),
                against: Against::ProfileSaid { line: wish.line.clone() },
            });
            return Some(search.chosen(home, rejected));
        }
        refuse_node(&nodes, topology, wish, gathered);
        return None;
    }
    if let Some(hottest) = hottest(profile, topology, storage) {
        return search.near(hottest, &nodes, gathered);
    }
    if let [only] = nodes[..] {
        let choice = if only.is_some() { HomeChoice::OnlyNode } else { HomeChoice::Unknown };
        return Some(search.chosen(Home { node: only, choice }, None));
    }
    if let Some(node) = search.pinned_node() {
        let home = Home { node: Some(node), choice: HomeChoice::Pins };
        let other = board.seats.nodes_from(topology, home.node).into_iter().flatten().nth(1);
        let against = Against::PinnedElsewhere { home: node };
        let rejected = other.map(|other| Rejection { instead: Instead::Node(other), against });
        return Some(search.chosen(home, rejected));
    }
    search.roomiest(&nodes)
}

fn refuse_node(
    nodes: &[Option<u32>],
    topology: &Topology,
    wish: &crate::profile::Written<u32>,
    gathered: &mut Gathered,
) {
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
}

/// What one node would mean, the better the less.
type Merit = (bool, Depths, Reverse<usize>, Reverse<usize>, Option<u32>);

impl Search<'_> {
    fn chosen(&self, home: Home, rejected: Option<Rejection>) -> Chosen {
        Chosen { nodes: self.board.seats.nodes_from(self.topology, home.node), home, rejected }
    }

    /// The disk's own node, or the nearest with usable CPUs; of several as near the one that costs least.
    fn near(&self, hottest: Hottest, nodes: &[Option<u32>], gathered: &mut Gathered) -> Option<Chosen> {
        let Hottest { disk, device, node } = hottest;
        let distance = |to: Option<u32>| self.topology.distance(Some(node), to);
        let far = |other: u32, home: u32| Rejection {
            instead: Instead::Node(other),
            against: Against::FarFromDisk {
                node: other,
                far: distance(Some(other)),
                disk: disk.clone(),
                home,
                near: distance(Some(home)),
            },
        };
        if nodes.contains(&Some(node)) {
            let other = self.board.seats.nodes_from(self.topology, Some(node)).into_iter().flatten().nth(1);
            let rejected = other.map(|other| far(other, node));
            let choice = HomeChoice::Disk { disk, device };
            return Some(self.chosen(Home { node: Some(node), choice }, rejected));
        }
        let nearest = nodes.iter().map(|node| distance(*node)).min()?;
        let mut near: Vec<Option<u32>> =
            nodes.iter().copied().filter(|node| distance(*node) == nearest).collect();
        if near.len() > 1 {
            near.sort_by_cached_key(|node| self.merit(*node));
        }
        let home = *near.first()?;
        gathered.step(
            "home",
            nearest,
            "disk_node_without_cpus",
            format!("disk `{disk}` lies on node {node}, which has no usable CPU"),
            "every request crosses nodes; give vmprof CPUs there, or move the disk",
        );
        let mut rest: Vec<u32> = nodes.iter().flatten().copied().filter(|n| Some(*n) != home).collect();
        rest.sort_by_key(|node| (distance(Some(*node)), *node));
        let rejected = rest.first().zip(home).map(|(other, home)| match distance(Some(*other)) == nearest {
            true => Rejection { instead: Instead::Node(*other), against: Against::NoRoomier { home } },
            false => far(*other, home),
        });
        Some(self.chosen(Home { node: home, choice: HomeChoice::NearDisk { disk, node } }, rejected))
    }

    /// The node on which all pinned vCPUs are, where the profile pins every one.
    fn pinned_node(&self) -> Option<u32> {
        let ThreadPins::Explicit(pins) = &self.profile.vcpus.pin else { return None };
        let all = pins.len() == self.profile.vcpus.count as usize;
        let mut nodes = pins.values().map(|pin| self.topology.one_node_of(&pin.value));
        let first = nodes.next().filter(|_| all)??;
        nodes
            .all(|node| node == Some(first))
            .then_some(first)
            .filter(|node| !self.board.seats.on_node(Some(*node)).is_empty())
    }

    fn merit(&self, node: Option<u32>) -> Option<Merit> {
        let nodes = self.board.seats.nodes_from(self.topology, node);
        let depths = ladder::depths(self.board, &nodes, self.demand)?;
        let cores = self.board.seats.on_node(node);
        // Rule 1: isolated cores were isolated for threads like these, as far as there is use for them.
        let isolated = cores.iter().filter(|at| self.board.seats.cores[**at].isolated).count();
        let isolated = isolated.min(self.profile.vcpus.count as usize);
        let memory = node.is_some_and(|id| memory::beyond(self.profile, self.topology, id).is_some());
        Some((memory, depths, Reverse(isolated), Reverse(cores.len()), node))
    }

    fn memory(&self, node: Option<u32>) -> Option<u64> {
        self.topology.nodes.get(&node?)?.memory_bytes
    }

    /// Memory enough, then the least steps down the ladder, then isolated cores, then the most cores.
    fn roomiest(&self, nodes: &[Option<u32>]) -> Option<Chosen> {
        let mut merits: Vec<Merit> = nodes.iter().filter_map(|node| self.merit(*node)).collect();
        merits.sort();
        // Where `require` finds too few cores from everywhere, the refusal comes with the layout.
        let Some(best) = merits.first().copied() else {
            return Some(self.chosen(Home { node: *nodes.first()?, choice: HomeChoice::Roomiest }, None));
        };
        let rejected = merits.get(1).and_then(|next| self.against(&best, next));
        Some(self.chosen(Home { node: best.4, choice: HomeChoice::Roomiest }, rejected))
    }

    fn against(&self, best: &Merit, next: &Merit) -> Option<Rejection> {
        let (home, other) = (best.4?, next.4?);
        let against = if best.0 != next.0 {
            Against::TooLittleMemory {
                has: self.memory(next.4).unwrap_or_default(),
                wanted: self.profile.memory.bytes.value,
            }
        } else if best.1 != next.1 {
            let steps = STEPS.iter().zip(next.1.cheapest_first()).zip(best.1.cheapest_first());
            let ((step, threads), _) = steps.rev().find(|((_, next), best)| next != best)?;
            Against::Deeper { step, threads }
        } else if best.2 != next.2 {
            Against::FewerIsolated { has: next.2.0, home, there: best.2.0 }
        } else if best.3 != next.3 {
            Against::FewerCores { has: next.3.0, home, there: best.3.0 }
        } else {
            Against::NoRoomier { home }
        };
        Some(Rejection { instead: Instead::Node(other), against })
    }
}
