//! Stats for a person.

use vmprof_vmm::iothread::counters::Oldest;
use vmprof_vmm::pause::PauseSnapshot;

use super::latency::{LATENCY_HEADS, latencies};
use super::{Stats, nets};

impl Stats {
    /// For a person: a table a kind.
    pub fn table(&self) -> String {
        let Stats { process, threads, machine, .. } = self;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut text = format!(
            "process {}: {:.1} MiB of the guest's memory touched, {:.1} MiB beyond it, of which {:.1} MiB anonymous\n",
            process.pid,
            mib(process.guest_bytes),
            mib(process.beyond_guest_bytes),
            mib(process.anonymous_bytes)
        );
        if let Some(pause) = &machine.paused {
            text += &paused(pause);
        }
        let vcpus = machine.vcpus.iter().map(|vcpu| {
            let exits = &vcpu.exits;
            let ports = [exits.port_reads, exits.port_writes, exits.mmio_reads, exits.mmio_writes];
            row(&vcpu.name, ports.into_iter().chain([exits.interrupted, exits.others]))
        });
        text += &table(
            &["VCPU", "port reads", "port writes", "mmio reads", "mmio writes", "interrupted", "others"],
            vcpus,
        );
        let iothreads = machine.iothreads.iter().map(|iothread| {
            let polls = [iothread.poll_hits, iothread.poll_misses, iothread.looks];
            let mut row = row(&iothread.name, [iothread.enters, iothread.wakeups].into_iter().chain(polls));
            row.push(if iothread.batch { "batch" } else { "other" }.to_owned());
            row
        });
        text += &table(
            &["IOTHREAD", "enters", "wakeups", "poll hits", "poll misses", "looks", "policy"],
            iothreads,
        );
        let threads = threads.iter().map(|thread| {
            let numbers = [thread.voluntary, thread.involuntary].map(|number| number.to_string());
            let times = [thread.cpu_ns, thread.waited_ns].map(|nanos| format!("{:.2}", nanos as f64 / 1e9));
            let cpu = thread.cpu.map_or("-".to_owned(), |cpu| cpu.to_string());
            [thread.name.clone(), cpu].into_iter().chain(times).chain(numbers).collect()
        });
        text += &table(&["THREAD", "on CPU", "CPU s", "waited s", "switches", "forced"], threads);
        let queues = machine.disks.iter().flat_map(|disk| {
            disk.virtqueues.iter().map(|queue| {
                let served = queue.iothread.map_or("-".to_owned(), |id| id.to_string());
                let counts = [queue.reads, queue.writes, queue.flushes, queue.discards + queue.write_zeroes];
                let more = [queue.errors, queue.read_bytes, queue.written_bytes, queue.kicks];
                let more = more.into_iter().chain([queue.interrupts, queue.in_flight]);
                let numbers = counts.into_iter().chain(more).map(|number| number.to_string());
                [disk.name.clone(), queue.vq.to_string(), served].into_iter().chain(numbers).collect()
            })
        });
        let heads = [
            "DISK",
            "vq",
            "iothread",
            "reads",
            "writes",
            "flushes",
            "erasures",
            "errors",
            "bytes read",
            "written",
            "kicks",
            "interrupts",
            "in flight",
        ];
        text += &table(&heads, queues);
        let timed = latencies(&machine.disks, None);
        if !timed.is_empty() {
            text += &table(LATENCY_HEADS, timed.into_iter().map(|row| row.cells));
        }
        for disk in &machine.disks {
            let old = disk.virtqueues.iter().filter_map(|queue| Some((queue.vq, queue.oldest.as_ref()?)));
            for (vq, oldest) in old.filter(|(_, oldest)| oldest.age_ms >= OLD_MS) {
                text += &waiting(&disk.name, vq, oldest);
            }
            if let Some(fault) = &disk.fault {
                text += &format!("disk {} needs a reset: {fault}\n", disk.name);
            }
        }
        text += &nets::table(&machine.nets);
        text
    }
}

/// A request that takes as long as this is worth a line.
const OLD_MS: u64 = 1_000;

fn waiting(disk: &str, vq: u16, oldest: &Oldest) -> String {
    let Oldest { head, kind, sector, .. } = oldest;
    let place = if matches!(kind.as_str(), "read" | "write") {
        format!(" of sector {sector}")
    } else {
        String::new()
    };
    let age = seconds(oldest.age_ms);
    format!("disk {disk}, virtqueue {vq}: head {head}, a {kind}{place}, has been in flight for {age}\n")
}

fn paused(pause: &PauseSnapshot) -> String {
    let mut text = format!("paused for {}", seconds(pause.since_ms));
    if pause.asked {
        text += ", because somebody asked for it";
    }
    text.push('\n');
    for failure in &pause.failures {
        text += &format!("  {failure}\n");
    }
    if pause.more_failures > 0 {
        text += &format!("  and {} more\n", pause.more_failures);
    }
    text
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1_000, ms % 1_000 / 100)
}

pub(super) fn row(name: &str, numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    [name.to_owned()].into_iter().chain(numbers.into_iter().map(|number| number.to_string())).collect()
}

/// Columns as wide as they need to be, the first one to the left.
pub fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows.collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(String::len);
        cells.chain([heads[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: &[String]| {
        let mut text = format!("{:<w$}", cells[0], w = widths[0]);
        for (cell, width) in cells.iter().zip(&widths).skip(1) {
            text += &format!("  {cell:>width$}");
        }
        text + "\n"
    };
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let body: String = rows.iter().map(|row| line(row)).collect();
    format!("\n{}{body}", line(&heads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [row("iothread0", [1, 20_000]), row("iothread10", [300, 4])];
        assert_eq!(
            table(&["IOTHREAD", "enters", "wakeups"], rows.into_iter()),
            "\nIOTHREAD    enters  wakeups\niothread0        1    20000\niothread10     300        4\n"
        );
    }

    #[test]
    fn what_is_stuck_and_what_stopped_the_machine_have_their_lines() {
        let oldest = |kind: &str| Oldest { head: 5, kind: kind.into(), sector: 64, age_ms: 12_345 };
        assert_eq!(
            waiting("data", 1, &oldest("read")),
            "disk data, virtqueue 1: head 5, a read of sector 64, has been in flight for 12.3 s\n"
        );
        assert!(waiting("data", 1, &oldest("flush")).contains("head 5, a flush, has"));
        let failure = vmprof_vmm::pause::Failure {
            disk: "data".into(),
            vq: 0,
            head: 7,
            kind: "write".into(),
            sector: Some(8),
            errno: 28,
            error: "No space left on device (os error 28)".into(),
        };
        let pause = PauseSnapshot { since_ms: 900, asked: false, failures: vec![failure], more_failures: 2 };
        assert_eq!(
            paused(&pause),
            "paused for 0.9 s\n  disk `data`, virtqueue 0, head 7: write of sector 8 failed: \
             No space left on device (os error 28)\n  and 2 more\n"
        );
    }
}
