//! What is to be placed: how many threads of each kind, and on what terms.

use crate::profile::{EmulatorPin, IoThreadCount, Mapping, Profile, ThreadPins};

/// Rule 4: more IOThreads than this saturate no drive further.
pub(super) const ENOUGH_IOTHREADS: u32 = 8;

/// The threads that look for a place.
#[derive(Debug, Clone)]
pub(super) struct Demand {
    /// The vCPUs that the planner places, by number.
    pub(super) vcpus: Vec<u32>,
    /// How many vCPUs go on the siblings of one core: 1, but for `smt require`.
    pub(super) siblings: u32,
    /// vCPUs that float: they take no seat, and room is left for them.
    pub(super) floating_vcpus: u32,
    /// How many IOThreads the profile wants.
    pub(super) iothreads: IoThreadCount,
    /// The profile names IOThreads below this, so they must be there.
    pub(super) iothreads_named: u32,
    /// Whether IOThreads need seats of their own.
    pub(super) seat_iothreads: bool,
    /// IOThreads with a pin of their own.
    pub(super) pinned_iothreads: Vec<u32>,
    /// The virtqueues of the widest device, and its name.
    pub(super) widest: u32,
    pub(super) widest_name: Option<String>,
    /// Whether the planner places the emulator.
    pub(super) emulator: bool,
}

impl Demand {
    /// `siblings` vCPUs share a core; those in `paired` have their seats already.
    pub(super) fn of(profile: &Profile, siblings: u32, paired: &[u32]) -> Demand {
        let (count, pin) = (profile.vcpus.count, &profile.vcpus.pin);
        let mut pinned = explicit(pin);
        pinned.extend(paired);
        let floats = matches!(pin, ThreadPins::Float { .. });
        let named = profile.disks.iter().flat_map(|disk| match &disk.mapping {
            Mapping::RoundRobin | Mapping::Locality => Vec::new(),
            Mapping::Over(ids) => ids.clone(),
            Mapping::Exact(entries) => entries.iter().map(|(id, _)| *id).collect(),
        });
        let pinned_iothreads = explicit(&profile.iothreads.pin);
        // The first of several as wide as each other.
        let disks = profile.disks.iter().map(|disk| (disk.queues, format!("disk `{}`", disk.name.value)));
        let nets = profile.nets.iter().zip(0u32..).map(|(net, at)| (net.queues, format!("`net{at}`")));
        let widest = disks.chain(nets).reduce(|best, next| if next.0 > best.0 { next } else { best });
        Demand {
            vcpus: if floats { Vec::new() } else { (0..count).filter(|id| !pinned.contains(id)).collect() },
            siblings,
            floating_vcpus: if floats { count } else { 0 },
            iothreads: profile.iothreads.count.clone(),
            iothreads_named: named
                .chain(pinned_iothreads.iter().copied())
                .map(|id| id.saturating_add(1))
                .max()
                .unwrap_or(0),
            seat_iothreads: matches!(profile.iothreads.pin, ThreadPins::Auto | ThreadPins::Explicit(_)),
            pinned_iothreads,
            widest: widest.as_ref().map_or(1, |(queues, _)| *queues),
            widest_name: widest.map(|(_, name)| name),
            emulator: matches!(profile.emulator, EmulatorPin::Auto),
        }
    }

    /// How many cores the guest's vCPUs ask for, those that the planner places.
    pub(super) fn guest_cores(&self) -> u32 {
        u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX) / self.siblings.max(1)
    }

    /// The fewest IOThreads an `auto` count may fall to, the fewest without a warning, and the most it may come to.
    pub(super) fn bounds(&self) -> (u32, u32, u32) {
        match self.iothreads {
            IoThreadCount::Fixed(ref count) => (count.value, count.value, count.value),
            IoThreadCount::Auto { min, max } => {
                let least = self.iothreads_named.max(1);
                let floor = least.max(min);
                (least, floor, max.min(self.widest).min(ENOUGH_IOTHREADS).max(floor))
            }
        }
    }

    /// The most IOThreads that any host calls for.
    pub(super) fn most_iothreads(&self) -> u32 {
        self.bounds().2
    }

    /// Rule 4: the count where `quiet` CPUs at home lie on cores without vCPUs, and by how much it falls below what
    /// the profile asks at least. With `emulator` one of them is the emulator's, as long as there are enough.
    pub(super) fn iothread_count(&self, quiet: u32, emulator: bool) -> (u32, u32) {
        let (least, floor, most) = self.bounds();
        let pinned = u32::try_from(self.pinned_iothreads.len()).unwrap_or(u32::MAX);
        let room = quiet.saturating_sub(self.floating_vcpus).saturating_add(pinned);
        if !self.seat_iothreads {
            return (most.min(room).max(floor), 0);
        }
        let beside_emulator = room.saturating_sub(u32::from(emulator));
        let count = if beside_emulator >= floor {
            most.min(beside_emulator)
        } else if room >= floor {
            floor
        } else {
            room.max(least)
        };
        (count, floor.saturating_sub(count))
    }

    /// How many of `count` IOThreads need a seat.
    pub(super) fn seated_iothreads(&self, count: u32) -> u32 {
        if !self.seat_iothreads {
            return 0;
        }
        let pinned = self.pinned_iothreads.iter().filter(|id| **id < count).count();
        count.saturating_sub(u32::try_from(pinned).unwrap_or(u32::MAX))
    }
}

fn explicit(pins: &ThreadPins) -> Vec<u32> {
    match pins {
        ThreadPins::Explicit(pins) => pins.keys().copied().collect(),
        _ => Vec::new(),
    }
}
