//! Guest memory: one memfd, ordinary or huge pages, mapped shared, given its NUMA policy before anything touches it.
//!
//! The safe parts are rustix's and vm-memory's; the policy's system calls live in [`crate::mempolicy`].

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::mempolicy;
pub use crate::mempolicy::{Binding, Policy};

/// The guest's memory, shared by every thread that serves it.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// One stretch of guest-physical memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub len: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("guest memory cannot use pages of {bytes} bytes: hugetlbfs has pages of 2 MiB and of 1 GiB")]
    PageSize { bytes: u64 },
    #[error("guest memory of {len} bytes at {start:#x} is not a whole number of pages of {page} bytes")]
    Partial { start: u64, len: u64, page: u64 },
    #[error("the host has no {bytes} bytes of guest memory to give{}", huge_note(.huge))]
    Reserve { bytes: u64, huge: Option<u64>, source: io::Error },
    #[error("guest memory could not be mapped: {0}")]
    Map(String),
    #[error("guest memory was to come from {}, and the kernel refused{}", wish(*.binding, .nodes), kernel_note(*.binding, .nodes, .source))]
    Bind { binding: Binding, nodes: Vec<u32>, source: io::Error },
    #[error("NUMA nodes {nodes:?} have no {bytes} bytes left in pages of {page} bytes for guest memory")]
    HugeOnNodes { nodes: Vec<u32>, bytes: u64, page: u64, source: io::Error },
    #[error(
        "guest memory was to come from NUMA nodes {nodes:?} in turn, in pages of {page} bytes, but some came from \
         nodes {found:?}: the others have too few"
    )]
    HugeElsewhere { nodes: Vec<u32>, page: u64, found: Vec<u32> },
    #[error("guest memory was to come from {}, but the kernel has {found}", wish(*.binding, .nodes))]
    Drifted { binding: Binding, nodes: Vec<u32>, found: String },
}

/// Where memory is to come from, in words.
fn wish(binding: Binding, nodes: &[u32]) -> String {
    match binding {
        Binding::Strict => format!("NUMA nodes {nodes:?} alone"),
        Binding::Preferred => format!("NUMA nodes {nodes:?} as long as they have room"),
        Binding::Interleave => format!("NUMA nodes {nodes:?} in turn"),
    }
}

/// The one refusal that an older kernel explains.
fn kernel_note(binding: Binding, nodes: &[u32], source: &io::Error) -> &'static str {
    let invalid = source.raw_os_error() == Some(libc::EINVAL);
    match binding {
        Binding::Preferred if invalid && nodes.len() > 1 => {
            ": a node is not there, or the kernel is older than 5.15, which prefers one node at most"
        }
        _ => "",
    }
}

fn huge_note(huge: &Option<u64>) -> String {
    huge.map_or_else(String::new, |page| format!(" in pages of {page} bytes"))
}

/// Allocates `ranges`, in ascending order, with `hugepage_bytes` pages (`None`: ordinary ones), from `nodes` as `binding`
/// says (empty: as the process has it). Nothing is touched: pages come into being where the policy says, when the guest first uses them.
/// Huge pages are reserved here, so that a host without them says so now and not with a SIGBUS later.
pub fn allocate(
    ranges: &[Range],
    hugepage_bytes: Option<u64>,
    binding: Binding,
    nodes: &[u32],
) -> Result<GuestRam, MemoryError> {
    let (flags, page) = match hugepage_bytes {
        None => (MemfdFlags::CLOEXEC, 4096),
        Some(bytes) => (MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | huge_flag(bytes)?, bytes),
    };
    if let Some(range) = ranges.iter().find(|range| range.start % page != 0 || range.len % page != 0) {
        return Err(MemoryError::Partial { start: range.start, len: range.len, page });
    }
    let total: u64 = ranges.iter().map(|range| range.len).sum();
    let refused = |source: io::Error| MemoryError::Reserve { bytes: total, huge: hugepage_bytes, source };
    let memfd = memfd_create("vmprof guest memory", flags).map_err(|errno| refused(errno.into()))?;
    rustix::fs::ftruncate(&memfd, total).map_err(|errno| refused(errno.into()))?;
    let file = Arc::new(File::from(memfd));

    let mut regions = Vec::with_capacity(ranges.len());
    let mut offset = 0;
    for range in ranges {
        // Without MAP_NORESERVE hugetlbfs sets the pages aside at mmap, or fails it with ENOMEM.
        let reserve = if hugepage_bytes.is_some() { 0 } else { libc::MAP_NORESERVE };
        let mapping = MmapRegionBuilder::new(range.len as usize)
            .with_file_offset(FileOffset::from_arc(file.clone(), offset))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | reserve)
            .with_hugetlbfs(hugepage_bytes.is_some())
            .build()
            .map_err(|error| match error {
                vm_memory::mmap::MmapRegionError::Mmap(source) => refused(source),
                other => MemoryError::Map(other.to_string()),
            })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start))
            .ok_or_else(|| MemoryError::Map(format!("{range:?} reaches beyond the address space")))?;
        regions.push(region);
        offset += range.len;
    }
    let ram = GuestRam::from_regions(regions).map_err(|error| MemoryError::Map(error.to_string()))?;
    let nodes = ascending(nodes);
    bind(&ram, binding, &nodes)?;
    if let (Some(page), false) = (hugepage_bytes, nodes.is_empty()) {
        place_huge(&ram, binding, nodes, total, page)?;
    }
    Ok(ram)
}

