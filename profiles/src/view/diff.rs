//! What differs between two plans: every thread, IOThread count, mapping, memory and remark, by what it is, from one to the
//! other. The reasons shown are those of the second plan; a reason that alone differs is no difference.
//!
//! The JSON is a contract (`vmprof.diff/1`): fields may be added, the named ones stay.

mod text;

use std::collections::BTreeMap;

use serde::Serialize;
use vmprof_document::format_size;

use crate::plan::{Diagnostic, DiskPlan, IoThreadPlan, NetPlan, Plan, SqPollPlan};
use crate::topology::{CpuSet, NodeSet};

use super::disks;

/// Two plans, compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diff {
    schema: &'static str,
    /// The plan that is compared with.
    pub from: DiffSide,
    /// The plan that is compared.
    pub to: DiffSide,
    /// Whether nothing differs.
    pub same: bool,
    /// What differs, in the order of the plan.
    pub changes: Vec<Change>,
    /// How many of each kind do not differ.
    pub unchanged: BTreeMap<Kind, usize>,
    /// Remarks that only the second plan has.
    pub appeared: Vec<Diagnostic>,
    /// Remarks that only the first plan has.
    pub gone: Vec<Diagnostic>,
}

/// One of the two plans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiffSide {
    /// Where it comes from, as the caller calls it.
    pub label: String,
    /// The profile's name.
    pub profile: String,
    /// The plan's digest.
    pub digest: String,
    /// Online CPUs of its host.
    pub cpus: usize,
    /// NUMA nodes of its host.
    pub nodes: usize,
}

/// The kinds of thing a plan decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A vCPU's thread.
    Vcpu,
    /// An IOThread.
    Iothread,
    /// The emulator thread.
    Emulator,
    /// A disk.
    Disk,
    /// A network device.
    Net,
    /// The home node, the memory, the IOThread count, and what the guest is shown.
    Choice,
}

/// One value that differs. `from` is `null` where only the second plan has the thing, `to` where only the first has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What kind of thing it belongs to.
    pub kind: Kind,
    /// The thing: `0` of a vCPU, `data` of a disk, `memory`.
    pub name: String,
    /// The field of the plan's JSON.
    pub field: &'static str,
    /// The first plan's value.
    pub from: Option<String>,
    /// The second plan's value.
    pub to: Option<String>,
    /// Why the second plan has it so.
    pub because: Option<String>,
}

/// One thing of a plan and its values.
struct Thing<'p> {
    kind: Kind,
    name: String,
    because: &'p str,
    fields: Vec<(&'static str, String)>,
}

