//! What the kernel of the emulated host counts of a VMM: per thread in /proc, per virtual machine in debugfs, memory in smaps.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::Outcome;

/// What a thread of a VMM is for, by the name both VMMs give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    IoThread,
    Vcpu,
    /// The emulator, helpers, the kernel's own workers for io_uring.
    Other,
}

impl Role {
    pub fn of(name: &str) -> Role {
        if name.starts_with("IO ") {
            Role::IoThread
        } else if name.starts_with("CPU ") && name.ends_with("/KVM") {
            Role::Vcpu
        } else {
            Role::Other
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    pub tid: u32,
    pub name: String,
    pub role: Role,
    /// On a CPU, guest included: the first number of schedstat.
    pub run_ns: u64,
    pub voluntary: u64,
    pub involuntary: u64,
    /// Asked of block devices by this thread: requests that went through the page cache are not among them.
    pub read_bytes: u64,
}

/// Everything about one VMM at one moment, or between two.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub seconds: f64,
    pub threads: Vec<Thread>,
    /// KVM's own counters of the machine, all vCPUs together.
    pub kvm: BTreeMap<String, u64>,
}

#[derive(Debug)]
pub struct Snapshot {
    at: Instant,
    threads: BTreeMap<u32, Thread>,
    kvm: BTreeMap<String, u64>,
}

impl Snapshot {
    pub fn take(pid: u32) -> Outcome<Snapshot> {
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end while it is looked at.
            if let Some(thread) = thread(&task?.path()) {
                threads.insert(thread.tid, thread);
            }
        }
        Ok(Snapshot { at: Instant::now(), kvm: kvm(&threads)?, threads })
    }

    /// What happened since `earlier`. A thread that began meanwhile counts whole.
    pub fn since(&self, earlier: &Snapshot) -> Counts {
        let threads = self.threads.values().map(|now| {
            let then = earlier.threads.get(&now.tid);
            let less = |count: fn(&Thread) -> u64| count(now).saturating_sub(then.map_or(0, count));
            Thread {
                run_ns: less(|t| t.run_ns),
                voluntary: less(|t| t.voluntary),
                involuntary: less(|t| t.involuntary),
                read_bytes: less(|t| t.read_bytes),
                ..now.clone()
            }
        });
        let kvm = self.kvm.iter().filter_map(|(name, now)| {
            let count = now.checked_sub(*earlier.kvm.get(name)?)?;
            (count > 0).then(|| (name.clone(), count))
        });
        Counts {
            seconds: self.at.duration_since(earlier.at).as_secs_f64(),
            threads: threads.collect(),
            kvm: kvm.collect(),
        }
    }
}

fn thread(task: &Path) -> Option<Thread> {
    let read = |file: &str| fs::read_to_string(task.join(file)).ok();
    let name = read("comm")?.trim_end().to_owned();
    let status = read("status")?;
    let io = read("io").unwrap_or_default();
    Some(Thread {
        tid: task.file_name()?.to_str()?.parse().ok()?,
        role: Role::of(&name),
        name,
        run_ns: read("schedstat")?.split_whitespace().next()?.parse().ok()?,
        voluntary: field(&status, "voluntary_ctxt_switches")?,
        involuntary: field(&status, "nonvoluntary_ctxt_switches")?,
        read_bytes: field(&io, "read_bytes").unwrap_or(0),
    })
}

/// The first number behind `name:` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

/// KVM names a machine's directory by the thread that made it.
fn kvm(threads: &BTreeMap<u32, Thread>) -> Outcome<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for entry in fs::read_dir("/sys/kernel/debug/kvm")? {
        let entry = entry?;
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.split_once('-')?.0.parse().ok());
        if maker.is_none_or(|maker: u32| !threads.contains_key(&maker)) {
            continue;
        }
        for file in fs::read_dir(entry.path())? {
            let file = file?;
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            if let Ok(count) = text.trim().parse() {
                counts.insert(file.file_name().to_string_lossy().into_owned(), count);
            }
        }
    }
    Ok(counts)
}

/// Memory of a VMM's process, in KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The most that was ever resident (VmHWM), guest RAM included.
    pub peak: u64,
    /// Resident now, guest RAM included.
    pub resident: u64,
    /// Resident pages of the mapping of the memfd that is the guest's RAM: what the guest touched.
    pub guest: u64,
    /// Resident, anonymous, and not the guest's.
    pub anonymous: u64,
    /// What is resident and not the guest's, by what is mapped: files by name, `[heap]`, `[stack]`, and all else that has none.
    pub kinds: BTreeMap<String, u64>,
}

