//! The handle by which the outside reaches a running machine: its power button, its end, its threads, its counters.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};

use crate::bus::Bus;
use crate::exit::Exit;
use crate::iothread::Handle;
use crate::stats::{ExitCounters, Stats, VcpuStats};
use crate::virtio::blk::DiskStats;

/// A handle on a running machine: cheap to clone, good on any thread, harmless after the end.
#[derive(Debug, Clone)]
pub struct Control(Arc<Shared>);

/// What every handle on one machine shares.
#[derive(Debug)]
pub(super) struct Shared {
    /// The guest's memory goes with the machine, not with the last who could have controlled it.
    pub(super) bus: Weak<Bus>,
    pub(super) ends: Sender<Exit>,
    pub(super) threads: Vec<(String, i32)>,
    /// Number, name, thread id and exits of each vCPU.
    pub(super) counters: Vec<(u32, String, i32, Arc<ExitCounters>)>,
    pub(super) iothreads: Vec<Handle>,
    pub(super) disk_stats: Vec<DiskStats>,
}

impl Control {
    pub(super) fn new(shared: Shared) -> Control {
        Control(Arc::new(shared))
    }

    pub(super) fn iothreads(&self) -> &[Handle] {
        &self.0.iothreads
    }

    /// Presses the power button: the guest is asked to power off, and may take its time or not listen.
    pub fn power_button(&self) {
        if let Some(bus) = self.0.bus.upgrade() {
            bus.power.press_button();
        }
    }

    /// Ends the machine at once, as pulling the plug does.
    pub fn kill(&self) {
        // A machine that has ended needs no killing.
        let _ = self.0.ends.send(Exit::Killed);
    }

    /// Every thread of the machine: its name, and the kernel's id of it as in /proc/PID/task.
    pub fn threads(&self) -> Vec<(String, i32)> {
        self.0.threads.clone()
    }

    pub fn stats(&self) -> Stats {
        let vcpu = |(id, name, tid, counters): &(u32, String, i32, Arc<ExitCounters>)| VcpuStats {
            id: *id,
            name: name.clone(),
            tid: *tid,
            exits: counters.snapshot(),
        };
        Stats {
            vcpus: self.0.counters.iter().map(vcpu).collect(),
            iothreads: self.0.iothreads.iter().map(Handle::snapshot).collect(),
            disks: self.0.disk_stats.iter().map(DiskStats::snapshot).collect(),
        }
    }
}
