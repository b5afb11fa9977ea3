//! What a running VM has done, and what its process holds: the answer to `stats`.

use std::fs;

use serde::{Deserialize, Serialize};
use vmprof_vmm::iothread::counters::Oldest;
use vmprof_vmm::pause::PauseSnapshot;
use vmprof_vmm::stats::Stats as Machine;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub schema: String,
    pub process: Process,
    #[serde(flatten)]
    pub machine: Machine,
}

/// Resident memory of the VMM's process, from /proc/self/smaps (proc(5)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// What of the guest's memory has been touched.
    pub guest_bytes: u64,
    /// Everything else: the binary's pages, stacks, rings, the heap.
    pub beyond_guest_bytes: u64,
    /// Of that, what is anonymous: the part that the kernel cannot read back from the binary.
    pub anonymous_bytes: u64,
}

/// How the guest's memory shows in /proc/self/smaps: by its memfd's name.
const GUEST_MEMORY: &str = "/memfd:vmprof guest memory";

impl Process {
    pub fn of_this_one() -> Process {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        Process { pid: std::process::id(), ..Process::from_smaps(&smaps) }
    }

    fn from_smaps(smaps: &str) -> Process {
        let mut process = Process::default();
        let mut is_guest = false;
        for line in smaps.lines() {
            let Some((key, value)) = line.split_once(':').filter(|(key, _)| !key.contains(' ')) else {
                // A mapping's first line has spaces before any colon; its name, if it has one, is at the end.
                is_guest = line.contains(GUEST_MEMORY);
                continue;
            };
            let bytes =
                value.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10;
            match key {
                "Rss" if is_guest => process.guest_bytes += bytes,
                "Rss" => process.beyond_guest_bytes += bytes,
                "Anonymous" if !is_guest => process.anonymous_bytes += bytes,
                _ => {}
            }
        }
        process
    }
}

impl Stats {
    pub fn of(machine: Machine) -> Stats {
        Stats { schema: "vmprof.stats/1".to_owned(), process: Process::of_this_one(), machine }
    }

    /// For a person: a table a kind.
    pub fn table(&self) -> String {
        let Stats { process, machine, .. } = self;
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
        for disk in &machine.disks {
            let old = disk.virtqueues.iter().filter_map(|queue| Some((queue.vq, queue.oldest.as_ref()?)));
            for (vq, oldest) in old.filter(|(_, oldest)| oldest.age_ms >= OLD_MS) {
                text += &waiting(&disk.name, vq, oldest);
            }
            if let Some(fault) = &disk.fault {
                text += &format!("disk {} needs a reset: {fault}\n", disk.name);
            }
        }
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

fn row(name: &str, numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    [name.to_owned()].into_iter().chain(numbers.into_iter().map(|number| number.to_string())).collect()
}

/// Columns as wide as they need to be, the first one to the left.
fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
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

    #[test]
    fn the_guests_memory_is_told_from_everything_else() {
        let smaps = "\
            00400000-00500000 r-xp 00000000 00:01 7    /usr/bin/vmprof\nRss:    300 kB\nAnonymous:   0 kB\n\
            7f0000000000-7f0040000000 rw-s 00000000 00:01 9   /memfd:vmprof guest memory (deleted)\nRss:   4096 kB\n\
            7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0    [stack]\nRss:     12 kB\nAnonymous:  12 kB\n";
        let process = Process::from_smaps(smaps);
        assert_eq!((process.guest_bytes, process.beyond_guest_bytes), (4096 << 10, 312 << 10));
        assert_eq!(process.anonymous_bytes, 12 << 10);
    }

    #[test]
    fn this_process_has_memory_of_its_own() {
        let process = Process::of_this_one();
        assert!(
            process.pid > 0
                && process.anonymous_bytes > 0
                && process.beyond_guest_bytes > process.anonymous_bytes
        );
    }
}
