//! Where requests spend their time, in lines.

use vmprof_vmm::iothread::latency::HistogramSnapshot;
use vmprof_vmm::virtio::blk::DiskSnapshot;

use super::rates::Row;

pub(super) const LATENCY_HEADS: &[&str] =
    &["DISK", "vq", "time in", "requests", "p50 us", "p99", "p99.9", "max"];

/// What came since `before`, or all without it: a line for each part of the time of each virtqueue that has any.
pub(super) fn latencies(disks: &[DiskSnapshot], before: Option<&[DiskSnapshot]>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (disk, queue) in disks.iter().flat_map(|disk| disk.virtqueues.iter().map(move |queue| (disk, queue)))
    {
        let Some(latency) = &queue.latency else { continue };
        let earlier = before
            .and_then(|disks| disks.iter().find(|other| other.name == disk.name))
            .and_then(|disk| disk.virtqueues.iter().find(|other| other.vq == queue.vq))
            .and_then(|queue| queue.latency.clone())
            .unwrap_or_default();
        for ((stage, now), (_, earlier)) in latency.stages().into_iter().zip(earlier.stages()) {
            let since = now.since(earlier);
            if since.count() > 0 {
                let place = [disk.name.clone(), queue.vq.to_string(), stage.to_owned()];
                let cells = place.into_iter().chain(numbers(&since)).collect();
                rows.push(Row { load: since.count() as f64, cells });
            }
        }
    }
    rows
}

/// How many, then microseconds.
fn numbers(histogram: &HistogramSnapshot) -> Vec<String> {
    let quantile = |per_mille| histogram.quantile_ns(per_mille).unwrap_or(0);
    let micros = |nanos: u64| format!("{:.1}", nanos as f64 / 1e3);
    let times = [quantile(500), quantile(990), quantile(999), histogram.max_ns].map(micros);
    std::iter::once(histogram.count().to_string()).chain(times).collect()
}

#[cfg(test)]
mod tests {
    use vmprof_vmm::iothread::latency::LatencySnapshot;

    use super::super::tests::stats;
    use super::*;

    fn histogram(buckets: &[(u64, u64)]) -> HistogramSnapshot {
        let max_ns = buckets.last().map_or(0, |(longest, _)| *longest);
        HistogramSnapshot { sum_ns: 0, max_ns, buckets: buckets.to_vec() }
    }

    #[test]
    fn what_was_timed_has_lines_and_the_watch_those_of_what_came_since() {
        let mut disks = stats().machine.disks;
        assert_eq!(latencies(&disks, None), []);
        let latency = |device: &[(u64, u64)]| LatencySnapshot {
            queue: histogram(&[(2_048, 10)]),
            device: histogram(device),
            completion: HistogramSnapshot::default(),
        };
        let words = |rows: Vec<Row>| -> Vec<String> { rows.iter().map(|row| row.cells.join(" ")).collect() };
        disks[0].virtqueues[1].latency = Some(latency(&[(65_536, 98), (131_072, 2)]));
        assert_eq!(
            words(latencies(&disks, None)),
            ["data 1 queue 10 2.0 2.0 2.0 2.0", "data 1 device 100 65.5 131.1 131.1 131.1"]
        );
        let before = disks.clone();
        disks[0].virtqueues[1].latency = Some(latency(&[(65_536, 98), (131_072, 5)]));
        assert_eq!(words(latencies(&disks, Some(&before))), ["data 1 device 3 131.1 131.1 131.1 131.1"]);
    }
}
