//! The machine through its stages: [`Vm<Built>`] has everything and runs nothing, [`Vm<Running>`] has its threads, and what
//! is left in the end is an [`Exit`]. The guest runs on its vCPU threads, block I/O on the IOThreads, and everything else on
//! the emulator thread.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use vmprof_sys::kick;

use crate::backing::DiskLock;
use crate::bus::Bus;
use crate::config::{Cpus, VmConfig};
use crate::emulator::{Emulator, EmulatorError, Handler};
use crate::exit::{Exit, VmmError};
use crate::iothread::{Handle, IoThread};
use crate::kvm::Usable;
use crate::machine::{self, BuildError, Channels, Parts, Start};
use crate::pause::Pause;
use crate::serial::outlet::{self, Flowing};
use crate::stats::ExitCounters;
use crate::thread::{Thread, ThreadError};
use crate::vcpu::Vcpu;
use crate::virtio::blk::Blk;
use crate::virtio::console::Console;
use crate::virtio::device::VirtioDevice;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;

mod control;

pub use control::Control;
use control::{DeviceStats, Shared};

/// A machine in the stage `S`.
#[derive(Debug)]
pub struct Vm<S> {
    stage: S,
}

/// Everything is there and nothing runs.
pub struct Built {
    parts: Parts,
    /// They run already, and wait for queues.
    iothreads: Vec<Handle>,
    stats: DeviceStats,
    pause: Arc<Pause>,
    vcpu_cpus: Vec<Cpus>,
    emulator_cpus: Cpus,
}

impl std::fmt::Debug for Built {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Built").field("vcpu_cpus", &self.vcpu_cpus).finish_non_exhaustive()
    }
}

/// Why a machine that was built does not run. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Thread(#[from] ThreadError),
    #[error(transparent)]
    Emulator(#[from] EmulatorError),
}

impl Vm<Built> {
    /// Builds the machine that `config` describes. `initramfs_extra` is a cpio archive to follow the initramfs, or empty.
    pub fn build(
        host: &Usable,
        config: &VmConfig,
        channels: Channels,
        initramfs_extra: &[u8],
    ) -> Result<Vm<Built>, BuildError> {
        Vm::build_with(host, config, &[], channels, Start::Kernel { initramfs_extra })
    }

    /// The same with the disks locked already, in the order of `config.disks`: for a machine that is followed by another one,
    /// which has the same disks.
    pub fn build_locked(
        host: &Usable,
        config: &VmConfig,
        locks: &[DiskLock],
        channels: Channels,
        initramfs_extra: &[u8],
    ) -> Result<Vm<Built>, BuildError> {
        Vm::build_with(host, config, locks, channels, Start::Kernel { initramfs_extra })
    }

    pub(crate) fn build_with(
        host: &Usable,
        config: &VmConfig,
        locks: &[DiskLock],
        channels: Channels,
        start: Start<'_>,
    ) -> Result<Vm<Built>, BuildError> {
        machine::check(host, config)?;
        let iothreads = config.iothreads.iter().map(IoThread::spawn).collect::<Result<Vec<_>, _>>()?;
        let pause = Arc::new(Pause::default());
        let mut locks = locks.iter().cloned();
        let disks = config.disks.iter().map(|disk| {
            let locked = locks.next().map_or_else(|| DiskLock::take(disk), Ok)?;
            Blk::of_machine(disk, locked, &iothreads, &pause)
        });
        let disks = disks.collect::<Result<Vec<_>, _>>()?;
        let Channels { ports, vsock, nets: streams, serial_out, serial_in } = channels;
        let nets = Net::of_machine(&config.nets, streams, &iothreads)?;
        let stats = DeviceStats {
            disks: disks.iter().map(Blk::stats).collect(),
            nets: nets.iter().map(Net::stats).collect(),
        };
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        devices.extend(disks.into_iter().map(|disk| Box::new(disk) as Box<dyn VirtioDevice>));
        devices.extend(nets.into_iter().map(|net| Box::new(net) as Box<dyn VirtioDevice>));
        let mut handlers: Vec<Box<dyn Handler>> = Vec::new();
        if !ports.is_empty() {
            let console = Console::new(ports);
            let (console, handler) =
                console.map_err(|source| BuildError::Device { what: "virtio console", source })?;
            devices.push(Box::new(console));
            handlers.push(Box::new(handler));
        }
        if let Some(listener) = vsock {
            let made = Vsock::new(listener);
            let (vsock, handler) =
                made.map_err(|source| BuildError::Device { what: "virtio vsock", source })?;
            devices.push(Box::new(vsock));
            handlers.push(Box::new(handler));
        }
        let rng = Rng::new().map_err(|source| BuildError::Device { what: "virtio rng", source })?;
        devices.push(Box::new(rng.0));
        handlers.push(Box::new(rng.1));
        let mut parts = machine::assemble(host, config, devices, serial_out, serial_in, start)?;
        parts.handlers.extend(handlers);
        let ram = parts.bus.interrupts.vm().ram();
        iothreads.iter().try_for_each(|iothread| iothread.register_memory(ram))?;
        Ok(Vm::of(config, parts, iothreads, stats, pause))
    }

