//! What is read of this host: settings of the kernel that stand in a VM's way. The files are the kernel's
//! (Documentation/admin-guide); what is not there is not looked at further.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use vmprof_profiles::CpuSet;

use super::Finding;

/// On the host below `root`.
pub fn all(root: &Path) -> Vec<Finding> {
    let root = Root(root);
    let mut findings = Vec::new();
    findings.push(governor(root));
    findings.extend(clocksource(root));
    findings.extend(numa_balancing(root));
    findings.push(hugepages(root));
    findings.extend(transparent_hugepages(root));
    findings.extend(samepage_merging(root));
    findings.push(schedulers(root));
    findings.push(tap(root));
    findings.extend(cgroup(root));
    findings
}

#[derive(Clone, Copy)]
struct Root<'a>(&'a Path);

impl Root<'_> {
    fn path(self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    fn text(self, path: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(path)).ok()?.trim().to_owned())
    }

    /// Names in a directory, in their order.
    fn names(self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// The word in brackets of a list such as `always [madvise] never`.
fn chosen(list: &str) -> &str {
    list.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']')).unwrap_or(list)
}

/// pm/cpufreq.rst.
fn governor(root: Root<'_>) -> Finding {
    const CPUS: &str = "/sys/devices/system/cpu";
    let mut governors: BTreeMap<String, CpuSet> = BTreeMap::new();
    for name in root.names(CPUS) {
        let Some(number) = name.strip_prefix("cpu").and_then(|number| number.parse().ok()) else { continue };
        if let Some(governor) = root.text(&format!("{CPUS}/{name}/cpufreq/scaling_governor")) {
            governors.entry(governor).or_default().insert(number);
        }
    }
    if governors.is_empty() {
        return Finding::ok("governor", "the processor's speed is not this kernel's to choose");
    }
    if governors.keys().all(|governor| governor == "performance") {
        return Finding::ok("governor", "performance on all CPUs");
    }
    let slow = governors.iter().filter(|(governor, _)| *governor != "performance");
    let slow: Vec<String> = slow.map(|(governor, cpus)| format!("{governor} on CPUs {cpus}")).collect();
    Finding::warning(
        "governor",
        format!(
            "{}: a CPU that was idle begins slowly, and the request that wakes it waits",
            slow.join(", ")
        ),
        "`echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor`",
    )
}

/// timers/timekeeping.rst. A clock that is read by asking a device costs microseconds each time, here and in the guest.
fn clocksource(root: Root<'_>) -> Option<Finding> {
    let source = root.text("/sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    if ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page"].contains(&source.as_str()) {
        return Some(Finding::ok("clocksource", source));
    }
    Some(Finding::warning(
        "clocksource",
        format!(
            "{source}: reading the time asks a device; the kernel's log says why it left the processor's counter"
        ),
        "see `dmesg | grep -i tsc`; where the counter is known to be good, boot with `tsc=reliable`",
    ))
}

