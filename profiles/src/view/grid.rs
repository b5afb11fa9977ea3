//! The host as a grid: a block per node, a line per last-level cache, a column per core, a row per sibling. Packages, dies
//! and clusters are named where there is more than one; efficiency cores have rows of their own.
//!
//! On large hosts runs of cores without threads fold into one word: `… 24 cores free`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::topology::{CoreKind, Cpu, CpuSet, NodeSet, Topology};

use super::marks::Idle;
use super::places::{Cores, Known, Names, Place, clustered, places};
use super::prose::{count, painted};

/// Hosts with more CPUs than this are folded.
const WHOLE: usize = 64;
/// Shorter runs of idle cores are drawn one by one.
const SHORTEST_RUN: usize = 4;
/// A longer list of CPUs is left out of a run's text.
const LONGEST_LIST: usize = 40;

/// How one CPU is drawn.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub text: String,
    /// The colour, as SGR parameters.
    pub paint: &'static str,
    /// What the CPU is where no thread is on it: such cores may fold.
    pub idle: Option<Idle>,
}

/// What a grid needs to know besides the topology.
pub(super) struct Grid<'a> {
    pub topology: &'a Topology,
    pub width: usize,
    pub colour: bool,
    /// What a node's line says behind its name.
    pub note: &'a dyn Fn(u32) -> String,
    pub cell: &'a dyn Fn(u32) -> Cell,
}

/// Draws every online CPU as its id and its mark, within `width` columns, without folding.
pub(super) fn grid(topology: &Topology, width: usize, mark: impl Fn(u32) -> String) -> String {
    let cell = |cpu| Cell { text: mark(cpu), paint: "", idle: None };
    Grid { topology, width, colour: false, note: &|_| String::new(), cell: &cell }.draw()
}

/// One line of a node before it is wrapped.
struct Line {
    label: String,
    items: Vec<Item>,
}

enum Item {
    Core {
        cells: Vec<String>,
        width: usize,
        begins_cluster: bool,
    },
    /// Cores that are all idle alike.
    Run {
        cores: usize,
        cpus: CpuSet,
        idle: Vec<Idle>,
    },
}

