//! What a running machine has done so far, as plain data: taken at any moment, without stopping anything.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::iothread::counters::IoThreadSnapshot;
use crate::pause::PauseSnapshot;
use crate::virtio::blk::DiskSnapshot;
use crate::virtio::net::NetSnapshot;

/// A snapshot. Numbers of different threads are not of the same instant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub vcpus: Vec<VcpuStats>,
    pub iothreads: Vec<IoThreadSnapshot>,
    pub disks: Vec<DiskSnapshot>,
    #[serde(default)]
    pub nets: Vec<NetSnapshot>,
    /// Since when and why the guest does not run; `None` while it does.
    #[serde(default)]
    pub paused: Option<PauseSnapshot>,
}

/// One vCPU: how often it left the guest, and for what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    pub id: u32,
    /// The OS thread, `CPU 0/KVM`, and the kernel's id of it.
    pub name: String,
    pub tid: i32,
    pub exits: Exits,
}

/// Exits that reached the VMM; those that KVM handles by itself are not among them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    pub port_reads: u64,
    pub port_writes: u64,
    pub mmio_reads: u64,
    pub mmio_writes: u64,
    /// Kicks and other signals.
    pub interrupted: u64,
    pub others: u64,
}

impl Exits {
    /// Each with its name.
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("port_read", self.port_reads),
            ("port_write", self.port_writes),
            ("mmio_read", self.mmio_reads),
            ("mmio_write", self.mmio_writes),
            ("interrupted", self.interrupted),
            ("other", self.others),
        ]
    }

    pub fn all(&self) -> u64 {
        self.named().iter().map(|(_, number)| number).sum()
    }
}

/// A vCPU thread counts its exits here and anyone may read them.
#[derive(Debug, Default)]
pub(crate) struct ExitCounters {
    pub(crate) port_reads: Tally,
    pub(crate) port_writes: Tally,
    pub(crate) mmio_reads: Tally,
    pub(crate) mmio_writes: Tally,
    pub(crate) interrupted: Tally,
    pub(crate) others: Tally,
}

/// A number that one thread alone raises.
#[derive(Debug, Default)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    pub(crate) fn count(&self) {
        // One writer, so no read-modify-write is needed.
        self.0.store(self.get() + 1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl ExitCounters {
    pub(crate) fn snapshot(&self) -> Exits {
        Exits {
            port_reads: self.port_reads.get(),
            port_writes: self.port_writes.get(),
            mmio_reads: self.mmio_reads.get(),
            mmio_writes: self.mmio_writes.get(),
            interrupted: self.interrupted.get(),
            others: self.others.get(),
        }
    }
}