impl Memory {
    pub fn of(pid: u32) -> Outcome<Memory> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let peak = field(&status, "VmHWM").ok_or("no VmHWM in its status")?;
        Ok(Memory { peak, ..Memory::from_smaps(&smaps) })
    }

    /// The most beyond guest RAM. Threads add their pages to the process's count some dozens at a time, so the mark may lie
    /// below what smaps adds up to later.
    pub fn most_beyond(&self) -> u64 {
        self.peak.max(self.resident).saturating_sub(self.guest)
    }

    fn from_smaps(smaps: &str) -> Memory {
        let mut memory = Memory::default();
        let mut is_guest = false;
        let mut kind = String::new();
        for line in smaps.lines() {
            let Some((key, value)) = line.split_once(':').filter(|(key, _)| !key.contains(' ')) else {
                // A mapping's first line has spaces before any colon.
                is_guest = line.contains("/memfd:");
                kind = kind_of(line);
                continue;
            };
            let kib: u64 = value.trim().strip_suffix(" kB").and_then(|kib| kib.parse().ok()).unwrap_or(0);
            match key {
                "Rss" => {
                    memory.resident += kib;
                    if is_guest {
                        memory.guest += kib;
                    } else if kib > 0 {
                        *memory.kinds.entry(kind.clone()).or_default() += kib;
                    }
                }
                "Anonymous" if !is_guest => memory.anonymous += kib,
                _ => {}
            }
        }
        memory
    }
}

/// What a mapping is for, by its first line in smaps.
fn kind_of(line: &str) -> String {
    let mut words = line.split_whitespace();
    let range = words.next().and_then(|range| range.split_once('-'));
    if let Some(name) = words.nth(4) {
        return name.rsplit('/').next().unwrap_or(name).to_owned();
    }
    let address = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) =
        range.and_then(|(start, end)| Some((address(start)?, address(end)?))).unwrap_or_default();
    // glibc begins the heaps of its arenas at multiples of 64 MiB, and Rust's threads have stacks of 2 MiB and a guard.
    let kind = match end - start {
        _ if start.is_multiple_of(64 << 20) => "arenas",
        0x20_0000..=0x20_3000 => "threads' stacks",
        _ => "other anonymous",
    };
    kind.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_by_the_names_both_vmms_give_them() {
        assert_eq!(Role::of("IO iothread0"), Role::IoThread);
        assert_eq!(Role::of("CPU 3/KVM"), Role::Vcpu);
        assert_eq!(Role::of("iou-wrk-212"), Role::Other);
        assert_eq!(Role::of("CPU info"), Role::Other);
    }

    #[test]
    fn only_the_field_that_is_asked_for_is_read() {
        let status = "nonvoluntary_ctxt_switches:\t7\nvoluntary_ctxt_switches:\t5\nVmHWM:\t  12 kB\n";
        assert_eq!(field(status, "voluntary_ctxt_switches"), Some(5));
        assert_eq!(field(status, "VmHWM"), Some(12));
        assert_eq!(field(status, "Vm"), None);
    }

    #[test]
    fn the_guests_memory_is_told_from_the_vmms() {
        let smaps = "00400000-00500000 r-xp 00000000 00:01 7 /usr/bin/vmm\nRss: 300 kB\nAnonymous: 8 kB\n\
            7f0000000000-7f0040000000 rw-s 00000000 00:01 9 /memfd:ram (deleted)\nRss: 4096 kB\nAnonymous: 0 kB\n\
            7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]\nRss: 12 kB\nAnonymous: 12 kB\n";
        let memory = Memory { peak: 4400, ..Memory::from_smaps(smaps) };
        let kinds = [("vmm".to_owned(), 300), ("[stack]".to_owned(), 12)].into();
        assert_eq!(memory, Memory { peak: 4400, resident: 4408, guest: 4096, anonymous: 20, kinds });
        assert_eq!(memory.most_beyond(), 312);
    }

    #[test]
    fn mappings_without_a_name_are_told_by_what_they_look_like() {
        assert_eq!(kind_of("7f1234000000-7f1234021000 rw-p 00000000 00:00 0 "), "arenas");
        assert_eq!(kind_of("7f1239001000-7f1239202000 rw-p 00000000 00:00 0 "), "threads' stacks");
        assert_eq!(kind_of("7f1239001000-7f1239009000 rw-p 00000000 00:00 0 "), "other anonymous");
        assert_eq!(
            kind_of("7f1239001000-7f1239009000 rw-s 00000000 00:0e 9  anon_inode:[io_uring]"),
            "anon_inode:[io_uring]"
        );
    }

    #[test]
    fn what_happened_between_two_moments_is_a_difference() {
        let thread = |run_ns| Thread {
            tid: 9,
            name: "IO iothread0".into(),
            role: Role::IoThread,
            run_ns,
            voluntary: 2,
            involuntary: 0,
            read_bytes: 0,
        };
        let snapshot = |run_ns, exits| Snapshot {
            at: Instant::now(),
            threads: [(9, thread(run_ns))].into(),
            kvm: [("exits".to_owned(), exits), ("halt".to_owned(), 3)].into(),
        };
        let counts = snapshot(70, 15).since(&snapshot(50, 5));
        assert_eq!((counts.threads[0].run_ns, counts.threads[0].voluntary), (20, 0));
        assert_eq!(counts.kvm, [("exits".to_owned(), 10)].into());
    }
}
