//! NUMA policy of mapped memory: set it, read it back, ask where its pages are.

// UNSAFETY: mbind, get_mempolicy and move_pages have no safe interface; they take addresses and masks as raw pointers.
#![allow(unsafe_code, reason = "mbind, get_mempolicy and move_pages through syscall(2)")]

use std::io;

use vm_memory::GuestRegionMmap;

const BITS: usize = libc::c_ulong::BITS as usize;
/// The kernel's MAX_NUMNODES in any build (CONFIG_NODES_SHIFT ends at 10).
const MOST_NODES: usize = 1024;
// set_mempolicy(2): the modes by number.
const MPOL_PREFERRED: libc::c_long = 1;
const MPOL_BIND: libc::c_long = 2;
const MPOL_INTERLEAVE: libc::c_long = 3;
/// Since Linux 5.15.
const MPOL_PREFERRED_MANY: libc::c_long = 5;
const MPOL_F_ADDR: libc::c_long = 1 << 1;

/// How memory belongs to its nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Binding {
    /// Pages come from these nodes and from no other.
    #[default]
    Strict,
    /// Pages come from these nodes while they have any, then from others.
    Preferred,
    /// Pages come from these nodes in turn.
    Interleave,
}

impl Binding {
    /// The kernel's number of it. One preferred node has an older mode of its own, which every kernel knows.
    fn mode(self, nodes: &[u32]) -> libc::c_long {
        match (self, nodes) {
            (Binding::Strict, _) => MPOL_BIND,
            (Binding::Preferred, [_]) => MPOL_PREFERRED,
            (Binding::Preferred, _) => MPOL_PREFERRED_MANY,
            (Binding::Interleave, _) => MPOL_INTERLEAVE,
        }
    }
}

/// What the kernel holds of a range's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `None`: a policy that nobody here sets, such as the process's own.
    pub binding: Option<Binding>,
    /// Ascending.
    pub nodes: Vec<u32>,
}

/// Pages of `region` shall come from `nodes`, which ascend, as `binding` says. Pages that exist already stay where they are.
pub fn bind(region: &GuestRegionMmap<()>, binding: Binding, nodes: &[u32]) -> io::Result<()> {
    let mut mask = [0 as libc::c_ulong; MOST_NODES / BITS];
    for &node in nodes {
        // A number that no kernel has: refused as the kernel refuses one that this host lacks.
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
            binding.mode(nodes),
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

/// The policy of `region` as the kernel has it.
pub fn policy(region: &GuestRegionMmap<()>) -> io::Result<Policy> {
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
    let binding = match libc::c_long::from(mode) {
        MPOL_BIND => Some(Binding::Strict),
        MPOL_PREFERRED | MPOL_PREFERRED_MANY => Some(Binding::Preferred),
        MPOL_INTERLEAVE => Some(Binding::Interleave),
        _ => None,
    };
    let set = |node: &u32| mask[*node as usize / BITS] & (1 << (*node as usize % BITS)) != 0;
    Ok(Policy { binding, nodes: (0..MOST_NODES as u32).filter(set).collect() })
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
