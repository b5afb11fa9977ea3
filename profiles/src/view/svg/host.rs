//! The host's half of the picture: nodes, in them caches, in them cores, in them CPUs with who is on them.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::Plan;
use crate::topology::{CoreKind, Topology};
use crate::view::marks::{Idle, Mark, Marks, Who, names};
use crate::view::places::{Cores, Names, Place, clustered, places};
use crate::view::plan::{loudest, node_note};

use super::canvas::{Area, Canvas, Paint, Type, width_of};
use super::{GAP, Size, WIDEST, colours, flow};

const PAD: f64 = 10.0;
const NODE_HEAD: f64 = 26.0;
const CACHE_HEAD: f64 = 18.0;
const CPU_HEIGHT: f64 = 21.0;
/// Cores in one line of a cache.
const ABREAST: usize = 16;
/// Between clusters.
const CLUSTER_GAP: f64 = 8.0;

/// One CPU, ready to be drawn.
struct CpuBox {
    id: u32,
    mark: String,
    paint: Paint,
    ink: &'static str,
    title: String,
}

struct CoreBox {
    cpus: Vec<CpuBox>,
    begins_cluster: bool,
}

struct CacheBox {
    name: String,
    economy: bool,
    cores: Vec<CoreBox>,
    cpu_width: f64,
}

/// One node with everything in it.
pub(super) struct NodeBox {
    name: String,
    note: String,
    home: bool,
    caches: Vec<CacheBox>,
}

/// The nodes of the host.
pub(super) fn nodes(plan: &Plan, topology: &Topology, marks: &Marks) -> Vec<NodeBox> {
    let cells = Cells::of(plan, topology, marks);
    let all = places(topology);
    let packages: BTreeSet<_> = topology.cpus.values().map(|cpu| cpu.package).collect();
    let node = |node: Option<u32>, places: &BTreeMap<Place, Cores>| {
        let here: BTreeSet<_> = places.keys().map(|place| place.0).collect();
        let names = Names::of(places, here.len() > 1);
        let mut note = node.map_or(String::new(), |id| node_note(plan, topology, id));
        if let (true, 1, Some((_, Some(package)))) = (packages.len() > 1, here.len(), here.first()) {
            note = format!("package {package}{}{note}", if note.is_empty() { "" } else { ", " });
        }
        let caches = places.iter().map(|(place, cores)| CacheBox {
            name: names.name(place),
            economy: place.3 == CoreKind::Efficiency,
            cores: cells.cores(cores),
            cpu_width: cells.width,
        });
        NodeBox {
            name: node.map_or("node unknown".to_owned(), |id| format!("node {id}")),
            note: if places.is_empty() { format!("no CPUs, {note}") } else { note },
            home: node.is_some() && plan.home.node == node,
            caches: caches.collect(),
        }
    };
    all.iter().map(|((_, id), places)| node(*id, places)).collect()
}

/// What every cell needs.
struct Cells<'a> {
    topology: &'a Topology,
    marks: &'a Marks,
    reasons: BTreeMap<Who, String>,
    width: f64,
}

impl<'a> Cells<'a> {
    fn of(plan: &'a Plan, topology: &'a Topology, marks: &'a Marks) -> Cells<'a> {
        let vcpus = plan.vcpus.iter().map(|v| (Who::Vcpu(v.id), format!("vcpu {}: {}", v.id, v.because)));
        let iothreads =
            plan.iothreads.iter().map(|i| (Who::IoThread(i.id), format!("{}: {}", i.name, i.because)));
        let emulator = (Who::Emulator, format!("emulator: {}", plan.emulator.because));
        let reasons = vcpus.chain(iothreads).chain([emulator]).collect();
        let mark = |cpu: &u32| match marks.of_cpu(*cpu) {
            // A bold plus is wider than a digit.
            Mark::Threads(threads) => names(threads).chars().map(|c| if c == '+' { 2 } else { 1 }).sum(),
            Mark::Idle(_) => 1,
        };
        let longest = topology.cpus.keys().map(mark).max().unwrap_or(1).max(2);
        let id = topology.cpus.last_key_value().map_or(1, |(id, _)| id.to_string().len());
        let width = 12.0 + width_of(&"9".repeat(id), 8.5) + width_of(&"9".repeat(longest), 11.0) * 1.1;
        Cells { topology, marks, reasons, width }
    }

    fn cores(&self, cores: &Cores) -> Vec<CoreBox> {
        let clustered = clustered(cores);
        let mut before = None;
        let mut boxes = Vec::new();
        for ((cluster, _), cpus) in cores {
            let begins_cluster = clustered && before.is_some_and(|before| before != *cluster);
            before = Some(*cluster);
            boxes.push(CoreBox { cpus: cpus.iter().map(|cpu| self.cpu(*cpu)).collect(), begins_cluster });
        }
        boxes
    }

    fn cpu(&self, id: u32) -> CpuBox {
        let core = self.topology.cpus.get(&id).map_or(id, |cpu| cpu.core);
        let place = format!("CPU {id}, core {core}");
        match self.marks.of_cpu(id) {
            Mark::Threads(threads) => {
                let why = threads.iter().filter_map(|who| self.reasons.get(who).map(String::as_str));
                let title = format!("{place}\n{}", why.collect::<Vec<_>>().join("\n"));
                let (paint, ink) = loudest(threads).map_or((colours::CORE, colours::INK), colours::of_thread);
                CpuBox { id, mark: names(threads), paint, ink, title }
            }
            Mark::Idle(idle) => CpuBox {
                id,
                mark: String::new(),
                paint: colours::of_idle(idle),
                ink: colours::FAINT,
                title: format!("{place}: {}", idle.words()),
            },
        }
    }
}

impl CacheBox {
    fn core_width(&self) -> f64 {
        self.cpu_width + 6.0
    }

