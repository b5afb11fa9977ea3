//! What the guest's processors say about themselves: all that KVM supports on this host, with the topology made ours. N vCPUs
//! are N cores of one socket with one thread each, whose APIC ids are their numbers, and which share the last-level cache.
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

/// What of a machine the leaves depend on.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    pub vcpus: u32,
    pub tsc_deadline: bool,
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

pub fn topology(kvm: &Kvm, vcpus: u32) -> Topology {
    Topology { vcpus, tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer) }
}

/// Width of physical addresses in bits.
pub fn address_bits(supported: &[kvm_cpuid_entry2]) -> u8 {
    // Every 64-bit processor has the leaf; 36 is what the first of them had.
    supported.iter().find(|entry| entry.function == 0x8000_0008).map_or(36, |entry| entry.eax as u8)
}

/// The leaves of the vCPU `id`.
pub fn for_vcpu(supported: &[kvm_cpuid_entry2], topology: Topology, id: u32) -> Vec<kvm_cpuid_entry2> {
    let vcpus = topology.vcpus;
    // Fields that hold numbers of ids count in powers of two.
    let id_bits = vcpus.next_power_of_two().trailing_zeros();
    let several = vcpus > 1;
    let mut entries: Vec<_> =
        supported.iter().filter(|entry| !is_topology(entry.function)).copied().collect();
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
                let sharing = if level >= 3 { (1 << id_bits) - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14;
                if entry.function == 0x4 {
                    entry.eax |= ((1u32 << id_bits) - 1).min(63) << 26;
                }
            }
            0x8000_0001 if !several => entry.ecx &= !CMP_LEGACY,
            // AMD: cores of the package less one, and how many bits of the APIC id number them.
            0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (vcpus - 1).min(255) | id_bits << 12,
            // AMD: this core's id, one thread in it, one node.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
    let most_basic = entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    for function in [0xb, 0x1f].into_iter().filter(|function| *function <= most_basic) {
        // AMD has no leaf 0x1f, and what is not there on the host need not be here.
        if supported.iter().any(|entry| entry.function == function) {
            entries.extend(levels(function, vcpus, id_bits, id));
        }
    }
    entries
}

/// Leaves that are made anew.
fn is_topology(function: u32) -> bool {
    matches!(function, 0xb | 0x1f)
}

/// The levels of the extended topology: one thread in a core, all cores in the package, and the end.
fn levels(function: u32, vcpus: u32, id_bits: u32, id: u32) -> [kvm_cpuid_entry2; 3] {
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
    [level(0, 0, 1, THREAD), level(1, id_bits, vcpus, CORE), level(2, 0, 0, 0)]
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    /// A host of 16 threads, as it would shine through.
    fn host() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0, [0x1f, 0, 0, 0]),
            leaf(1, 0, [0x50657, 0x0910_0800, 0x1, HTT]),
            leaf(4, 0, [0x1c00_4121, 0, 0, 0]),
            leaf(4, 3, [0x1c03_c163, 0, 0, 0]),
            leaf(0xb, 0, [1, 2, 0x100, 9]),
            leaf(0xb, 1, [4, 16, 0x201, 9]),
            leaf(0x8000_0008, 0, [0x3030, 0, 0x400f, 0]),
            leaf(0x8000_001e, 0, [9, 0x104, 1, 0]),
        ]
    }

    fn guest(vcpus: u32, id: u32) -> impl Fn(u32, u32) -> kvm_cpuid_entry2 {
        let leaves = for_vcpu(&host(), Topology { vcpus, tsc_deadline: true }, id);
        move |function, index| {
            *leaves.iter().find(|leaf| (leaf.function, leaf.index) == (function, index)).unwrap()
        }
    }

    #[test]
    fn each_vcpu_has_its_number_as_its_apic_id_in_every_leaf() {
        let guest = guest(4, 3);
        assert_eq!(guest(1, 0).ebx >> 24, 3);
        assert_eq!((guest(0xb, 0).edx, guest(0xb, 1).edx), (3, 3));
        assert_eq!((guest(0x8000_001e, 0).eax, guest(0x8000_001e, 0).ebx), (3, 3));
    }

    #[test]
    fn four_vcpus_are_four_cores_of_one_thread_in_one_package() {
        let guest = guest(4, 0);
        assert_eq!((guest(0xb, 0).eax, guest(0xb, 0).ebx), (0, 1));
        assert_eq!((guest(0xb, 1).eax, guest(0xb, 1).ebx), (2, 4));
        assert_eq!(guest(1, 0).ebx >> 16 & 0xff, 4);
        assert_eq!(guest(0x8000_0008, 0).ecx & 0xf0ff, 2 << 12 | 3);
        assert_eq!(guest(4, 0).eax >> 26, 3);
    }

    #[test]
    fn the_last_level_cache_is_shared_and_the_first_is_not() {
        let guest = guest(4, 0);
        assert_eq!(guest(4, 0).eax >> 14 & 0xfff, 0);
        assert_eq!(guest(4, 3).eax >> 14 & 0xfff, 3);
    }

    #[test]
    fn one_vcpu_is_not_hyperthreaded() {
        let guest = guest(1, 0);
        assert_eq!((guest(1, 0).edx & HTT, guest(0xb, 1).eax, guest(0xb, 1).ebx), (0, 0, 1));
    }

    #[test]
    fn three_vcpus_take_two_bits_of_id() {
        let guest = guest(3, 2);
        assert_eq!((guest(0xb, 1).eax, guest(0xb, 1).ebx), (2, 3));
    }

    #[test]
    fn the_timer_of_kvm_is_offered_and_the_guest_knows_that_it_is_one() {
        let ecx = guest(2, 0)(1, 0).ecx;
        assert_eq!(ecx & (HYPERVISOR | TSC_DEADLINE), HYPERVISOR | TSC_DEADLINE);
    }
}
