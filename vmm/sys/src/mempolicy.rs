//! NUMA policy of mapped memory: bind it, read the binding back, ask where its pages are.

// UNSAFETY: mbind, get_mempolicy and move_pages have no safe interface; they take addresses and masks as raw pointers.
#![allow(unsafe_code, reason = "mbind, get_mempolicy and move_pages through syscall(2)")]

use std::io;

use vm_memory::GuestRegionMmap;

const BITS: usize = libc::c_ulong::BITS as usize;
/// The kernel's MAX_NUMNODES in any build (CONFIG_NODES_SHIFT ends at 10).
const MOST_NODES: usize = 1024;
const MPOL_BIND: libc::c_long = 2;
const MPOL_F_ADDR: libc::c_long = 1 << 1;

/// Pages of `region` shall come from `nodes` alone. Pages that exist already stay where they are.
pub fn bind(region: &GuestRegionMmap<()>, nodes: &[u32]) -> io::Result<()> {
    let mut mask = [0 as libc::c_ulong; MOST_NODES / BITS];
    for &node in nodes {
        let word =
            mask.get_mut(node as usize / BITS).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        *word |= 1 << (node as usize % BITS);
    }
    // SAFETY: the range is a mapping that `region` owns, and the kernel reads `MOST_NODES` bits of `mask`, which it has. (The
    // kernel takes one bit less than the length says, hence the one more.)
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            region.as_ptr(),
            region.size(),
            MPOL_BIND,
            mask.as_ptr(),
            MOST_NODES + 1,
            0 as libc::c_long,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Brings every page of `region` into being, where its policy says. What cannot be had is an error here, where a first touch
/// would be a SIGBUS.
pub fn populate(region: &GuestRegionMmap<()>) -> io::Result<()> {
    // SAFETY: the range is a mapping that `region` owns; populating it changes no byte that anyone has read, since pages that
    // are there stay as they are.
    let result = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_POPULATE_WRITE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The nodes that `region` is bound to, ascending; `None` when its policy is not MPOL_BIND.
pub fn bound_nodes(region: &GuestRegionMmap<()>) -> io::Result<Option<Vec<u32>>> {
    let mut mode: libc::c_int = 0;
    let mut mask = [0 as libc::c_ulong; MOST_NODES / BITS];
    // SAFETY: the kernel writes one int and at most `MOST_NODES` bits, for which `mode` and `mask` have room.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut mode,
            mask.as_mut_ptr(),
            MOST_NODES,
            region.as_ptr(),
            MPOL_F_ADDR,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let set = |node: &u32| mask[*node as usize / BITS] & (1 << (*node as usize % BITS)) != 0;
    Ok((mode as libc::c_long == MPOL_BIND).then(|| (0..MOST_NODES as u32).filter(set).collect()))
}

/// The nodes of the pages at each `step` bytes of `region`, of those pages that exist. Empty on a kernel without NUMA.
pub fn nodes_of_pages(region: &GuestRegionMmap<()>, step: u64) -> io::Result<Vec<u32>> {
    let step = step.max(4096) as usize;
    let pages: Vec<*mut u8> =
        (0..region.size()).step_by(step).map(|offset| region.as_ptr().wrapping_add(offset)).collect();
    let mut status = vec![-libc::ENOENT; pages.len()];
    // SAFETY: with no target nodes the call moves nothing: it reads `pages.len()` addresses and writes as many ints, and both
    // arrays are that long. The addresses need not even be mapped.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0 as libc::c_long,
            pages.len(),
            pages.as_ptr(),
            std::ptr::null::<libc::c_int>(),
            status.as_mut_ptr(),
            0 as libc::c_long,
        )
    };
    if result == 0 {
        return Ok(status.into_iter().filter_map(|node| u32::try_from(node).ok()).collect());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOSYS) { Ok(Vec::new()) } else { Err(error) }
}
