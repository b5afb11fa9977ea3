//! What may stand on the command line, and what follows from it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::client::{Load, MOST_DEPTH};
use crate::error::{Doing as _, Error};
use crate::point::{Point, Workload};

/// The longest window that servers look for work in where they do: QEMU's own.
pub const POLL_MAX_NS: u64 = 32_768;

/// Measures vmprof's dataplane: interleaved rounds, medians with their spread, docs/measuring.md
#[derive(Debug, Parser)]
#[command(name = "vmprof-bench")]
pub struct Arguments {
    #[command(subcommand)]
    pub benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
pub enum Benchmark {
    /// The engine alone: IOThread and virtio-blk against an epoll loop and a bare io_uring loop
    Engine {
        #[command(flatten)]
        common: Common,
    },
    /// `vmprof vhost-user-blk` against qemu-storage-daemon, with fio as the limit
    VhostUserBlk {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        servers: Servers,
    },
}

#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The file to measure on; made when it is missing, twice --size long
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// MiB that requests are spread over [default: 1024, quick 64]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(4..=1 << 20))]
    pub size: Option<u64>,
    /// Rounds of all subjects at all points [default: 5, quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// Seconds that each is measured for [default: 2, quick 0.2]
    #[arg(long, value_name = "S")]
    pub seconds: Option<f64>,
    /// Requests in flight, such as 1,32,128
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [1, 32, 128],
        value_parser = clap::value_parser!(u32).range(1..=MOST_DEPTH as i64))]
    pub depths: Vec<u32>,
    /// Where the served side runs [default: the last CPU]
    #[arg(long, value_name = "CPU")]
    pub server_cpu: Option<u32>,
    /// Where the driver runs [default: the first CPU]
    #[arg(long, value_name = "CPU")]
    pub client_cpu: Option<u32>,
    /// The driver looks for completions without sleeping: it must have its CPU to itself
    #[arg(long)]
    pub spin: bool,
    /// What the orders and places are drawn from
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Whether it runs at all, in less than a minute; its figures mean little
    #[arg(long)]
    pub quick: bool,
    /// Where the measurements go as JSON [default: beside the file]
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct Servers {
    /// The vmprof to measure [default: beside this program, or else on PATH]
    #[arg(long, value_name = "PATH")]
    pub vmprof: Option<PathBuf>,
    /// QEMU's server, 10 or newer
    #[arg(long, value_name = "PATH", default_value = "qemu-storage-daemon")]
    pub qemu_storage_daemon: PathBuf,
    /// The limit; without it the table has none
    #[arg(long, value_name = "PATH", default_value = "fio")]
    pub fio: PathBuf,
    /// perf, which counts the servers' system calls in a pass of its own; without it they are not counted
    #[arg(long, value_name = "PATH", default_value = "perf")]
    pub perf: PathBuf,
    /// Numbers of virtqueues, such as 1,2 [quick: 1]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=16))]
    pub queues: Option<Vec<u16>>,
    /// What is asked for, such as randread,randwrite,read [default: all of them, quick randread]
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    pub workloads: Option<Vec<Workload>>,
    /// Leave out subjects whose name does not contain this
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
}

/// The common arguments with their defaults, as the report repeats them.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    pub file: PathBuf,
    pub json: PathBuf,
    pub area_bytes: u64,
    pub rounds: u32,
    pub seconds: f64,
    pub warmup_seconds: f64,
    pub depths: Vec<u32>,
    pub server_cpu: u32,
    pub client_cpu: u32,
    pub spin: bool,
    pub seed: u64,
    pub quick: bool,
}

impl Settings {
    pub fn new(common: &Common, benchmark: &str) -> Result<Settings, Error> {
        let quick = common.quick;
        let allowed =
            vmprof_sys::affinity::cpus_of_thread(0).doing(|| "CPUs could not be listed".to_owned())?;
        let (first, last) = (allowed.first().copied().unwrap_or(0), allowed.last().copied().unwrap_or(0));
        let seconds = common.seconds.unwrap_or(if quick { 0.2 } else { 2.0 });
        if !(0.01..=3600.0).contains(&seconds) {
            return Err(Error::Asked(format!("--seconds {seconds}: from 0.01 to 3600")));
        }
        let file = common.file.clone().unwrap_or_else(|| target().join("vmprof-bench/disk.raw"));
        let json = common.json.clone().unwrap_or_else(|| {
            let name = format!("{benchmark}.json");
            file.parent().map_or_else(|| PathBuf::from(&name), |directory| directory.join(&name))
        });
        Ok(Settings {
            area_bytes: common.size.unwrap_or(if quick { 64 } else { 1024 }) << 20,
            rounds: common.rounds.unwrap_or(if quick { 2 } else { 5 }),
            seconds,
            warmup_seconds: (seconds / 4.0).min(0.5),
            depths: common.depths.clone(),
            server_cpu: common.server_cpu.unwrap_or(last),
            client_cpu: common.client_cpu.unwrap_or(first),
            spin: common.spin,
            seed: common.seed,
            quick,
            file,
            json,
        })
    }

    pub fn load(&self, point: Point, area_bytes: u64, seed: u64) -> Load {
        Load {
            workload: point.workload,
            depth: point.depth,
            area_bytes,
            warmup: Duration::from_secs_f64(self.warmup_seconds),
            window: Duration::from_secs_f64(self.seconds),
            seed,
        }
    }
}

/// Cargo's target directory, from where this program lies: TARGET/PROFILE/vmprof-bench.
fn target() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().nth(2).map_or_else(std::env::temp_dir, std::path::Path::to_owned)
}
