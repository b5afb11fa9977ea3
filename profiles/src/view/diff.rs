//! What differs between two plans: every thread, IOThread count, mapping, memory and remark, by what it is, from one to the
//! other. The reasons shown are those of the second plan; a reason that alone differs is no difference.
//!
//! The JSON is a contract (`vmprof.diff/1`): fields may be added, the named ones stay.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use vmprof_document::format_size;

use crate::plan::{Diagnostic, DiskPlan, NetPlan, Plan, Severity};
use crate::topology::{CpuSet, NodeSet};

use super::TextStyle;
use super::disks;
use super::prose::{Row, count, hang, painted, table};

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
    let (old, new) = (things(from.0), things(to.0));
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

fn things(plan: &Plan) -> Vec<Thing<'_>> {
    let node = |node: Option<u32>| ("node", node.map_or("unknown".to_owned(), |node| node.to_string()));
    let cpus = |cpus: &CpuSet| ("cpus", cpus.to_string());
    let thing = |kind, name: String, because, fields| Thing { kind, name, because, fields };
    let mut all = Vec::new();
    for v in &plan.vcpus {
        all.push(thing(Kind::Vcpu, v.id.to_string(), &v.because, vec![cpus(&v.cpus), node(v.node)]));
    }
    for i in &plan.iothreads {
        let fields = vec![cpus(&i.cpus), node(i.node), ("poll_max_ns", i.poll_max_ns.to_string())];
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

fn disk_fields(disk: &DiskPlan) -> Vec<(&'static str, String)> {
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let bytes = |bytes: Option<u32>| bytes.map_or("the source's own".to_owned(), |n| n.to_string());
    let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "as it is".to_owned());
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
        ("queues", disk.queues.to_string()),
        ("queue_size", disk.queue_size.to_string()),
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
        ("mac", net.mac.clone().unwrap_or_else(|| "derived".to_owned())),
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

    /// The difference for people.
    pub fn text(&self, style: TextStyle) -> String {
        let mut out = String::new();
        let side = |side: &DiffSide| {
            let (cpus, nodes) = (count(side.cpus, "CPU"), count(side.nodes, "node"));
            let digest: String = side.digest.chars().take(16).collect();
            format!("{}: profile {} on {cpus} in {nodes}, plan {digest}", side.label, side.profile)
        };
        hang(&mut out, "from  ", &side(&self.from), style.width);
        hang(&mut out, "to    ", &side(&self.to), style.width);
        out.push('\n');
        if self.same {
            out.push_str("no difference");
            if self.from.digest != self.to.digest {
                out.push_str("; the digests differ, because the facts that were decided upon do");
            }
            out.push('\n');
            return out;
        }
        let groups = self.changes.chunk_by(|a, b| (a.kind, &a.name) == (b.kind, &b.name));
        let changed: Vec<Changed<'_>> = groups.map(Changed).collect();
        let rows = |kinds: &[Kind]| {
            let of: Vec<&Changed<'_>> = changed.iter().filter(|one| kinds.contains(&one.kind())).collect();
            let runs = of.chunk_by(|one, next| of.len() > super::plan::APART && one.joins(next));
            runs.filter_map(Changed::row).collect::<Vec<Row>>()
        };
        let threads = rows(&[Kind::Vcpu, Kind::Iothread, Kind::Emulator]);
        if !threads.is_empty() {
            out.push_str("threads\n");
            table(&mut out, &threads, style.width);
        }
        for (kind, title) in [(Kind::Disk, "disks"), (Kind::Net, "nets")] {
            let devices: Vec<&Changed<'_>> = changed.iter().filter(|one| one.kind() == kind).collect();
            if !devices.is_empty() {
                let _ = writeln!(out, "{title}");
                devices.iter().for_each(|device| device.lines(&mut out, style.width));
            }
        }
        let choices = rows(&[Kind::Choice]);
        if !choices.is_empty() {
            out.push_str("choices\n");
            table(&mut out, &choices, style.width);
        }
        if !self.appeared.is_empty() || !self.gone.is_empty() {
            out.push_str("remarks\n");
        }
        for (sign, paint, remarks) in [("+", "32", &self.appeared), ("-", "31", &self.gone)] {
            for remark in remarks {
                let word = match remark.severity {
                    Severity::Warning => "warning",
                    Severity::Note => "note",
                };
                let text = format!("{word}: {}  [{}]", remark.message, remark.code);
                let mut lines = String::new();
                hang(&mut lines, &format!("  {sign} "), &text, style.width);
                out.push_str(&lines.replacen(sign, &painted(sign, paint, style.colour), 1));
            }
        }
        let unchanged = self.unchanged_words();
        if !unchanged.is_empty() {
            hang(&mut out, "unchanged: ", &unchanged, style.width);
        }
        out
    }

    fn unchanged_words(&self) -> String {
        let words = self.unchanged.iter().map(|(kind, number)| match kind {
            Kind::Vcpu => count(*number, "vCPU"),
            Kind::Iothread => count(*number, "IOThread"),
            Kind::Emulator => "the emulator".to_owned(),
            Kind::Disk => count(*number, "disk"),
            Kind::Net => count(*number, "net"),
            Kind::Choice => count(*number, "choice"),
        });
        words.collect::<Vec<_>>().join(", ")
    }
}

