//! The emulated host's shape: CPUs per NUMA node, threads per core, NVMe drives, memory.

use std::fmt;
use std::str::FromStr;

/// `nodes=8+4,nvme=2,memory=6GiB`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// CPUs of each NUMA node, siblings counted: whole cores.
    pub nodes: Vec<u32>,
    /// SMT siblings of a core: 1 or 2.
    pub threads: u32,
    /// NVMe drives, each behind a PCIe root of a node, the nodes taken in turn. The profile's disks come first.
    pub nvme: u32,
    pub memory_mib: u64,
}

/// QEMU's q35 takes 255 CPUs without an extended interrupt controller.
const MOST_CPUS: u32 = 255;
/// A core of the emulated processor, an EPYC, has no more.
const MOST_THREADS: u32 = 2;
const MOST_NODES: usize = 16;
const MOST_DRIVES: u32 = 16;
/// What the emulated host itself needs before it can lend any to a guest.
const LEAST_MEMORY_MIB: u64 = 1024;

impl Default for Shape {
    fn default() -> Self {
        Shape { nodes: vec![8, 4], threads: 1, nvme: 2, memory_mib: 6 << 10 }
    }
}

impl Shape {
    pub fn cpus(&self) -> u32 {
        self.nodes.iter().sum()
    }

    /// Cores of a socket, so that each node is whole sockets.
    pub fn cores_per_socket(&self) -> u32 {
        fn common(a: u32, b: u32) -> u32 {
            if b == 0 { a } else { common(b, a % b) }
        }
        self.nodes.iter().copied().fold(0, common) / self.threads
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<String> = self.nodes.iter().map(u32::to_string).collect();
        write!(f, "nodes={}", nodes.join("+"))?;
        if self.threads > 1 {
            write!(f, ",threads={}", self.threads)?;
        }
        write!(f, ",nvme={},memory=", self.nvme)?;
        match self.memory_mib {
            mib if mib % 1024 == 0 => write!(f, "{}GiB", mib >> 10),
            mib => write!(f, "{mib}MiB"),
        }
    }
}

impl FromStr for Shape {
    type Err = String;

    /// What is left out keeps its default.
    fn from_str(text: &str) -> Result<Shape, String> {
        let mut shape = Shape::default();
        for part in text.split(',') {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("`{part}` is not of the form key=value"))?;
            match key {
                "nodes" => shape.nodes = nodes(value)?,
                "threads" => shape.threads = number(key, value, 1, MOST_THREADS)?,
                "nvme" => shape.nvme = number(key, value, 0, MOST_DRIVES)?,
                "memory" => shape.memory_mib = memory_mib(value)?,
                _ => return Err(format!("`{key}` is not known: there are nodes, threads, nvme and memory")),
            }
        }
        match shape.nodes.iter().find(|cpus| !cpus.is_multiple_of(shape.threads)) {
            None => Ok(shape),
            Some(cpus) => Err(format!(
                "a node of {cpus} CPUs has no whole cores of {} threads: write an even number in nodes=",
                shape.threads
            )),
        }
    }
}

fn nodes(value: &str) -> Result<Vec<u32>, String> {
    let nodes =
        value.split('+').map(|cpus| number("nodes", cpus, 1, MOST_CPUS)).collect::<Result<Vec<_>, _>>()?;
    if nodes.len() > MOST_NODES {
        return Err(format!("{} nodes are more than the {MOST_NODES} that can be emulated", nodes.len()));
    }
    match nodes.iter().sum::<u32>() {
        cpus if cpus > MOST_CPUS => {
            Err(format!("{cpus} CPUs are more than the {MOST_CPUS} that can be emulated"))
        }
        _ => Ok(nodes),
    }
}

fn memory_mib(value: &str) -> Result<u64, String> {
    let (digits, factor) = match (value.strip_suffix("GiB"), value.strip_suffix("MiB")) {
        (Some(digits), _) => (digits, 1024),
        (_, Some(digits)) => (digits, 1),
        _ => return Err(format!("`{value}` is no size of memory: write GiB or MiB, as in 6GiB")),
    };
    let amount: u64 =
        digits.parse().map_err(|_| format!("`{digits}` is no whole number, in memory={value}"))?;
    match amount.checked_mul(factor) {
        Some(mib) if mib >= LEAST_MEMORY_MIB => Ok(mib),
        Some(mib) => {
            Err(format!("{mib} MiB are too few: an emulated host needs {LEAST_MEMORY_MIB} MiB at least"))
        }
        None => Err(format!("`{value}` is more than can be counted")),
    }
}

fn number(key: &str, value: &str, least: u32, most: u32) -> Result<u32, String> {
    let number: u32 = value.parse().map_err(|_| format!("`{value}` is no whole number, in {key}="))?;
    if (least..=most).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{number} is out of range for {key}: {least} to {most}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_reads_as_it_is_written() {
        let shape = Shape::default();
        assert_eq!(shape.to_string(), "nodes=8+4,nvme=2,memory=6GiB");
        assert_eq!(shape.to_string().parse::<Shape>().unwrap(), shape);
        assert_eq!((shape.cpus(), shape.cores_per_socket()), (12, 4));
    }

    #[test]
    fn what_is_left_out_keeps_its_default() {
        let shape: Shape = "nodes=2".parse().unwrap();
        assert_eq!(shape, Shape { nodes: vec![2], ..Shape::default() });
        assert_eq!(shape.cores_per_socket(), 2);
    }

    #[test]
    fn cores_may_have_two_threads_and_are_whole() {
        let shape: Shape = "nodes=12+4,threads=2".parse().unwrap();
        assert_eq!((shape.cpus(), shape.cores_per_socket()), (16, 2));
        assert_eq!(shape.to_string(), "nodes=12+4,threads=2,nvme=2,memory=6GiB");
        assert_eq!(shape.to_string().parse::<Shape>().unwrap(), shape);
        let refused = "threads=2,nodes=4+3".parse::<Shape>().unwrap_err();
        assert!(refused.contains("node of 3 CPUs"), "{refused}");
    }

    #[test]
    fn what_cannot_be_emulated_is_refused() {
        for bad in [
            "",
            "nodes",
            "nodes=",
            "nodes=0",
            "nodes=200+100",
            "memory=6",
            "memory=1MiB",
            "nvme=17",
            "cpus=3",
            "threads=0",
            "threads=4",
            "nodes=1+x",
        ] {
            assert!(bad.parse::<Shape>().is_err(), "{bad}");
        }
    }
}
