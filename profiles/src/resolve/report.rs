//! The remarks of a layout: one warning for each step of the ladder that was taken, with what it costs, and notes on
//! pins that the profile itself lays on one CPU.

use std::collections::BTreeMap;

use crate::ledger::Ledger;
use crate::profile::Profile;
use crate::reason::{Home, Reason};
use crate::topology::CpuSet;

use super::Gathered;
use super::ladder::{Layout, Seat, Terms};
use super::shape::Depths;
use super::threads::Place;

const LESS: &str = "widen `host { cpuset }`, or ask for less";

/// One warning for each step that was taken.
pub(super) fn steps(
    layout: &Layout<'_>,
    profile: &Profile,
    home: &Home,
    usable: &CpuSet,
    ledger: &Ledger,
    gathered: &mut Gathered,
) {
    let home = home.short();
    emulator(layout, &home, gathered);
    iothreads(layout, &home, gathered);
    vcpus(layout, profile, &home, (usable, ledger), gathered);
}

/// The least that measurements have seen a dense host gain from IOThreads, and the most.
pub(super) const DENSE_GAIN: &str = "eight VMs on one host were measured to gain between -1.2 % and +3.1 % from IOThreads, one VM alone 12 % and more";

/// `iothread 0`, or `iothreads 0-1`.
fn several(kind: &str, ids: &CpuSet) -> String {
    format!("{kind}{} {ids}", if ids.len() == 1 { "" } else { "s" })
}

/// `iothread 0 runs`, or `iothreads 0-1 run`.
fn runs(kind: &str, ids: &CpuSet) -> String {
    format!("{} {}", several(kind, ids), if ids.len() == 1 { "runs" } else { "run" })
}

/// The threads on certain terms, and their CPUs.
fn on(seats: &[(u32, Seat)], terms: impl Fn(&Terms) -> bool) -> Option<(CpuSet, CpuSet)> {
    let these: Vec<_> = seats.iter().filter(|(_, seat)| terms(&seat.terms)).collect();
    let ids: CpuSet = these.iter().map(|(id, _)| *id).collect();
    (!ids.is_empty()).then(|| (ids, these.iter().map(|(_, seat)| seat.cpu).collect()))
}

fn emulator(layout: &Layout<'_>, home: &str, gathered: &mut Gathered) {
    let Some(seat) = layout.emulator else { return };
    let cpu = seat.cpu;
    match seat.terms {
        Terms::NextNode => gathered.step(
            "a",
            1,
            "emulator_on_other_node",
            format!("the emulator thread runs on another node: {home} has no core left for it"),
            format!("device emulation crosses nodes, which is rarely felt; {LESS}"),
        ),
        Terms::SharesIoThread(id) => gathered.step(
            "b",
            1,
            "emulator_shares_iothread",
            format!("the emulator thread shares the CPU of iothread {id}: no other is left for it"),
            format!("what the emulator does delays that IOThread a little; {LESS}"),
        ),
        Terms::BesideVcpu(_) | Terms::SharesVcpu(_) | Terms::SharesCpu => gathered.step(
            "b",
            1,
            "emulator_shares_core",
            format!(
                "the emulator thread shares the core of CPU {cpu} with other threads: no other is left for it"
            ),
            format!("what the emulator does takes time from them; {LESS}"),
        ),
        Terms::OwnCore
        | Terms::PairedCore
        | Terms::QuietSibling
        | Terms::VcpuSibling
        | Terms::BesideIoThread => {}
    }
}

fn iothreads(layout: &Layout<'_>, home: &str, gathered: &mut Gathered) {
    let Depths { iothreads_fewer, iothreads_away, iothreads_beside, iothreads_share, .. } = layout.depths;
    if let Some(min) = layout.fell_below {
        gathered.step(
            "c",
            iothreads_fewer,
            "fewer_iothreads",
            match layout.iothread_count {
                1 => format!("1 IOThread instead of at least {min}: no more CPUs are left"),
                count => format!("{count} IOThreads instead of at least {min}: no more CPUs are left"),
            },
            format!("each serves more virtqueues; {LESS}"),
        );
    }
    if let Some((ids, cpus)) = on(&layout.iothreads, |t| *t == Terms::NextNode) {
        gathered.step(
            "d",
            iothreads_away,
            "iothread_on_other_node",
            format!("{} on another node (CPU {cpus}): {home} has no free core left", runs("iothread", &ids)),
            format!("its requests and completions cross nodes; {LESS}"),
        );
    }
    if let Some((ids, cpus)) =
        on(&layout.iothreads, |t| matches!(t, Terms::BesideVcpu(_) | Terms::BesideIoThread))
    {
        gathered.step(
            "f",
            iothreads_beside.saturating_sub(beside_pinned(layout)),
            "iothread_beside_vcpu",
            format!("{} on the sibling of a vCPU (CPU {cpus}): no free core is left", runs("iothread", &ids)),
            format!("both share one core's speed; {LESS}"),
        );
    }
    if let Some((ids, cpus)) = on(&layout.iothreads, |t| matches!(t, Terms::SharesVcpu(_) | Terms::SharesCpu))
    {
        gathered.step(
            "f",
            iothreads_share,
            "iothread_shares_vcpu",
            format!(
                "no CPU is left for {} alone: CPU {cpus} is shared with other threads",
                several("iothread", &ids)
            ),
            format!("I/O waits while the others run, and the other way round; {LESS}"),
        );
    }
}

