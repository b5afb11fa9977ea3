//! Which CPUs a thread may run on, for hosts of any size: the mask is as long as the highest CPU asks, where `cpu_set_t`
//! and what is built on it end at 1,024.

// UNSAFETY: no safe interface takes an affinity mask longer than `cpu_set_t`.
#![allow(unsafe_code, reason = "sched_setaffinity and sched_getaffinity with masks of any length")]

use std::io;

const BITS: usize = libc::c_ulong::BITS as usize;
/// The kernel refuses a mask shorter than its own; no distribution builds it for more CPUs than this (NR_CPUS).
const MOST_CPUS: usize = 1 << 16;

/// Lets the calling thread run on `cpus` alone. An empty set, or one with no CPU that is online and allowed, is EINVAL.
pub fn pin_current_thread(cpus: &[u32]) -> io::Result<()> {
    pin_thread(0, cpus)
}

/// The same for the thread `tid` of this process; 0 is the calling thread, and ESRCH one that has ended.
pub fn pin_thread(tid: i32, cpus: &[u32]) -> io::Result<()> {
    let mask = mask(cpus);
    // SAFETY: `mask` outlives the call, which reads it alone, and its length in bytes is what we pass.
    let result = unsafe { libc::sched_setaffinity(tid, size_of_val(&mask[..]), mask.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A mask as long as the highest of `cpus` asks.
pub(crate) fn mask(cpus: &[u32]) -> Vec<libc::c_ulong> {
    let highest = cpus.iter().copied().max().map_or(0, |cpu| cpu as usize);
    let mut mask = vec![0; highest / BITS + 1];
    for &cpu in cpus {
        mask[cpu as usize / BITS] |= 1 << (cpu as usize % BITS);
    }
    mask
}

/// The CPUs that the thread `tid` may run on, ascending; 0 is the calling thread.
pub fn cpus_of_thread(tid: i32) -> io::Result<Vec<u32>> {
    let mut mask = vec![0 as libc::c_ulong; MOST_CPUS / BITS];
    // SAFETY: the kernel writes at most the length we pass, which is the length of `mask`.
    let result = unsafe { libc::sched_getaffinity(tid, size_of_val(&mask[..]), mask.as_mut_ptr().cast()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let set = |cpu: &u32| mask[*cpu as usize / BITS] & (1 << (*cpu as usize % BITS)) != 0;
    Ok((0..MOST_CPUS as u32).filter(set).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_what_the_kernel_reads_back() {
        std::thread::spawn(|| {
            let allowed = cpus_of_thread(0).unwrap();
            let last = *allowed.last().unwrap();
            pin_current_thread(&[last]).unwrap();
            assert_eq!(cpus_of_thread(0).unwrap(), [last]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused() {
        assert_eq!(pin_current_thread(&[60_000]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(pin_current_thread(&[]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
