//! A VM's disks in the shape of QEMU's `query-blockstats` (qapi/block-core.json, BlockStats and BlockDeviceStats, 10.1).

use serde_json::{Value, json};
use vmprof_vmm::iothread::counters::QueueSnapshot;
use vmprof_vmm::virtio::blk::DiskSnapshot;

/// Only what is counted, under QEMU's names and as QEMU's virtio-blk counts it: an operation is one that ended well, one whose
/// error was passed over (`ignore`) included; zeroing is a write, and a discard an unmap. The times, the highest offset written,
/// merged, zone append and invalid operations have no counter here, and so no field.
pub fn as_qemu_counts(disks: &[DiskSnapshot]) -> Value {
    disks
        .iter()
        .map(|disk| json!({ "device": disk.name, "node-name": disk.name, "stats": stats(disk) }))
        .collect()
}

fn stats(disk: &DiskSnapshot) -> Value {
    let sum = |field: fn(&QueueSnapshot) -> u64| disk.virtqueues.iter().map(field).sum::<u64>();
    // The counters of a queue are not read at one instant: a failure may be there before its request.
    let well = |ended: u64, failed: u64| ended.saturating_sub(failed);
    let failed_writes = sum(|queue| queue.failed.writes + queue.failed.write_zeroes);
    let (failed_reads, failed_flushes) = (sum(|queue| queue.failed.reads), sum(|queue| queue.failed.flushes));
    let failed_discards = sum(|queue| queue.failed.discards);
    json!({
        "rd_bytes": sum(|queue| queue.read_bytes),
        "wr_bytes": sum(|queue| queue.written_bytes + queue.zeroed_bytes),
        "unmap_bytes": sum(|queue| queue.discarded_bytes),
        "rd_operations": well(sum(|queue| queue.reads), failed_reads),
        "wr_operations": well(sum(|queue| queue.writes + queue.write_zeroes), failed_writes),
        "flush_operations": well(sum(|queue| queue.flushes), failed_flushes),
        "unmap_operations": well(sum(|queue| queue.discards), failed_discards),
        "failed_rd_operations": failed_reads,
        "failed_wr_operations": failed_writes,
        "failed_flush_operations": failed_flushes,
        "failed_unmap_operations": failed_discards,
    })
}

#[cfg(test)]
mod tests {
    use vmprof_vmm::iothread::counters::FailedSnapshot;

    use super::super::tests::stats as shown;
    use super::*;

    #[test]
    fn queues_add_up_and_what_failed_is_no_operation() {
        let mut disks = shown().machine.disks;
        let queue = &mut disks[0].virtqueues[1];
        queue.failed = FailedSnapshot { reads: 3, writes: 1, flushes: 1, discards: 2, write_zeroes: 1 };
        (queue.discards, queue.discarded_bytes) = (7, 1 << 20);
        (queue.write_zeroes, queue.zeroed_bytes) = (4, 8_192);
        let told = as_qemu_counts(&disks);
        let stats = &told[0]["stats"];
        assert_eq!((&told[0]["device"], &told[0]["node-name"]), (&"data".into(), &"data".into()));
        for (field, number) in [
            ("rd_bytes", 81_920),
            ("wr_bytes", 40_960 + 8_192),
            ("unmap_bytes", 1 << 20),
            ("rd_operations", 17),
            ("wr_operations", 12),
            ("flush_operations", 1),
            ("unmap_operations", 5),
            ("failed_rd_operations", 3),
            ("failed_wr_operations", 2),
            ("failed_flush_operations", 1),
            ("failed_unmap_operations", 2),
        ] {
            assert_eq!(stats[field], number, "{field}");
        }
        // Nothing that nobody counts.
        assert_eq!(stats.as_object().unwrap().len(), 11);
    }
}