/// All changes of one thing; there is at least one.
struct Changed<'d>(&'d [Change]);

impl Changed<'_> {
    fn kind(&self) -> Kind {
        self.0.first().map_or(Kind::Choice, |change| change.kind)
    }

    fn because(&self) -> Option<&str> {
        self.0.first()?.because.as_deref()
    }

    fn field(&self, field: &str) -> Option<&Change> {
        self.0.iter().find(|change| change.field == field)
    }

    /// Where a thread stands now.
    fn cpu(&self) -> Option<u32> {
        self.field("cpus")?.to.as_ref()?.parse().ok()
    }

    /// What there is to say besides the CPUs themselves.
    fn rest(&self) -> (Vec<&Change>, Option<&str>) {
        (self.0.iter().filter(|change| change.field != "cpus").collect(), self.because())
    }

    /// Whether two threads that follow each other have moved alike, from one CPU each to one CPU each.
    fn joins(&self, next: &Self) -> bool {
        let alike = |(one, because): (Vec<&Change>, Option<&str>),
                     (other, why): (Vec<&Change>, Option<&str>)| {
            let values = |changes: &[&Change]| {
                changes.iter().map(|c| (c.field, c.from.clone(), c.to.clone())).collect::<Vec<_>>()
            };
            because == why && values(&one) == values(&other)
        };
        let from = |one: &Self| one.field("cpus").and_then(|c| c.from.as_ref()?.parse::<u32>().ok());
        self.kind() == next.kind()
            && self.cpu().is_some()
            && self.cpu() < next.cpu()
            && from(self).is_some() == from(next).is_some()
            && from(self) <= from(next)
            && alike(self.rest(), next.rest())
    }

    /// One row for a run of things that changed alike.
    fn row(run: &[&Self]) -> Option<Row> {
        let first = run.first()?;
        let ids: Vec<&str> = run.iter().filter_map(|one| Some(one.0.first()?.name.as_str())).collect();
        let numbers: CpuSet = ids.iter().filter_map(|id| id.parse::<u32>().ok()).collect();
        let name = match first.kind() {
            Kind::Vcpu => format!("vcpu {numbers}"),
            Kind::Iothread if run.len() == 1 => format!("iothread{numbers}"),
            Kind::Iothread => format!("iothread {numbers}"),
            _ => ids.first()?.to_string(),
        };
        let (mut words, mut gone) = (Vec::new(), false);
        if let Some(cpus) = first.field("cpus") {
            let all = |pick: fn(&Change) -> Option<&String>| {
                let lists = run.iter().filter_map(|one| pick(one.field("cpus")?)?.parse::<CpuSet>().ok());
                lists.fold(CpuSet::new(), |all, cpus| all.or(&cpus))
            };
            let (old, new) = (all(|c| c.from.as_ref()), all(|c| c.to.as_ref()));
            words.push(match (&cpus.from, &cpus.to) {
                (Some(_), Some(_)) => format!("CPU {old} → CPU {new}"),
                (None, _) => format!("new: CPU {new}"),
                (_, None) => {
                    gone = true;
                    format!("gone: was CPU {old}")
                }
            });
        }
        let appears = first.field("cpus").is_some_and(|cpus| cpus.from.is_none());
        for change in first.0.iter().filter(|change| change.field != "cpus") {
            match (&change.from, &change.to) {
                (Some(old), Some(new)) => words.push(format!("{} {old} → {new}", plain(change.field))),
                (None, Some(new)) if appears => words.push(format!("{} {new}", plain(change.field))),
                (old, new) if !gone => {
                    let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
                    words.push(format!("{} {} → {}", plain(change.field), word(old), word(new)));
                }
                _ => {}
            }
        }
        let because = first.because().map_or(String::new(), |why| format!("because: {why}"));
        Some(Row { name, value: words.join("; "), because, below: None })
    }

    /// A device: a line for each value that differs.
    fn lines(&self, out: &mut String, width: usize) {
        let Some(first) = self.0.first() else { return };
        let whole = |pick: fn(&Change) -> &Option<String>| self.0.iter().all(|change| pick(change).is_none());
        if whole(|change| &change.to) {
            let _ = writeln!(out, "  {}  gone", first.name);
            return;
        }
        let new = whole(|change| &change.from);
        let _ = writeln!(out, "  {}{}", first.name, if new { "  new" } else { "" });
        for change in self.0 {
            let field = plain(change.field);
            match (&change.from, &change.to) {
                (Some(old), Some(new)) => {
                    hang(out, &format!("    {field}: "), &format!("{old} → {new}"), width)
                }
                (None, Some(new)) => hang(out, &format!("    {field}: "), new, width),
                (_, None) => hang(out, &format!("    {field}: "), "none", width),
            }
        }
        if let Some(why) = self.because() {
            hang(out, "    because: ", why, width);
        }
    }
}

/// A field's name in words.
fn plain(field: &str) -> String {
    match field {
        "poll_max_ns" => "polls up to ns".to_owned(),
        other => other.replace(['_', '.'], " "),
    }
}
