//! Stats as Prometheus reads them: its text format, version 0.0.4.

use std::fmt::{Display, Write};

use vmprof_vmm::iothread::counters::QueueSnapshot;

use super::{Stats, nets};

/// Metrics as they are written: those of one name must stand together.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins a metric.
    pub(super) fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(&value.to_string())))
            .collect();
        let _ = writeln!(self.0, "{name}{{{}}} {value}", labels.join(","));
    }
}

impl Display for Text {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

impl Stats {
    /// Of the VM that is called `vm`.
    pub fn prometheus(&self, vm: &str) -> String {
        let Stats { process, threads, machine, .. } = self;
        let mut text = Text::default();
        let vm: &dyn Display = &vm;

        text.metric("vmprof_memory_bytes", "gauge", "Resident memory of the VMM's process.");
        for (kind, bytes) in [
            ("guest", process.guest_bytes),
            ("anonymous", process.anonymous_bytes),
            ("file", process.beyond_guest_bytes.saturating_sub(process.anonymous_bytes)),
        ] {
            text.sample("vmprof_memory_bytes", &[("vm", vm), ("kind", &kind)], bytes);
        }
        text.metric("vmprof_paused", "gauge", "1 while the guest stands still.");
        text.sample("vmprof_paused", &[("vm", vm)], u8::from(machine.paused.is_some()));

        let name = "vmprof_thread_cpu_seconds_total";
        text.metric(name, "counter", "Time that a thread ran.");
        for thread in threads {
            text.sample(
                name,
                &[("vm", vm), ("thread", &thread.name), ("tid", &thread.tid)],
                seconds(thread.cpu_ns),
            );
        }
        let name = "vmprof_thread_waited_seconds_total";
        text.metric(name, "counter", "Time that a thread was ready and had no CPU.");
        for thread in threads {
            let labels: [(&str, &dyn Display); 3] =
                [("vm", vm), ("thread", &thread.name), ("tid", &thread.tid)];
            text.sample(name, &labels, seconds(thread.waited_ns));
        }
        let name = "vmprof_thread_switches_total";
        text.metric(name, "counter", "Context switches of a thread.");
        for thread in threads {
            for (kind, number) in [("voluntary", thread.voluntary), ("involuntary", thread.involuntary)] {
                let labels: [(&str, &dyn Display); 4] =
                    [("vm", vm), ("thread", &thread.name), ("tid", &thread.tid), ("kind", &kind)];
                text.sample(name, &labels, number);
            }
        }

        let name = "vmprof_vcpu_exits_total";
        text.metric(name, "counter", "Exits of a vCPU that reached the VMM.");
        for vcpu in &machine.vcpus {
            for (reason, number) in vcpu.exits.named() {
                text.sample(name, &[("vm", vm), ("vcpu", &vcpu.id), ("reason", &reason)], number);
            }
        }
        let name = "vmprof_iothread_enters_total";
        text.metric(name, "counter", "System calls of an IOThread that submit or wait.");
        for iothread in &machine.iothreads {
            text.sample(name, &[("vm", vm), ("iothread", &iothread.name)], iothread.enters);
        }
        let name = "vmprof_iothread_wakeups_total";
        text.metric(name, "counter", "How often an IOThread could sleep.");
        for iothread in &machine.iothreads {
            text.sample(name, &[("vm", vm), ("iothread", &iothread.name)], iothread.wakeups);
        }
        let name = "vmprof_iothread_polls_total";
        text.metric(name, "counter", "Waits of an IOThread that began by looking.");
        for iothread in &machine.iothreads {
            for (result, number) in [("hit", iothread.poll_hits), ("miss", iothread.poll_misses)] {
                text.sample(name, &[("vm", vm), ("iothread", &iothread.name), ("result", &result)], number);
            }
        }
        self.queues(&mut text, vm);
        self.latencies(&mut text, vm);
        nets::metrics(&machine.nets, &mut text, vm);
        text.0
    }

