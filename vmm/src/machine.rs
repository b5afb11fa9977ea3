//! Putting a machine together: KVM's VM with its memory and chips, the bus with its devices, the vCPUs. Everything that can
//! be refused is refused here, before the guest runs.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_PIT_SPEAKER_DUMMY, kvm_cpuid_entry2, kvm_pit_config};
use kvm_ioctls::{Cap, VmFd};
use vm_memory::{Bytes, GuestAddress};
use vmprof_sys::kvm::{GuestVcpu, GuestVm};
use vmprof_sys::memory::{self, Binding, MemoryError};

use crate::acpi;
use crate::backing::DiskError;
use crate::boot::cpuid::{self, CpuidError};
use crate::boot::kernel::{self, LoadError};
use crate::boot::pvh;
use crate::boot::registers::{self, RegisterError};
use crate::bus::Bus;
use crate::config::{MemoryMode, VmConfig};
use crate::emulator::Handler;
use crate::interrupts::{InterruptError, Interrupts};
use crate::iothread::IoThreadError;
use crate::kvm::Usable;
use crate::layout::{self, gsi};
use crate::net::{FrameStream, NetError};
use crate::pci::{self, BusFull, Function, PciBus};
use crate::power::{Power, RESET_CODE};
use crate::serial::Com1;
use crate::serial::outlet::Outlet;
use crate::virtio::device::VirtioDevice;
use crate::virtio::function::{FunctionSetupError, VirtioFunction};

/// The guest's ties to the outside.
pub struct Channels {
    /// Named ports of the guest's virtio console.
    pub ports: Vec<Port>,
    /// Where the outside begins connections to the guest's virtio-vsock; `None`: the guest has none.
    pub vsock: Option<UnixListener>,
    /// What carries the frames of the network devices whose backend is a stream, in their order. A machine that follows another
    /// one is given the same.
    pub nets: Vec<FrameStream>,
    /// What the guest writes to its serial console. It may block: the guest waits meanwhile, and after the guest's end the
    /// machine does, until it is killed. For that a signal has to end a write with `Interrupted`, as it does a file's.
    pub serial_out: Box<dyn Write + Send>,
    /// What is typed on it; not blocking. `None`: nobody types.
    pub serial_in: Option<OwnedFd>,
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Channels").field("ports", &self.ports).finish_non_exhaustive()
    }
}

/// One port: the guest finds it by its name, and what goes in comes out at the other end of `stream`.
#[derive(Debug)]
pub struct Port {
    pub name: String,
    /// One end of a stream socket pair, not blocking.
    pub stream: OwnedFd,
}