    fn head(&self) -> String {
        let economy = if self.economy { "  efficiency cores" } else { "" };
        format!("{}{economy}", self.name)
    }

    /// The lines of cores, each with the deepest core's height.
    fn lines(&self) -> impl Iterator<Item = (&[CoreBox], f64)> {
        self.cores.chunks(ABREAST).map(|line| {
            let deepest = line.iter().map(|core| core.cpus.len()).max().unwrap_or(0);
            (line, deepest as f64 * (CPU_HEIGHT + 2.0) + 4.0)
        })
    }

    fn line_width(&self, line: &[CoreBox]) -> f64 {
        let clusters = line.iter().skip(1).filter(|core| core.begins_cluster).count() as f64;
        line.len() as f64 * (self.core_width() + 3.0) - 3.0 + clusters * CLUSTER_GAP
    }

    fn size(&self) -> Size {
        let widest = self.lines().map(|(line, _)| self.line_width(line)).fold(0.0, f64::max);
        let height: f64 = self.lines().map(|(_, height)| height + 3.0).sum();
        let width = widest.max(width_of(&self.head(), 10.5));
        Size { width: width + 2.0 * 7.0, height: CACHE_HEAD + height + 5.0 }
    }

    fn draw(&self, canvas: &mut Canvas, x: f64, y: f64) {
        let size = self.size();
        canvas.rect(Area { x, y, width: size.width, height: size.height }, colours::CACHE);
        canvas.text(x + 7.0, y + 13.0, Type::of(10.5, colours::QUIET), &self.head());
        let mut top = y + CACHE_HEAD;
        for (line, height) in self.lines() {
            let mut left = x + 7.0;
            for (at, core) in line.iter().enumerate() {
                if at > 0 && core.begins_cluster {
                    let middle = left + (CLUSTER_GAP - 3.0) / 2.0;
                    canvas.line((middle, top), (middle, top + height), "#b9c2cd");
                    left += CLUSTER_GAP;
                }
                self.draw_core(canvas, core, left, top);
                left += self.core_width() + 3.0;
            }
            top += height + 3.0;
        }
    }

    fn draw_core(&self, canvas: &mut Canvas, core: &CoreBox, x: f64, y: f64) {
        let height = core.cpus.len() as f64 * (CPU_HEIGHT + 2.0) + 4.0;
        let paint = if self.economy { colours::ECONOMY } else { colours::CORE };
        canvas.rect(Area { x, y, width: self.core_width(), height }, paint);
        for (row, cpu) in (0..).zip(&core.cpus) {
            let top = y + 3.0 + f64::from(row) * (CPU_HEIGHT + 2.0);
            let area = Area { x: x + 3.0, y: top, width: self.cpu_width, height: CPU_HEIGHT };
            canvas.group(&cpu.title, |canvas| {
                canvas.rect(area, Paint { round: 3.0, ..cpu.paint });
                let id = Type::of(8.5, cpu.ink);
                canvas.text(area.x + 4.0, top + CPU_HEIGHT - 7.0, id, &cpu.id.to_string());
                if !cpu.mark.is_empty() {
                    let mark = Type::of(11.0, cpu.ink).bold().anchored("end");
                    canvas.text(area.x + area.width - 4.0, top + CPU_HEIGHT - 6.5, mark, &cpu.mark);
                }
            });
        }
    }
}

impl NodeBox {
    fn inner(&self) -> (Vec<(f64, f64)>, Size) {
        let sizes: Vec<Size> = self.caches.iter().map(CacheBox::size).collect();
        flow(&sizes, WIDEST - 2.0 * PAD)
    }

