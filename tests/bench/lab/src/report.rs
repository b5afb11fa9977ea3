//! The records as tables, and against the figures that the dataplane is to reach.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::counters::Role;
use crate::outside::Run;
use crate::record::{Pair, Record, Window};
use crate::settings::{Backing, Point, Vmm};

pub fn text(run: &Run) -> String {
    let results = Results::of(run);
    let mut text = head(run);
    text += &results.costs();
    text += &results.shares();
    text += &results.reasons();
    text += &results.machines();
    text += &results.verdicts();
    text
}

fn head(run: &Run) -> String {
    let mut text = String::new();
    let mut hosts = run.records.iter().filter_map(|record| match record {
        Record::Host { kernel, processor, cpus, vmprof, cmdline } => Some(format!(
            "emulated host: {cpus} CPUs ({processor}), Linux {kernel}; {vmprof} and QEMU {}; guests: {cmdline}",
            run.qemu
        )),
        _ => None,
    });
    // One after another, and all alike.
    if let Some(host) = hosts.next() {
        let _ = writeln!(text, "{host}");
    }
    for record in &run.records {
        if let Record::Lost { pair, why } = record {
            let why = why.lines().next().unwrap_or_default();
            let what = match pair {
                Some(pair) => format!("a pair ({}/{})", pair.backing, pair.iothreads),
                None => "an emulated host".to_owned(),
            };
            let _ = writeln!(text, "{what} was lost, and what was left was begun again: {why}");
        }
    }
    let machine = &run.machine;
    let _ = writeln!(
        text,
        "emulated by: {} CPUs ({}), Linux {}, load {}; {} s a window",
        machine.cpus, machine.processor, machine.kernel, machine.load, run.seconds
    );
    text
}

/// What a window says per request.
#[derive(Debug, Clone, Copy)]
struct Metric {
    name: &'static str,
    of: fn(&Window) -> f64,
}

fn run_us(window: &Window, counted: fn(Role) -> bool) -> f64 {
    let threads = window.counts.threads.iter().filter(|thread| counted(thread.role));
    threads.map(|thread| thread.run_ns as f64).sum::<f64>() / 1e3 / window.requests as f64
}

fn switches(window: &Window, role: Role) -> f64 {
    let threads = window.counts.threads.iter().filter(|thread| thread.role == role);
    threads.map(|thread| (thread.voluntary + thread.involuntary) as f64).sum::<f64>() / window.requests as f64
}

/// What vmprof counted of an IOThread.
fn requests_of(window: &Window, iothread: u32) -> f64 {
    window.own.get(&format!("iothread{iothread}.requests")).copied().unwrap_or(0) as f64
}

fn kvm(window: &Window, name: &str) -> f64 {
    window.counts.kvm.get(name).copied().unwrap_or(0) as f64 / window.requests as f64
}

/// Every thread but the vCPUs', whose time is the guest's before all.
const VMM_US: Metric = Metric { name: "VMM µs", of: |w| run_us(w, |role| role != Role::Vcpu) };

const METRICS: [Metric; 12] = [
    Metric { name: "kIOPS", of: |w| w.requests as f64 / w.counts.seconds / 1e3 },
    VMM_US,
    Metric { name: "IO µs", of: |w| run_us(w, |role| role == Role::IoThread) },
    Metric { name: "vCPU µs", of: |w| run_us(w, |role| role == Role::Vcpu) },
    Metric { name: "all µs", of: |w| run_us(w, |_| true) },
    Metric { name: "IO csw", of: |w| switches(w, Role::IoThread) },
    Metric { name: "vCPU csw", of: |w| switches(w, Role::Vcpu) },
    Metric { name: "exits", of: |w| kvm(w, "exits") },
    Metric { name: "io exits", of: |w| kvm(w, "io_exits") + kvm(w, "mmio_exits") },
    Metric { name: "disk irqs", of: |w| w.interrupts as f64 / w.requests as f64 },
    Metric { name: "irqs", of: |w| kvm(w, "irq_injections") },
    Metric { name: "halts", of: |w| kvm(w, "halt_exits") },
];

