//! `smt require`: the guest's threads in pairs on the siblings of whole cores, and the guest shown that topology; or a
//! refusal.

use crate::profile::{Profile, Smt, ThreadPins};

use super::board::{Board, Sitter};
use super::ladder::{Seat, Terms};
use super::seats::Seats;
use super::{Gathered, problem};

/// How the guest's threads go together.
pub(super) struct Pairing {
    /// vCPUs per core; 1 where nothing is required.
    pub(super) siblings: u32,
    /// vCPUs that complete the core of a pinned one.
    pub(super) completed: Vec<(u32, Seat)>,
}

/// Works out the groups. Whether there are cores enough for them is the ladder's to find.
pub(super) fn pairing(
    profile: &Profile,
    seats: &Seats,
    taken: &[(u32, Sitter)],
    gathered: &mut Gathered,
) -> Option<Pairing> {
    let none = Pairing { siblings: 1, completed: Vec::new() };
    if profile.host.smt != Smt::Require {
        return Some(none);
    }
    let count = profile.vcpus.count;
    let widest = seats.cores.iter().map(|core| core.cpus.len()).max().unwrap_or(0);
    let refuse = |gathered: &mut Gathered, message: String, help: &str| {
        gathered.refuse(problem("no_siblings", format!("`smt require`: {message}")).help(help));
        None
    };
    let all_pinned = matches!(&profile.vcpus.pin, ThreadPins::Explicit(pins) if pins.len() == count as usize);
    if widest < 2 && !all_pinned {
        return refuse(
            gathered,
            format!("no core has two usable CPUs: the usable CPUs are {}", seats.usable),
            "switch SMT on, widen `host { cpuset }`, or write `smt prefer`",
        );
    }
    if matches!(profile.vcpus.pin, ThreadPins::Float { .. }) {
        return refuse(
            gathered,
            "vCPUs that float are on no siblings for long".to_owned(),
            "write `vcpupin auto`, or `smt prefer`",
        );
    }
    // Pairs on every host: a guest whose shape depended on how many siblings the host has would not be the same guest.
    let siblings = 2;
    if !count.is_multiple_of(siblings) {
        return refuse(
            gathered,
            format!("{count} vCPUs do not go in pairs"),
            "write an even number of vCPUs, or `smt prefer`",
        );
    }
    let ThreadPins::Explicit(pins) = &profile.vcpus.pin else {
        return Some(Pairing { siblings, ..none });
    };
    let mut board = Board::new(seats, taken);
    let mut completed = Vec::new();
    for first in (0..count).step_by(2) {
        let group = first..first + siblings;
        let pinned: Vec<_> = group.clone().filter_map(|id| pins.get(&id)).collect();
        let cpus: Vec<u32> = pinned.iter().flat_map(|pin| pin.value.iter()).collect();
        let Some(core) = cpus.first().and_then(|cpu| seats.core_of(*cpu)) else { continue };
        let last = first + siblings - 1;
        let apart = cpus.iter().any(|cpu| seats.core_of(*cpu) != Some(core));
        if apart && pinned.len() == siblings as usize {
            // Explicit pins are kept as written: an imported domain may show its guest what it does not have.
            gathered.warn(
                "pins_part_siblings",
                format!("the guest is shown vcpu {first}-{last} as siblings, and the profile pins them to several cores"),
                "the guest's scheduler decides on what is not so; pin them to one core, or write `smt prefer`",
            );
            continue;
        }
        if apart {
            gathered.refuse(
                problem(
                    "no_siblings",
                    format!("`smt require`: vcpu {first}-{last} are pinned to several cores"),
                )
                .at(pinned.last()?.span, "pinned here")
                .help("pin them to the siblings of one core, or leave the pins out"),
            );
            continue;
        }
        for id in group.filter(|id| !pins.contains_key(id)) {
            let Some(cpu) = board.free_cpus(core).next() else {
                gathered.refuse(
                    problem(
                        "no_siblings",
                        format!("`smt require`: no sibling is left for vcpu {id} beside its pair"),
                    )
                    .at(pinned.last()?.span, "pinned here")
                    .help("pin both to the siblings of one core, or leave the pins out"),
                );
                break;
            };
            board.sit(cpu, Sitter::Vcpu(id));
            completed.push((id, Seat { cpu, terms: Terms::PairedCore }));
        }
    }
    Some(Pairing { siblings, completed })
}
