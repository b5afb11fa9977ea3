//! Guest memory: one memfd, ordinary or huge pages, mapped shared, bound to NUMA nodes before anything touches it.
//!
//! The safe parts are rustix's and vm-memory's; binding lives in [`crate::mempolicy`].

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::mempolicy;

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
    #[error("guest memory was to come from NUMA nodes {nodes:?} alone, and the kernel refused")]
    Bind { nodes: Vec<u32>, source: io::Error },
    #[error("NUMA nodes {nodes:?} have no {bytes} bytes left in pages of {page} bytes for guest memory")]
    HugeOnNodes { nodes: Vec<u32>, bytes: u64, page: u64, source: io::Error },
    #[error(
        "guest memory was to come from NUMA nodes {asked:?} alone, but the kernel has it bound to {found:?}"
    )]
    Drifted { asked: Vec<u32>, found: Vec<u32> },
}

fn huge_note(huge: &Option<u64>) -> String {
    huge.map_or_else(String::new, |page| format!(" in pages of {page} bytes"))
}

/// Allocates `ranges`, in ascending order, with `hugepage_bytes` pages (`None`: ordinary ones), bound to `nodes` (empty: as
/// the process has it). Nothing is touched: pages come into being where the policy says, when the guest first uses them.
/// Huge pages are reserved here, so that a host without them says so now and not with a SIGBUS later.
pub fn allocate(
    ranges: &[Range],
    hugepage_bytes: Option<u64>,
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
    bind(&ram, nodes)?;
    if let (Some(page), false) = (hugepage_bytes, nodes.is_empty()) {
        // What mmap set aside may be on any node: only taking the pages now shows whether these nodes have them.
        let short = |source| MemoryError::HugeOnNodes { nodes: nodes.to_owned(), bytes: total, page, source };
        ram.iter().try_for_each(mempolicy::populate).map_err(short)?;
    }
    Ok(ram)
}

/// Binds every region and reads the binding back.
fn bind(ram: &GuestRam, nodes: &[u32]) -> Result<(), MemoryError> {
    if nodes.is_empty() {
        return Ok(());
    }
    let mut asked = nodes.to_owned();
    asked.sort_unstable();
    asked.dedup();
    for region in ram.iter() {
        match mempolicy::bind(region, &asked) {
            Ok(()) => {}
            // A kernel without NUMA has all its memory on node 0: binding to that node holds by itself.
            Err(source) if source.raw_os_error() == Some(libc::ENOSYS) && asked == [0] => continue,
            Err(source) => return Err(MemoryError::Bind { nodes: asked, source }),
        }
        let found = mempolicy::bound_nodes(region)
            .map_err(|source| MemoryError::Bind { nodes: asked.clone(), source })?;
        if found.as_deref() != Some(&asked[..]) {
            return Err(MemoryError::Drifted { asked, found: found.unwrap_or_default() });
        }
    }
    Ok(())
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
        let ram = allocate(&[low, high], None, &[]).unwrap();
        ram.write_obj(1u64, GuestAddress(0)).unwrap();
        ram.write_obj(2u64, GuestAddress(64 * MIB)).unwrap();
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0)).unwrap(), 1);
        assert!(ram.read_obj::<u64>(GuestAddress(4 * MIB)).is_err());
    }

    #[test]
    fn a_page_size_that_hugetlbfs_lacks_is_refused() {
        let error = allocate(&[Range { start: 0, len: 4 * MIB }], Some(4 * MIB), &[]).unwrap_err();
        assert!(matches!(error, MemoryError::PageSize { bytes } if bytes == 4 * MIB));
    }

    #[test]
    fn memory_that_is_no_whole_number_of_pages_is_refused() {
        let error = allocate(&[Range { start: 0, len: 3 * MIB }], Some(2 * MIB), &[]).unwrap_err();
        assert!(matches!(error, MemoryError::Partial { page, .. } if page == 2 * MIB));
    }

    /// The last node of this host, which is not the one that memory comes from by itself where there are several.
    fn last_node() -> u32 {
        let online =
            std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_else(|_| "0".into());
        online.trim_end().rsplit(['-', ',']).next().unwrap().parse().unwrap()
    }

    #[test]
    fn bound_memory_is_on_its_node_once_it_is_touched() {
        let node = last_node();
        let ram = allocate(&[Range { start: 0, len: 4 * MIB }], None, &[node]).unwrap();
        assert_eq!(sample_nodes(&ram, 4).unwrap(), []);
        ram.write_obj(1u8, GuestAddress(0)).unwrap();
        ram.write_obj(1u8, GuestAddress(MIB)).unwrap();
        let counts = sample_nodes(&ram, 4).unwrap();
        // A kernel without NUMA cannot say where a page is; one with it says where it was told.
        assert!(counts.is_empty() || counts == [(node, 2)], "{counts:?}");
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
        let ram = allocate(&range(free), Some(2 * MIB), &[node]).unwrap();
        assert_eq!(sample_nodes(&ram, free as usize).unwrap(), [(node, free as usize)]);
        drop(ram);
        let error = allocate(&range(free + 1), Some(2 * MIB), &[node]).unwrap_err();
        assert!(matches!(error, MemoryError::HugeOnNodes { .. } | MemoryError::Reserve { .. }), "{error}");
    }

    #[test]
    fn a_node_that_is_not_there_is_refused_by_name() {
        let error = allocate(&[Range { start: 0, len: 4 * MIB }], None, &[900]).unwrap_err();
        assert!(matches!(&error, MemoryError::Bind { nodes, .. } if nodes == &[900]), "{error}");
    }
}
