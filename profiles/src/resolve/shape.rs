//! How far down the ladder a VM has to go on this host, worked out by counting before anyone is seated.
//!
//! Whole cores are either left to vCPUs or kept quiet for IOThreads and the emulator. All that matters of the kept ones
//! is how many threads they seat at home and elsewhere, and that as few cores as possible seat so many. So every pair of
//! these two numbers is tried, and the cheapest by [`Depths`] is the shape of the layout. That makes the ladder exact: a
//! layout that is possible on a host stays possible, at the same price, when a CPU is added to it.

use super::board::Board;
use super::demand::Demand;

/// The steps of the ladder, the cheapest first, and how each is written in a plan.
pub(super) const STEPS: [&str; 9] = ["a", "b", "c", "d", "e", "e", "f", "f", "g"];

/// How many threads stand on each step, the dearest step first, so that comparing two compares the deepest step before
/// any other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Depths {
    /// (g) vCPUs without a CPU of their own.
    pub(super) vcpus_share: u32,
    /// (f) IOThreads on the CPUs of other threads.
    pub(super) iothreads_share: u32,
    /// (f) IOThreads on the siblings of vCPUs, and vCPUs on those of pinned IOThreads.
    pub(super) iothreads_beside: u32,
    /// (e) vCPUs on other nodes.
    pub(super) vcpus_away: u32,
    /// (e) vCPUs on siblings.
    pub(super) vcpus_on_siblings: u32,
    /// (d) IOThreads on other nodes.
    pub(super) iothreads_away: u32,
    /// (c) IOThreads fewer than `min`.
    pub(super) iothreads_fewer: u32,
    /// (b) The emulator on another thread's CPU.
    pub(super) emulator_shares: u32,
    /// (a) The emulator on another node.
    pub(super) emulator_away: u32,
}

impl Depths {
    /// In the order of [`STEPS`].
    pub(super) fn cheapest_first(&self) -> [u32; 9] {
        [
            self.emulator_away,
            self.emulator_shares,
            self.iothreads_fewer,
            self.iothreads_away,
            self.vcpus_on_siblings,
            self.vcpus_away,
            self.iothreads_beside,
            self.iothreads_share,
            self.vcpus_share,
        ]
    }
}

/// A core with more CPUs than this is nobody's; such a one is not kept as a whole.
const MOST_SIBLINGS: usize = 16;

/// The free room at home, or everywhere else.
#[derive(Debug, Clone, Default)]
struct Room {
    /// Empty cores that can take vCPUs, by how many CPUs they have.
    sizes: [u32; MOST_SIBLINGS + 1],
    cores: u32,
    threads: u32,
    /// Free CPUs on cores that vCPUs cannot take and on which no vCPU sits.
    quiet: u32,
    /// Free CPUs beside pinned vCPUs.
    beside: u32,
    /// By number of threads kept quiet: the fewest cores that have just so many, and how many of them of each size.
    keeps: Vec<Option<Keep>>,
}

/// Empty cores kept free of vCPUs, by size.
pub(super) type Sizes = [u32; MOST_SIBLINGS + 1];

#[derive(Debug, Clone)]
struct Keep {
    cores: u32,
    sizes: Sizes,
}

impl Room {
    fn add(&mut self, board: &Board<'_>, node: Option<u32>, siblings: usize) {
        for at in board.seats.on_node(node) {
            let free = board.free_cpus(*at).count();
            let count = u32::try_from(free).unwrap_or(u32::MAX);
            match (board.empty(*at), board.quiet(*at)) {
                (true, _) if free >= siblings => {
                    self.cores += 1;
                    self.threads += count;
                    if let Some(cores) = self.sizes.get_mut(free) {
                        *cores += 1;
                    }
                }
                (_, true) => self.quiet += count,
                (_, false) => self.beside += count,
            }
        }
    }

    /// Works out the ways to keep up to `most` threads quiet, and a core more.
    fn plan_keeps(&mut self, most: usize) {
        let length = most + MOST_SIBLINGS;
        let mut keeps: Vec<Option<Keep>> = vec![None; length];
        keeps[0] = Some(Keep { cores: 0, sizes: [0; MOST_SIBLINGS + 1] });
        for size in 1..=MOST_SIBLINGS {
            let there = self.sizes[size];
            if there == 0 {
                continue;
            }
            let before = keeps.clone();
            for threads in size..length {
                for (taken, of_size) in (1..=there).zip((size..=threads).step_by(size)) {
                    let Some(rest) = &before[threads - of_size] else { continue };
                    let cores = rest.cores + taken;
                    if keeps[threads].as_ref().is_none_or(|best| cores < best.cores) {
                        let mut sizes = rest.sizes;
                        sizes[size] = taken;
                        keeps[threads] = Some(Keep { cores, sizes });
                    }
                }
            }
        }
        self.keeps = keeps;
    }

