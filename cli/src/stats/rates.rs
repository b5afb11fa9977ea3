//! What a VM does now: the difference of two answers, a second.

use vmprof_vmm::iothread::counters::{IoThreadSnapshot, QueueSnapshot};

use super::text::table;
use super::{Stats, Thread};

impl Stats {
    /// What was done since `before`, as tables.
    pub fn rates_since(&self, before: &Stats) -> String {
        let seconds = self.taken_ns.saturating_sub(before.taken_ns).max(1) as f64 / 1e9;
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let thread = |tid: i32| -> [String; 5] {
            let of = |stats: &'_ Stats| stats.threads.iter().find(|thread| thread.tid == tid).cloned();
            let (now, before) = (of(self).unwrap_or_default(), of(before).unwrap_or_default());
            let of_the_time = |field: fn(&Thread) -> u64| percent(rate(field(&now), field(&before)) / 1e9);
            [
                now.cpu.map_or("-".to_owned(), |cpu| cpu.to_string()),
                of_the_time(|thread| thread.cpu_ns),
                of_the_time(|thread| thread.waited_ns),
                whole(rate(now.voluntary, before.voluntary)),
                whole(rate(now.involuntary, before.involuntary)),
            ]
        };
        let vcpus = self.machine.vcpus.iter().map(|vcpu| {
            let exits = |stats: &Stats| {
                let vcpu = stats.machine.vcpus.iter().find(|other| other.id == vcpu.id);
                vcpu.map_or(0, |vcpu| vcpu.exits.all())
            };
            let exits = whole(rate(exits(self), exits(before)));
            [vcpu.name.clone()].into_iter().chain(thread(vcpu.tid)).chain([exits]).collect()
        });
        let mut text =
            table(&["VCPU", "on CPU", "CPU %", "waited %", "switches/s", "forced/s", "exits/s"], vcpus);
        let iothreads = self.machine.iothreads.iter().map(|iothread| {
            let before = before.machine.iothreads.iter().find(|other| other.id == iothread.id);
            let of = |field: fn(&IoThreadSnapshot) -> u64| rate(field(iothread), before.map_or(0, field));
            let (hits, misses) = (of(|iothread| iothread.poll_hits), of(|iothread| iothread.poll_misses));
            let polled = if hits + misses > 0.0 { percent(hits / (hits + misses)) } else { "-".to_owned() };
            let counts = [whole(of(|iothread| iothread.enters)), polled];
            [iothread.name.clone()].into_iter().chain(thread(iothread.tid)).chain(counts).collect()
        });
        text += &table(
            &["IOTHREAD", "on CPU", "CPU %", "waited %", "switches/s", "forced/s", "enters/s", "poll hits %"],
            iothreads,
        );
        let queues = self.machine.disks.iter().flat_map(|disk| {
            let earlier = before.machine.disks.iter().find(|other| other.name == disk.name);
            disk.virtqueues.iter().map(move |queue| {
                let before =
                    earlier.and_then(|disk| disk.virtqueues.iter().find(|other| other.vq == queue.vq));
                let of = |field: fn(&QueueSnapshot) -> u64| rate(field(queue), before.map_or(0, field));
                let requests = of(QueueSnapshot::requests);
                let each = |number: f64| match requests > 0.0 {
                    true => format!("{:.2}", number / requests),
                    false => "-".to_owned(),
                };
                vec![
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
                ]
            })
        });
        text += &table(
            &[
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
            ],
            queues,
        );
        text
    }
}

fn whole(number: f64) -> String {
    format!("{number:.0}")
}

fn percent(part: f64) -> String {
    format!("{:.1}", 100.0 * part)
}

fn mib(bytes: f64) -> String {
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
