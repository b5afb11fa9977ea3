//! A vCPU's thread: it alone runs the vCPU, answers its exits through the bus, and says why it ended.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use vmprof_sys::kvm::{self, Driven, GuestVcpu, SystemEvent};

use crate::bus::Bus;
use crate::config::Cpus;
use crate::exit::{Exit, Registers, VmmError};
use crate::pause::{Order, Pause};
use crate::stats::ExitCounters;
use crate::thread::{self, Thread, ThreadError};

/// A vCPU that has not run yet, with all that its thread will own.
#[derive(Debug)]
pub struct Vcpu {
    pub id: u32,
    pub guest: GuestVcpu,
    pub bus: Arc<Bus>,
    pub counters: Arc<ExitCounters>,
    /// Its order changes before the kick that is to make it heard.
    pub pause: Arc<Pause>,
    pub ends: Sender<Exit>,
}

impl Vcpu {
    /// As QEMU's users know it.
    pub fn thread_name(id: u32) -> String {
        format!("CPU {id}/KVM")
    }

    /// Starts the thread. It is pinned before it runs the guest for the first time, and waits for `go`: all threads are in
    /// place, or, when the sender is dropped, none runs a guest.
    pub fn start(self, cpus: &Cpus, go: Receiver<()>) -> Result<Thread<()>, ThreadError> {
        thread::spawn(&Vcpu::thread_name(self.id), cpus, move || {
            if go.recv().is_err() {
                return;
            }
            let ends = self.ends.clone();
            let report = PanicReport { thread: Vcpu::thread_name(self.id), ends: ends.clone() };
            if let Some(exit) = self.run() {
                // Nobody to hear it means that the machine has ended already.
                let _ = ends.send(exit);
            }
            drop(report);
        })
    }

    /// Runs until the guest or the host ends it; `None`: told to stop.
    fn run(self) -> Option<Exit> {
        let Vcpu { id, mut guest, bus, counters, pause, ends } = self;
        let mut panicked = false;
        let outcome = guest.while_kickable(|mut guest| {
            loop {
                if pause.order() != Order::Go {
                    if pause.wait() == Order::End {
                        return None;
                    }
                    guest.was_away();
                }
                match step(id, &mut guest, &bus, &counters) {
                    // Said before the kernel has written all it has to say: it goes on. Said once, however often.
                    Some(Exit::Panicked) => {
                        if !std::mem::replace(&mut panicked, true) {
                            let _ = ends.send(Exit::Panicked);
                        }
                    }
                    None => {}
                    end => return end,
                }
            }
        });
        outcome.unwrap_or_else(|error| {
            let source = kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(0));
            Some(Exit::Failed(VmmError::Run { vcpu: id, registers: Registers::default(), source }))
        })
    }
}

/// One exit, answered.
fn step(id: u32, guest: &mut Driven<'_>, bus: &Bus, counters: &ExitCounters) -> Option<Exit> {
    let exit = match guest.run() {
        Ok(kvm::Exit::MmioWrite { address, data }) => {
            counters.mmio_writes.count();
            return device(id, bus.mmio_write(address, data).map(|()| None));
        }
        Ok(kvm::Exit::MmioRead { address, data }) => {
            counters.mmio_reads.count();
            bus.mmio_read(address, data);
            return None;
        }
        Ok(kvm::Exit::PortWrite { port, size, data }) => {
            counters.port_writes.count();
            for element in data.chunks(size.max(1)) {
                let end = device(id, bus.port_write(port, element).map(|end| end.map(Exit::from)));
                if end.is_some() {
                    return end;
                }
            }
            return None;
        }
        Ok(kvm::Exit::PortRead { port, size, data }) => {
            counters.port_reads.count();
            data.chunks_mut(size.max(1)).for_each(|element| bus.port_read(port, element));
            return None;
        }
        Ok(kvm::Exit::Kicked) => {
            counters.interrupted.count();
            return None;
        }
        Ok(exit) => Ok(owned(exit)),
        Err(error) => Err(error),
    };
    counters.others.count();
    let registers = guest
        .registers()
        .map_or_else(|_| Registers::default(), |(regs, sregs)| Registers::new(&regs, &sregs));
    Some(match exit {
        Ok(Rare::Shutdown) => Exit::TripleFault { vcpu: id, registers },
        Ok(Rare::System(SystemEvent::Shutdown)) => Exit::PowerOff,
        Ok(Rare::System(SystemEvent::Reset)) => Exit::Reset,
        Ok(Rare::System(SystemEvent::Crash)) => Exit::Panicked,
        Ok(Rare::System(SystemEvent::Other(kind))) => {
            let exit = format!("system event {kind}");
            Exit::Failed(VmmError::Unexpected { vcpu: id, exit, registers })
        }
        Ok(Rare::InternalError { suberror, data }) => {
            Exit::Failed(VmmError::InternalError { vcpu: id, suberror, data, registers })
        }
        Ok(Rare::EntryFailed { reason, cpu }) => {
            Exit::Failed(VmmError::EntryFailed { vcpu: id, reason, cpu, registers })
        }
        Ok(Rare::Other(exit)) => Exit::Failed(VmmError::Unexpected { vcpu: id, exit, registers }),
        Err(source) => Exit::Failed(VmmError::Run { vcpu: id, registers, source }),
    })
}

fn device(id: u32, outcome: Result<Option<Exit>, crate::pci::FunctionError>) -> Option<Exit> {
    outcome.unwrap_or_else(|source| Some(Exit::Failed(VmmError::Device { vcpu: id, source })))
}

/// The exits that end a run, without a hold on the vCPU.
enum Rare {
    Shutdown,
    System(SystemEvent),
    InternalError { suberror: u32, data: Vec<u64> },
    EntryFailed { reason: u64, cpu: u32 },
    Other(String),
}

fn owned(exit: kvm::Exit<'_>) -> Rare {
    match exit {
        kvm::Exit::Shutdown => Rare::Shutdown,
        kvm::Exit::SystemEvent(event) => Rare::System(event),
        kvm::Exit::InternalError { suberror, data } => Rare::InternalError { suberror, data },
        kvm::Exit::EntryFailed { reason, cpu } => Rare::EntryFailed { reason, cpu },
        other => Rare::Other(format!("{other:?}")),
    }
}

/// Tells of a thread that panics, since whoever waits for the machine's end waits for a message.
pub(crate) struct PanicReport {
    pub(crate) thread: String,
    pub(crate) ends: Sender<Exit>,
}

impl Drop for PanicReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::mem::take(&mut self.thread);
            let panic = "it panicked".to_owned();
            let _ = self.ends.send(Exit::Failed(VmmError::Broken { thread, panic }));
        }
    }
}
