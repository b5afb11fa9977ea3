//! Guest memory that the kernel has pinned and mapped once, for all operations on it: what it does for each otherwise.

use std::io;
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode};
use libc::iovec;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use crate::memory::GuestRam;

/// The kernel takes no longer one.
const LONGEST_PIECE: usize = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error(
        "registering guest memory locks {bytes} bytes of it, and this process may lock {limit}; raise its RLIMIT_MEMLOCK \
         (`ulimit -l`), or give it CAP_IPC_LOCK"
    )]
    Locked { bytes: u64, limit: u64, source: io::Error },
    #[error("the kernel refused to register {bytes} bytes of guest memory")]
    Refused { bytes: u64, source: io::Error },
}

#[derive(Debug)]
pub(super) struct Registered {
    /// Kept mapped as long as the kernel may be told to use it.
    ram: Arc<GuestRam>,
    /// Address and length of each buffer, by its index; ascending.
    pieces: Vec<(usize, usize)>,
    /// Whether lists of segments may use them too (Linux 6.15).
    vectored: bool,
}

impl Registered {
    /// Pins all of `ram`, and so takes what is not there yet from its nodes.
    pub(super) fn new(uring: &IoUring, ram: &Arc<GuestRam>) -> Result<Self, RegisterError> {
        let mut pieces = Vec::new();
        for region in ram.iter() {
            let (base, len) = (region.as_ptr() as usize, region.len() as usize);
            pieces.extend((0..len).step_by(LONGEST_PIECE).map(|at| (base + at, LONGEST_PIECE.min(len - at))));
        }
        pieces.sort_unstable();
        let bytes = pieces.iter().map(|(_, len)| *len as u64).sum();
        let buffers: Vec<iovec> =
            pieces.iter().map(|(base, len)| iovec { iov_base: *base as *mut _, iov_len: *len }).collect();
        // SAFETY: the pieces are all in regions of `ram`, which is kept with the ring, and the ring is closed before it.
        let outcome = unsafe { uring.submitter().register_buffers(&buffers) };
        outcome.map_err(|source| match source.raw_os_error() {
            Some(libc::ENOMEM | libc::EPERM) if lockable() < bytes => {
                RegisterError::Locked { bytes, limit: lockable(), source }
            }
            _ => RegisterError::Refused { bytes, source },
        })?;
        let mut probe = Probe::new();
        let vectored = uring.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::ReadvFixed::CODE)
            && probe.is_supported(opcode::WritevFixed::CODE);
        Ok(Registered { ram: Arc::clone(ram), pieces, vectored })
    }

    pub(super) fn is_of(&self, ram: &Arc<GuestRam>) -> bool {
        Arc::ptr_eq(&self.ram, ram)
    }

    /// The buffer that all of `segments` lie in, where there is one.
    pub(super) fn buffer_of(&self, segments: &[iovec]) -> Option<u16> {
        let (first, more) = segments.split_first()?;
        if !more.is_empty() && !self.vectored {
            return None;
        }
        let index =
            self.pieces.partition_point(|(base, _)| *base <= first.iov_base as usize).checked_sub(1)?;
        let (base, len) = *self.pieces.get(index)?;
        let inside = |segment: &iovec| {
            let at = (segment.iov_base as usize).checked_sub(base);
            at.and_then(|at| at.checked_add(segment.iov_len)).is_some_and(|end| end <= len)
        };
        segments.iter().all(inside).then(|| u16::try_from(index).ok()).flatten()
    }
}

/// What this process may lock, capabilities aside.
fn lockable() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Memlock).current.unwrap_or(u64::MAX)
}