impl Grid<'_> {
    pub(super) fn draw(&self) -> String {
        let nodes = places(self.topology);
        let packages: BTreeSet<_> = self.topology.cpus.values().map(|cpu| cpu.package).collect();
        let widths = self.widths();
        let mut drawn: Vec<(String, Vec<Line>)> = Vec::new();
        // Nodes without CPUs that stand next to each other and say the same, as GPUs and memory cards have by dozens.
        let mut bare: Option<(NodeSet, String)> = None;
        for ((_, node), places) in &nodes {
            if let (Some(id), true) = (*node, places.is_empty()) {
                let note = (self.note)(id);
                match &mut bare {
                    Some((ids, other)) if *other == note => ids.insert(id),
                    _ => drawn.extend(bare.replace((NodeSet::of(id), note)).map(without_cpus)),
                }
                continue;
            }
            drawn.extend(bare.take().map(without_cpus));
            let mut head = vec![node.map_or("node ?".to_owned(), |n| format!("node {n}"))];
            let here: BTreeSet<_> = places.keys().map(|place| place.0).collect();
            if let (true, 1, Some((_, Some(package)))) = (packages.len() > 1, here.len(), here.first()) {
                head.push(format!("package {package}"));
            }
            head.extend(node.map(|n| (self.note)(n)).filter(|note| !note.is_empty()));
            drawn.push((head.join("  "), self.lines(places, here.len() > 1, widths)));
        }
        drawn.extend(bare.map(without_cpus));
        let all = drawn.iter().flat_map(|(_, lines)| lines);
        let label = all.map(|line| line.label.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (head, lines) in &drawn {
            let _ = writeln!(text, "{head}");
            lines.iter().for_each(|line| self.set(&mut text, line, label));
        }
        text
    }

    /// The lines of a node, those that are idle alike put together.
    fn lines(
        &self,
        places: &BTreeMap<Place, Cores>,
        several_packages: bool,
        widths: (usize, usize),
    ) -> Vec<Line> {
        let names = Names::of(places, several_packages);
        let mut lines: Vec<Line> = Vec::new();
        let mut drawn: Option<(Known, Known, Known)> = None;
        for (place @ (package, die, l3, kind), cores) in places {
            let mut label = names.name(place);
            if *kind == CoreKind::Efficiency {
                // Below the performance cores of the same cache the cache need not be named again.
                if drawn == Some((*package, *die, *l3)) {
                    label = " ".repeat(label.chars().count());
                }
                label.push_str("  efficiency");
            }
            drawn = Some((*package, *die, *l3));
            let line = Line { label, items: self.items(cores, widths) };
            match lines.last_mut() {
                Some(last) if last.takes(&line) => last.take(line),
                _ => lines.push(line),
            }
        }
        lines
    }

    fn items(&self, cores: &Cores, (id_width, mark_width): (usize, usize)) -> Vec<Item> {
        let width = id_width + 1 + mark_width;
        let fold = self.topology.cpus.len() > WHOLE;
        let clustered = clustered(cores);
        let mut items: Vec<Item> = Vec::new();
        let mut run: Vec<(&Vec<u32>, Vec<Idle>, Item)> = Vec::new();
        let flush = |run: &mut Vec<(&Vec<u32>, Vec<Idle>, Item)>, items: &mut Vec<Item>| match run
            .first()
            .map(|(_, idle, _)| idle.clone())
        {
            Some(idle) if run.len() >= SHORTEST_RUN => {
                let cpus = run.iter().flat_map(|(cpus, ..)| cpus.iter().copied()).collect();
                items.push(Item::Run { cores: run.len(), cpus, idle });
                run.clear();
            }
            _ => items.extend(run.drain(..).map(|(_, _, item)| item)),
        };
        let mut before: Option<Option<u32>> = None;
        for ((cluster, _), cpus) in cores {
            let drawn: Vec<Cell> = cpus.iter().map(|cpu| (self.cell)(*cpu)).collect();
            let cells = cpus.iter().zip(&drawn).map(|(cpu, cell)| {
                let blank = mark_width.saturating_sub(cell.text.chars().count());
                format!("{cpu:>id_width$} {}{:blank$}", painted(&cell.text, cell.paint, self.colour), "")
            });
            let begins_cluster = clustered && before.is_some_and(|before| before != *cluster);
            before = Some(*cluster);
            let core = Item::Core { cells: cells.collect(), width, begins_cluster };
            let idle: Option<Vec<Idle>> = drawn.iter().map(|cell| cell.idle).collect();
            match idle.filter(|_| fold) {
                Some(idle) => {
                    if run.first().is_some_and(|(_, other, _)| *other != idle) {
                        flush(&mut run, &mut items);
                    }
                    run.push((cpus, idle, core));
                }
                None => {
                    flush(&mut run, &mut items);
                    items.push(core);
                }
            }
        }
        flush(&mut run, &mut items);
        items
    }

    /// How many cores a line of text gets, so that a line of the picture that needs several is cut evenly.
    fn even(&self, items: &[Item], room: usize) -> usize {
        let widest = items.iter().map(|item| item.width() + item.gap().chars().count()).max().unwrap_or(1);
        let fit = ((room + 2) / widest.max(1)).max(1);
        items.len().div_ceil(items.len().div_ceil(fit).max(1))
    }

    fn widths(&self) -> (usize, usize) {
        let last = self.topology.cpus.last_key_value().map_or(0, |(id, _): (&u32, &Cpu)| *id);
        let mark = self.topology.cpus.keys().map(|id| (self.cell)(*id).text.chars().count()).max();
        (last.to_string().len(), mark.unwrap_or(1))
    }

    /// Writes a line of the picture, as many lines of text as it takes.
    fn set(&self, text: &mut String, line: &Line, label: usize) {
        let room = self.width.saturating_sub(label + 4);
        let most = self.even(&line.items, room);
        let mut at = 0;
        while let Some(first) = line.items.get(at) {
            let mut used = first.width();
            let mut next = at + 1;
            while let Some(item) = line.items.get(next) {
                used += item.gap().chars().count() + item.width();
                if used > room || next - at == most {
                    break;
                }
                next += 1;
            }
            let items = line.items.get(at..next).unwrap_or_default();
            let deepest = items.iter().map(Item::depth).max().unwrap_or(1);
            for row in 0..deepest {
                let name = if at == 0 && row == 0 { line.label.as_str() } else { "" };
                let mut whole = format!("  {name:<label$}  ");
                for (number, item) in items.iter().enumerate() {
                    if number > 0 {
                        whole.push_str(item.gap());
                    }
                    whole.push_str(&item.row(row, self.colour));
                }
                let _ = writeln!(text, "{}", whole.trim_end());
            }
            at = next;
        }
    }
}

