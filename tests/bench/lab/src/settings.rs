//! What is measured: the user's words outside, and what of them travels into the emulated host.

use std::fmt;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::work::Work;

/// The same guest on vmprof and on QEMU, side by side in one emulated host: CPU, exits, switches per request.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// IOThreads of the disk, each number a pair of machines
    #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
    pub iothreads: Vec<u32>,
    /// What is behind the disk
    #[arg(long, value_delimiter = ',', default_value = "null,file")]
    pub backing: Vec<Backing>,
    /// fio's jobs and the depth of each: `randread/1x64`
    #[arg(long, value_delimiter = ',', default_value = "randread/1x1,randread/1x64,randread/4x64")]
    pub points: Vec<Point>,
    /// How often each point is measured on each machine, in turns
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Seconds that are counted, each time
    #[arg(long, default_value_t = 4)]
    pub seconds: u32,
    /// Further boots of each machine, in turns, that only tell the time to /init
    #[arg(long, default_value_t = 3)]
    pub boots: u32,
    /// Leave out the windows that count exits and system calls by their reason
    #[arg(long)]
    pub no_reasons: bool,
    /// CPUs of the emulated host; as many as this machine has, unless written
    #[arg(long)]
    pub cpus: Option<u32>,
    /// vmprof's binary; the one beside this program, unless written
    #[arg(long)]
    pub vmprof: Option<PathBuf>,
    /// Where all numbers are written
    #[arg(long, default_value = "lab.json")]
    pub json: PathBuf,
    /// Print the table of an earlier run instead
    #[arg(long)]
    pub show: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// null_blk, cache none
    Null,
    /// A file in the page cache, cache writeback
    File,
}

impl Backing {
    /// The profile's word for the cache mode.
    pub fn cache(self) -> &'static str {
        match self {
            Backing::Null => "none",
            Backing::File => "writeback",
        }
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Backing::Null => "null",
            Backing::File => "file",
        })
    }
}

/// One way of using the disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Point {
    pub rw: String,
    pub jobs: u32,
    pub depth: u32,
}

impl std::str::FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Point, String> {
        let parts = || {
            let (rw, load) = text.split_once('/')?;
            let (jobs, depth) = load.split_once('x')?;
            Some(Point { rw: rw.to_owned(), jobs: jobs.parse().ok()?, depth: depth.parse().ok()? })
        };
        let known = |point: &Point| {
            ["randread", "randwrite", "read", "write"].contains(&point.rw.as_str())
                && (1..=VCPUS).contains(&point.jobs)
                && (1..=256).contains(&point.depth)
        };
        parts().filter(known).ok_or_else(|| {
            format!("`{text}` is no point: write fio's rw, 1 to {VCPUS} jobs and a depth of 1 to 256, as in randread/1x64")
        })
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}x{}", self.rw, self.jobs, self.depth)
    }
}

pub const VCPUS: u32 = 4;
pub const QUEUES: u32 = 4;
pub const GUEST_MIB: u32 = 512;
/// Of each backing; fio stays within it.
pub const BACKING_MIB: u32 = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vmm {
    Vmprof,
    Qemu,
}

impl Vmm {
    pub const BOTH: [Vmm; 2] = [Vmm::Vmprof, Vmm::Qemu];
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Vmm::Vmprof => "vmprof",
            Vmm::Qemu => "qemu",
        })
    }
}

/// What the driver in the emulated host is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Settings {
    /// What is left to do, in this order.
    pub work: Vec<Work>,
    pub points: Vec<Point>,
    pub seconds: u32,
    /// QEMU's own words up to its arguments, as they are in there.
    pub qemu: Vec<String>,
}

/// Where things lie in the emulated host.
pub mod place {
    pub const DRIVER: &str = "/bench/driver";
    pub const SETTINGS: &str = "/bench/settings.json";
    pub const QEMU: &str = "/bench/qemu";
    pub const VMPROF: &str = "/vmprof/vmprof";
    pub const IMAGE: &str = "/vmprof/image.json";
    pub const KERNEL: &str = "/vmprof/kernel";
    /// As vmprof takes it, which adds the job.
    pub const INITRAMFS: &str = "/vmprof/initramfs";
    /// The same with the job.
    pub const INITRAMFS_WITH_JOB: &str = "/bench/initramfs";
    /// The disk with the root image.
    pub const ROOT_DISK: &str = "/bench/root-disk";
    /// A file with the same: QEMU's export takes the image for what it is in a store.
    pub const ROOT: &str = "/bench/files/root";
    /// The disk with the filesystem for files.
    pub const FILES_DISK: &str = "/bench/files-disk";
    pub const FILES: &str = "/bench/files";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_reads_as_it_is_written_and_nothing_else_is_one() {
        let point: Point = "randread/4x64".parse().unwrap();
        assert_eq!(point, Point { rw: "randread".into(), jobs: 4, depth: 64 });
        assert_eq!(point.to_string(), "randread/4x64");
        for bad in
            ["", "randread", "randread/1", "trim/1x1", "read/0x1", "read/5x1", "read/1x0", "read/1x300"]
        {
            assert!(bad.parse::<Point>().is_err(), "{bad}");
        }
    }
}
