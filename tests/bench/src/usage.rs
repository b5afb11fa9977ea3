//! What threads cost, as the kernel counts it: CPU time from the scheduler's own clocks, to the nanosecond and with threads
//! that have ended; context switches, and the time that threads were ready and another had their CPU.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use vmprof_sys::peers;

use crate::error::{Doing as _, Error};

/// Whose it is.
#[derive(Debug, Clone, Copy)]
pub enum Whose {
    /// Another process, io_uring's workers and pollers included: they are threads of it.
    Process(u32),
    /// All of this process but the calling thread.
    RestOfUs,
    /// The calling thread.
    Own,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub cpu_ns: u64,
    /// Ready to run, and not running: another thread had the CPU.
    pub waited_ns: u64,
    /// Context switches, by itself and by force.
    pub voluntary: u64,
    pub involuntary: u64,
}

impl Usage {
    fn add_files_of(&mut self, task: &Path) {
        // A thread that ends meanwhile has no files any more.
        let read = |name| fs::read_to_string(task.join(name)).unwrap_or_default();
        self.waited_ns += waited_ns(&read("schedstat"));
        let status = read("status");
        self.voluntary += number_after(&status, "voluntary_ctxt_switches:");
        self.involuntary += number_after(&status, "nonvoluntary_ctxt_switches:");
    }

    pub fn since(self, earlier: Usage) -> Usage {
        Usage {
            cpu_ns: self.cpu_ns.saturating_sub(earlier.cpu_ns),
            waited_ns: self.waited_ns.saturating_sub(earlier.waited_ns),
            voluntary: self.voluntary.saturating_sub(earlier.voluntary),
            involuntary: self.involuntary.saturating_sub(earlier.involuntary),
        }
    }
}

impl Whose {
    pub fn usage(self) -> Result<Usage, Error> {
        let (directory, except, cpu_ns) = match self {
            Whose::Process(pid) => (format!("/proc/{pid}/task"), None, cpu_ns_of(pid)?),
            Whose::RestOfUs => {
                let rest = clock(ClockId::ProcessCPUTime).saturating_sub(clock(ClockId::ThreadCPUTime));
                ("/proc/self/task".to_owned(), Some(own_tid()), rest)
            }
            Whose::Own => {
                let mut usage = Usage { cpu_ns: clock(ClockId::ThreadCPUTime), ..Usage::default() };
                usage.add_files_of(Path::new("/proc/thread-self"));
                return Ok(usage);
            }
        };
        let mut usage = Usage { cpu_ns, ..Usage::default() };
        for entry in fs::read_dir(&directory).doing(|| format!("{directory} could not be read"))?.flatten() {
            let tid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            if tid.is_none() || tid != except {
                usage.add_files_of(&entry.path());
            }
        }
        Ok(usage)
    }
}

fn own_tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

fn clock(id: ClockId) -> u64 {
    let time = clock_gettime(id);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn cpu_ns_of(pid: u32) -> Result<u64, Error> {
    let time = peers::cpu_time_of(pid).doing(|| format!("process {pid} has no CPU clock"))?;
    Ok(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// schedstat: time on the CPU, time on a run queue, turns.
fn waited_ns(schedstat: &str) -> u64 {
    schedstat.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn number_after(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
}

/// What the hypervisor below kept from these CPUs.
pub fn stolen(cpus: &[u32]) -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: u64 = cpus.iter().map(|&cpu| stolen_ticks(&text, cpu)).sum();
    // /proc/stat counts in USER_HZ, which is 100 on every kernel of this architecture.
    Duration::from_millis(ticks * 10)
}

fn stolen_ticks(stat: &str, cpu: u32) -> u64 {
    let name = format!("cpu{cpu} ");
    let line = stat.lines().find_map(|line| line.strip_prefix(&name));
    line.and_then(|rest| rest.split_whitespace().nth(7)?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_kernel_puts_them() {
        assert_eq!(waited_ns("388115 3366905 3\n"), 3_366_905);
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(number_after(status, "voluntary_ctxt_switches:"), 12);
        assert_eq!(number_after(status, "nonvoluntary_ctxt_switches:"), 3);
        let stat = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 70 9 10\ncpu1 1 2 3 4 5 6 7 71 9 10\ncpu10 0 0 0 0 0 0 0 72 0 0\n";
        assert_eq!([0, 1, 10, 11].map(|cpu| stolen_ticks(stat, cpu)), [70, 71, 72, 0]);
    }

    #[test]
    fn work_of_another_thread_is_counted_and_ones_own_is_not() {
        let spin = |ns: u64| {
            let begun = clock(ClockId::ThreadCPUTime);
            while clock(ClockId::ThreadCPUTime) - begun < ns {
                std::hint::spin_loop();
            }
        };
        // In a process of its own, whose other threads are known.
        let whole = Whose::Process(std::process::id()).usage().unwrap();
        let rest = Whose::RestOfUs.usage().unwrap();
        assert!(whole.cpu_ns >= rest.cpu_ns);
        std::thread::scope(|scope| scope.spawn(|| spin(20_000_000)).join().unwrap());
        let of_rest = Whose::RestOfUs.usage().unwrap().since(rest);
        assert!(of_rest.cpu_ns >= 20_000_000, "{of_rest:?}");
        spin(20_000_000);
        let of_whole = Whose::Process(std::process::id()).usage().unwrap().since(whole);
        assert!(of_whole.cpu_ns >= 40_000_000, "{of_whole:?}");
    }

    #[test]
    fn a_process_that_is_not_there_has_no_clock() {
        assert!(Whose::Process(i32::MAX as u32).usage().is_err());
    }
}
