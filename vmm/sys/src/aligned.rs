//! A byte buffer whose address is a multiple of what O_DIRECT asks for: the bounce buffer of requests that the guest did
//! not align so.

// UNSAFETY: `Vec` cannot be given an alignment.
#![allow(unsafe_code, reason = "allocation with an alignment of our choice")]

use std::alloc::{self, Layout};
use std::ptr::NonNull;

#[derive(Debug)]
pub struct AlignedBuffer {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its memory as a `Box` does.
unsafe impl Send for AlignedBuffer {}

impl AlignedBuffer {
    /// A zeroed buffer.
    ///
    /// # Panics
    /// When `bytes` is 0 or `alignment` is not a power of two: both come from our own constants and the host's disks.
    pub fn new(bytes: usize, alignment: usize) -> Self {
        assert!(bytes > 0, "a bounce buffer holds something");
        let layout = Layout::from_size_align(bytes, alignment).expect("alignments are powers of two");
        // SAFETY: the layout has a size above zero, as asserted.
        let memory = unsafe { alloc::alloc_zeroed(layout) };
        let Some(base) = NonNull::new(memory) else { alloc::handle_alloc_error(layout) };
        AlignedBuffer { base, layout }
    }

    /// Its length in bytes; never 0.
    pub fn size(&self) -> usize {
        self.layout.size()
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `base` holds `size` initialised bytes of ours until drop, and no one writes while we are borrowed.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.layout.size()) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and we are borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, and freed only here.
        unsafe { alloc::dealloc(self.base.as_ptr(), self.layout) };
    }
}