    pub(super) fn size(&self) -> Size {
        let inner = self.inner().1;
        let head = width_of(&self.name, 13.0) * 1.1 + 12.0 + width_of(&self.note, 11.0);
        let below = if self.caches.is_empty() { 0.0 } else { inner.height + PAD };
        Size { width: inner.width.max(head) + 2.0 * PAD, height: NODE_HEAD + below + 2.0 }
    }

    pub(super) fn draw(&self, canvas: &mut Canvas, x: f64, y: f64) {
        let size = self.size();
        let paint = if self.home { colours::HOME } else { colours::NODE };
        canvas.rect(Area { x, y, width: size.width, height: size.height }, paint);
        canvas.text(x + PAD, y + 18.0, Type::of(13.0, colours::INK).bold(), &self.name);
        let after = x + PAD + width_of(&self.name, 13.0) * 1.1 + 12.0;
        canvas.text(after, y + 18.0, Type::of(11.0, colours::QUIET), &self.note);
        for (cache, (dx, dy)) in self.caches.iter().zip(self.inner().0) {
            cache.draw(canvas, x + PAD + dx, y + NODE_HEAD + dy);
        }
    }
}

/// One entry of the legend: how it is painted, the letters on it, and what it means.
pub(super) struct Entry {
    paint: Paint,
    ink: &'static str,
    mark: &'static str,
    words: &'static str,
}

impl Entry {
    fn width(&self) -> f64 {
        28.0 + width_of(self.words, 11.0) + GAP
    }
}

/// Only what is there.
pub(super) fn legend(marks: &Marks, topology: &Topology) -> Vec<Entry> {
    let mut threads: BTreeSet<u8> = BTreeSet::new();
    let mut idle: BTreeSet<Idle> = BTreeSet::new();
    for cpu in topology.cpus.keys() {
        match marks.of_cpu(*cpu) {
            Mark::Idle(one) => {
                idle.insert(one);
            }
            Mark::Threads(all) => threads.extend(all.iter().map(|who| match who {
                Who::Vcpu(_) => 0,
                Who::IoThread(_) => 1,
                Who::Emulator => 2,
            })),
        }
    }
    let kinds = [
        (0, Who::Vcpu(0), "v", "vCPU"),
        (1, Who::IoThread(0), "i", "IOThread, each in its colour"),
        (2, Who::Emulator, "e", "emulator"),
    ];
    let mut entries: Vec<Entry> = kinds
        .into_iter()
        .filter(|(kind, ..)| threads.contains(kind))
        .map(|(_, who, mark, words)| {
            let (paint, ink) = colours::of_thread(who);
            Entry { paint, ink, mark, words }
        })
        .collect();
    entries.extend(idle.into_iter().map(|one| Entry {
        paint: colours::of_idle(one),
        ink: colours::FAINT,
        mark: "",
        words: one.words(),
    }));
    if topology.cpus.values().any(|cpu| cpu.kind == CoreKind::Efficiency) {
        let words = "efficiency core";
        entries.push(Entry { paint: colours::ECONOMY, ink: colours::FAINT, mark: "", words });
    }
    entries
}

/// The legend in lines that fit.
pub(super) fn legend_lines(entries: &[Entry], width: f64) -> Vec<&[Entry]> {
    let mut lines = Vec::new();
    let (mut from, mut used) = (0, 0.0);
    for (at, entry) in entries.iter().enumerate() {
        if used + entry.width() > width && at > from {
            lines.extend(entries.get(from..at));
            (from, used) = (at, 0.0);
        }
        used += entry.width();
    }
    lines.extend(entries.get(from..));
    lines
}

pub(super) fn draw_legend(canvas: &mut Canvas, entries: &[Entry], x: f64, y: f64) {
    let mut left = x;
    for entry in entries {
        canvas.rect(Area { x: left, y, width: 22.0, height: 14.0 }, Paint { round: 3.0, ..entry.paint });
        let mark = Type::of(10.0, entry.ink).bold().anchored("middle");
        if !entry.mark.is_empty() {
            canvas.text(left + 11.0, y + 10.5, mark, entry.mark);
        }
        canvas.text(left + 28.0, y + 11.0, Type::of(11.0, colours::QUIET), entry.words);
        left += entry.width();
    }
}
