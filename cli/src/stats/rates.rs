//! What a VM does now: the difference of two answers, a second.

use vmprof_vmm::iothread::counters::{IoThreadSnapshot, QueueSnapshot};
use vmprof_vmm::stats::VcpuStats;
use vmprof_vmm::virtio::blk::DiskSnapshot;

use super::latency::{LATENCY_HEADS, latencies};
use super::nets::{self, NET_HEADS};
use super::text::table;
use super::{Stats, Thread};

/// Rows of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    pub heads: &'static [&'static str],
    pub rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What it has to do, to be sorted by: the CPU time of a thread, the requests or packets of a queue, those that were timed.
    pub load: f64,
    /// As many as there are heads.
    pub cells: Vec<String>,
}

const VCPU_HEADS: &[&str] = &["VCPU", "on CPU", "CPU %", "waited %", "switches/s", "forced/s", "exits/s"];
const IOTHREAD_HEADS: &[&str] =
    &["IOTHREAD", "on CPU", "CPU %", "waited %", "switches/s", "forced/s", "enters/s", "poll hits %"];
const QUEUE_HEADS: &[&str] = &[
    "DISK",
    "vq",
    "iothread",
    "reads/s",
    "writes/s",
    "flushes/s",
    "MiB/s read",
    "written",
    "kicks each",
    "interrupts",
    "errors/s",
    "in flight",
];

/// Two answers, the later with the earlier.
#[derive(Debug, Clone, Copy)]
struct Pair<'a> {
    now: &'a Stats,
    before: &'a Stats,
}

impl Stats {
    /// What was done since `before`, as tables.
    pub fn rates_since(&self, before: &Stats) -> String {
        let sections = self.sections_since(before).into_iter().filter(|section| {
            // Times are there for those who asked for them, and not every VM has a network.
            ![LATENCY_HEADS, NET_HEADS].contains(&section.heads) || !section.rows.is_empty()
        });
        sections.map(|Section { heads, rows }| table(heads, rows.into_iter().map(|row| row.cells))).collect()
    }

    /// The same by kind: vCPUs, IOThreads, virtqueues of disks, where their requests spent their time, and virtqueues of networks.
    pub fn sections_since(&self, before: &Stats) -> [Section; 5] {
        let pair = Pair { now: self, before };
        let latency = latencies(&self.machine.disks, Some(&before.machine.disks));
        let nets =
            nets::rates(&self.machine.nets, &before.machine.nets, |now, before| pair.rate(now, before));
        [
            Section { heads: VCPU_HEADS, rows: pair.vcpus() },
            Section { heads: IOTHREAD_HEADS, rows: pair.iothreads() },
            Section { heads: QUEUE_HEADS, rows: pair.queues() },
            Section { heads: LATENCY_HEADS, rows: latency },
            Section { heads: NET_HEADS, rows: nets },
        ]
    }
}

