//! A KVM machine that keeps the memory it shows its guest, and its vCPUs. What kvm-ioctls marks unsafe is here, and so is
//! what it cannot say safely: the element size of port I/O and the details of an internal error.

// UNSAFETY: KVM takes host addresses for guest memory, and `kvm_run` is a union that the kernel fills.
#![allow(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION and the unions of kvm_run")]

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_EXIT_IO_OUT, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_irq_routing_msi__bindgen_ty_1, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VcpuExit, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::kick::Kickable;
use crate::memory::GuestRam;

type Result<T> = std::result::Result<T, kvm_ioctls::Error>;

/// A VM with its memory. The mappings live as long as it and every vCPU of it do.
#[derive(Debug)]
pub struct GuestVm {
    vm: VmFd,
    ram: Arc<GuestRam>,
}

impl GuestVm {
    /// Gives the VM its memory: one slot for each region.
    pub fn new(vm: VmFd, ram: Arc<GuestRam>) -> Result<GuestVm> {
        for (slot, region) in ram.iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is a mapping of `ram`, of that very length, shared with the guest as memory that nobody holds
            // Rust references into (vm-memory's promise). `GuestVm` and `GuestVcpu`, the only ways to the VM from here on,
            // both keep `ram`, so the mapping outlives the last run of a vCPU.
            unsafe { vm.set_user_memory_region(slot)? };
        }
        Ok(GuestVm { vm, ram })
    }

    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    pub fn create_vcpu(&self, id: u32) -> Result<GuestVcpu> {
        Ok(GuestVcpu { fd: self.vm.create_vcpu(u64::from(id))?, _ram: self.ram.clone() })
    }

    /// From now on a signal on `event` raises `gsi`; what is pending in `event` already does so at once.
    pub fn connect_irq(&self, event: &EventFd, gsi: u32) -> Result<()> {
        self.vm.register_irqfd(event, gsi)
    }

    /// From now on a signal on `event` stays in it.
    pub fn disconnect_irq(&self, event: &EventFd, gsi: u32) -> Result<()> {
        self.vm.unregister_irqfd(event, gsi)
    }

    /// From now on a write of any length to the guest-physical `address` signals `event` instead of leaving the guest.
    pub fn connect_doorbell(&self, event: &EventFd, address: u64) -> Result<()> {
        self.vm.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
    }

    pub fn disconnect_doorbell(&self, event: &EventFd, address: u64) -> Result<()> {
        self.vm.unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
    }

    /// Replaces the whole routing table.
    pub fn set_routes(&self, routes: &[Route]) -> Result<()> {
        let entries: Vec<_> = routes.iter().map(Route::entry).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        self.vm.set_gsi_routing(&table)
    }
}

/// Where an interrupt number leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// A pin of one of KVM's chips: 0 and 1 the two PICs, 2 the I/O APIC.
    Pin { gsi: u32, chip: u32, pin: u32 },
    /// A message, as a function's MSI-X table holds it.
    Message { gsi: u32, address: u64, data: u32 },
}

impl Route {
    fn entry(&self) -> kvm_irq_routing_entry {
        match *self {
            Route::Pin { gsi, chip, pin } => kvm_irq_routing_entry {
                gsi,
                type_: kvm_bindings::KVM_IRQ_ROUTING_IRQCHIP,
                u: kvm_bindings::kvm_irq_routing_entry__bindgen_ty_1 {
                    irqchip: kvm_irq_routing_irqchip { irqchip: chip, pin },
                },
                ..Default::default()
            },
            Route::Message { gsi, address, data } => kvm_irq_routing_entry {
                gsi,
                type_: kvm_bindings::KVM_IRQ_ROUTING_MSI,
                u: kvm_bindings::kvm_irq_routing_entry__bindgen_ty_1 {
                    msi: kvm_irq_routing_msi {
                        address_lo: address as u32,
                        address_hi: (address >> 32) as u32,
                        data,
                        __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
                    },
                },
                ..Default::default()
            },
        }
    }
}

/// One virtual CPU, which keeps the guest's memory mapped. Whoever owns it runs it.
#[derive(Debug)]
pub struct GuestVcpu {
    fd: VcpuFd,
    _ram: Arc<GuestRam>,
}

