//! The files of /sys and /proc → [`Topology`]: which CPUs there are, and the order in which the rest is read. Paths
//! are named here and in the files beside it, and nowhere else; what they mean for a plan is decided elsewhere.

use super::source::Reader;
use super::{CpuSet, Topology, allowance, block, cpus, nodes};

pub(super) const CPU: &str = "/sys/devices/system/cpu";

/// As much of /proc/cpuinfo as holds its first CPU.
const ONE_CPU_BYTES: u64 = 8 << 10;

/// Reads the whole topology.
pub(crate) fn read(reader: &Reader<'_>) -> Topology {
    let mut doubts = Vec::new();
    let allowed = allowance::read(reader);
    let online = online(reader, allowed.affinity.as_ref(), &mut doubts);
    let nodes = nodes::read(reader, &online, &mut doubts);
    let ids: CpuSet = nodes.keys().copied().collect();
    // `(null)`, which some kernels print for none, is no list: then there are none.
    let own = |name: &str| reader.set(&format!("{CPU}/{name}")).unwrap_or_default();
    let present = own("present");
    Topology {
        arch: arch(reader),
        // What is only possible, for machines that take CPUs while they run, is not there.
        offline: if present.is_empty() { own("offline") } else { present }.minus(&online),
        cgroup_cpus: allowed.cgroup_cpus.map(|cpus| cpus.and(&online)).filter(|cpus| !cpus.is_empty()),
        allowed_nodes: allowed.nodes.map(|nodes| nodes.and(&ids)).filter(|nodes| !nodes.is_empty()),
        isolated: own("isolated").and(&online),
        nohz_full: own("nohz_full").and(&online),
        affinity: allowed.affinity,
        cpus: cpus::read(reader, &online, &nodes, &mut doubts),
        unplaced: if nodes.is_empty() { nodes::unplaced(reader) } else { None },
        block: block::read_all(reader),
        nodes,
        online,
        doubts,
    }
}

/// The online CPUs; where /sys does not say, what the caller may run on; where nothing says, CPU 0.
fn online(reader: &Reader<'_>, affinity: Option<&CpuSet>, doubts: &mut Vec<String>) -> CpuSet {
    let listed = reader.set(&format!("{CPU}/online")).filter(|s| !s.is_empty());
    if let Some(set) = listed {
        return set;
    }
    if let Some(set) = reader.set(&format!("{CPU}/present")).filter(|s| !s.is_empty()) {
        doubts.push("which CPUs are online (taken: all that are present)".to_owned());
        return set;
    }
    let dirs: CpuSet = reader
        .list(CPU)
        .iter()
        .filter_map(|name| name.strip_prefix("cpu")?.parse::<u32>().ok())
        .filter(|cpu| reader.number::<u32>(&format!("{CPU}/cpu{cpu}/online")) != Some(0))
        .collect();
    if !dirs.is_empty() {
        return dirs;
    }
    let taken = affinity.map_or("CPU 0", |_| "those that the caller may use");
    doubts.push(format!("which CPUs there are (taken: {taken})"));
    affinity.cloned().unwrap_or_else(|| CpuSet::of(0))
}

/// The architecture in the kernel's word, of older kernels by the words of /proc/cpuinfo.
fn arch(reader: &Reader<'_>) -> Option<String> {
    let word = reader.word("/proc/sys/kernel/arch").filter(|word| !word.is_empty());
    word.or_else(|| arch_of(&reader.read_start("/proc/cpuinfo", ONE_CPU_BYTES)?).map(str::to_owned))
}

fn arch_of(cpuinfo: &str) -> Option<&'static str> {
    let field = |key: &str| {
        let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
    };
    let has = |key: &str, word: &str| field(key).is_some_and(|v| v.split_whitespace().any(|w| w == word));
    if field("vendor_id").is_some_and(|vendor| vendor.starts_with("IBM")) {
        return Some("s390x");
    }
    if field("vendor_id").is_some() {
        return Some(if has("flags", "lm") { "x86_64" } else { "i686" });
    }
    if field("CPU implementer").is_some() {
        return Some(if field("CPU architecture") == Some("8") { "aarch64" } else { "arm" });
    }
    if let Some(isa) = field("isa") {
        return Some(if isa.starts_with("rv32") { "riscv32" } else { "riscv64" });
    }
    if field("CPU Family").is_some_and(|family| family.starts_with("Loongson")) {
        return Some("loongarch64");
    }
    // Byte order is not told there: little-endian is what distributions ship for POWER8 and later.
    field("cpu").is_some_and(|cpu| cpu.starts_with("POWER")).then_some("ppc64le")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_known_by_the_shape_of_cpuinfo() {
        for (text, arch) in [
            ("processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme lm sse\n", Some("x86_64")),
            ("processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme\n", Some("i686")),
            ("processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\n", Some("aarch64")),
            ("processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 7\n", Some("arm")),
            ("vendor_id       : IBM/S390\n# processors    : 4\n", Some("s390x")),
            ("processor\t: 0\ncpu\t\t: POWER9, altivec supported\n", Some("ppc64le")),
            ("processor\t: 0\nhart\t\t: 1\nisa\t\t: rv64imafdc\n", Some("riscv64")),
            ("system type\t: generic\nprocessor\t: 0\nCPU Family\t: Loongson-64bit\n", Some("loongarch64")),
            ("nothing: known\n", None),
            ("", None),
        ] {
            assert_eq!(arch_of(text), arch, "{text}");
        }
    }
}