    /// Nobody looks for a core: all are for the others.
    fn leave_all_quiet(&mut self) {
        *self = Room { quiet: self.quiet + self.threads, beside: self.beside, ..Room::default() };
    }

    fn free(&self) -> u32 {
        self.threads + self.quiet + self.beside
    }
}

/// What the vCPUs take, and what is kept for the others.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) depths: Depths,
    /// At home, and elsewhere.
    pub(super) parts: [Part; 2],
    /// vCPUs beside pinned IOThreads or the pinned emulator, whose cores are no longer quiet then.
    pub(super) beside_iothreads: u32,
}

/// One part of the host.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    /// vCPUs (guest cores, under `require`) on empty cores.
    pub(super) on_cores: u32,
    /// The most cores they may take.
    pub(super) cores: u32,
    /// vCPUs on the siblings of pinned ones.
    pub(super) beside_pinned: u32,
    /// Cores that are kept where the order of preference would take them.
    pub(super) kept: Sizes,
}

/// The cheapest shape for a home; `None` where no seat is left for every vCPU, or where `require` finds too few cores.
pub(super) fn best(board: &Board<'_>, nodes: &[Option<u32>], demand: &Demand) -> Option<Shape> {
    let mut rooms = [Room::default(), Room::default()];
    for (at, node) in nodes.iter().enumerate() {
        rooms[at.min(1)].add(board, *node, demand.siblings as usize);
    }
    let most = demand.most_iothreads() + u32::from(demand.emulator);
    for room in &mut rooms {
        if demand.guest_cores() == 0 {
            room.leave_all_quiet();
        }
        room.plan_keeps(most as usize);
    }
    let [home, away] = &rooms;
    let mut best: Option<Shape> = None;
    for (elsewhere, keep_away) in (0u32..).zip(&away.keeps) {
        let Some(keep_away) = keep_away else { continue };
        for (at_home, keep_home) in (0u32..).zip(&home.keeps) {
            let Some(keep_home) = keep_home else { continue };
            let Some(shape) = shape(&rooms, [(at_home, keep_home), (elsewhere, keep_away)], demand) else {
                continue;
            };
            if best.as_ref().is_none_or(|best| shape.depths < best.depths) {
                best = Some(shape);
            }
            if best.as_ref().is_some_and(|best| best.depths == Depths::default()) {
                return best;
            }
        }
    }
    best
}

fn shape(rooms: &[Room; 2], kept: [(u32, &Keep); 2], demand: &Demand) -> Option<Shape> {
    let require = demand.siblings > 1;
    let mut depths = Depths::default();
    let mut parts = [Part::default(), Part::default()];
    let mut left = demand.guest_cores();
    for ((room, (threads, keep)), part) in rooms.iter().zip(kept).zip(&mut parts) {
        part.cores = room.cores.checked_sub(keep.cores)?;
        let capacity = if require { part.cores } else { room.threads.checked_sub(threads)? };
        part.on_cores = left.min(capacity);
        part.kept = keep.sizes;
        left -= part.on_cores;
        if !require {
            part.beside_pinned = left.min(room.beside);
            left -= part.beside_pinned;
        }
    }
    let [home, away] = &parts;
    depths.vcpus_away = (away.on_cores + away.beside_pinned) * demand.siblings;
    if !require {
        depths.vcpus_on_siblings = home.on_cores.saturating_sub(home.cores) + home.beside_pinned;
    }
    // Only where not a CPU more is left do vCPUs go beside threads that the profile pins. From then on none of those
    // cores counts as quiet.
    let pinned = rooms[0].quiet + rooms[1].quiet;
    let beside_iothreads = if require { 0 } else { left.min(pinned) };
    if left > beside_iothreads {
        return None;
    }
    depths.iothreads_beside += beside_iothreads;
    let quiet = |at: usize| if beside_iothreads == 0 { rooms[at].quiet + kept[at].0 } else { kept[at].0 };
    let (quiet_home, quiet_away) = (quiet(0), quiet(1));
    let (count, fewer) = demand.iothread_count(quiet_home, demand.emulator);
    depths.iothreads_fewer = fewer;
    let wanted = demand.seated_iothreads(count);
    let at_home = wanted.min(quiet_home);
    depths.iothreads_away = (wanted - at_home).min(quiet_away);
    let crowded = wanted - at_home - depths.iothreads_away;
    let vcpus = demand.guest_cores() * demand.siblings;
    let taken = vcpus + at_home + depths.iothreads_away;
    let free: u32 = rooms.iter().map(Room::free).sum::<u32>().saturating_sub(taken);
    let beside = crowded.min(free);
    depths.iothreads_beside += beside;
    depths.iothreads_share = crowded - beside;
    if demand.emulator && quiet_home <= at_home {
        match quiet_away > depths.iothreads_away {
            true => depths.emulator_away = 1,
            false => depths.emulator_shares = 1,
        }
    }
    Some(Shape { depths, parts, beside_iothreads })
}