/// Why a machine cannot be built as asked.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("a machine needs at least one vCPU")]
    NoVcpu,
    #[error("the machine asks for {asked} vCPUs, and this host's KVM gives one machine at most {most}")]
    TooManyVcpus { asked: usize, most: u32 },
    #[error("vCPUs are numbered from 0 without a gap, and number {position} of the list has id {found}")]
    VcpuIds { position: usize, found: u32 },
    #[error("the machine asks for {asked} threads in a core, and a core has 1, 2, 4 or 8")]
    ThreadsPerCore { asked: u32 },
    #[error("the machine asks for {bytes} bytes of memory, and {} is the least that a PC has", layout::HIGH_START * 2)]
    TooLittleMemory { bytes: u64 },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("KVM refused the machine {what}")]
    Kvm { what: &'static str, source: kvm_ioctls::Error },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the boot tables could not be written into guest memory: {0}")]
    Tables(#[from] vm_memory::GuestMemoryError),
    #[error(transparent)]
    Acpi(#[from] acpi::TooLarge),
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    #[error("vCPU {vcpu} could not be set up")]
    Registers { vcpu: u32, source: RegisterError },
    #[error(transparent)]
    Interrupts(#[from] InterruptError),
    #[error(transparent)]
    Bus(#[from] BusFull),
    #[error(transparent)]
    Function(#[from] FunctionSetupError),
    #[error(transparent)]
    IoThread(#[from] IoThreadError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("the {what} could not be made")]
    Device { what: &'static str, source: io::Error },
}

/// All parts of a machine, none of them running.
pub(crate) struct Parts {
    pub(crate) bus: Arc<Bus>,
    pub(crate) vcpus: Vec<GuestVcpu>,
    /// What the emulator thread will serve.
    pub(crate) handlers: Vec<Box<dyn Handler>>,
    /// Where the serial console's output leaves.
    pub(crate) outlet: Outlet,
}

/// What the first vCPU starts with.
pub(crate) enum Start<'a> {
    /// Linux by PVH, with bytes to append to its initramfs.
    Kernel { initramfs_extra: &'a [u8] },
    /// Machine code at 0x1000, for tests: in real mode, or in protected mode without paging.
    #[cfg(test)]
    RealMode { code: &'a [u8] },
    #[cfg(test)]
    ProtectedMode { code: &'a [u8] },
}

const MOST_THREADS_PER_CORE: u32 = 8;

pub(crate) fn check(host: &Usable, config: &VmConfig) -> Result<(), BuildError> {
    let asked = config.vcpus.len();
    if asked == 0 {
        return Err(BuildError::NoVcpu);
    }
    if asked as u64 > u64::from(host.most_vcpus) {
        return Err(BuildError::TooManyVcpus { asked, most: host.most_vcpus });
    }
    let mut ids = config.vcpus.iter().map(|vcpu| vcpu.id).enumerate();
    if let Some((position, found)) = ids.find(|(position, id)| *position != *id as usize) {
        return Err(BuildError::VcpuIds { position, found });
    }
    let asked = config.threads_per_core;
    // An APIC id numbers threads in bits of its own: other counts would leave gaps between the cores' numbers.
    if !asked.is_power_of_two() || asked > MOST_THREADS_PER_CORE {
        return Err(BuildError::ThreadsPerCore { asked });
    }
    if config.memory.bytes < layout::HIGH_START * 2 {
        return Err(BuildError::TooLittleMemory { bytes: config.memory.bytes });
    }
    Ok(())
}

pub(crate) fn assemble(
    host: &Usable,
    config: &VmConfig,
    devices: Vec<Box<dyn VirtioDevice>>,
    serial_out: Box<dyn Write + Send>,
    serial_in: Option<OwnedFd>,
    start: Start<'_>,
) -> Result<Parts, BuildError> {
    check(host, config)?;
    let memory = &config.memory;
    let ranges = layout::memory(memory.bytes);
    let binding = match memory.mode {
        MemoryMode::Strict => Binding::Strict,
        MemoryMode::Preferred => Binding::Preferred,
        MemoryMode::Interleave => Binding::Interleave,
    };
    let ram = Arc::new(memory::allocate(&ranges, memory.hugepage_bytes, binding, &memory.nodes)?);
    let vm = create(host)?;
    let vm =
        GuestVm::new(vm, ram.clone()).map_err(|source| BuildError::Kvm { what: "its memory", source })?;
    let vm = Arc::new(vm);
    let interrupts = Arc::new(Interrupts::new(vm.clone())?);

    let (com1, serial, outlet) = Com1::new(interrupts.pin(gsi::COM1)?, serial_out, serial_in)
        .map_err(|source| BuildError::Device { what: "serial console", source })?;
    let power = Power::new(interrupts.pin(gsi::EVENTS)?);
    let functions = devices.into_iter().enumerate().map(|(position, device)| {
        let function = VirtioFunction::new(device, pci::first_bar(position), interrupts.clone())?;
        Ok(Box::new(function) as Box<dyn Function>)
    });
    let pci = PciBus::new(functions.collect::<Result<_, FunctionSetupError>>()?)?;
    let bus = Arc::new(Bus { pci, com1, power, interrupts });

    let supported = cpuid::supported(&host.kvm)?;
    let vcpus = processors(host, config, &vm, &supported)?;
    let first = vcpus.first().ok_or(BuildError::NoVcpu)?;
    let refused = |source| BuildError::Registers { vcpu: 0, source };
    match start {
        Start::Kernel { initramfs_extra } => {
            let loaded = kernel::load(&ram, &config.boot, initramfs_extra)?;
            let pci_window_64 = layout::pci_window_64(memory.bytes, cpuid::address_bits(&supported));
            let machine = acpi::Machine { vcpus: config.vcpus.len() as u32, pci_window_64 };
            let tables = acpi::build(&machine)?;
            acpi::write(&ram, &tables)?;
            ram.write_slice(&RESET_CODE, GuestAddress(layout::RESET_VECTOR))?;
            pvh::write(&ram, &loaded, &layout::map(memory.bytes), tables.rsdp)?;
            registers::pvh_entry(first.fd(), &ram, loaded.entry).map_err(refused)?;
        }
        #[cfg(test)]
        Start::RealMode { code } => registers::real_mode(first.fd(), &ram, code).map_err(refused)?,
        #[cfg(test)]
        Start::ProtectedMode { code } => {
            ram.write_slice(code, GuestAddress(registers::BARE_METAL))?;
            registers::pvh_entry(first.fd(), &ram, registers::BARE_METAL).map_err(refused)?;
        }
    }
    Ok(Parts { bus, vcpus, handlers: vec![Box::new(serial)], outlet })
}

/// A VM with its interrupt controllers and timer, without memory.
fn create(host: &Usable) -> Result<VmFd, BuildError> {
    let refused = |what| move |source| BuildError::Kvm { what, source };
    let vm = loop {
        match host.kvm.create_vm() {
            // A signal that comes while KVM sets up; nothing was made.
            Err(error) if error.errno() == EINTR => {}
            outcome => break outcome.map_err(refused("itself"))?,
        }
    };
    // Intel's KVM needs both for a guest without paging; they come before the first vCPU.
    if host.kvm.check_extension(Cap::SetIdentityMapAddr) {
        vm.set_identity_map_address(layout::IDENTITY_MAP).map_err(refused("its identity map"))?;
    }
    if host.kvm.check_extension(Cap::SetTssAddr) {
        vm.set_tss_address(layout::TASK_STATE as usize).map_err(refused("its task state segment"))?;
    }
    vm.create_irq_chip().map_err(refused("its interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(refused("its timer"))?;
    Ok(vm)
}

const EINTR: i32 = 4;

fn processors(
    host: &Usable,
    config: &VmConfig,
    vm: &GuestVm,
    supported: &[kvm_cpuid_entry2],
) -> Result<Vec<GuestVcpu>, BuildError> {
    let topology = cpuid::topology(&host.kvm, config.vcpus.len() as u32, config.threads_per_core);
    let make = |vcpu: &crate::config::Vcpu| {
        let id = vcpu.id;
        let guest = vm.create_vcpu(id).map_err(|source| BuildError::Kvm { what: "a vCPU", source })?;
        let refused = |source| BuildError::Registers { vcpu: id, source };
        let leaves = CpuId::from_entries(&cpuid::for_vcpu(supported, topology, id)).map_err(|_| {
            refused(RegisterError::Kvm { what: "CPUID", source: kvm_ioctls::Error::new(registers::E2BIG) })
        })?;
        let cpuid = guest.fd().set_cpuid2(&leaves);
        cpuid.map_err(|source| refused(RegisterError::Kvm { what: "CPUID", source }))?;
        registers::firmware_state(guest.fd()).map_err(refused)?;
        Ok(guest)
    };
    config.vcpus.iter().map(make).collect()
}
