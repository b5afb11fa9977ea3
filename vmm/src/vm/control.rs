//! The handle by which the outside reaches a running machine: its power button, its end, its threads, its counters.

use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};

use crate::bus::Bus;
use crate::exit::Exit;
use crate::iothread::{Change, Handle, IoThreadError, Unmoved};
use crate::pause::{Pause, PauseError, PauseNews};
use crate::stats::{ExitCounters, Stats, VcpuStats};
use crate::virtio::blk::{DiskStats, OpenAs};
use crate::virtio::net::NetStats;

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
    pub(super) stats: DeviceStats,
    pub(super) pause: Arc<Pause>,
}

/// The counters of its devices, each kind in the order of the configuration.
#[derive(Debug, Default)]
pub(crate) struct DeviceStats {
    pub(super) disks: Vec<DiskStats>,
    pub(super) nets: Vec<NetStats>,
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

    /// Has every vCPU leave the guest and wait. Its disks end what they have begun.
    pub fn pause(&self) -> Result<(), PauseError> {
        self.0.pause.pause()
    }

    /// Lets a paused machine go on, and its disks try again what had stopped it.
    pub fn resume(&self) -> Result<(), PauseError> {
        self.0.pause.resume()?;
        self.0.iothreads.iter().for_each(Handle::wake);
        Ok(())
    }

    /// Who hears when the machine pauses and goes on, said once; called on the machine's threads, where it must not wait for
    /// anything. A machine that is paused already is told of at once.
    pub fn on_pause(&self, tell: impl Fn(PauseNews) + Send + Sync + 'static) {
        self.0.pause.on_news(tell);
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

    /// How each disk is open, in the order of the configuration.
    pub fn disks_open_as(&self) -> io::Result<Vec<OpenAs>> {
        self.0.stats.disks.iter().map(DiskStats::open_as).collect()
    }

    /// Changes an IOThread while it serves; `None`: there is none of this number.
    pub fn change_iothread(&self, id: u32, change: Change) -> Option<Result<Unmoved, IoThreadError>> {
        let iothread = self.0.iothreads.iter().find(|iothread| iothread.id() == id)?;
        Some(iothread.change(change))
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
            disks: self.0.stats.disks.iter().map(DiskStats::snapshot).collect(),
            nets: self.0.stats.nets.iter().map(NetStats::snapshot).collect(),
            paused: self.0.pause.snapshot(),
        }
    }
}
