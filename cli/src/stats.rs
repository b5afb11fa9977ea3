//! What a running VM has done, and what its process holds: the answer to `stats`.

use std::fs;

use serde::{Deserialize, Serialize};
use vmprof_vmm::stats::Stats as Machine;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub schema: String,
    pub process: Process,
    #[serde(flatten)]
    pub machine: Machine,
}

/// Memory of the VMM's process, as /proc/self/status counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// RssAnon: the VMM's own.
    pub anonymous_bytes: u64,
    /// RssFile: pages of the binary, which the kernel can drop.
    pub file_bytes: u64,
    /// RssShmem: what of the guest's memory has been touched.
    pub shared_bytes: u64,
}

impl Process {
    pub fn of_this_one() -> Process {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            kib.unwrap_or(0) << 10
        };
        Process {
            pid: std::process::id(),
            anonymous_bytes: bytes("RssAnon"),
            file_bytes: bytes("RssFile"),
            shared_bytes: bytes("RssShmem"),
        }
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
            "process {}: {:.1} MiB of its own, {:.1} MiB of files, {:.1} MiB of the guest\n",
            process.pid,
            mib(process.anonymous_bytes),
            mib(process.file_bytes),
            mib(process.shared_bytes)
        );
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
            row(&iothread.name, [iothread.enters, iothread.wakeups, iothread.poll_hits, iothread.poll_misses])
        });
        text += &table(&["IOTHREAD", "enters", "wakeups", "poll hits", "poll misses"], iothreads);
        let queues = machine.disks.iter().flat_map(|disk| {
            disk.virtqueues.iter().map(|queue| {
                let served = queue.iothread.map_or("-".to_owned(), |id| id.to_string());
                let counts = [queue.reads, queue.writes, queue.flushes, queue.errors];
                let more = [queue.read_bytes, queue.written_bytes, queue.kicks, queue.interrupts];
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
            "errors",
            "bytes read",
            "written",
            "kicks",
            "interrupts",
        ];
        text += &table(&heads, queues);
        for disk in &machine.disks {
            if let Some(fault) = &disk.fault {
                text += &format!("disk {} needs a reset: {fault}\n", disk.name);
            }
        }
        text
    }
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
    fn this_process_has_memory_of_its_own() {
        let process = Process::of_this_one();
        assert!(process.pid > 0 && process.anonymous_bytes > 0);
    }
}