    pub(crate) fn of(
        config: &VmConfig,
        parts: Parts,
        iothreads: Vec<Handle>,
        stats: DeviceStats,
        pause: Arc<Pause>,
    ) -> Vm<Built> {
        let vcpu_cpus = config.vcpus.iter().map(|vcpu| vcpu.cpus.clone()).collect();
        let emulator_cpus = config.emulator_cpus.clone();
        Vm { stage: Built { parts, iothreads, stats, pause, vcpu_cpus, emulator_cpus } }
    }

    /// Starts the threads, each on its CPUs, and when all are in place the guest.
    pub fn start(self) -> Result<Vm<Running>, StartError> {
        let Built { parts, iothreads, stats, pause, vcpu_cpus, emulator_cpus } = self.stage;
        let Parts { bus, vcpus, handlers, outlet } = parts;
        let (ends, ended) = mpsc::channel();
        let emulator = Emulator::start(&emulator_cpus, handlers, ends.clone())?;
        let serial = outlet.start(&emulator_cpus, ends.clone())?;
        let mut vcpu_threads = Vec::new();
        let mut gates = Vec::new();
        let mut counters = Vec::new();
        for ((id, guest), cpus) in (0..).zip(vcpus).zip(&vcpu_cpus) {
            let counted = Arc::new(ExitCounters::default());
            let vcpu = Vcpu {
                id,
                guest,
                bus: bus.clone(),
                counters: counted.clone(),
                pause: pause.clone(),
                ends: ends.clone(),
            };
            let (go, gate) = mpsc::channel();
            let thread = match vcpu.start(cpus, gate) {
                Ok(thread) => thread,
                Err(error) => {
                    // Those that wait behind their gates end with them.
                    drop(gates);
                    vcpu_threads.into_iter().for_each(|thread: Thread<()>| drop(thread.join()));
                    return Err(error.into());
                }
            };
            counters.push((id, thread.name.clone(), thread.tid, counted));
            vcpu_threads.push(thread);
            gates.push(go);
        }
        pause.threads(vcpu_threads.iter().map(|thread| thread.tid).collect());
        for go in &gates {
            // A thread that is gone has said why.
            let _ = go.send(());
        }
        let mut threads = vec![emulator.thread()];
        threads.extend(serial.thread());
        threads.extend(counters.iter().map(|(_, name, tid, _)| (name.clone(), *tid)));
        threads.extend(iothreads.iter().map(|iothread| (format!("IO {}", iothread.name()), iothread.tid())));
        let shared_bus = Arc::downgrade(&bus);
        let shared =
            Shared { bus: shared_bus, ends, threads, counters, iothreads, stats, pause: pause.clone() };
        let control = Control::new(shared);
        let (emulator, killed) = (Some(emulator), false);
        Ok(Vm { stage: Running { control, bus, ended, pause, vcpu_threads, emulator, serial, killed } })
    }
}

/// The threads run, until [`Vm::wait`] has seen the end.
#[derive(Debug)]
pub struct Running {
    control: Control,
    bus: Arc<Bus>,
    ended: Receiver<Exit>,
    pause: Arc<Pause>,
    vcpu_threads: Vec<Thread<()>>,
    emulator: Option<Emulator>,
    serial: Flowing,
    /// Whether the outside has asked for the end, and need not be waited for.
    killed: bool,
}

