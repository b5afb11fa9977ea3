//! Guest memory: memfd, huge pages, bound to NUMA nodes.

/// The guest's memory, shared by every thread that serves it.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;
