//! Where the figures come from: without it they mean nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub struct Host {
    pub cpu: String,
    pub cpus: usize,
    pub hypervisor: bool,
    pub governor: String,
    pub kernel: String,
    pub memory_mib: u64,
    pub load_before: String,
    pub file: PathBuf,
    pub filesystem: String,
    pub device: String,
    pub scheduler: String,
    /// What was measured, by name.
    pub versions: BTreeMap<String, String>,
}

const UNKNOWN: &str = "unknown";

impl Host {
    pub fn of(file: &Path) -> Host {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let uname = rustix::system::uname();
        let (device, filesystem) = place(file, &read("/proc/self/mountinfo"));
        let queue = |name: &str| queue_file(device, name);
        Host {
            cpu: field(&cpuinfo, "model name").unwrap_or(UNKNOWN).to_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            hypervisor: field(&cpuinfo, "flags").is_some_and(|flags| flags.contains("hypervisor")),
            governor: first(&read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
                .unwrap_or_else(|| "none (the frequency is not this kernel's to choose)".to_owned()),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            memory_mib: field(&read("/proc/meminfo"), "MemTotal")
                .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
                .map_or(0, |kib| kib >> 10),
            load_before: read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" "),
            file: file.to_owned(),
            filesystem,
            device: block_name(device).unwrap_or_else(|| UNKNOWN.to_owned()),
            scheduler: queue("scheduler").map_or_else(|| UNKNOWN.to_owned(), |text| chosen(&text)),
            versions: BTreeMap::new(),
        }
    }

    pub fn text(&self) -> String {
        // A program's own line names it.
        let versions: Vec<&str> = self.versions.values().map(String::as_str).collect();
        format!(
            "{} x {}{}, governor {}; {}; {} MiB; load before: {}\n{} on {} ({}), io scheduler {}\n{}\n",
            self.cpus,
            self.cpu,
            if self.hypervisor { " (virtual)" } else { "" },
            self.governor,
            self.kernel,
            self.memory_mib,
            self.load_before,
            self.file.display(),
            self.filesystem,
            self.device,
            self.scheduler,
            versions.join("; "),
        )
    }
}

/// The value of the first line `key : value`.
fn field<'text>(text: &'text str, key: &str) -> Option<&'text str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

fn first(text: &str) -> Option<String> {
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

/// The word in brackets of a sysfs choice.
fn chosen(text: &str) -> String {
    let inner = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inner.map_or_else(|| text.trim().to_owned(), |(word, _)| word.to_owned())
}

/// The device number under a file, and its filesystem with its options.
fn place(file: &Path, mountinfo: &str) -> ((u32, u32), String) {
    let dev = fs::metadata(file).map_or(0, |metadata| metadata.dev());
    let device = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let filesystem = mounted(mountinfo, device).unwrap_or_else(|| UNKNOWN.to_owned());
    (device, filesystem)
}

fn mounted(mountinfo: &str, (major, minor): (u32, u32)) -> Option<String> {
    let number = format!("{major}:{minor}");
    mountinfo.lines().find_map(|line| {
        let mut words = line.split(' ');
        let found = words.clone().nth(2)? == number;
        let options = words.clone().nth(5)?;
        words.find(|word| *word == "-")?;
        let kind = words.next()?;
        found.then(|| format!("{kind} ({options})"))
    })
}

/// A device's directory in sysfs; a partition has no queue of its own, and its disk's is meant.
fn sysfs((major, minor): (u32, u32)) -> Option<PathBuf> {
    let own = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    if own.join("queue").is_dir() { Some(own) } else { own.parent().map(Path::to_owned) }
}

fn queue_file(device: (u32, u32), name: &str) -> Option<String> {
    fs::read_to_string(sysfs(device)?.join("queue").join(name)).ok()
}

fn block_name(device: (u32, u32)) -> Option<String> {
    sysfs(device)?.file_name().map(|name| name.to_string_lossy().into_owned())
}

/// The first line that a program says of its version.
pub fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    first(&String::from_utf8_lossy(&output.stdout))
}

/// The number in front of the first dot.
pub fn major(version: &str) -> Option<u32> {
    let word =
        version.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    word.split('.').next()?.parse().ok()
}

/// A program by its path, or by its name on PATH.
pub fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|found| found.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read_as_it_is_written() {
        assert_eq!(field("model name\t: A CPU\nmodel name : other\n", "model name"), Some("A CPU"));
        assert_eq!(chosen("none [mq-deadline] kyber\n"), "mq-deadline");
        assert_eq!(chosen("none\n"), "none");
        let mountinfo =
            "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n23 22 0:5 / /proc rw - proc proc rw\n";
        assert_eq!(mounted(mountinfo, (254, 0)).as_deref(), Some("ext4 (rw,relatime)"));
        assert_eq!(mounted(mountinfo, (8, 1)), None);
    }

    #[test]
    fn versions_are_told_by_their_first_number() {
        assert_eq!(major("qemu-storage-daemon version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some(10));
        assert_eq!(major("fio-3.33"), None);
        assert_eq!(major("nothing"), None);
    }

    #[test]
    fn a_program_is_found_by_name_or_by_path_and_else_not() {
        assert!(find(Path::new("sh")).is_some_and(|path| path.is_absolute()));
        assert!(find(Path::new("/bin/sh")).is_some());
        assert!(find(Path::new("/bin/no-such-program")).is_none());
        assert!(find(Path::new("no-such-program")).is_none());
    }
}