/// How long a guest that panics may go on writing to its console, and how long a killed machine waits for whoever reads it.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often a machine looks whether a thread that does not report its own end is still there.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Vm<Running> {
    /// A handle for whoever controls the machine from elsewhere.
    pub fn control(&self) -> Control {
        self.stage.control.clone()
    }

    /// Waits for the machine's end. On return its threads have ended, its devices have nothing in flight, and nothing
    /// writes guest memory any more.
    pub fn wait(mut self) -> Exit {
        let exit = loop {
            match self.stage.ended.recv_timeout(LOOK_EVERY) {
                Ok(Exit::Panicked) => break self.stage.hear_panic(),
                Ok(exit) => break exit,
                Err(RecvTimeoutError::Timeout) => {
                    let mut iothreads = self.stage.control.iothreads().iter();
                    if let Some(ended) = iothreads.find(|iothread| iothread.is_finished()) {
                        let thread = format!("IO {}", ended.name());
                        let panic = "it ended before the machine did".to_owned();
                        break Exit::Failed(VmmError::Broken { thread, panic });
                    }
                }
                // `control` has a sender, so this cannot be; were it so, nothing would run any more.
                Err(RecvTimeoutError::Disconnected) => break Exit::Killed,
            }
        };
        self.stage.killed |= matches!(exit, Exit::Killed);
        match self.stage.shut_down() {
            // Whoever joined the thread knows best how it broke down.
            Some(broken) if !matches!(exit, Exit::Failed(ref why) if !why.is_breakdown()) => {
                Exit::Failed(broken)
            }
            _ => exit,
        }
    }
}

impl Running {
    /// A kernel says that it panics before it has written why. It has until its reset, or a short while if none comes.
    fn hear_panic(&mut self) -> Exit {
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            match self.ended.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                // Another vCPU says the same.
                Ok(Exit::Panicked) => {}
                Ok(failed @ Exit::Failed(_)) => return failed,
                Ok(Exit::Killed) => {
                    self.killed = true;
                    return Exit::Panicked;
                }
                Ok(_) | Err(_) => return Exit::Panicked,
            }
        }
    }

    /// Stops every thread, in the order in which they need one another. `Some`: one of them broke down.
    fn shut_down(&mut self) -> Option<VmmError> {
        let mut broken = None;
        let mut note = |thread: String, outcome: Result<(), String>| {
            if let Err(panic) = outcome {
                broken.get_or_insert(VmmError::Broken { thread, panic });
            }
        };
        self.pause.end();
        let bus = &self.bus;
        bus.com1.stop_waiting();
        for thread in &self.vcpu_threads {
            // A thread that has ended needs no kick.
            let _ = kick::kick(thread.tid);
        }
        for thread in self.vcpu_threads.drain(..) {
            let name = thread.name.clone();
            note(name, thread.join());
        }
        // The guest is still. What it gave away goes where it belongs, and then its devices let go of its memory.
        if let Some(emulator) = &self.emulator {
            emulator.finish();
        }
        bus.pci.shut_down();
        if let Some(emulator) = self.emulator.take() {
            let (name, _) = emulator.thread();
            note(name, emulator.stop());
        }
        for iothread in self.control.iothreads() {
            note(format!("IO {}", iothread.name()), iothread.stop().map_err(|error| error.to_string()));
        }
        // Last, since whoever reads the console may take long, or have stopped: then only a kill ends the wait.
        let (ended, killed) = (&self.ended, self.killed);
        let mut deadline = killed.then(|| Instant::now() + LAST_WORDS);
        let serial = self.serial.end(|| {
            if ended.try_iter().any(|exit| matches!(exit, Exit::Killed)) {
                deadline.get_or_insert_with(|| Instant::now() + LAST_WORDS);
            }
            deadline.is_some_and(|deadline| deadline <= Instant::now())
        });
        note(outlet::THREAD_NAME.to_owned(), serial);
        broken
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Who drops it waits for nobody. After `wait` there is nothing left to stop.
        self.killed = true;
        self.shut_down();
    }
}

#[cfg(test)]
mod tests;
