//! CPUs that other running VMs hold; the planner keeps off them. The caller's own records are merged in by the caller.
//!
//! [`Ledger::read`] finds VMs of all users in /proc. A thread of a VM holds its CPU when it may run on that one only.
//! To stay cheap among thousands of processes, two short files are read of each (its name, and the start of its
//! command line, which tells a QEMU that `-name process=` renamed), and the threads only of those that either shows
//! to be a virtual machine monitor. A monitor that hides both, and one that a /proc mounted with `hidepid` hides, is
//! not found.

use serde::{Deserialize, Serialize};

use crate::topology::source::Reader;
use crate::topology::{CpuSet, Source};

/// What is held, and by whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// One entry per holder.
    pub held: Vec<Held>,
}

/// The CPUs one VM's pinned threads are on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The VM's name.
    pub holder: String,
    /// Its CPUs.
    pub cpus: CpuSet,
    /// Its process, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// How the programs that run VMs are called, as far as the kernel keeps a process's name (15 bytes).
const MONITORS: [&str; 7] = ["qemu", "kvm", "vmprof", "cloud-hyperviso", "firecracker", "crosvm", "libkrun"];
/// As much of a command line as names a VM.
const COMMAND_BYTES: u64 = 16 << 10;
/// Of one process.
const MOST_THREADS: usize = 8192;

impl Ledger {
    /// What the VMs that run on the source's host hold, this process left out. What a capture holds is what its host's
    /// VMs held when it was taken; another tool's description knows of none.
    pub fn read(source: &Source) -> Ledger {
        match source {
            Source::Capture(capture) => capture.ledger.clone(),
            Source::Described(_) => Ledger::default(),
            Source::Live | Source::Sysroot(_) => {
                let own = source.is_live().then(std::process::id);
                Ledger { held: held(&Reader::new(source), own) }
            }
        }
    }

    /// This ledger and those entries of `others` whose process it does not know: the caller's own records say more
    /// than /proc does.
    #[must_use]
    pub fn and_others(mut self, others: Ledger) -> Ledger {
        let known = |held: &Held| held.pid.is_some() && self.held.iter().any(|own| own.pid == held.pid);
        let new: Vec<Held> = others.held.into_iter().filter(|held| !known(held)).collect();
        self.held.extend(new);
        self
    }

    /// Whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// All CPUs that someone holds.
    pub fn cpus(&self) -> CpuSet {
        self.held.iter().fold(CpuSet::new(), |all, held| all.or(&held.cpus))
    }

    /// Who holds any of these CPUs.
    pub fn holders(&self, cpus: &CpuSet) -> Vec<&str> {
        self.held.iter().filter(|h| h.cpus.meets(cpus)).map(|h| h.holder.as_str()).collect()
    }
}

fn held(reader: &Reader<'_>, own: Option<u32>) -> Vec<Held> {
    // Where there is one CPU, everybody is on it and nobody was put there.
    let online = reader.set("/sys/devices/system/cpu/online").unwrap_or_default();
    if online.len() == 1 {
        return Vec::new();
    }
    let names = reader.list("/proc");
    let mut pids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    pids.sort_unstable();
    pids.into_iter().filter(|pid| Some(*pid) != own).filter_map(|pid| held_by(reader, pid)).collect()
}

fn held_by(reader: &Reader<'_>, pid: u32) -> Option<Held> {
    let comm = reader.word(&format!("/proc/{pid}/comm"))?;
    let path = format!("/proc/{pid}/cmdline");
    let monitor = |name: &str| MONITORS.iter().any(|monitor| name.starts_with(monitor));
    if !monitor(&comm) {
        let start = reader.read_start(&path, 256)?;
        let program = start.split('\0').next().unwrap_or_default();
        monitor(program.rsplit('/').next().unwrap_or_default()).then_some(())?;
    }
    let tasks = format!("/proc/{pid}/task");
    let mut cpus = CpuSet::new();
    for task in reader.list(&tasks).iter().take(MOST_THREADS) {
        let name = reader.word(&format!("{tasks}/{task}/comm"));
        if !name.is_some_and(|name| works_for_a_guest(&name)) {
            continue;
        }
        let status = reader.read(&format!("{tasks}/{task}/status")).unwrap_or_default();
        let listed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        match listed.and_then(|list| list.parse::<CpuSet>().ok()) {
            Some(one) if one.len() == 1 => cpus.extend_with(&one),
            _ => {}
        }
    }
    let command = reader.read_start(&path, COMMAND_BYTES).unwrap_or_default();
    let holder = guest_name(&command).unwrap_or(comm);
    (!cpus.is_empty()).then_some(Held { holder, cpus, pid: Some(pid) })
}

