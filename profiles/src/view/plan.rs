//! A plan as text: the host with every thread placed, a line per thread and disk with its reason, memory, and the remarks.

use std::collections::BTreeSet;
use std::fmt::Write;

use vmprof_document::format_size;

use crate::ledger::Ledger;
use crate::plan::{Diagnostic, Plan, Rejected, Severity};
use crate::profile::PageSize;
use crate::topology::{CoreKind, CpuSet, Topology};

use super::disks::{disk_lines, net_lines};
use super::grid::{Cell, Grid};
use super::marks::{Idle, Mark, Marks, Who, names};
use super::prose::{Row, about, count, hang, painted, table};
use super::{Backdrop, TextStyle};

/// More threads of one kind than this are told together where their reasons are the same.
pub(super) const APART: usize = 8;

/// The plan for people, on a host where no other VM runs. `colour` adds terminal colours and changes nothing else.
pub fn plan_text(plan: &Plan, topology: &Topology, colour: bool) -> String {
    let on = Backdrop { topology, ledger: &Ledger::default(), cpuset: None };
    plan_text_on(plan, on, TextStyle { colour, ..TextStyle::default() })
}

/// The plan for people.
pub fn plan_text_on(plan: &Plan, on: Backdrop<'_>, style: TextStyle) -> String {
    let mut out = String::new();
    let digest: String = plan.digest.chars().take(16).collect();
    let (cpus, nodes) = (count(plan.host.cpus, "CPU"), count(plan.host.nodes, "node"));
    let _ = writeln!(out, "profile {}  on {cpus} in {nodes}  plan {digest}\n", plan.profile);
    out.push_str(&picture(plan, on, style));
    out.push_str("\nthreads\n");
    table(&mut out, &threads(plan, style.explain), style.width);
    if !plan.disks.is_empty() {
        out.push_str("\ndisks\n");
        plan.disks.iter().for_each(|disk| disk_lines(&mut out, disk, style.width, style.explain));
    }
    if !plan.nets.is_empty() {
        out.push_str("\nnets\n");
        plan.nets.iter().for_each(|net| net_lines(&mut out, net, style.width));
    }
    out.push_str("\nchoices\n");
    table(&mut out, &choices(plan, style.explain), style.width);
    remarks(&mut out, &plan.diagnostics, style);
    out
}

fn picture(plan: &Plan, on: Backdrop<'_>, style: TextStyle) -> String {
    let marks = Marks::of(plan, on);
    let cell = |cpu| match marks.of_cpu(cpu) {
        Mark::Threads(threads) => {
            Cell { text: names(threads), paint: loudest(threads).map_or("", Who::paint), idle: None }
        }
        Mark::Idle(idle) => Cell { text: idle.mark().to_owned(), paint: idle.paint(), idle: Some(idle) },
    };
    let note = |node| node_note(plan, on.topology, node);
    let grid =
        Grid { topology: on.topology, width: style.width, colour: style.colour, note: &note, cell: &cell };
    let mut out = grid.draw();
    let mut used = 0;
    for (words, painted) in legend(&marks, on.topology, style.colour) {
        let needed = words.chars().count() + 3;
        if used + needed > style.width && used > 0 {
            out.push('\n');
            used = 0;
        }
        out.push_str(if used == 0 { "  " } else { "   " });
        out.push_str(&painted);
        used += needed;
    }
    out.push('\n');
    out
}

/// Of several threads on one CPU, the one whose colour the cell gets: IOThreads are few and matter most.
pub(super) fn loudest(threads: &[Who]) -> Option<Who> {
    let iothread = threads.iter().find(|who| matches!(who, Who::IoThread(_)));
    iothread.or(threads.first()).copied()
}

/// What a node has to do with this VM.
pub(super) fn node_note(plan: &Plan, topology: &Topology, node: u32) -> String {
    let mut parts = Vec::new();
    if plan.home.node == Some(node) {
        parts.push("home".to_owned());
    }
    match topology.nodes.get(&node).and_then(|n| n.memory_bytes) {
        Some(0) => parts.push("no memory".to_owned()),
        Some(bytes) => parts.push(format!("memory {}", about(bytes))),
        None => {}
    }
    if plan.memory.nodes.as_ref().is_some_and(|nodes| nodes.contains(node)) {
        parts.push("the guest's memory".to_owned());
    }
    let here = plan.disks.iter().filter(|disk| disk.node == Some(node));
    parts.extend(here.filter_map(|disk| Some(format!("disk {} on {}", disk.name, disk.device.as_ref()?))));
    parts.join(", ")
}