/// What was counted, with how often a request of each machine.
type Reasons<'a> = BTreeMap<&'a str, BTreeMap<Vmm, f64>>;

/// The windows by what was measured, each machine's in the order of the rounds.
struct Results<'a> {
    run: &'a Run,
    windows: BTreeMap<(Pair, &'a Point), BTreeMap<Vmm, Vec<&'a Window>>>,
}

impl<'a> Results<'a> {
    fn of(run: &'a Run) -> Results<'a> {
        let mut windows: BTreeMap<_, BTreeMap<_, Vec<_>>> = BTreeMap::new();
        for record in &run.records {
            if let Record::Window(window) = record
                && window.requests > 0
            {
                let point = windows.entry((window.pair, &window.point)).or_default();
                point.entry(window.vmm).or_default().push(window);
            }
        }
        Results { run, windows }
    }

    fn median(&self, pair: Pair, point: &Point, vmm: Vmm, metric: Metric) -> Option<f64> {
        let windows = self.windows.get(&(pair, point))?.get(&vmm)?;
        median(windows.iter().map(|window| (metric.of)(window)))
    }

    /// vmprof's part of QEMU's, round by round: the middle, the least, the most.
    fn ratio(&self, pair: Pair, point: &Point, metric: Metric) -> Option<(f64, f64, f64)> {
        let windows = self.windows.get(&(pair, point))?;
        let (ours, theirs) = (windows.get(&Vmm::Vmprof)?, windows.get(&Vmm::Qemu)?);
        let ratios: Vec<f64> = ours
            .iter()
            .filter_map(|our| {
                let their = theirs.iter().find(|their| their.round == our.round)?;
                Some((metric.of)(our) / (metric.of)(their))
            })
            .filter(|ratio| ratio.is_finite())
            .collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        Some((median(ratios.into_iter())?, least, most))
    }

    fn costs(&self) -> String {
        let mut text = String::from(
            "\nper request (VMM: all threads but the vCPUs'; csw: context switches; medians of the rounds)\n",
        );
        let _ = write!(text, "{:<34}{:<8}", "backing/IOThreads/point", "");
        for metric in METRICS {
            let _ = write!(text, "{:>9}", metric.name);
        }
        text.push('\n');
        for &(pair, point) in self.windows.keys() {
            for vmm in Vmm::BOTH {
                let what = match vmm {
                    Vmm::Vmprof => name(pair, point),
                    Vmm::Qemu => String::new(),
                };
                let _ = write!(text, "{what:<34}{vmm:<8}");
                for metric in METRICS {
                    let _ = match self.median(pair, point, vmm, metric) {
                        Some(value) => write!(text, "{value:>9.2}"),
                        None => write!(text, "{:>9}", "-"),
                    };
                }
                text.push('\n');
            }
            let _ = write!(text, "{:<34}{:<8}", "", "ratio");
            for metric in METRICS {
                let _ = match self.ratio(pair, point, metric) {
                    Some((ratio, ..)) => write!(text, "{ratio:>9.2}"),
                    None => write!(text, "{:>9}", "-"),
                };
            }
            text.push('\n');
        }
        text
    }

    /// What each IOThread did of the requests and of the CPU time; QEMU does not say which thread served a request.
    fn shares(&self) -> String {
        let mut text = String::from("\nshares of the IOThreads, % (medians of the rounds)\n");
        for (&(pair, point), windows) in &self.windows {
            if pair.iothreads < 2 {
                continue;
            }
            for (vmm, windows) in windows {
                let each = |of: &dyn Fn(&Window, u32) -> f64| {
                    let shares = (0..pair.iothreads).map(|index| {
                        let share = windows.iter().map(|window| {
                            let all: f64 = (0..pair.iothreads).map(|other| of(window, other)).sum();
                            100.0 * of(window, index) / all.max(1.0)
                        });
                        format!("{:.0}", median(share).unwrap_or(0.0))
                    });
                    shares.collect::<Vec<_>>().join(" ")
                };
                let time = each(&|window, index| {
                    let name = format!("IO iothread{index}");
                    let threads = window.counts.threads.iter().filter(|thread| thread.name == name);
                    threads.map(|thread| thread.run_ns as f64).sum()
                });
                let requests = match vmm {
                    Vmm::Vmprof => each(&requests_of),
                    Vmm::Qemu => "not told".to_owned(),
                };
                let _ =
                    writeln!(text, "{:<34}{vmm:<8} requests {requests:<16} CPU {time}", name(pair, point));
            }
        }
        text
    }

    /// Exits and system calls per request, from the traced windows, what is rarer than one in 200 left out.
    fn reasons(&self) -> String {
        let mut traces: BTreeMap<(Pair, &Point), Reasons<'_>> = BTreeMap::new();
        for record in &self.run.records {
            if let Record::Trace { vmm, pair, point, requests, counts } = record {
                for (what, count) in counts {
                    let each = *count as f64 / (*requests).max(1) as f64;
                    traces.entry((*pair, point)).or_default().entry(what).or_default().insert(*vmm, each);
                }
            }
        }
        let mut text = String::from("\nwhy, per request (counted under trace events)\n");
        for ((pair, point), reasons) in traces {
            let _ = writeln!(text, "{:<44}{:>9}{:>9}", name(pair, point), "vmprof", "qemu");
            for (what, by) in reasons {
                let of = |vmm| by.get(&vmm).copied().unwrap_or(0.0);
                let (ours, theirs) = (of(Vmm::Vmprof), of(Vmm::Qemu));
                if ours.max(theirs) >= 0.005 {
                    let _ = writeln!(text, "  {what:<42}{ours:>9.3}{theirs:>9.3}");
                }
            }
        }
        text
    }

    /// Boots and memory.
    fn machines(&self) -> String {
        let mut text = String::from("\nstart of the VMM to the guest's first program, ms\n");
        for vmm in Vmm::BOTH {
            let mut boots = self.boots(vmm);
            boots.sort_by(f64::total_cmp);
            let list: Vec<String> = boots.iter().map(|ms| format!("{ms:.0}")).collect();
            let _ = writeln!(
                text,
                "{vmm:<8} median {:.0} of {}",
                median(boots.into_iter()).unwrap_or(0.0),
                list.join(" ")
            );
        }
        text += "\nmemory, KiB        VmHWM    guest RAM   VmHWM less guest RAM   now beyond guest RAM   of it anonymous   what is beyond\n";
        for record in &self.run.records {
            if let Record::Memory { vmm, pair, memory } = record {
                let mut kinds: Vec<(&String, &u64)> = memory.kinds.iter().collect();
                kinds.sort_by_key(|(_, kib)| std::cmp::Reverse(**kib));
                let kinds: Vec<String> =
                    kinds.iter().take(8).map(|(kind, kib)| format!("{kind} {kib}")).collect();
                let _ = writeln!(
                    text,
                    "{vmm:<8}{:<8}{:>9}{:>13}{:>23}{:>23}{:>18}   {}",
                    format!("{}/{}", pair.backing, pair.iothreads),
                    memory.peak,
                    memory.guest,
                    memory.peak.saturating_sub(memory.guest),
                    memory.resident.saturating_sub(memory.guest),
                    memory.anonymous,
                    kinds.join(", ")
                );
            }
        }
        text
    }

    fn boots(&self, of: Vmm) -> Vec<f64> {
        let boot = |record: &Record| match record {
            Record::Boot { vmm, ms, .. } if *vmm == of => Some(*ms),
            _ => None,
        };
        self.run.records.iter().filter_map(boot).collect()
    }

    fn verdicts(&self) -> String {
        let mut text = String::from("\nagainst the figures to reach\n");
        for (backing, depth, most) in [
            (Backing::Null, 1, 0.62),
            (Backing::Null, 64, 0.65),
            (Backing::File, 1, 0.45),
            (Backing::File, 64, 0.28),
        ] {
            let point = Point { rw: "randread".to_owned(), jobs: 1, depth };
            let what = format!("VMM CPU per read, {backing}, depth {depth}, of QEMU's");
            match self.ratio(Pair { backing, iothreads: 1 }, &point, VMM_US) {
                Some((ratio, least, high)) => {
                    text += &verdict(
                        &what,
                        ratio <= most,
                        &format!("{ratio:.2} ({least:.2} to {high:.2})"),
                        most,
                    );
                }
                None => text += &not_measured(&what),
            }
        }
        text += &self.two_iothreads();
        let (ours, theirs) = (self.boots(Vmm::Vmprof), self.boots(Vmm::Qemu));
        match (median(ours.into_iter()), median(theirs.into_iter())) {
            (Some(ours), Some(theirs)) => {
                let ratio = ours / theirs;
                text += &verdict("start to /init, of QEMU's", ratio <= 0.75, &format!("{ratio:.2}"), 0.75);
            }
            _ => text += &not_measured("start to /init"),
        }
        let beyond = self.run.records.iter().filter_map(|record| match record {
            Record::Memory { vmm: Vmm::Vmprof, memory, .. } => {
                Some(memory.most_beyond() as f64 * 1024.0 / 1e6)
            }
            _ => None,
        });
        match beyond.reduce(f64::max) {
            Some(most) => {
                text +=
                    &verdict("VmHWM less guest RAM, MB, the most", most <= 5.0, &format!("{most:.2}"), 5.0);
            }
            None => text += &not_measured("VmHWM less guest RAM"),
        }
        text
    }

    /// What a second IOThread costs, and how the work is shared, where all four vCPUs submit.
    fn two_iothreads(&self) -> String {
        let mut text = String::new();
        for &(pair, point) in self.windows.keys() {
            if pair.iothreads != 2 || point.jobs != 4 || point.rw != "randread" {
                continue;
            }
            let what = name(pair, point);
            let one = Pair { iothreads: 1, ..pair };
            let cost = |pair| self.median(pair, point, Vmm::Vmprof, VMM_US);
            if let (Some(two), Some(one)) = (cost(pair), cost(one)) {
                let ratio = two / one;
                text += &verdict(
                    &format!("{what}: CPU of one IOThread's"),
                    ratio <= 1.15,
                    &format!("{ratio:.2}"),
                    1.15,
                );
            }
            let windows = self.windows.get(&(pair, point)).and_then(|windows| windows.get(&Vmm::Vmprof));
            let shares = windows.into_iter().flatten().filter_map(|window| {
                let (first, second) = (requests_of(window, 0), requests_of(window, 1));
                (first + second > 0.0).then(|| 100.0 * first.max(second) / (first + second))
            });
            if let Some(share) = median(shares) {
                let what = format!("{what}: share of the busier, %");
                text += &verdict(&what, share <= 55.0, &format!("{share:.1}"), 55.0);
            }
        }
        if text.is_empty() { not_measured("two IOThreads instead of one") } else { text }
    }
}

fn name(pair: Pair, point: &Point) -> String {
    format!("{}/{}/{point}", pair.backing, pair.iothreads)
}

fn verdict(what: &str, holds: bool, found: &str, most: f64) -> String {
    let holds = if holds { "holds" } else { "DOES NOT HOLD" };
    format!("  {what:<58} {found:<22} at most {most:<5} {holds}\n")
}

fn not_measured(what: &str) -> String {
    format!("  {what:<58} not measured\n")
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    match values.len() % 2 {
        0 => Some((values.get(middle - 1)? + upper) / 2.0),
        _ => Some(upper),
    }
}