/// vCPUs and IOThreads by the names that monitors give them.
fn works_for_a_guest(thread: &str) -> bool {
    // `CPU 0/KVM`; emulated guests have `CPU 0/TCG`, and want their CPU as much.
    (thread.starts_with("CPU ") && thread.contains('/'))
        || thread.starts_with("IO ")
        || ["vcpu", "fc_vcpu", "crosvm_vcpu"].iter().any(|name| thread.starts_with(name))
}

/// The VM's name in a command line: `-name guest=db,…` or `-name db` of QEMU's, `--name db` of vmprof's, `--id db` of
/// Firecracker's.
fn guest_name(command: &str) -> Option<String> {
    let mut words = command.split('\0');
    while let Some(word) = words.next() {
        let (option, value) =
            word.split_once('=').map_or((word, None), |(option, value)| (option, Some(value)));
        let value = match option {
            // What follows is the guest's command, not vmprof's.
            "--" => return None,
            "-name" if value.is_none() => words.next()?,
            "--name" | "--id" => value.or_else(|| words.next())?,
            _ => continue,
        };
        let mut parts = value.split(',');
        let guest = parts.clone().find_map(|part| part.strip_prefix("guest="));
        let name = guest.or_else(|| parts.next().filter(|first| !first.contains('=')))?;
        return (!name.is_empty()).then(|| name.to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_named_as_their_command_lines_do() {
        for (command, name) in [
            ("qemu-system-x86_64\0-name\0guest=db,debug-threads=on\0-m\u{0}1G", Some("db")),
            ("qemu-system-x86_64\0-name\0db,process=other", Some("db")),
            ("qemu-system-x86_64\0-name\0process=other", None),
            ("vmprof\0up\0p.kdl\0--name\0ci-7", Some("ci-7")),
            ("vmprof\0up\0p.kdl\0--name=ci-7\0--\0x", Some("ci-7")),
            ("vmprof\0up\0p.kdl\0--\0tool\0--name\0x", None),
            ("firecracker\0--id\0a1", Some("a1")),
            ("qemu-system-x86_64\0-name", None),
            ("", None),
        ] {
            assert_eq!(guest_name(command).as_deref(), name, "{command:?}");
        }
    }

    #[test]
    fn what_is_known_of_a_process_already_stays() {
        let held = |holder: &str, cpus: &str, pid| Held {
            holder: holder.to_owned(),
            cpus: cpus.parse().unwrap(),
            pid,
        };
        let own = Ledger { held: vec![held("db", "2-4", Some(7)), held("old", "9", None)] };
        let others = Ledger { held: vec![held("vmprof", "2-3", Some(7)), held("shop", "5", Some(8))] };
        let all = own.and_others(others);
        let names: Vec<&str> = all.held.iter().map(|held| held.holder.as_str()).collect();
        assert_eq!((names, all.cpus().to_string()), (vec!["db", "old", "shop"], "2-5,9".to_owned()));
    }

    #[test]
    fn threads_are_known_by_their_monitors_names() {
        for name in ["CPU 0/KVM", "CPU 17/KVM", "IO iothread0", "IO mon_iothread", "vcpu3", "fc_vcpu 0"] {
            assert!(works_for_a_guest(name), "{name}");
        }
        for name in ["CPU usage", "qemu-system-x86", "vhost-123", "worker", "call_rcu", ""] {
            assert!(!works_for_a_guest(name), "{name}");
        }
    }
}
