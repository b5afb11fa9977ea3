//! A plan as text: the grid, a line per thread and per disk with its reason, memory, and the remarks.

use std::collections::BTreeMap;
use std::fmt::Write;

use vmprof_document::format_size;

use crate::plan::{DiskPlan, Plan, Severity};
use crate::profile::{Aio, DiskSource, PageSize};
use crate::topology::{CpuSet, Topology};

use super::grid::grid;

/// How wide the grid may grow.
const WIDTH: usize = 100;

/// The plan for people. `colour` adds terminal colours to marks and remarks and changes nothing else.
pub fn plan_text(plan: &Plan, topology: &Topology, colour: bool) -> String {
    let mut text = String::new();
    let digest: String = plan.digest.chars().take(16).collect();
    let (cpus, nodes) = (plan.host.cpus, plan.host.nodes);
    let _ = writeln!(
        text,
        "profile {}  on {} in {}  plan {digest}",
        plan.profile,
        count(cpus, "CPU"),
        count(nodes, "node")
    );
    let _ = writeln!(text, "\n{}", host_grid(plan, topology).trim_end());
    text.push_str("  v vCPU   i IOThread   e emulator   . free   - not usable here\n\nthreads\n");
    let mut rows: Vec<[String; 3]> = Vec::new();
    for vcpu in &plan.vcpus {
        rows.push([format!("vcpu {}", vcpu.id), cpus_on(&vcpu.cpus, vcpu.node), vcpu.because.clone()]);
    }
    for iothread in &plan.iothreads {
        let poll = match iothread.poll_max_ns {
            0 => "no polling".to_owned(),
            ns => format!("polls up to {ns} ns"),
        };
        let because = format!("{}; {poll}", iothread.because);
        rows.push([iothread.name.clone(), cpus_on(&iothread.cpus, iothread.node), because]);
    }
    let emulator = &plan.emulator;
    rows.push(["emulator".to_owned(), cpus_on(&emulator.cpus, emulator.node), emulator.because.clone()]);
    table(&mut text, &rows);
    if !plan.disks.is_empty() {
        text.push_str("\ndisks\n");
        for disk in &plan.disks {
            disk_lines(&mut text, disk);
        }
    }
    let memory = &plan.memory;
    let pages = match memory.hugepages {
        None => "ordinary pages",
        Some(PageSize::Mib2) => "2MiB pages",
        Some(PageSize::Gib1) => "1GiB pages",
    };
    let place = memory.nodes.as_ref().map_or("not bound".to_owned(), |nodes| format!("on node {nodes}"));
    let _ = writeln!(text, "\nmemory\n  {}  {place}  {pages}  {}", format_size(memory.bytes), memory.because);
    if !plan.diagnostics.is_empty() {
        text.push_str("\nremarks\n");
        for remark in &plan.diagnostics {
            let (word, paint) = match remark.severity {
                Severity::Warning => ("warning", "33"),
                Severity::Note => ("note", "36"),
            };
            let word = painted(word, paint, colour);
            let _ = writeln!(text, "  {word}: {}  [{}]", remark.message, remark.code);
            if !remark.help.is_empty() {
                let _ = writeln!(text, "    {}", remark.help);
            }
        }
    }
    text
}

fn painted(word: &str, paint: &str, colour: bool) -> String {
    if colour { format!("\u{1b}[{paint}m{word}\u{1b}[0m") } else { word.to_owned() }
}

fn host_grid(plan: &Plan, topology: &Topology) -> String {
    let usable = topology.affinity.as_ref().map_or(topology.online.clone(), |a| a.and(&topology.online));
    let mut marks: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    // Threads that float over everything are on every CPU and say nothing about any.
    let mut mark = |cpus: &CpuSet, name: String| {
        if cpus.len() == 1 || *cpus != usable {
            cpus.iter().for_each(|cpu| marks.entry(cpu).or_default().push(name.clone()));
        }
    };
    plan.vcpus.iter().for_each(|v| mark(&v.cpus, format!("v{}", v.id)));
    plan.iothreads.iter().for_each(|i| mark(&i.cpus, format!("i{}", i.id)));
    mark(&plan.emulator.cpus, "e".to_owned());
    grid(topology, WIDTH, |cpu| match marks.get(&cpu) {
        Some(names) => names.join("+"),
        None if usable.contains(cpu) => ".".to_owned(),
        None => "-".to_owned(),
    })
}

fn cpus_on(cpus: &CpuSet, node: Option<u32>) -> String {
    let node = node.map_or(String::new(), |n| format!("  node {n}"));
    format!("CPU {cpus}{node}")
}

fn table(text: &mut String, rows: &[[String; 3]]) {
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (widest(0), widest(1));
    for [name, place, because] in rows {
        let _ = writeln!(text, "  {name:<first$}  {place:<second$}  {because}");
    }
}

fn disk_lines(text: &mut String, disk: &DiskPlan) {
    let source = match &disk.source {
        DiskSource::File { path, bytes: Some(bytes) } => format!("file {path} ({})", format_size(*bytes)),
        DiskSource::File { path, bytes: None } => format!("file {path}"),
        DiskSource::Device { path } => format!("device {path}"),
    };
    let lies = match (&disk.device, disk.node) {
        (Some(device), Some(node)) => format!("on {device}, node {node}"),
        (Some(device), None) => format!("on {device}, node unknown"),
        (None, _) => "on an unknown device".to_owned(),
    };
    let readonly = if disk.readonly { "  read-only" } else { "" };
    let _ = writeln!(text, "  {}  {source}  {lies}{readonly}", disk.name);
    let aio = match disk.aio {
        Aio::IoUring => "io_uring",
        Aio::Native => "native",
        Aio::Threads => "threads",
    };
    let direct = if disk.direct { "O_DIRECT" } else { "page cache" };
    let cache = if disk.write_cache { "write cache shown" } else { "every write durable" };
    let _ = writeln!(text, "    cache {}: {direct}, {cache}; aio {aio}", disk.cache.word());
    let mut served: BTreeMap<u32, CpuSet> = BTreeMap::new();
    for queue in &disk.virtqueues {
        served.entry(queue.iothread).or_default().insert(queue.vq);
    }
    let served: Vec<String> = served.iter().map(|(id, vqs)| format!("iothread{id} serves {vqs}")).collect();
    let size = disk.queue_size;
    let _ = writeln!(text, "    virtqueues of {size}: {}  ({})", served.join(", "), disk.because);
    let word = |s: &Option<String>| s.clone().unwrap_or_else(|| "as it is".to_owned());
    let _ = writeln!(
        text,
        "    scheduler: host {}, guest {}",
        word(&disk.scheduler.host),
        word(&disk.scheduler.guest)
    );
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