/// Compares `to` with `from`; the labels say where each comes from.
pub fn diff(from: (&Plan, &str), to: (&Plan, &str)) -> Diff {
    let set = |iothread: &IoThreadPlan| iothread.registered_memory || iothread.sqpoll.is_some();
    let with_ring = [from.0, to.0].iter().any(|plan| plan.iothreads.iter().any(set));
    let (old, new) = (things(from.0, with_ring), things(to.0, with_ring));
    let find = |all: &[Thing<'_>], one: &Thing<'_>| {
        all.iter().position(|other| (other.kind, &other.name) == (one.kind, &one.name))
    };
    let mut changes = Vec::new();
    let mut unchanged: BTreeMap<Kind, usize> = BTreeMap::new();
    for thing in &new {
        let before = changes.len();
        let other = find(&old, thing).and_then(|at| old.get(at));
        for (field, value) in &thing.fields {
            let old = other.and_then(|other| other.fields.iter().find(|(name, _)| name == field));
            if old.is_some_and(|(_, old)| old == value) {
                continue;
            }
            changes.push(Change {
                kind: thing.kind,
                name: thing.name.clone(),
                field,
                from: old.map(|(_, old)| old.clone()),
                to: Some(value.clone()),
                because: (!thing.because.is_empty()).then(|| thing.because.to_owned()),
            });
        }
        if changes.len() == before {
            *unchanged.entry(thing.kind).or_default() += 1;
        }
    }
    for thing in old.iter().filter(|thing| find(&new, thing).is_none()) {
        changes.extend(thing.fields.iter().map(|(field, value)| Change {
            kind: thing.kind,
            name: thing.name.clone(),
            field,
            from: Some(value.clone()),
            to: None,
            because: None,
        }));
    }
    let (appeared, gone) =
        (only_in(&to.0.diagnostics, &from.0.diagnostics), only_in(&from.0.diagnostics, &to.0.diagnostics));
    Diff {
        schema: "vmprof.diff/1",
        from: side(from),
        to: side(to),
        same: changes.is_empty() && appeared.is_empty() && gone.is_empty(),
        changes,
        unchanged,
        appeared,
        gone,
    }
}

fn side((plan, label): (&Plan, &str)) -> DiffSide {
    DiffSide {
        label: label.to_owned(),
        profile: plan.profile.clone(),
        digest: plan.digest.clone(),
        cpus: plan.host.cpus,
        nodes: plan.host.nodes,
    }
}

/// What the first list has more often than the second.
fn only_in(these: &[Diagnostic], those: &[Diagnostic]) -> Vec<Diagnostic> {
    let mut left: Vec<&Diagnostic> = those.iter().collect();
    let mut only = Vec::new();
    for one in these {
        match left.iter().position(|other| *other == one) {
            Some(at) => drop(left.swap_remove(at)),
            None => only.push(one.clone()),
        }
    }
    only
}

/// `with_ring`: what few IOThreads have is told only where one of them has it.
fn things(plan: &Plan, with_ring: bool) -> Vec<Thing<'_>> {
    let node = |node: Option<u32>| ("node", node.map_or("unknown".to_owned(), |node| node.to_string()));
    let cpus = |cpus: &CpuSet| ("cpus", cpus.to_string());
    let thing = |kind, name: String, because, fields| Thing { kind, name, because, fields };
    let mut all = Vec::new();
    for v in &plan.vcpus {
        all.push(thing(Kind::Vcpu, v.id.to_string(), &v.because, vec![cpus(&v.cpus), node(v.node)]));
    }
    for i in &plan.iothreads {
        let mut fields = vec![cpus(&i.cpus), node(i.node), ("poll_max_ns", i.poll_max_ns.to_string())];
        if with_ring {
            let sqpoll = |sqpoll: SqPollPlan| format!("cpu {}, {} ms", sqpoll.cpu, sqpoll.idle_ms);
            fields.push(("registered_memory", i.registered_memory.to_string()));
            fields.push(("sqpoll", i.sqpoll.map_or_else(|| "none".to_owned(), sqpoll)));
        }
        all.push(thing(Kind::Iothread, i.id.to_string(), &i.because, fields));
    }
    let e = &plan.emulator;
    let fields = vec![cpus(&e.cpus), node(e.node)];
    all.push(thing(Kind::Emulator, "emulator".to_owned(), &e.because, fields));
    for disk in &plan.disks {
        all.push(thing(Kind::Disk, disk.name.clone(), &disk.because, disk_fields(disk)));
    }
    for net in &plan.nets {
        all.push(thing(Kind::Net, net.name.clone(), &net.because, net_fields(net)));
    }
    let (home, memory, iothreads) = (&plan.home, &plan.memory, &plan.iothread_count);
    all.push(thing(Kind::Choice, "home".to_owned(), &home.because, vec![node(home.node)]));
    let fields = vec![
        ("bytes", format_size(memory.bytes)),
        ("nodes", memory.nodes.as_ref().map_or("not bound".to_owned(), NodeSet::to_string)),
        ("hugepages", memory.hugepages.map_or("none".to_owned(), |pages| format_size(pages.bytes()))),
        ("mode", memory.mode.word().to_owned()),
    ];
    all.push(thing(Kind::Choice, "memory".to_owned(), &memory.because, fields));
    let fields = vec![("count", iothreads.count.to_string())];
    all.push(thing(Kind::Choice, "iothreads".to_owned(), &iothreads.because, fields));
    let fields = vec![("threads_per_core", plan.guest.threads_per_core.to_string())];
    all.push(thing(Kind::Choice, "guest".to_owned(), "", fields));
    all
}

/// What stands for values that a profile leaves out.
const OWN_BLOCKS: &str = "the source's own";
const AS_IT_IS: &str = "as it is";
const DERIVED: &str = "derived";

fn disk_fields(disk: &DiskPlan) -> Vec<(&'static str, String)> {
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let bytes = |bytes: Option<u32>| bytes.map_or(OWN_BLOCKS.to_owned(), |n| n.to_string());
    let word = |word: &Option<String>| word.clone().unwrap_or_else(|| AS_IT_IS.to_owned());
    let format = disk.format.as_ref().map_or("none".to_owned(), |format| match &format.mount {
        Some(at) => format!("{} on {at}", format.filesystem),
        None => format.filesystem.clone(),
    });
    vec![
        ("source", disks::source(disk)),
        ("device", disks::lies(disk)),
        ("cache", disk.cache.word().to_owned()),
        ("aio", disks::engine(disk.aio).to_owned()),
        ("aio_fallback", disk.aio_fallback.map_or("none", disks::engine).to_owned()),
        ("iopoll", yes(disk.iopoll)),
        ("queues", disk.queues.to_string()),
        ("queue_size", disk.queue_size.to_string()),
        ("packed", yes(disk.packed)),
        ("virtqueues", disks::virtqueues(&disk.virtqueues, disk.queue_size)),
        ("readonly", yes(disk.readonly)),
        ("discard", yes(disk.discard)),
        ("rerror", disk.rerror.word().to_owned()),
        ("werror", disk.werror.word().to_owned()),
        ("logical_block_bytes", bytes(disk.logical_block_bytes)),
        ("physical_block_bytes", bytes(disk.physical_block_bytes)),
        ("format", format),
        ("scheduler.host", word(&disk.scheduler.host)),
        ("scheduler.guest", word(&disk.scheduler.guest)),
    ]
}

fn net_fields(net: &NetPlan) -> Vec<(&'static str, String)> {
    vec![
        ("backend", disks::backend(&net.backend)),
        ("queues", net.queues.to_string()),
        ("queue_size", net.queue_size.to_string()),
        ("mac", net.mac.clone().unwrap_or_else(|| DERIVED.to_owned())),
        ("virtqueues", disks::virtqueues(&net.virtqueues, net.queue_size)),
    ]
}

impl Diff {
    /// The difference for programs.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}
