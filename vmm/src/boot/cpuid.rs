//! What the guest's processors say about themselves: all that KVM supports on this host, with the topology made ours. The
//! vCPUs are the cores of one socket, or, in twos, fours or eights in a row, the SMT siblings of its cores. Their APIC ids are
//! their numbers, so that the threads of a core differ in the lowest bits alone. All share the last-level cache.
//!
//! The host's own topology must not shine through: a guest that believes it would look for siblings it does not have.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// Leaf 1, EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Leaf 1, ECX: the local APIC's timer takes a deadline. KVM emulates it itself and reports it as a capability, not here.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 0x8000_0001, ECX, AMD: the logical processors of a package are cores.
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x8000_0001, ECX, AMD: leaves 0x8000_001d and 0x8000_001e are there.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Leaf 0, EBX: `Auth` of AuthenticAMD and `Hygo` of HygonGenuine, which has AMD's leaves.
const AMD_LIKE: [u32; 2] = [0x6874_7541, 0x6f67_7948];

/// What of a machine the leaves depend on.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    pub vcpus: u32,
    /// A power of two.
    pub threads_per_core: u32,
    pub tsc_deadline: bool,
}

impl Topology {
    /// vCPUs, with those that the last core lacks.
    fn whole_cores(self) -> u32 {
        self.vcpus.next_multiple_of(self.threads_per_core.max(1))
    }

    /// Bits of an APIC id that number a core's threads.
    fn thread_bits(self) -> u32 {
        self.threads_per_core.max(1).trailing_zeros()
    }

    /// Bits of an APIC id that number threads and cores. Fields that hold numbers of ids count in powers of two.
    fn id_bits(self) -> u32 {
        self.whole_cores().next_power_of_two().trailing_zeros()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("KVM did not say what processors it supports")]
pub struct CpuidError(#[source] pub kvm_ioctls::Error);

/// All leaves that KVM supports here.
pub fn supported(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, CpuidError> {
    let entries = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(CpuidError)?;
    let mut entries = entries.as_slice().to_vec();
    // KVM leaves the processor's name empty.
    for function in BRAND {
        let name = std::arch::x86_64::__cpuid(function);
        entries.retain(|entry| entry.function != function);
        let (eax, ebx, ecx, edx) = (name.eax, name.ebx, name.ecx, name.edx);
        entries.push(kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() });
    }
    Ok(entries)
}

/// The leaves of the processor's name, which every 64-bit processor has.
const BRAND: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;

pub fn topology(kvm: &Kvm, vcpus: u32, threads_per_core: u32) -> Topology {
    Topology { vcpus, threads_per_core, tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer) }
}

/// Width of physical addresses in bits.
pub fn address_bits(supported: &[kvm_cpuid_entry2]) -> u8 {
    // Every 64-bit processor has the leaf; 36 is what the first of them had.
    supported.iter().find(|entry| entry.function == 0x8000_0008).map_or(36, |entry| entry.eax as u8)
}

/// The leaves of the vCPU `id`.
pub fn for_vcpu(supported: &[kvm_cpuid_entry2], topology: Topology, id: u32) -> Vec<kvm_cpuid_entry2> {
    let (thread_bits, id_bits) = (topology.thread_bits(), topology.id_bits());
    let several = topology.vcpus > 1;
    let mut entries: Vec<_> =
        supported.iter().filter(|entry| !is_topology(entry.function)).copied().collect();
    if thread_bits > 0 {
        extend_topology(&mut entries);
    }
    for entry in &mut entries {
        match entry.function {
            0x1 => {
                let count = if several { 1 << id_bits } else { 0u32 };
                entry.ebx = entry.ebx & 0xffff | count.min(255) << 16 | id << 24;
                entry.ecx |= HYPERVISOR;
                set(&mut entry.ecx, TSC_DEADLINE, topology.tsc_deadline);
                set(&mut entry.edx, HTT, several);
            }
            // Intel and AMD, caches: how many ids share this one, and on Intel how many cores the package has.
            0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 0b111;
                let sharing = (1 << if level >= 3 { id_bits } else { thread_bits }) - 1;
                entry.eax = entry.eax & 0x3fff | sharing << 14;
                if entry.function == 0x4 {
                    entry.eax |= ((1u32 << (id_bits - thread_bits)) - 1).min(63) << 26;
                }
            }
            0x8000_0001 if !several => entry.ecx &= !CMP_LEGACY,
            // AMD: threads of the package less one, and how many bits of the APIC id number them.
            0x8000_0008 => {
                let most = topology.whole_cores().saturating_sub(1).min(255);
                entry.ecx = entry.ecx & !0xf0ff | most | id_bits << 12;
            }
            // AMD: the APIC id, the core's number and its threads less one, and one node.
            0x8000_001e => {
                let core = id >> thread_bits & 0xff;
                (entry.eax, entry.ebx, entry.ecx) = (id, core | ((1 << thread_bits) - 1) << 8, 0);
            }
            _ => {}
        }
    }
    let most_basic = entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    for function in [0xb, 0x1f].into_iter().filter(|function| *function <= most_basic) {
        // AMD has no leaf 0x1f, and what is not there on the host need not be here.
        if supported.iter().any(|entry| entry.function == function) {
            entries.extend(levels(function, topology, id));
        }
    }
    entries
}

/// Leaves that are made anew, and 0x8000_0026, whose host's levels nothing of ours replaces: a guest without it reads the others.
fn is_topology(function: u32) -> bool {
    matches!(function, 0xb | 0x1f | 0x8000_0026)
}

/// AMD numbers the threads of a core in leaf 0x8000_001e alone. Every processor of theirs with SMT has it; where KVM does not
/// offer it (an emulated processor lacks it), it can be shown all the same, since it only tells.
fn extend_topology(entries: &mut Vec<kvm_cpuid_entry2>) {
    const LEAF: u32 = 0x8000_001e;
    if !entries.iter().any(|entry| entry.function == 0 && AMD_LIKE.contains(&entry.ebx)) {
        return;
    }
    for entry in entries.iter_mut() {
        match entry.function {
            0x8000_0000 => entry.eax = entry.eax.max(LEAF),
            0x8000_0001 => entry.ecx |= TOPOLOGY_EXTENSIONS,
            _ => {}
        }
    }
    if !entries.iter().any(|entry| entry.function == LEAF) {
        entries.push(kvm_cpuid_entry2 { function: LEAF, ..Default::default() });
    }
}

/// The levels of the extended topology: the threads in a core, all of them in the package, and the end.
fn levels(function: u32, topology: Topology, id: u32) -> [kvm_cpuid_entry2; 3] {
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let level = |index, eax, ebx, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: index | kind << 8,
        edx: id,
        ..Default::default()
    };
    let (thread_bits, id_bits) = (topology.thread_bits(), topology.id_bits());
    [
        level(0, thread_bits, 1 << thread_bits, THREAD),
        level(1, id_bits, topology.whole_cores(), CORE),
        level(2, 0, 0, 0),
    ]
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

#[cfg(test)]
mod tests;
