//! The remarks of a layout: one warning for each step of the ladder that was taken, with what it costs, and notes on
//! pins that the profile itself lays on one CPU.

use std::collections::BTreeMap;

use crate::profile::Profile;
use crate::reason::{Home, Reason};
use crate::topology::CpuSet;

use super::Gathered;
use super::ladder::{Layout, Seat, Terms};
use super::threads::Place;

const LESS: &str = "widen `host { cpuset }`, or ask for less";

/// One warning for each step that was taken.
pub(super) fn steps(
    layout: &Layout,
    profile: &Profile,
    home: &Home,
    usable: &CpuSet,
    gathered: &mut Gathered,
) {
    let home = home.short();
    emulator(layout, &home, gathered);
    iothreads(layout, &home, gathered);
    vcpus(layout, profile, &home, usable, gathered);
}

/// The threads on certain terms, and their CPUs.
fn on(seats: &[(u32, Seat)], terms: impl Fn(&Terms) -> bool) -> Option<(CpuSet, CpuSet)> {
    let these: Vec<_> = seats.iter().filter(|(_, seat)| terms(&seat.terms)).collect();
    let ids: CpuSet = these.iter().map(|(id, _)| *id).collect();
    (!ids.is_empty()).then(|| (ids, these.iter().map(|(_, seat)| seat.cpu).collect()))
}

fn emulator(layout: &Layout, home: &str, gathered: &mut Gathered) {
    let Some(seat) = layout.emulator else { return };
    let cpu = seat.cpu;
    match seat.terms {
        Terms::NextNode => gathered.step(
            "emulator_on_other_node",
            format!("the emulator thread runs on another node: {home} has no core left for it"),
            format!("device emulation crosses nodes, which is rarely felt; {LESS}"),
        ),
        Terms::SharesIoThread(id) => gathered.step(
            "emulator_shares_iothread",
            format!("the emulator thread shares the CPU of iothread {id}: no other is left for it"),
            format!("what the emulator does delays that IOThread a little; {LESS}"),
        ),
        Terms::BesideVcpu(_) | Terms::SharesVcpu(_) | Terms::SharesCpu => gathered.step(
            "emulator_shares_core",
            format!(
                "the emulator thread shares the core of CPU {cpu} with other threads: no other is left for it"
            ),
            format!("what the emulator does takes time from them; {LESS}"),
        ),
        Terms::OwnCore | Terms::QuietSibling | Terms::VcpuSibling => {}
    }
}

fn iothreads(layout: &Layout, home: &str, gathered: &mut Gathered) {
    if let Some(min) = layout.fell_below {
        gathered.step(
            "fewer_iothreads",
            format!("{} IOThreads instead of at least {min}: no more CPUs are left", layout.iothread_count),
            format!("each serves more virtqueues; {LESS}"),
        );
    }
    if let Some((ids, cpus)) = on(&layout.iothreads, |t| *t == Terms::NextNode) {
        gathered.step(
            "iothread_on_other_node",
            format!("iothread {ids} runs on another node (CPU {cpus}): {home} has no free core left"),
            format!("its requests and completions cross nodes; {LESS}"),
        );
    }
    if let Some((ids, cpus)) = on(&layout.iothreads, |t| matches!(t, Terms::BesideVcpu(_))) {
        gathered.step(
            "iothread_beside_vcpu",
            format!("iothread {ids} runs on the sibling of a vCPU (CPU {cpus}): no free core is left"),
            format!("both share one core's speed; {LESS}"),
        );
    }
    if let Some((ids, cpus)) = on(&layout.iothreads, |t| matches!(t, Terms::SharesVcpu(_) | Terms::SharesCpu))
    {
        gathered.step(
            "iothread_shares_vcpu",
            format!("no CPU is left for iothread {ids} alone: CPU {cpus} is shared with other threads"),
            format!("I/O waits while the others run, and the other way round; {LESS}"),
        );
    }
}

fn vcpus(layout: &Layout, profile: &Profile, home: &str, usable: &CpuSet, gathered: &mut Gathered) {
    if let Some((ids, cpus)) = on(&layout.vcpus, |t| *t == Terms::VcpuSibling) {
        gathered.step(
            "vcpus_on_siblings",
            format!("vcpu {ids} runs on the sibling of another vCPU (CPU {cpus}): whole cores ran out"),
            format!("two vCPUs share one core's speed; {LESS}"),
        );
    }
    if let Some((ids, cpus)) = on(&layout.vcpus, |t| *t == Terms::NextNode) {
        gathered.step(
            "vcpus_on_other_node",
            format!("vcpu {ids} runs on another node (CPU {cpus}): {home} is full"),
            format!("the guest's memory is remote to it; {LESS}"),
        );
    }
    if let Some((ids, cpus)) = on(&layout.vcpus, |t| *t == Terms::SharesCpu) {
        let (count, room) = (profile.vcpus.count, usable.len());
        let noun = if room == 1 { "usable CPU" } else { "usable CPUs" };
        gathered.step(
            "dense_host",
            format!("{count} vCPUs on {room} {noun} ({usable}): vcpu {ids} take turns on CPU {cpus}"),
            "measure nothing here that shall hold elsewhere: IOThreads gain little on a host this dense",
        );
    }
}

/// Pins that the profile itself lays on one CPU: its choice, said aloud.
pub(super) fn overlaps(vcpus: &[Place], iothreads: &[Place], emulator: &Place, gathered: &mut Gathered) {
    let named = (0u32..).zip(vcpus).map(|(id, place)| (format!("vcpu {id}"), place));
    let named = named.chain((0u32..).zip(iothreads).map(|(id, place)| (format!("iothread {id}"), place)));
    let named = named.chain([("the emulator".to_owned(), emulator)]);
    let mut on: BTreeMap<u32, (Vec<String>, bool)> = BTreeMap::new();
    for (name, (cpus, reason)) in named.filter(|(_, (_, reason))| !matches!(reason, Reason::Floats { .. })) {
        let said = matches!(reason, Reason::ProfileSaid { .. } | Reason::WithEmulator { .. });
        for cpu in cpus.iter() {
            let (names, written) = on.entry(cpu).or_default();
            names.push(name.clone());
            *written |= said;
        }
    }
    let mut groups: BTreeMap<Vec<String>, CpuSet> = BTreeMap::new();
    for (cpu, (names, written)) in on {
        if written && names.len() > 1 {
            groups.entry(names).or_default().insert(cpu);
        }
    }
    for (names, cpus) in groups {
        gathered.note(
            "pins_share_cpu",
            format!("the profile's pins put {} on CPU {cpus}", names.join(", ")),
            "leave a pin out and vmprof finds another place",
        );
    }
}