/// Only the marks that are there: plain, and with colours.
fn legend(marks: &Marks, topology: &Topology, colour: bool) -> Vec<(String, String)> {
    let mut idle: BTreeSet<Idle> = BTreeSet::new();
    let (mut vcpu, mut iothread, mut emulator, mut counted) = (false, false, false, false);
    for cpu in topology.cpus.keys() {
        match marks.of_cpu(*cpu) {
            Mark::Idle(one) => {
                idle.insert(one);
            }
            Mark::Threads(threads) => {
                vcpu |= threads.iter().any(|who| matches!(who, Who::Vcpu(_)));
                iothread |= threads.iter().any(|who| matches!(who, Who::IoThread(_)));
                emulator |= threads.contains(&Who::Emulator);
                counted |= names(threads).starts_with(|c: char| c.is_ascii_digit());
            }
        }
    }
    let mut parts = Vec::new();
    let mut part = |there: bool, mark: &str, paint: &str, words: &str| {
        if there {
            parts.push((format!("{mark} {words}"), format!("{} {words}", painted(mark, paint, colour))));
        }
    };
    part(vcpu, "v", Who::Vcpu(0).paint(), "vCPU");
    part(iothread, "i", Who::IoThread(0).paint(), "IOThread");
    part(emulator, "e", Who::Emulator.paint(), "emulator");
    part(counted, "9v", Who::Vcpu(0).paint(), "nine vCPUs, and so on");
    for one in idle {
        part(true, one.mark(), one.paint(), one.words());
    }
    if topology.cpus.values().any(|cpu| cpu.kind == CoreKind::Efficiency) {
        let words = "efficiency: cores for economy, not for speed".to_owned();
        parts.push((words.clone(), words));
    }
    parts
}

fn instead(rejected: Option<&Rejected>, explain: bool) -> Option<String> {
    rejected.filter(|_| explain).map(|other| format!("not {}: {}", other.instead, other.because))
}

/// `home  node 0  node 0, the roomiest` would say it twice.
fn without<'t>(because: &'t str, value: &str) -> &'t str {
    because.strip_prefix(value).and_then(|rest| rest.strip_prefix(", ")).unwrap_or(because)
}

/// One thread before equal ones are put together.
struct Thread<'p> {
    id: u32,
    cpus: &'p CpuSet,
    node: Option<u32>,
    because: String,
    below: Option<String>,
}

fn threads(plan: &Plan, explain: bool) -> Vec<Row> {
    let vcpus = plan.vcpus.iter().map(|v| Thread {
        id: v.id,
        cpus: &v.cpus,
        node: v.node,
        because: v.because.clone(),
        below: instead(v.rejected.as_ref(), explain),
    });
    let iothreads = plan.iothreads.iter().map(|i| {
        let poll = match i.poll_max_ns {
            0 => "no polling".to_owned(),
            ns => format!("polls up to {ns} ns"),
        };
        let memory = if i.registered_memory { "; guest memory registered" } else { "" };
        let submits = i.sqpoll.map_or_else(String::new, |sqpoll| {
            format!("; the kernel submits for it on CPU {}, idle after {} ms", sqpoll.cpu, sqpoll.idle_ms)
        });
        Thread {
            id: i.id,
            cpus: &i.cpus,
            node: i.node,
            because: format!("{}; {poll}{memory}{submits}", i.because),
            below: instead(i.rejected.as_ref(), explain),
        }
    });
    let mut rows = together(&vcpus.collect::<Vec<_>>(), |ids| format!("vcpu {ids}"));

    rows.extend(together(&iothreads.collect::<Vec<_>>(), |ids| match ids.contains(['-', ',']) {
        true => format!("iothread {ids}"),
        false => format!("iothread{ids}"),
    }));
    let emulator = &plan.emulator;
    rows.push((
        "emulator".to_owned(),
        emulator.cpus.clone(),
        emulator.node,
        emulator.because.clone(),
        instead(emulator.rejected.as_ref(), explain),
    ));
    as_above(&mut rows);
    let short = rows.iter().map(|row| row.1.to_string().len()).filter(|length| *length <= LONGEST_LIST);
    let widest = short.max().unwrap_or(0);
    let row = |(name, cpus, node, because, below): Placed| {
        let node = node.map_or(String::new(), |n| format!("  node {n}"));
        let cpus = cpus.to_string();
        Row { name, value: format!("CPU {cpus:<widest$}{node}"), because, below }
    };
    rows.into_iter().map(row).collect()
}