/// Why the guest is not running any more.
#[derive(Debug)]
pub enum Exit<'a> {
    /// `out` or `outs`: elements of `size` bytes, one after another, to one port.
    PortWrite {
        port: u16,
        size: usize,
        data: &'a [u8],
    },
    /// `in` or `ins`: the elements are to be filled in before the next run.
    PortRead {
        port: u16,
        size: usize,
        data: &'a mut [u8],
    },
    MmioWrite {
        address: u64,
        data: &'a [u8],
    },
    /// To be filled in before the next run.
    MmioRead {
        address: u64,
        data: &'a mut [u8],
    },
    /// A kick, or another signal.
    Kicked,
    /// Only without an interrupt controller in the kernel.
    Halted,
    /// The guest took a triple fault.
    Shutdown,
    SystemEvent(SystemEvent),
    /// KVM could not go on, most often because it met an instruction that it cannot emulate.
    InternalError {
        suberror: u32,
        data: Vec<u64>,
    },
    /// The processor refused the guest's state.
    EntryFailed {
        reason: u64,
        cpu: u32,
    },
    Other(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemEvent {
    Shutdown,
    Reset,
    Crash,
    Other(u32),
}

/// An exit without its details, which borrow from `kvm_run` and are read one step later.
enum Cause {
    Mmio,
    Port,
    InternalError,
    Plain(Exit<'static>),
}

impl GuestVcpu {
    /// For set-up before the first run: registers, CPUID, MSRs.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Makes [`crate::kick::kick`] reach this vCPU on the calling thread, for as long as `drive` runs.
    pub fn while_kickable<T>(&mut self, drive: impl FnOnce(Driven<'_>) -> T) -> io::Result<T> {
        let run: *mut _ = self.fd.get_kvm_run();
        // SAFETY: the mapping behind `run` belongs to `self.fd`, which this borrow keeps alive: `drive` gets a `Driven`, through
        // which the vCPU can be run and not be exchanged or dropped. The guard is a local of this frame and thus stays on
        // this thread and is dropped before the borrow ends.
        let guard = unsafe { Kickable::enter(run)? };
        let outcome = drive(Driven(self));
        drop(guard);
        Ok(outcome)
    }

    fn run(&mut self) -> Result<Exit<'_>> {
        match self.enter()? {
            Cause::Mmio => Ok(self.mmio()),
            Cause::Port => Ok(self.port_io()),
            Cause::InternalError => Ok(self.internal_error()),
            Cause::Plain(exit) => Ok(exit),
        }
    }

    fn enter(&mut self) -> Result<Cause> {
        let exit = match self.fd.run() {
            Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => return Ok(Cause::Mmio),
            Ok(VcpuExit::IoOut(..) | VcpuExit::IoIn(..)) => return Ok(Cause::Port),
            Ok(VcpuExit::InternalError) => return Ok(Cause::InternalError),
            Ok(VcpuExit::Hlt) => Exit::Halted,
            Ok(VcpuExit::Shutdown) => Exit::Shutdown,
            Ok(VcpuExit::SystemEvent(kind, _)) => Exit::SystemEvent(match kind {
                KVM_SYSTEM_EVENT_SHUTDOWN => SystemEvent::Shutdown,
                KVM_SYSTEM_EVENT_RESET => SystemEvent::Reset,
                KVM_SYSTEM_EVENT_CRASH => SystemEvent::Crash,
                other => SystemEvent::Other(other),
            }),
            Ok(VcpuExit::FailEntry(reason, cpu)) => Exit::EntryFailed { reason, cpu },
            Ok(VcpuExit::Intr) => Exit::Kicked,
            Ok(other) => Exit::Other(format!("{other:?}")),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                // Taken back after the run and not before it: a kick that comes from here on is for the next run.
                self.fd.set_kvm_immediate_exit(0);
                Exit::Kicked
            }
            Err(error) => return Err(error),
        };
        Ok(Cause::Plain(exit))
    }

    fn mmio(&mut self) -> Exit<'_> {
        let run = self.fd.get_kvm_run();
        // SAFETY: called for KVM_EXIT_MMIO alone, for which `mmio` is the union's valid field; it holds plain integers.
        let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
        let (address, len) = (mmio.phys_addr, (mmio.len as usize).min(mmio.data.len()));
        let data = &mut mmio.data[..len];
        if mmio.is_write != 0 { Exit::MmioWrite { address, data } } else { Exit::MmioRead { address, data } }
    }

    fn port_io(&mut self) -> Exit<'_> {
        let run = self.fd.get_kvm_run();
        let base: *mut u8 = std::ptr::from_mut(run).cast();
        // SAFETY: called for KVM_EXIT_IO alone, for which `io` is the union's valid field.
        let io = unsafe { run.__bindgen_anon_1.io };
        let size = usize::from(io.size);
        // SAFETY: the kernel places the data at this offset within the mapping that `base` begins.
        let start = unsafe { base.add(io.data_offset as usize) };
        // SAFETY: KVM keeps `size` times `count` bytes there (at most a page) until the next run, and the slice's lifetime is
        // that of the borrow of `self`, which a next run needs.
        let data = unsafe { std::slice::from_raw_parts_mut(start, size * io.count as usize) };
        match u32::from(io.direction) {
            KVM_EXIT_IO_OUT => Exit::PortWrite { port: io.port, size, data },
            _ => Exit::PortRead { port: io.port, size, data },
        }
    }

    fn internal_error(&mut self) -> Exit<'static> {
        let run = self.fd.get_kvm_run();
        // SAFETY: called for KVM_EXIT_INTERNAL_ERROR alone, for which `internal` is the union's valid field; it holds plain
        // integers.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let len = (internal.ndata as usize).min(internal.data.len());
        Exit::InternalError { suberror: internal.suberror, data: internal.data[..len].to_vec() }
    }

    fn registers(&self) -> Result<(kvm_regs, kvm_sregs)> {
        Ok((self.fd.get_regs()?, self.fd.get_sregs()?))
    }
}

/// A vCPU on the thread that can be kicked out of it.
#[derive(Debug)]
pub struct Driven<'a>(&'a mut GuestVcpu);

impl Driven<'_> {
    /// Runs the guest until it needs us.
    pub fn run(&mut self) -> Result<Exit<'_>> {
        self.0.run()
    }

    /// Tells the guest that it did not run for a while, so that its watchdogs do not take the time for a hang.
    pub fn was_away(&self) {
        // Refused when the guest has no clock of KVM's: then there is no place to tell it.
        let _ = self.0.fd.kvmclock_ctrl();
    }

    pub fn registers(&self) -> Result<(kvm_regs, kvm_sregs)> {
        self.0.registers()
    }
}