    fn queues(&self, text: &mut Text, vm: &dyn Display) {
        let disks = &self.machine.disks;
        let queues = || disks.iter().flat_map(|disk| disk.virtqueues.iter().map(move |queue| (disk, queue)));
        let name = "vmprof_queue_requests_total";
        text.metric(name, "counter", "Requests of a virtqueue that ended.");
        for (disk, queue) in queues() {
            for (kind, number) in [
                ("read", queue.reads),
                ("write", queue.writes),
                ("flush", queue.flushes),
                ("discard", queue.discards),
                ("write_zeroes", queue.write_zeroes),
                ("other", queue.others),
            ] {
                text.sample(
                    name,
                    &[("vm", vm), ("disk", &disk.name), ("vq", &queue.vq), ("kind", &kind)],
                    number,
                );
            }
        }
        let name = "vmprof_queue_bytes_total";
        text.metric(name, "counter", "Bytes of reads and writes that ended well.");
        for (disk, queue) in queues() {
            for (kind, number) in [("read", queue.read_bytes), ("write", queue.written_bytes)] {
                text.sample(
                    name,
                    &[("vm", vm), ("disk", &disk.name), ("vq", &queue.vq), ("kind", &kind)],
                    number,
                );
            }
        }
        for (name, kind, help, value) in [
            (
                "vmprof_queue_errors_total",
                "counter",
                "Requests that failed.",
                (|queue| queue.errors) as fn(&QueueSnapshot) -> u64,
            ),
            ("vmprof_queue_kicks_total", "counter", "Doorbells heard.", |queue| queue.kicks),
            ("vmprof_queue_interrupts_total", "counter", "Interrupts sent.", |queue| queue.interrupts),
            ("vmprof_queue_in_flight", "gauge", "Requests taken and not ended.", |queue| queue.in_flight),
        ] {
            text.metric(name, kind, help);
            for (disk, queue) in queues() {
                text.sample(name, &[("vm", vm), ("disk", &disk.name), ("vq", &queue.vq)], value(queue));
            }
        }
        let name = "vmprof_queue_oldest_seconds";
        text.metric(name, "gauge", "Age of the oldest request in flight, 0 without one.");
        for (disk, queue) in queues() {
            let age = queue.oldest.as_ref().map_or(0, |oldest| oldest.age_ms);
            text.sample(name, &[("vm", vm), ("disk", &disk.name), ("vq", &queue.vq)], age as f64 / 1e3);
        }
    }
}

/// The bounds of what Prometheus gets, as powers of two of nanoseconds: 256 ns to 17 s. No bucket of a histogram lies across one.
const BOUNDS: std::ops::RangeInclusive<u32> = 8..=34;

impl Stats {
    fn latencies(&self, text: &mut Text, vm: &dyn Display) {
        let disks = &self.machine.disks;
        let timed = disks.iter().flat_map(|disk| disk.virtqueues.iter().map(move |queue| (disk, queue)));
        let timed = timed.filter_map(|(disk, queue)| Some((disk, queue, queue.latency.as_ref()?)));
        let stages = timed.flat_map(|(disk, queue, latency)| {
            latency.stages().map(|(stage, histogram)| (disk, queue, stage, histogram))
        });
        let mut stages = stages.peekable();
        if stages.peek().is_none() {
            return;
        }
        let name = "vmprof_queue_latency_seconds";
        text.metric(
            name,
            "histogram",
            "Time of a request in the queue, with the device and in its completion.",
        );
        for (disk, queue, stage, histogram) in stages {
            let labels: [(&str, &dyn Display); 4] =
                [("vm", vm), ("disk", &disk.name), ("vq", &queue.vq), ("stage", &stage)];
            let mut bucket = |le: &dyn Display, count: u64| {
                text.sample(&format!("{name}_bucket"), &[&labels[..], &[("le", le)]].concat(), count);
            };
            for bound in BOUNDS {
                let within = histogram.buckets.iter().filter(|(longest, _)| *longest <= 1 << bound);
                bucket(&seconds(1 << bound), within.map(|(_, count)| count).sum());
            }
            bucket(&"+Inf", histogram.count());
            text.sample(&format!("{name}_sum"), &labels, seconds(histogram.sum_ns));
            text.sample(&format!("{name}_count"), &labels, histogram.count());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vmprof_vmm::iothread::latency::{HistogramSnapshot, LatencySnapshot};

    use super::super::tests::stats;

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        assert!(!stats().prometheus("db").contains("latency"), "nothing was timed");
        let mut timed = stats();
        let device = HistogramSnapshot {
            sum_ns: 2_500,
            max_ns: 1_500,
            buckets: vec![(256, 2), (1_024, 1), (1_536, 1), (1 << 36, 1)],
        };
        timed.machine.disks[0].virtqueues[1].latency =
            Some(LatencySnapshot { device, ..LatencySnapshot::default() });
        let text = timed.prometheus("db");
        let labels = r#"vm="db",disk="data",vq="1",stage="device""#;
        for (sample, value) in [
            (format!("bucket{{{labels},le=\"0.000000256\"}}"), "2"),
            (format!("bucket{{{labels},le=\"0.000001024\"}}"), "3"),
            (format!("bucket{{{labels},le=\"0.000002048\"}}"), "4"),
            (format!("bucket{{{labels},le=\"+Inf\"}}"), "5"),
            (format!("sum{{{labels}}}"), "0.0000025"),
            (format!("count{{{labels}}}"), "5"),
        ] {
            let line = format!("vmprof_queue_latency_seconds_{sample} {value}");
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn every_sample_follows_its_metric_and_no_metric_comes_twice() {
        let text = stats().prometheus("a \"b\"\\");
        let mut seen = BTreeSet::new();
        let mut current = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                current = rest.split_whitespace().next().unwrap();
                assert!(seen.insert(current), "{current} twice");
            } else if !line.starts_with('#') {
                let (name, rest) = line.split_once('{').unwrap();
                let (labels, value) = rest.rsplit_once("} ").unwrap();
                assert_eq!(name, current);
                assert!(labels.starts_with(r#"vm="a \"b\"\\""#), "{labels}");
                value.parse::<f64>().unwrap();
            }
        }
        assert!(text.contains(r#"disk="data",vq="1",kind="read"} 10"#), "{text}");
        assert!(text.contains(r#"thread="IO iothread0",tid="8"} 1.5"#), "{text}");
        assert!(text.ends_with('\n'));
    }
}