/// sysctl/kernel.rst.
fn numa_balancing(root: Root<'_>) -> Option<Finding> {
    let setting = root.text("/proc/sys/kernel/numa_balancing")?;
    let nodes = root.names("/sys/devices/system/node");
    let nodes = nodes.iter().filter(|name| name.strip_prefix("node").is_some_and(is_number)).count();
    if nodes < 2 || setting == "0" {
        let why = if nodes < 2 { "one node: there is nothing to balance" } else { "off" };
        return Some(Finding::ok("numa-balancing", why));
    }
    Some(Finding::warning(
        "numa-balancing",
        "on: it unmaps guests' pages again and again to see who touches them, and vmprof has put them where they belong",
        "`sudo sysctl kernel.numa_balancing=0`, on a host that runs pinned VMs alone",
    ))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// mm/hugetlbpage.rst.
fn hugepages(root: Root<'_>) -> Finding {
    const POOLS: &str = "/sys/kernel/mm/hugepages";
    let number = |pool: &str, file: &str| -> Option<u64> {
        root.text(&format!("{POOLS}/{pool}/{file}"))?.parse().ok()
    };
    let mut pools = Vec::new();
    for name in root.names(POOLS) {
        let kib = name.strip_prefix("hugepages-").and_then(|size| size.strip_suffix("kB"));
        let Some(kib) = kib.and_then(|kib| kib.parse::<u64>().ok()) else { continue };
        let (Some(all), Some(free)) = (number(&name, "nr_hugepages"), number(&name, "free_hugepages")) else {
            continue;
        };
        if all > 0 {
            pools.push(format!("{free} of {all} pages of {} MiB are free", kib >> 10));
        }
    }
    match pools.is_empty() {
        true => Finding::ok(
            "hugepages",
            "none are reserved; a profile that asks for them is refused until `sudo sysctl vm.nr_hugepages=N`",
        ),
        false => Finding::ok("hugepages", pools.join(", ")),
    }
}

/// mm/transhuge.rst.
fn transparent_hugepages(root: Root<'_>) -> Option<Finding> {
    let list = root.text("/sys/kernel/mm/transparent_hugepage/enabled")?;
    Some(match chosen(&list) {
        "never" => Finding::warning(
            "thp",
            "never: a guest without reserved huge pages has its memory in pages of 4 KiB, and misses the TLB more often",
            "`echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled`",
        ),
        mode => Finding::ok("thp", mode),
    })
}

/// mm/ksm.rst.
fn samepage_merging(root: Root<'_>) -> Option<Finding> {
    Some(match root.text("/sys/kernel/mm/ksm/run")?.as_str() {
        "1" => Finding::warning(
            "ksm",
            "on: other VMMs' pages are compared and merged; vmprof offers none of its own, and pays for the CPU time",
            "`echo 0 | sudo tee /sys/kernel/mm/ksm/run`, where no other VMM needs it",
        ),
        _ => Finding::ok("ksm", "off"),
    })
}

/// networking/tuntap.rst. It opens for everybody where it is there: which devices one may have is asked later. `net passt` needs none.
fn tap(root: Root<'_>) -> Finding {
    const TUN: &str = "/dev/net/tun";
    match fs::File::options().read(true).write(true).open(root.path(TUN)) {
        Ok(_) => Finding::ok("tap", format!("{TUN} can be opened")),
        Err(error) => Finding::ok(
            "tap",
            format!("{TUN}: {error}: a profile with `net tap` is refused; `net passt` is not"),
        ),
    }
}

/// block/queue-sysfs.rst.
fn schedulers(root: Root<'_>) -> Finding {
    let mut sorted = Vec::new();
    for name in root.names("/sys/block") {
        let of = |file: &str| root.text(&format!("/sys/block/{name}/queue/{file}"));
        // A disk that turns is better off with its requests sorted; what is no drive has nothing to sort for.
        let is_drive = root.path(&format!("/sys/block/{name}/device")).exists();
        if let (true, Some("0"), Some(list)) = (is_drive, of("rotational").as_deref(), of("scheduler"))
            && chosen(&list) != "none"
        {
            sorted.push((name.clone(), chosen(&list).to_owned()));
        }
    }
    if sorted.is_empty() {
        return Finding::ok("schedulers", "no flash drive has its requests sorted");
    }
    let what: Vec<String> = sorted.iter().map(|(name, scheduler)| format!("{scheduler} on {name}")).collect();
    let fixes: Vec<String> = sorted
        .iter()
        .map(|(name, _)| format!("`echo none | sudo tee /sys/block/{name}/queue/scheduler`"))
        .collect();
    Finding::warning(
        "schedulers",
        format!(
            "{}: every request passes one more lock for an order that a flash drive does not need",
            what.join(", ")
        ),
        fixes.join("\n"),
    )
}

/// cgroup-v2.rst: every group from this process's own up to the root may hold it back.
fn cgroup(root: Root<'_>) -> Option<Finding> {
    const MOUNT: &str = "/sys/fs/cgroup";
    let own = root.text("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
    let mut held = Vec::new();
    for group in Path::new(&own).ancestors() {
        let of = |file: &str| root.text(&format!("{MOUNT}{}/{file}", group.display()));
        let group = group.display();
        if let Some(limit) = of("cpu.max") {
            let mut words = limit.split_whitespace().map(str::parse::<f64>);
            if let (Some(Ok(quota)), Some(Ok(period))) = (words.next(), words.next()) {
                held.push(format!("{group} has {:.1} CPUs' time", quota / period));
            }
        }
        if let Some(bytes) = of("memory.max").and_then(|bytes| bytes.parse::<u64>().ok()) {
            held.push(format!("{group} has {} MiB of memory", bytes >> 20));
        }
        if of("io.max").is_some_and(|limits| !limits.is_empty()) {
            held.push(format!("{group} has limits of I/O"));
        }
    }
    if held.is_empty() {
        return Some(Finding::ok("cgroup", format!("{own} holds nothing back")));
    }
    Some(Finding::warning(
        "cgroup",
        format!("{}: a VM's threads stand still at such a limit, wherever they are pinned", held.join("; ")),
        "run vmprof in a slice without them: `systemd-run --user --scope -p CPUQuota= -p MemoryMax=infinity vmprof …`",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    /// A host that has these files and no others.
    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn found(files: &[(&str, &str)], check: &str) -> Finding {
        let root = host(files);
        let finding = all(root.path()).into_iter().find(|finding| finding.check == check);
        finding.unwrap_or_else(|| panic!("nothing was found of {check}"))
    }

    #[test]
    fn a_host_without_files_is_not_blamed() {
        let root = host(&[]);
        let findings = all(root.path());
        assert!(findings.iter().all(|finding| finding.state == State::Ok), "{findings:?}");
    }

    #[test]
    fn what_warns_has_a_fix() {
        let root = Path::new("/");
        for finding in all(root) {
            assert_eq!(finding.state == State::Ok, finding.fix.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn cpus_that_save_power_are_named() {
        let governor = |cpu: u32| format!("sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor");
        let paths: Vec<String> = (0..4).map(governor).collect();
        let set = |words: [&'static str; 4]| {
            let files: Vec<(&str, &str)> = paths.iter().map(String::as_str).zip(words).collect();
            found(&files, "governor")
        };
        assert_eq!(set(["performance\n"; 4]).state, State::Ok);
        let mixed = set(["powersave\n", "performance\n", "powersave\n", "powersave\n"]);
        assert_eq!(mixed.state, State::Warning);
        assert!(mixed.found.starts_with("powersave on CPUs 0,2-3:"), "{}", mixed.found);
    }

    #[test]
    fn balancing_matters_between_nodes() {
        let on = ("proc/sys/kernel/numa_balancing", "1\n");
        let node = |number| match number {
            0 => ("sys/devices/system/node/node0/cpulist", "0\n"),
            _ => ("sys/devices/system/node/node1/cpulist", "1\n"),
        };
        assert_eq!(found(&[on, node(0)], "numa-balancing").state, State::Ok);
        assert_eq!(found(&[on, node(0), node(1)], "numa-balancing").state, State::Warning);
    }

    #[test]
    fn pages_clocks_and_merging() {
        let thp = |text| found(&[("sys/kernel/mm/transparent_hugepage/enabled", text)], "thp").state;
        assert_eq!(thp("always [madvise] never\n"), State::Ok);
        assert_eq!(thp("always madvise [never]\n"), State::Warning);
        let clock = |text| {
            found(&[("sys/devices/system/clocksource/clocksource0/current_clocksource", text)], "clocksource")
                .state
        };
        assert_eq!((clock("tsc\n"), clock("hpet\n")), (State::Ok, State::Warning));
        assert_eq!(found(&[("sys/kernel/mm/ksm/run", "1\n")], "ksm").state, State::Warning);
        let pool = "sys/kernel/mm/hugepages/hugepages-2048kB";
        let (all, free) = (format!("{pool}/nr_hugepages"), format!("{pool}/free_hugepages"));
        let pages = found(&[(&all, "8\n"), (&free, "3\n")], "hugepages");
        assert_eq!(pages.found, "3 of 8 pages of 2 MiB are free");
    }

    #[test]
    fn a_host_without_tap_devices_is_told_what_it_can_do() {
        assert!(found(&[("dev/net/tun", "")], "tap").found.ends_with("can be opened"));
        let without = found(&[], "tap");
        assert!(without.found.contains("`net tap` is refused"), "{without:?}");
    }

    #[test]
    fn a_flash_drive_needs_no_scheduler() {
        let drive = |rotational, scheduler| {
            let files = [
                ("sys/block/nvme0n1/device/model", "a drive"),
                ("sys/block/nvme0n1/queue/rotational", rotational),
                ("sys/block/nvme0n1/queue/scheduler", scheduler),
                ("sys/block/loop0/queue/rotational", "0\n"),
                ("sys/block/loop0/queue/scheduler", "[mq-deadline] none\n"),
            ];
            found(&files, "schedulers")
        };
        assert_eq!(drive("0\n", "[none] mq-deadline\n").state, State::Ok);
        assert_eq!(drive("1\n", "none [mq-deadline]\n").state, State::Ok);
        let sorted = drive("0\n", "none [mq-deadline]\n");
        assert!(sorted.found.starts_with("mq-deadline on nvme0n1:") && sorted.fix.contains("nvme0n1/queue"));
    }

    #[test]
    fn limits_of_every_group_above_are_found() {
        let own = ("proc/self/cgroup", "0::/user.slice/job\n");
        assert_eq!(found(&[own], "cgroup").state, State::Ok);
        let held = found(
            &[
                own,
                ("sys/fs/cgroup/user.slice/job/cpu.max", "max 100000\n"),
                ("sys/fs/cgroup/user.slice/job/memory.max", "1073741824\n"),
                ("sys/fs/cgroup/user.slice/cpu.max", "150000 100000\n"),
            ],
            "cgroup",
        );
        let text = "/user.slice/job has 1024 MiB of memory; /user.slice has 1.5 CPUs' time:";
        assert!(held.found.starts_with(text), "{}", held.found);
    }
}