impl Pair<'_> {
    /// A second.
    fn rate(self, now: u64, before: u64) -> f64 {
        let seconds = self.now.taken_ns.saturating_sub(self.before.taken_ns).max(1) as f64 / 1e9;
        now.saturating_sub(before) as f64 / seconds
    }

    /// What a thread had of its CPUs; the part of the time that it ran beside it.
    fn thread(self, tid: i32) -> (f64, [String; 5]) {
        let of = |stats: &'_ Stats| stats.threads.iter().find(|thread| thread.tid == tid).cloned();
        let (now, before) = (of(self.now).unwrap_or_default(), of(self.before).unwrap_or_default());
        let of_the_time = |field: fn(&Thread) -> u64| self.rate(field(&now), field(&before)) / 1e9;
        let ran = of_the_time(|thread| thread.cpu_ns);
        let cells = [
            now.cpu.map_or("-".to_owned(), |cpu| cpu.to_string()),
            percent(ran),
            percent(of_the_time(|thread| thread.waited_ns)),
            whole(self.rate(now.voluntary, before.voluntary)),
            whole(self.rate(now.involuntary, before.involuntary)),
        ];
        (ran, cells)
    }

    fn vcpus(self) -> Vec<Row> {
        let row = |vcpu: &VcpuStats| {
            let exits = |stats: &Stats| {
                let vcpu = stats.machine.vcpus.iter().find(|other| other.id == vcpu.id);
                vcpu.map_or(0, |vcpu| vcpu.exits.all())
            };
            let exits = whole(self.rate(exits(self.now), exits(self.before)));
            let (load, thread) = self.thread(vcpu.tid);
            Row { load, cells: [vcpu.name.clone()].into_iter().chain(thread).chain([exits]).collect() }
        };
        self.now.machine.vcpus.iter().map(row).collect()
    }

    fn iothreads(self) -> Vec<Row> {
        let row = |iothread: &IoThreadSnapshot| {
            let before = self.before.machine.iothreads.iter().find(|other| other.id == iothread.id);
            let of =
                |field: fn(&IoThreadSnapshot) -> u64| self.rate(field(iothread), before.map_or(0, field));
            let (hits, misses) = (of(|iothread| iothread.poll_hits), of(|iothread| iothread.poll_misses));
            let polled = if hits + misses > 0.0 { percent(hits / (hits + misses)) } else { "-".to_owned() };
            let counts = [whole(of(|iothread| iothread.enters)), polled];
            let (load, thread) = self.thread(iothread.tid);
            Row { load, cells: [iothread.name.clone()].into_iter().chain(thread).chain(counts).collect() }
        };
        self.now.machine.iothreads.iter().map(row).collect()
    }

    fn queues(self) -> Vec<Row> {
        let row = |disk: &DiskSnapshot, queue: &QueueSnapshot| {
            let before = self.before.machine.disks.iter().find(|other| other.name == disk.name);
            let before = before.and_then(|disk| disk.virtqueues.iter().find(|other| other.vq == queue.vq));
            let of = |field: fn(&QueueSnapshot) -> u64| self.rate(field(queue), before.map_or(0, field));
            let requests = of(QueueSnapshot::requests);
            let each = |number| each(number, requests);
            let cells = vec![
                disk.name.clone(),
                queue.vq.to_string(),
                queue.iothread.map_or("-".to_owned(), |id| id.to_string()),
                whole(of(|queue| queue.reads)),
                whole(of(|queue| queue.writes)),
                whole(of(|queue| queue.flushes)),
                mib(of(|queue| queue.read_bytes)),
                mib(of(|queue| queue.written_bytes)),
                each(of(|queue| queue.kicks)),
                each(of(|queue| queue.interrupts)),
                whole(of(|queue| queue.errors)),
                queue.in_flight.to_string(),
            ];
            Row { load: requests, cells }
        };
        let disks = self.now.machine.disks.iter();
        disks.flat_map(|disk| disk.virtqueues.iter().map(move |queue| row(disk, queue))).collect()
    }
}

pub(super) fn whole(number: f64) -> String {
    format!("{number:.0}")
}

/// Of one thing, what `of` of them had together.
pub(super) fn each(number: f64, of: f64) -> String {
    if of > 0.0 { format!("{:.2}", number / of) } else { "-".to_owned() }
}

fn percent(part: f64) -> String {
    format!("{:.1}", 100.0 * part)
}

pub(super) fn mib(bytes: f64) -> String {
    format!("{:.1}", bytes / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::super::tests::stats;

    #[test]
    fn counts_become_rates_and_what_is_new_counts_from_nothing() {
        let (mut before, mut now) = (stats(), stats());
        before.machine.disks[0].virtqueues.truncate(1);
        now.threads[1].cpu_ns += 500_000_000;
        now.threads[1].voluntary += 40;
        let queue = &mut now.machine.disks[0].virtqueues[0];
        (queue.reads, queue.read_bytes) = (queue.reads + 2_000, queue.read_bytes + (8 << 20));
        (queue.kicks, queue.interrupts) = (queue.kicks + 500, queue.interrupts + 1_000);
        now.taken_ns += 2_000_000_000;
        let text = now.rates_since(&before);
        let words = |name: &str| -> Vec<&str> {
            text.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().collect()
        };
        assert_eq!(words("iothread0"), ["iothread0", "3", "25.0", "0.0", "20", "0", "0", "-"]);
        let queue = ["data", "0", "0", "1000", "0", "0", "4.0", "0.0", "0.25", "0.50", "0", "2"];
        assert_eq!(words("data"), queue);
        assert!(text.lines().any(|line| line.starts_with("data   1")), "{text}");
    }
}