/// A reason is told once: rows below it that have the same one name the row that tells it.
fn as_above(rows: &mut [Placed]) {
    let mut told: Option<(String, String)> = None;
    for (name, _, _, because, _) in rows {
        match &told {
            Some((teller, reason)) if reason == because => *because = format!("as {teller}"),
            _ => told = Some((name.clone(), because.clone())),
        }
    }
}

/// Beyond this a list of CPUs no longer lines up with others.
const LONGEST_LIST: usize = 20;

/// A thread, or several: name, CPUs, node, reason, and what stands below.
type Placed = (String, CpuSet, Option<u32>, String, Option<String>);

/// A row per thread; where there are many, a row per run of threads that stand on one CPU each, in their order, for one
/// reason.
fn together(threads: &[Thread<'_>], name: impl Fn(&str) -> String) -> Vec<Placed> {
    let joins = |one: &Thread<'_>, next: &Thread<'_>| {
        threads.len() > APART
            && (one.node, &one.because, &one.below) == (next.node, &next.because, &next.below)
            && one.cpus.len() == 1
            && next.cpus.len() == 1
            && one.cpus.first() < next.cpus.first()
    };
    let row = |run: &[Thread<'_>]| {
        let ids: CpuSet = run.iter().map(|thread| thread.id).collect();
        let cpus = run.iter().fold(CpuSet::new(), |all, thread| all.or(thread.cpus));
        let first = run.first()?;
        Some((name(&ids.to_string()), cpus, first.node, first.because.clone(), first.below.clone()))
    };
    threads.chunk_by(joins).filter_map(row).collect()
}

fn choices(plan: &Plan, explain: bool) -> Vec<Row> {
    let row = |name: &str, value: String, because: &str, rejected: Option<&Rejected>| Row {
        name: name.to_owned(),
        value,
        because: because.to_owned(),
        below: instead(rejected, explain),
    };
    let (home, memory, iothreads) = (&plan.home, &plan.memory, &plan.iothread_count);
    let node = home.node.map_or("unknown".to_owned(), |node| format!("node {node}"));
    let mut rows = vec![
        row("home", node.clone(), without(&home.because, &node), home.rejected.as_ref()),
        row("memory", memory_words(plan), &memory.because, memory.rejected.as_ref()),
        row("iothreads", iothreads.count.to_string(), &iothreads.because, iothreads.rejected.as_ref()),
    ];
    if plan.guest.threads_per_core > 1 {
        let shown = format!("{} threads per core", plan.guest.threads_per_core);
        rows.push(row("guest", shown, "its threads are paired on siblings, and it sees that", None));
    }
    rows
}

/// `1GiB on node 0, ordinary pages, strict`.
pub(super) fn memory_words(plan: &Plan) -> String {
    let memory = &plan.memory;
    let pages = match memory.hugepages {
        None => "ordinary pages",
        Some(PageSize::Mib2) => "2MiB pages",
        Some(PageSize::Gib1) => "1GiB pages",
    };
    let size = format_size(memory.bytes);
    match &memory.nodes {
        Some(nodes) => format!("{size} on node {nodes}, {pages}, {}", memory.mode.word()),
        None => format!("{size}, {pages}, not bound"),
    }
}

fn remarks(out: &mut String, remarks: &[Diagnostic], style: TextStyle) {
    if remarks.is_empty() {
        return;
    }
    out.push_str("\nremarks\n");
    let mut ordered: Vec<&Diagnostic> = remarks.iter().collect();
    // Stable: within a severity the planner's order stays.
    ordered.sort_by_key(|remark| match remark.severity {
        Severity::Warning => 0,
        Severity::Note => 1,
    });
    for remark in ordered {
        let (word, paint) = match remark.severity {
            Severity::Warning => ("warning", "33"),
            Severity::Note => ("note", "36"),
        };
        let mut lines = String::new();
        hang(
            &mut lines,
            &format!("  {word}: "),
            &format!("{}  [{}]", remark.message, remark.code),
            style.width,
        );
        out.push_str(&lines.replacen(word, &painted(word, paint, style.colour), 1));
        if !remark.help.is_empty() {
            hang(out, "    ", &remark.help, style.width);
        }
    }
}