/// What stands for nodes without CPUs: one line.
fn without_cpus((ids, note): (NodeSet, String)) -> (String, Vec<Line>) {
    let note = match (ids.len(), note.is_empty()) {
        (_, true) => String::new(),
        (1, false) => format!("  {note}"),
        (_, false) => format!("  each with {note}"),
    };
    let nodes = if ids.len() == 1 { "node" } else { "nodes" };
    (format!("{nodes} {ids}  no CPUs{note}"), Vec::new())
}

impl Line {
    /// Whether both lines are nothing but cores that are idle alike.
    fn takes(&self, next: &Line) -> bool {
        match (self.items.as_slice(), next.items.as_slice()) {
            ([Item::Run { idle: one, .. }], [Item::Run { idle: other, .. }]) => one == other,
            _ => false,
        }
    }

    fn take(&mut self, next: Line) {
        let first = self.label.split("-").next().unwrap_or_default().to_owned();
        // `L3 #1-7`, and where more than the number differs `die 0  L3 #3-die 1  L3 #0`.
        let number = |label: &str| label.rsplit_once('#').map(|(head, at)| (head.to_owned(), at.to_owned()));
        self.label = match (number(&first), number(&next.label)) {
            (Some((one, from)), Some((other, to))) if one == other => format!("{one}#{from}-{to}"),
            _ => format!("{first}-{}", next.label.trim_start()),
        };
        if let ([Item::Run { cores, cpus, .. }], Some(Item::Run { cores: more, cpus: others, .. })) =
            (self.items.as_mut_slice(), next.items.into_iter().next())
        {
            *cores += more;
            *cpus = cpus.or(&others);
        }
    }
}

impl Item {
    fn width(&self) -> usize {
        match self {
            Item::Core { width, .. } => *width,
            Item::Run { .. } => self.run().chars().count(),
        }
    }

    fn depth(&self) -> usize {
        match self {
            Item::Core { cells, .. } => cells.len(),
            Item::Run { .. } => 1,
        }
    }

    /// What stands before it on a line.
    fn gap(&self) -> &'static str {
        match self {
            Item::Core { begins_cluster: true, .. } => " | ",
            _ => "  ",
        }
    }

    fn row(&self, row: usize, colour: bool) -> String {
        match (self, row) {
            (Item::Core { cells, width, .. }, _) => {
                cells.get(row).cloned().unwrap_or_else(|| " ".repeat(*width))
            }
            (Item::Run { idle, .. }, 0) => {
                painted(&self.run(), idle.first().map_or("", |idle| idle.paint()), colour)
            }
            (Item::Run { .. }, _) => " ".repeat(self.width()),
        }
    }

    fn run(&self) -> String {
        let Item::Run { cores, cpus, idle } = self else { return String::new() };
        let mut kinds: Vec<&str> = idle.iter().map(|idle| idle.words()).collect();
        kinds.dedup();
        let list = cpus.to_string();
        let list = if list.len() <= LONGEST_LIST { format!(" ({list})") } else { String::new() };
        format!("… {} {}{list}", count(*cores, "core"), kinds.join(" / "))
    }
}