fn ascending(nodes: &[u32]) -> Vec<u32> {
    let mut nodes = nodes.to_owned();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// Sets every region's policy and reads it back.
fn bind(ram: &GuestRam, binding: Binding, nodes: &[u32]) -> Result<(), MemoryError> {
    if nodes.is_empty() {
        return Ok(());
    }
    let refused = |source| MemoryError::Bind { binding, nodes: nodes.to_owned(), source };
    for region in ram.iter() {
        match mempolicy::bind(region, binding, nodes) {
            Ok(()) => {}
            // A kernel without NUMA has all its memory on node 0: whatever is asked of that node holds by itself.
            Err(source) if source.raw_os_error() == Some(libc::ENOSYS) && nodes == [0] => continue,
            Err(source) => return Err(refused(source)),
        }
        let found = mempolicy::policy(region).map_err(refused)?;
        if found.binding != Some(binding) || found.nodes != nodes {
            let found = match found.binding {
                Some(other) => wish(other, &found.nodes),
                None => "no such policy".to_owned(),
            };
            return Err(MemoryError::Drifted { binding, nodes: nodes.to_owned(), found });
        }
    }
    Ok(())
}

/// Takes huge pages from their nodes now. What mmap set aside may be on any node: only taking the pages shows whether these
/// nodes have them, and interleaving takes others in silence where one has not.
fn place_huge(
    ram: &GuestRam,
    binding: Binding,
    nodes: Vec<u32>,
    bytes: u64,
    page: u64,
) -> Result<(), MemoryError> {
    if binding == Binding::Preferred {
        return Ok(());
    }
    if let Err(source) = ram.iter().try_for_each(mempolicy::populate) {
        return Err(MemoryError::HugeOnNodes { nodes, bytes, page, source });
    }
    let mut found = Vec::new();
    for region in ram.iter() {
        let refused = |source| MemoryError::Bind { binding, nodes: nodes.clone(), source };
        found.extend(mempolicy::nodes_of_pages(region, page).map_err(refused)?);
    }
    let found = ascending(&found);
    match found.iter().all(|node| nodes.contains(node)) {
        true => Ok(()),
        false => Err(MemoryError::HugeElsewhere { nodes, page, found }),
    }
}

fn huge_flag(bytes: u64) -> Result<MemfdFlags, MemoryError> {
    match bytes {
        0x20_0000 => Ok(MemfdFlags::HUGE_2MB),
        0x4000_0000 => Ok(MemfdFlags::HUGE_1GB),
        _ => Err(MemoryError::PageSize { bytes }),
    }
}

/// Where `ram` lies now: pages resident on each NUMA node of the host, sampled at `samples` places spread evenly. A page
/// that the guest has not used yet is nowhere and not counted.
pub fn sample_nodes(ram: &GuestRam, samples: usize) -> io::Result<Vec<(u32, usize)>> {
    let total: u64 = ram.iter().map(|region| region.len()).sum();
    let step = (total / samples.max(1) as u64).max(4096) & !4095;
    let mut counts = std::collections::BTreeMap::new();
    for region in ram.iter() {
        for node in mempolicy::nodes_of_pages(region, step)? {
            *counts.entry(node).or_insert(0) += 1;
        }
    }
    Ok(counts.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn ranges_on_both_sides_of_a_hole_do_not_overlap_in_the_file() {
        let low = Range { start: 0, len: 4 * MIB };
        let high = Range { start: 64 * MIB, len: 4 * MIB };
        let ram = allocate(&[low, high], None, Binding::Strict, &[]).unwrap();
        ram.write_obj(1u64, GuestAddress(0)).unwrap();
        ram.write_obj(2u64, GuestAddress(64 * MIB)).unwrap();
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0)).unwrap(), 1);
        assert!(ram.read_obj::<u64>(GuestAddress(4 * MIB)).is_err());
    }

    #[test]
    fn a_page_size_that_hugetlbfs_lacks_is_refused() {
        let error =
            allocate(&[Range { start: 0, len: 4 * MIB }], Some(4 * MIB), Binding::Strict, &[]).unwrap_err();
        assert!(matches!(error, MemoryError::PageSize { bytes } if bytes == 4 * MIB));
    }

    #[test]
    fn memory_that_is_no_whole_number_of_pages_is_refused() {
        let error =
            allocate(&[Range { start: 0, len: 3 * MIB }], Some(2 * MIB), Binding::Strict, &[]).unwrap_err();
        assert!(matches!(error, MemoryError::Partial { page, .. } if page == 2 * MIB));
    }

    /// The last node of this host, which is not the one that memory comes from by itself where there are several.
    fn last_node() -> u32 {
        let online =
            std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_else(|_| "0".into());
        online.trim_end().rsplit(['-', ',']).next().unwrap().parse().unwrap()
    }

    const BINDINGS: [Binding; 3] = [Binding::Strict, Binding::Preferred, Binding::Interleave];

    #[test]
    fn memory_is_on_its_node_once_it_is_touched_however_it_is_bound() {
        let node = last_node();
        for binding in BINDINGS {
            let ram = allocate(&[Range { start: 0, len: 4 * MIB }], None, binding, &[node]).unwrap();
            assert_eq!(sample_nodes(&ram, 4).unwrap(), []);
            ram.write_obj(1u8, GuestAddress(0)).unwrap();
            ram.write_obj(1u8, GuestAddress(MIB)).unwrap();
            let counts = sample_nodes(&ram, 4).unwrap();
            // A kernel without NUMA cannot say where a page is; one with it says where it was told.
            assert!(counts.is_empty() || counts == [(node, 2)], "{binding:?}: {counts:?}");
        }
    }

    #[test]
    fn the_kernel_has_each_policy_as_it_was_asked_for() {
        let node = last_node();
        for binding in BINDINGS {
            // Given twice, it is one node.
            let ram = allocate(&[Range { start: 0, len: 4 * MIB }], None, binding, &[node, node]).unwrap();
            for region in ram.iter() {
                match mempolicy::policy(region) {
                    Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                        return eprintln!("skipped: memory policies: this kernel has no NUMA");
                    }
                    found => {
                        assert_eq!(found.unwrap(), Policy { binding: Some(binding), nodes: vec![node] })
                    }
                }
            }
        }
    }

    #[test]
    fn several_preferred_nodes_are_kept_or_refused_with_what_they_need() {
        let nodes = [last_node(), 900];
        // Node 900 is not there: the kernel leaves it out, which is noticed, or knows no such policy and says so.
        let error = allocate(&[Range { start: 0, len: 4 * MIB }], None, Binding::Preferred, &nodes);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("but the kernel has") || text.contains("5.15"), "{text}");
    }

    #[test]
    fn huge_pages_come_from_their_node_or_are_refused() {
        let node = last_node();
        let free = format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/free_hugepages");
        let free: u64 = std::fs::read_to_string(free).map_or(0, |text| text.trim().parse().unwrap());
        if free == 0 {
            return eprintln!("skipped: huge pages of a node: node {node} has none free");
        }
        let range = |pages| [Range { start: 0, len: 2 * MIB * pages }];
        let ram = allocate(&range(free), Some(2 * MIB), Binding::Strict, &[node]).unwrap();
        assert_eq!(sample_nodes(&ram, free as usize).unwrap(), [(node, free as usize)]);
        drop(ram);
        let error = allocate(&range(free + 1), Some(2 * MIB), Binding::Strict, &[node]).unwrap_err();
        assert!(matches!(error, MemoryError::HugeOnNodes { .. } | MemoryError::Reserve { .. }), "{error}");
    }

    #[test]
    fn a_node_that_is_not_there_or_that_no_kernel_has_is_refused_by_name() {
        // 1024 is one beyond the mask; the last one would be beyond any memory if it were an index.
        for node in [900, 1023, 1024, 65_536, u32::MAX] {
            for binding in BINDINGS {
                let error =
                    allocate(&[Range { start: 0, len: 4 * MIB }], None, binding, &[node]).unwrap_err();
                let named = matches!(&error, MemoryError::Bind { nodes, .. } if nodes == &[node]);
                assert!(named && error.to_string().contains(&node.to_string()), "{binding:?}: {error}");
            }
        }
    }
}