fn ids_count(ids: &CpuSet) -> u32 {
    u32::try_from(ids.len()).unwrap_or(u32::MAX)
}

/// vCPUs beside threads that the profile pins.
fn beside_pinned(layout: &Layout<'_>) -> u32 {
    let beside = layout.vcpus.iter().filter(|(_, seat)| seat.terms == Terms::BesideIoThread);
    u32::try_from(beside.count()).unwrap_or(u32::MAX)
}

fn vcpus(
    layout: &Layout<'_>,
    profile: &Profile,
    home: &str,
    (usable, ledger): (&CpuSet, &Ledger),
    gathered: &mut Gathered,
) {
    if let Some((ids, cpus)) = on(&layout.vcpus, |t| *t == Terms::VcpuSibling) {
        gathered.step(
            "e",
            ids_count(&ids),
            "vcpus_on_siblings",
            format!(
                "{} on the sibling of another vCPU (CPU {cpus}): whole cores ran out",
                runs("vcpu", &ids)
            ),
            format!("two vCPUs share one core's speed; {LESS}"),
        );
    }
    if let Some((ids, cpus)) = on(&layout.vcpus, |t| *t == Terms::NextNode) {
        gathered.step(
            "e",
            ids_count(&ids),
            "vcpus_on_other_node",
            format!("{} on another node (CPU {cpus}): {home} has no core left", runs("vcpu", &ids)),
            format!("the guest's memory is remote to it; {LESS}"),
        );
    }
    if let Some((ids, cpus)) = on(&layout.vcpus, |t| *t == Terms::BesideIoThread) {
        gathered.step(
            "f",
            beside_pinned(layout),
            "vcpu_beside_iothread",
            format!(
                "{} on the sibling of a thread that the profile pins (CPU {cpus}): no core is left",
                runs("vcpu", &ids)
            ),
            format!("both share one core's speed; {LESS}"),
        );
    }
    if let Some((ids, cpus)) = on(&layout.vcpus, |t| *t == Terms::SharesCpu) {
        let (count, room) = (profile.vcpus.count, usable.len());
        let noun = if room == 1 { "usable CPU" } else { "usable CPUs" };
        let others = ledger.cpus();
        let held = match others.is_empty() {
            true => String::new(),
            false => format!("; held by `{}`: {others}", ledger.holders(&others).join("`, `")),
        };
        gathered.step(
            "g",
            layout.depths.vcpus_share,
            "dense_host",
            format!(
                "{count} vCPUs on {room} {noun} ({usable}{held}): {} on CPU {cpus}",
                if ids.len() == 1 {
                    format!("vcpu {ids} takes turns")
                } else {
                    format!("vcpus {ids} take turns")
                }
            ),
            format!("measure nothing here that shall hold elsewhere: {DENSE_GAIN}"),
        );
    }
}

/// Pins that the profile itself lays on one CPU: its choice, said aloud.
pub(super) fn overlaps(vcpus: &[Place], iothreads: &[Place], emulator: &Place, gathered: &mut Gathered) {
    let named = (0u32..).zip(vcpus).map(|(id, place)| (format!("vcpu {id}"), place));
    let named = named.chain((0u32..).zip(iothreads).map(|(id, place)| (format!("iothread {id}"), place)));
    let named = named.chain([("the emulator".to_owned(), emulator)]);
    // On each CPU: those whom the profile pins there, and those who have no other.
    let mut on: BTreeMap<u32, (Vec<String>, Vec<String>)> = BTreeMap::new();
    for (name, (cpus, reason)) in named.filter(|(_, (_, reason))| !matches!(reason, Reason::Floats { .. })) {
        let said = matches!(reason, Reason::ProfileSaid { .. } | Reason::WithEmulator { .. });
        for cpu in cpus.iter() {
            let (pinned, placed) = on.entry(cpu).or_default();
            if said { pinned } else { placed }.push(name.clone());
        }
    }
    let mut groups: BTreeMap<(Vec<String>, Vec<String>), CpuSet> = BTreeMap::new();
    for (cpu, (pinned, placed)) in on {
        if !pinned.is_empty() && pinned.len() + placed.len() > 1 {
            groups.entry((pinned, placed)).or_default().insert(cpu);
        }
    }
    for ((pinned, placed), cpus) in groups {
        let beside = match placed.is_empty() {
            true => String::new(),
            false => format!(", where {} found no other place", placed.join(", ")),
        };
        gathered.note(
            "pins_share_cpu",
            format!("the profile pins {} to CPU {cpus}{beside}", pinned.join(", ")),
            "leave a pin out and vmprof finds another place",
        );
    }
}
