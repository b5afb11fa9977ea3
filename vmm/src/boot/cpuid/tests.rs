//! The leaves of hosts like Intel's and like AMD's, as their guests read them.

use super::*;

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

const AMD: u32 = AMD_LIKE[0];
const INTEL: u32 = 0x756e_6547;

/// A host of 16 threads with the leaves of either maker, as it would shine through.
fn host(maker: u32) -> Vec<kvm_cpuid_entry2> {
    vec![
        leaf(0, 0, [0x1f, maker, 0, 0]),
        leaf(1, 0, [0x50657, 0x0910_0800, 0x1, HTT]),
        leaf(4, 0, [0x1c00_4121, 0, 0, 0]),
        leaf(4, 3, [0x1c03_c163, 0, 0, 0]),
        leaf(0xb, 0, [1, 2, 0x100, 9]),
        leaf(0xb, 1, [4, 16, 0x201, 9]),
        leaf(0x1f, 0, [1, 2, 0x100, 9]),
        leaf(0x8000_0000, 0, [0x8000_0026, 0, 0, 0]),
        leaf(0x8000_0001, 0, [0, 0, TOPOLOGY_EXTENSIONS | CMP_LEGACY, 0]),
        leaf(0x8000_0008, 0, [0x3030, 0, 0x400f, 0]),
        leaf(0x8000_001d, 0, [0x4121, 0, 0, 0]),
        leaf(0x8000_001d, 3, [0x3c163, 0, 0, 0]),
        leaf(0x8000_001e, 0, [9, 0x104, 1, 0]),
        leaf(0x8000_0026, 0, [1, 2, 0x100, 9]),
    ]
}

type Reads = Box<dyn Fn(u32, u32) -> kvm_cpuid_entry2>;

fn guest_of(host: &[kvm_cpuid_entry2], vcpus: u32, threads_per_core: u32, id: u32) -> Reads {
    let leaves = for_vcpu(host, Topology { vcpus, threads_per_core, tsc_deadline: true }, id);
    // A leaf that is not there reads as zeros, as the processor has it.
    Box::new(move |function, index| {
        let found = leaves.iter().find(|leaf| (leaf.function, leaf.index) == (function, index));
        found.copied().unwrap_or_default()
    })
}

fn guest(vcpus: u32, id: u32) -> Reads {
    guest_of(&host(INTEL), vcpus, 1, id)
}

fn siblings(maker: u32, vcpus: u32, id: u32) -> Reads {
    guest_of(&host(maker), vcpus, 2, id)
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

#[test]
fn a_pair_of_vcpus_is_one_core_in_every_leaf_of_intels() {
    for (id, core) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        let guest = siblings(INTEL, 4, id);
        // SDM, CPUID leaf 0xb: the id less the bits of the level's own is the number of the next.
        for function in [0xb, 0x1f] {
            let (threads, cores) = (guest(function, 0), guest(function, 1));
            assert_eq!((threads.eax, threads.ebx, threads.ecx >> 8 & 0xff), (1, 2, 1), "{function:#x}");
            assert_eq!((cores.eax, cores.ebx, cores.ecx >> 8 & 0xff), (2, 4, 2), "{function:#x}");
            assert_eq!((threads.edx, threads.edx >> threads.eax), (id, core), "{function:#x}");
            assert_eq!(guest(function, 2).ebx, 0, "{function:#x}");
        }
        assert_eq!(
            (guest(1, 0).ebx >> 24, guest(1, 0).ebx >> 16 & 0xff, guest(1, 0).edx & HTT),
            (id, 4, HTT)
        );
        // Two cores, whose first cache has two threads and whose last has four.
        assert_eq!(
            (guest(4, 0).eax >> 26, guest(4, 0).eax >> 14 & 0xfff, guest(4, 3).eax >> 14 & 0xfff),
            (1, 1, 3)
        );
    }
}

#[test]
fn a_pair_of_vcpus_is_one_core_in_every_leaf_of_amds() {
    for (id, core) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        let guest = siblings(AMD, 4, id);
        assert_eq!((guest(0x8000_001e, 0).eax, guest(0x8000_001e, 0).ebx), (id, 1 << 8 | core));
        assert_eq!(guest(0x8000_001e, 0).ecx, 0, "one node");
        assert_eq!(guest(0x8000_0008, 0).ecx & 0xf0ff, 2 << 12 | 3);
        assert_eq!(guest(0x8000_001d, 0).eax >> 14 & 0xfff, 1);
        assert_eq!(guest(0x8000_001d, 3).eax >> 14 & 0xfff, 3);
        assert_eq!((guest(0xb, 0).ebx, guest(0xb, 0).edx), (2, id));
        assert_eq!(guest(0x8000_0026, 0).ebx, 0, "the host's own levels are gone");
    }
}

#[test]
fn a_maker_like_amd_without_the_leaf_of_threads_is_given_it_for_siblings_alone() {
    let mut host = host(AMD);
    host.retain(|leaf| !matches!(leaf.function, 0x8000_001d | 0x8000_001e | 0x8000_0026));
    for leaf in &mut host {
        match leaf.function {
            0x8000_0000 => leaf.eax = 0x8000_001a,
            0x8000_0001 => leaf.ecx = CMP_LEGACY,
            _ => {}
        }
    }
    let pairs = guest_of(&host, 4, 2, 3);
    assert_eq!(pairs(0x8000_0000, 0).eax, 0x8000_001e);
    assert_eq!(pairs(0x8000_0001, 0).ecx, TOPOLOGY_EXTENSIONS | CMP_LEGACY);
    assert_eq!((pairs(0x8000_001e, 0).eax, pairs(0x8000_001e, 0).ebx), (3, 1 << 8 | 1));
    let alone = guest_of(&host, 4, 1, 3);
    assert_eq!((alone(0x8000_0000, 0).eax, alone(0x8000_0001, 0).ecx), (0x8000_001a, CMP_LEGACY));
    assert_eq!(alone(0x8000_001e, 0), kvm_cpuid_entry2::default());
}

#[test]
fn intels_guests_get_no_leaf_of_amds() {
    let mut host = host(INTEL);
    host.retain(|leaf| leaf.function != 0x8000_001e);
    let guest = guest_of(&host, 4, 2, 3);
    assert_eq!(guest(0x8000_001e, 0), kvm_cpuid_entry2::default());
}

#[test]
fn a_last_core_that_lacks_a_thread_is_counted_whole() {
    let guest = siblings(AMD, 5, 4);
    // Six threads take three bits of id.
    assert_eq!((guest(0xb, 1).eax, guest(0xb, 1).ebx), (3, 6));
    assert_eq!(guest(0x8000_0008, 0).ecx & 0xf0ff, 3 << 12 | 5);
    assert_eq!(guest(0x8000_001e, 0).ebx & 0xff, 2);
    assert_eq!(siblings(INTEL, 5, 4)(4, 0).eax >> 26, 3, "four numbers of cores, of which three are used");
}

#[test]
fn four_threads_share_a_core_and_its_caches() {
    let guest = guest_of(&host(INTEL), 8, 4, 6);
    assert_eq!((guest(0xb, 0).eax, guest(0xb, 0).ebx, guest(0xb, 1).eax), (2, 4, 3));
    assert_eq!((guest(4, 0).eax >> 26, guest(4, 0).eax >> 14 & 0xfff), (1, 3));
}
